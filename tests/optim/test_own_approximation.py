"""An approximation of the user's own as a preconditioner, on the base of all optimizers."""

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from optim.cases import assert_same, backward, batches, network, train, weights
from torch import Tensor

import fisherlab as fl
from fisherlab import approximations
from fisherlab.damping import Constant, Damping, Pi
from fisherlab.errors import InputError, InputTypeError, NotSupportedError
from fisherlab.operators import DenseOperator, LinearOperator
from fisherlab.optim import NaturalGradient

DAMPING = 0.3


class Diagonal(approximations.Approximation):
    """That of fisherlab, and the matrices made of it below."""

    name, formula, source = "own", "diag F", "this test"
    statistics = approximations.create("diagonal").statistics

    def build(self, layer: Any, sums: Any, kind: str) -> LinearOperator:
        return approximations.create("diagonal").build(layer, sums, kind)


class Dense(Diagonal):
    """The same matrix, stored whole."""

    def build(self, layer: Any, sums: Any, kind: str) -> LinearOperator:
        diagonal = super().build(layer, sums, kind)
        return DenseOperator(diagonal.dense(), diagonal.outputs, diagonal.inputs)


class Foreign(DenseOperator):
    """Its inverse is of a class that is not fisherlab's."""

    def inverse(self, damping: Any = 0.0) -> LinearOperator:
        class Inverse(LinearOperator):
            def apply(self, X: Tensor) -> Tensor:
                return X

            def scaled(self, factor: float) -> LinearOperator:
                return self

            def diagonal_matrix(self) -> Tensor:
                return torch.ones(self.outputs, self.inputs)

        return Inverse(self.outputs, self.inputs, self.dtype, self.device)


class Unknown(Diagonal):
    """Of a structure that only its author knows."""

    def build(self, layer: Any, sums: Any, kind: str) -> LinearOperator:
        diagonal = super().build(layer, sums, kind)
        return Foreign(diagonal.dense(), diagonal.outputs, diagonal.inputs)


class Own(NaturalGradient):
    """Plain steps along D, with the statistics of every batch."""

    def __init__(self, model: torch.nn.Module, method: Any, damping: Damping | None = None) -> None:
        self._given = damping or Constant(DAMPING)
        super().__init__(
            model,
            method,
            lr=0.1,
            momentum=0.0,
            weight_decay=0.0,
            weight_decay_mode="decoupled",
            decay=0.5,
            statistics_every=1,
            inverse_every=1,
            damping=DAMPING,
            rate="fixed",
            rate_damping=0.0,
            max_rate=None,
            rate_samples=None,
            scaler=None,
            source="empirical",
            momentum_on="update",
            loss_reduction="mean",
            likelihood="categorical",
            other_lr=None,
            include=("*",),
            exclude=(),
        )

    def damping_of(self, group: Mapping[str, Any], view: Any) -> Damping:
        return self._given


def squares(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The mean of the squared gradients of single samples, sample by sample."""
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(*batch, strict=True):
        loss = torch.nn.functional.cross_entropy(model(x.unsqueeze(0)), y.unsqueeze(0))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for value, g in zip(found.values(), gradients, strict=True):
            value += g.square() / len(batch[1])
    return found


@pytest.mark.parametrize("method", [Diagonal, Dense])
def test_the_step_is_that_of_the_damped_matrix(method):
    """W ← W − lr ∇h / (diag F + λ), diag F a moving average of squared gradients."""
    model, usual, data = network("mlp"), network("mlp"), batches("mlp", 3)
    optimizer = Own(model, method())
    average: dict[str, Tensor] = {}
    for batch in data:
        new = squares(usual, batch)
        average = {k: 0.5 * average[k] + 0.5 * v if average else v for k, v in new.items()}
        usual.zero_grad()
        backward(usual, batch)
        with torch.no_grad():
            for name, p in usual.named_parameters():
                p -= 0.1 * p.grad / (average[name] + DAMPING)
        train(model, optimizer, [batch])
    for name, value in weights(usual).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), value)
    damped = average["4.weight"].flatten().tolist() + average["4.bias"].tolist()
    expected = (max(damped) + DAMPING) / (min(damped) + DAMPING)
    assert optimizer.diagnostics()["condition"].iloc[-1] == pytest.approx(expected)


@pytest.mark.parametrize("method", [Diagonal, Dense])
@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_its_state_goes_on_to_the_bit(method, name):
    model, usual, data = network(name), network(name), batches(name, 4)
    before = Own(model, method())
    train(model, before, data[:2])
    after = Own(model, method())
    after.load_state_dict(before.state_dict())
    assert_same(train(model, after, data[2:]), train(usual, Own(usual, method()), data))


def test_an_inverse_that_no_state_could_keep():
    model, [batch] = network("mlp"), batches("mlp")
    optimizer = Own(model, Unknown())
    before = weights(model)
    with pytest.raises(NotSupportedError, match=r"layer '.': an optimizer cannot keep an inverse"):
        train(model, optimizer, [batch])
    assert_same(weights(model), before)


def test_a_damping_of_factors_that_are_not_there():
    model, [batch] = network("mlp"), batches("mlp")
    with pytest.raises(NotSupportedError, match=r"layer '.': Pi damps the two factors .* give a number"):
        train(model, Own(model, Diagonal(), Pi(0.1)), [batch])


def test_an_approximation_of_the_exact_block():
    with pytest.raises(InputError, match="nearest-kronecker is made from the exact Fisher block"):
        Own(network("mlp"), approximations.create("nearest-kronecker"))


# --- from outside: a registered name, and three lines -------------------------------------------------


@pytest.fixture
def mine(monkeypatch):
    """`Diagonal` registered as a third party's, forgotten after the test."""
    monkeypatch.setattr(approximations.base, "_REGISTRY", approximations.registered())
    fl.register_approximation(Diagonal)


class Mine(NaturalGradient):
    approximation = "own"
    damping = DAMPING


PLAIN: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "decay": 0.5,
    "statistics_every": 1,
    "inverse_every": 1,
    "source": "empirical",
}


@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_three_lines_make_an_optimizer(mine, name):
    """To the bit that with every option written out, and the base with the same arguments."""
    data = batches(name, 3)
    makes = [
        lambda model: Own(model, Diagonal()),
        lambda model: Mine(model, **PLAIN),
        lambda model: NaturalGradient(model, "own", damping=DAMPING, **PLAIN),
        lambda model: NaturalGradient(model, Diagonal(), damping=Constant(DAMPING), **PLAIN),
        lambda model: NaturalGradient(model, approximation="own", damping=DAMPING, **PLAIN),
    ]
    first, *others = [train(model, make(model), data) for make in makes for model in [network(name)]]
    for other in others:
        assert_same(other, first)


def test_three_lines_have_defaults_for_everything(mine):
    model, [batch] = network("mlp"), batches("mlp")
    optimizer = Mine(model)
    [group] = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["damping"]) == (0.03, 0.9, DAMPING)
    before = backward(model, batch).item()
    train(model, optimizer, [batch] * 30)
    assert backward(model, batch).item() < 0.8 * before
    assert inspect.signature(Mine).parameters["damping"].default == DAMPING
    assert inspect.signature(Mine).parameters["approximation"].default == "own"


def test_three_lines_go_on_to_the_bit(mine):
    model, usual, data = network("mlp"), network("mlp"), batches("mlp", 4)
    before = Mine(model)
    train(model, before, data[:2])
    after = Mine(model)
    after.load_state_dict(before.state_dict())
    assert_same(train(model, after, data[2:]), train(usual, Mine(usual), data))
    copied, again = deepcopy((model, after))
    assert_same(train(copied, again, data), train(model, after, data))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            (),
            "takes an approximation, as its second argument .* derives from it; known: adafactor, adam, diag",
        ),
        (("nearest-kronecker",), "made from the exact Fisher block.* another approximation: adafactor, adam"),
        (("kfca",), "unknown approximation 'kfca'; did you mean kfac"),
    ],
)
def test_what_cannot_precondition(given, words):
    with pytest.raises(InputError, match=words):
        NaturalGradient(network("mlp"), *given)


def test_dampings_that_are_none():
    for damping, words in (("0.1", "must be a number or a damping object"), ((0.1, 0.2), "not tuple")):
        with pytest.raises(InputTypeError, match=words):
            NaturalGradient(network("mlp"), "foof", damping=damping)
    with pytest.raises(InputError, match="the damping is -1"):
        NaturalGradient(network("mlp"), "foof", damping=-1)


def test_an_attribute_that_looks_like_an_option_is_refused():
    with pytest.raises(InputError, match=r"Mine\.method is no option of an optimizer; write approximation"):

        class Mine(fl.optim.KFAC):
            method = "foof"

    with pytest.raises(InputError, match=r"Mine\.momentun is no option of an optimizer; write momentum"):

        class Mine(NaturalGradient):
            approximation = "foof"
            momentun = 0.5

    class Ours(fl.optim.KFAC):
        approximation = "foof"
        momentum = 0.5
        remark = "an attribute of one's own"

    assert inspect.signature(Ours).parameters["momentum"].default == 0.5


def test_a_number_is_a_damping_that_a_class_gives():
    class Numbered(NaturalGradient):
        approximation = "diagonal"

        def damping_of(self, group: Mapping[str, Any], view: Any) -> float:
            return DAMPING

    found = []
    for make in (Numbered, lambda model: NaturalGradient(model, "diagonal", damping=DAMPING)):
        model = network("mlp")
        train(model, make(model), batches("mlp", 2))
        found.append(weights(model))
    assert_same(*found)


def test_what_would_have_no_effect_is_refused():
    with pytest.raises(InputError, match="for another derive from NaturalGradient"):

        class Mine(fl.optim.LNGD):
            approximation = "kfac"

    with pytest.raises(InputError, match="takes predictive or empirical"):
        NaturalGradient(network("mlp"), "kfac", source="layerwise")
