import sys
from pathlib import Path

import pytest
import torch

from fisherlab import models
from fisherlab.errors import InputError

FACTORIES = """
import torch
from torch import nn

network = nn.Linear(2, 3)
size = 3

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def complete():
    return nn.Linear(2, 3), (torch.ones(5, 2), torch.arange(5)), "gaussian"

def pair():
    return nn.Bilinear(2, 4, 3), ((torch.ones(5, 2), torch.ones(5, 4)), torch.arange(5)), "gaussian"

def unequal_pair():
    return nn.Bilinear(2, 4, 3), ((torch.ones(5, 2), torch.ones(6, 4)), torch.arange(5)), "gaussian"

def no_inputs():
    return nn.Linear(2, 3), ((), torch.arange(5)), "gaussian"

def empty():
    return nn.Linear(2, 3), (torch.ones(0, 2), torch.arange(0)), "gaussian"

def unclean():
    return nn.Linear(2, 3), (torch.ones(5, 2) / torch.arange(5)[:, None], torch.arange(5)), "gaussian"

def by_name():
    return ByName(2, 3), ({"x": torch.ones(5, 2), "doubled": True}, torch.arange(5)), "gaussian"

def unequal():
    return nn.Linear(2, 3), (torch.ones(5, 2), torch.arange(4)), "gaussian"

def short():
    return nn.Linear(2, 3), (torch.ones(5, 2), torch.arange(5) % 3)

def loader():
    y = torch.arange(5) % 3
    samples = [{"x": torch.full((2,), float(n)), "label": y[n]} for n in range(5)]
    return ByName(2, 3), torch.utils.data.DataLoader(samples, batch_size=2)

def ragged():
    y = torch.tensor([0, 1])
    return nn.Flatten(), [(torch.ones(2, 3), y), (torch.ones(2, 4), y)]

def unlabelled():
    return nn.Linear(2, 3), [torch.ones(5, 2)]

class ByName(nn.Linear):
    def forward(self, x, doubled=False):
        return {"scores": super().forward(2 * x if doubled else x)}

def nothing():
    pass

def demanding(width):
    return nn.Linear(width, 3)

def failing():
    raise RuntimeError("no weights\\nfound")
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``factories`` in the working directory, and ``broken`` ones beside it."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("def half(:")
    (tmp_path / "needs.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("factories", "broken", "needs"):
        sys.modules.pop(name, None)


def test_a_factory_may_bring_its_data_and_likelihood() -> None:
    model, (inputs, targets), likelihood = models.load("factories:complete")
    assert model(inputs).shape == (5, 3)
    assert targets.tolist() == [0, 1, 2, 3, 4]
    assert likelihood == "gaussian"


def test_its_provenance_names_the_factory_and_hashes_the_data() -> None:
    prepared = models.prepare("factories:complete", samples=3)
    assert prepared.dataset.label == "factories:complete"
    assert len(prepared.dataset.checksum) == 64
    assert len(prepared.inputs) == len(prepared.targets) == 3
    assert prepared.checkpoint == "init"


def test_a_factorys_inputs_may_be_a_tuple() -> None:
    prepared = models.prepare("factories:pair", samples=3, dtype=torch.float64)
    assert [tuple(tensor.shape) for tensor in prepared.inputs] == [(3, 2), (3, 4)]
    assert {tensor.dtype for tensor in prepared.inputs} == {torch.float64}
    assert prepared.model(*prepared.inputs).shape == (3, 3)
    assert prepared.dataset.checksum != models.prepare("factories:complete").dataset.checksum


def test_inputs_by_name_with_a_flag() -> None:
    prepared = models.prepare("factories:by_name", samples=3, dtype=torch.float64)
    assert prepared.inputs["x"].shape == (3, 2)
    assert prepared.inputs["x"].dtype == torch.float64
    assert prepared.inputs["doubled"] is True


def test_a_likelihood_is_not_needed() -> None:
    assert models.load("factories:short").likelihood == "categorical"


def test_a_loader_of_dictionaries_is_read_whole_and_its_labels_are_the_targets() -> None:
    inputs, targets = models.load("factories:loader").data
    assert list(inputs) == ["x"]
    assert torch.equal(inputs["x"][:, 0], torch.arange(5.0))
    assert targets.tolist() == [0, 1, 2, 0, 1]


def test_a_bare_model_takes_the_named_data() -> None:
    model, (inputs, targets), likelihood = models.load(
        "factories:bare", data="mnist", samples=6, dtype=torch.float64
    )
    assert model(inputs).shape == (6, 10)
    assert targets.shape == (6,)
    assert likelihood == "categorical"


def test_the_factory_is_seeded_and_the_global_state_untouched() -> None:
    state = torch.get_rng_state()
    first = models.load("factories:complete", seed=1).model.weight
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, models.load("factories:complete", seed=1).model.weight)
    assert not torch.equal(first, models.load("factories:complete", seed=2).model.weight)


def test_the_import_path_is_as_before() -> None:
    before = list(sys.path)
    models.load("factories:complete")
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("factories:bare", "without data; name a data set"),
        ("factories:absent", "unknown factory of factories 'absent'; known: ByName, bare"),
        ("factories:complet", "'complet'; did you mean complete"),
        ("factories:empty", "the data set is empty"),
        ("factories:unclean", "inputs of batch 0 hold values that are not finite"),
        ("factories:size", "is of type int, not a factory"),
        ("factories:network", "is of type Linear, not a factory"),
        ("factories:ragged", "different shapes; pad all"),
        ("factories:unlabelled", "there are no targets"),
        ("factories:nothing", "returned None; return"),
        ("factories:unequal", "5 inputs and 4 targets"),
        ("factories:unequal_pair", "have 5 and 6 samples"),
        ("factories:no_inputs", r"data must be a pair .* not a tuple \(tuple, Tensor\)"),
        ("factories:demanding", "failed: TypeError.*width"),
        ("factories:failing", "failed: RuntimeError: no weights found"),
        ("factories:", "form package.module:factory"),
        (":bare", "form package.module:factory"),
        (".factories:bare", "form package.module:factory"),
        ("no_such_module:f", "'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("broken:half", "'broken' cannot be imported: SyntaxError"),
        ("needs:f", "a_package_that_is_not_there"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        models.load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "at_most", "taken"), [(None, 3, 3), (None, 9, 5), (4, 3, 4), (None, None, 5)]
)
def test_at_most_so_many_samples_where_none_are_asked_for(samples, at_most, taken):
    prepared = models.prepare("factories:complete", samples=samples, at_most=at_most)
    assert len(prepared.dataset) == len(prepared.targets) == taken
