"""Names of layers on disk: no two alike on any system, short, and the same in every run."""

import json
import re
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fisherlab as fl
from fisherlab.report.runs import write_report
from fisherlab.runs.finished import FinishedRun
from fisherlab.runs.names import file_names

NAMES = st.lists(st.text(alphabet="aA./ _-é\n" + string.digits, max_size=120), unique=True, max_size=12)
ENDINGS = ("", "-matched", "-activated")


@pytest.mark.parametrize("name", ["4", "encoder.layers.0.linear1", "Mixed_7c.branch"])
def test_a_plain_name_stays(name):
    assert file_names([name]) == {name: name}


@given(NAMES)
def test_no_two_files_are_alike_on_any_system(layers):
    files = [f"heatmap-{name}{ending}.png" for name in file_names(layers).values() for ending in ENDINGS]
    assert len({file.lower() for file in files}) == len(layers) * len(ENDINGS)
    for file in files:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", file)


@given(NAMES)
def test_a_key_depends_on_the_layer_alone(layers):
    for layer, name in file_names(layers).items():
        assert file_names([layer])[layer] == name or layer.lower() in [n.lower() or "root" for n in layers]
    assert file_names(reversed(layers)) == file_names(layers)


def named_modules(*names: str) -> nn.Module:
    model = nn.Module()
    for name in names:
        model._modules[name] = nn.Linear(3, 3)

    def forward(x):
        for module in model.children():
            x = module(x)
        return x

    model.forward = forward
    return model


ALIKE = ("a/b", "a_b", "x" * 240)


def test_each_layer_has_pictures_of_its_own(tmp_path):
    torch.manual_seed(0)
    data = (torch.randn(8, 3), torch.randint(3, (8,)))
    comparison = fl.compare(named_modules(*ALIKE), data, ("kfac",))
    run = comparison.save(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    files = summary["file_names"]
    assert list(files) == list(ALIKE)
    for kind in ("heatmap", "spectrum"):
        assert len({(run / f"{kind}-{name}.png").read_bytes() for name in files.values()}) == len(ALIKE)
    page = (run / "report.html").read_text()
    pictures = re.findall(r'<img[^>]*src="([^"]+)"', page)
    assert len(set(pictures)) == len(pictures) >= 2 * len(ALIKE)
    assert all((run / picture).is_file() for picture in pictures)
    finished = FinishedRun(run, "compare", summary, {}, {})
    joint = write_report(tmp_path / "joint.html", [finished], title="runs").read_text()
    for layer in ALIKE:
        for what in (f"heatmap {layer}", f"heatmap {layer} matched", f"spectrum {layer}"):
            assert joint.count(f'alt="{what}"') == 1


def test_representations_have_pictures_of_their_own(tmp_path):
    torch.manual_seed(0)
    found = fl.represent(named_modules("a/b", "a b", "x" * 240), torch.randn(16, 3))
    run = found.save(tmp_path / "run")
    assert len(list(run.glob("histogram-*.png"))) == 3
