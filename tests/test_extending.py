"""The recipes of CONTRIBUTING.md, each added to a copy of the package just as it is written there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(python|diff) (fisherlab/\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SETUP = """
import torch
from torch import nn
import fisherlab as fl
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 3)).double()
data = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
"""


def recipes() -> dict[str, list[tuple[str, str, str]]]:
    """For each recipe its (kind of block, path, text)."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## Recipes\n")[2]
    parts = re.split(r"^### ", text.partition("\n## ")[0], flags=re.MULTILINE)[1:]
    return {part.partition(":")[0]: FENCE.findall(part) for part in parts}


def edited(path: Path, diff: str) -> None:
    """Puts the lines with a plus in the place of those with a minus, after those with neither.

    What is there before must stand in the file once.
    """
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if not line.startswith("+"))
    after = "".join(line[1:] for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path}:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A folder with the package and all recipes in it, as it is installed."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "fisherlab", folder / "fisherlab", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("cli", "figures"):
        shutil.copytree(ROOT / part, folder / "fisherlab" / part)
    for blocks in recipes().values():
        for kind, path, text in blocks:
            if kind == "diff":
                edited(folder / path, text)
            else:
                assert not (folder / path).exists()
                (folder / path).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def said(copy):
    """Runs Python with the copy, after `SETUP`; what it printed."""

    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SETUP + script],
            env={**os.environ, "PYTHONPATH": str(copy)},
            cwd=copy,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_recipe_touches_two_files():
    touched = {name: {path for _, path, _ in blocks} for name, blocks in recipes().items()}
    assert set(touched) == {
        "An approximation",
        "An optimizer",
        "A layer kind",
        "A fused module",
        "A metric",
        "A picture",
    }
    assert all(len(paths) == 2 for paths in touched.values())


def test_what_is_added_is_as_tidy_as_the_rest(copy):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff comes with the dev extra")
    touched = sorted({path for blocks in recipes().values() for _, path, _ in blocks})
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, "--config", ROOT / "pyproject.toml", *touched],
            cwd=copy,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_approximation(said):
    assert "kfac-diagonal True" in said("""
plain, made = (fl.approximate(name, model, data) for name in ("kfac", "kfac-diagonal"))
same = all(torch.allclose(made[n].dense(), plain[n].dense().diagonal().diag()) for n in plain)
records = fl.compare(model, data, ("kfac", "kfac-diagonal")).records
print(*records["approximation"].unique()[1:], same)
""")


def test_the_optimizer(said):
    assert "True 6" in said("""
from fisherlab.train.optimizers import named_optimizers
optimizer = named_optimizers()["kfac-diagonal"].make(model, lr=0.01, rate="fixed", source="empirical")
before = [p.clone() for p in model.parameters()]
nn.functional.cross_entropy(model(data[0]), data[1]).backward()
F, gradients = {n: fl.approximate("kfac-diagonal", model, data, kind="empirical")[n] for n in "02"}, {}
for name in "02":
    layer = model[int(name)]
    gradients[name] = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
optimizer.step()
good = []
for name in "02":
    layer = model[int(name)]
    old = dict(zip(dict(model.named_parameters()), before))
    moved = torch.cat([layer.weight, layer.bias[:, None]], 1) - torch.cat(
        [old[f"{name}.weight"], old[f"{name}.bias"][:, None]], 1
    )
    decayed = 0.01 * 0.004 * torch.cat([old[f"{name}.weight"], old[f"{name}.bias"][:, None]], 1)
    good.append(torch.allclose(-moved, 0.01 * F[name].solve(gradients[name], 0.01) + decayed, rtol=1e-8))
print(all(good), optimizer.diagnostics().shape[0] * 2)
""")


def test_the_layer_kind(said):
    assert said("""
exact = fl.exact_fisher(model, data, kind="empirical")["1"].dense()
total = 0.0
for x, y in zip(*data):
    loss = nn.functional.cross_entropy(model(x[None]), y[None])
    total = total + torch.autograd.grad(loss, model[1].weight)[0] ** 2
print(torch.allclose(exact.flatten(), total / 8), *fl.approximate("kfac", model, data))
""").split() == ["True", "0", "1", "2"]


def test_the_fused_module(said):
    assert said("""
from fisherlab.layers.gate import Gate
model = nn.Sequential(Gate(4, 3), nn.Linear(3, 3)).double()
exact = fl.exact_fisher(model, data, kind="empirical")
total = 0.0
for x, y in zip(*data):
    loss = nn.functional.cross_entropy(model(x[None]), y[None])
    total = total + torch.autograd.grad(loss, model[0].weight)[0] ** 2
found = [exact[name].dense().diagonal().reshape(4, 3).mT for name in ("0.value", "0.gate")]
print(torch.allclose(torch.cat(found), total / 8), *fl.approximate("lngd", model, data))
""").split() == ["True", "0.value", "0.gate", "1"]


def test_the_metric(said):
    assert said("""
c = fl.compare(model, data, ("diagonal", "kfac"))
columns = list(c.records.columns)
exact = c.records["diagonal_cosine"][c.records["approximation"] == "diagonal"]
print(columns[-2:], bool((exact - 1).abs().max() < 1e-12), c.records["diagonal_cosine"].notna().all())
print("diagonal_cosine" in c.summary()["layers"]["0"])
""").split("\n")[:2] == ["['diagonal_cosine', 'note'] True True", "True"]


def test_the_picture(said, tmp_path):
    said(f"fl.compare(model, data, ('kfac', 'foof')).save({str(tmp_path / 'run')!r})")
    assert (tmp_path / "run" / "scales.png").stat().st_size > 5000
    assert "The best scale of each F̂." in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
