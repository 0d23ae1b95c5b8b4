"""`rates`: what a step left of each layer, against plain computations; `diagnostics` has the same."""

import numpy as np
import pandas as pd
import pytest
import torch
from optim.cases import METHODS, batches, network, train, weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fisherlab.optim import EKFAC, KFAC, LNGD

COLUMNS = [
    *("layer", "rate", "trace_input", "trace_output", "damping_input", "damping_output"),
    *("direction_norm", "gradient_norm"),
]
OF_A_STEP = ["rate", "direction_norm", "gradient_norm"]
OF_THE_INVERSE = ["trace_input", "trace_output", "damping_input", "damping_output"]


@pytest.mark.parametrize("name", ["mlp", "grouped"])
@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_are_the_rates_and_the_condition_number(method, name):
    model = network(name)
    optimizer = METHODS[method](model)
    train(model, optimizer, batches(name, 2))
    rates, whole = optimizer.rates(), optimizer.diagnostics()
    assert list(rates.columns) == COLUMNS
    assert set(whole.columns) - set(COLUMNS) == {"condition"}
    pd.testing.assert_frame_equal(whole[COLUMNS], rates)
    assert rates[OF_A_STEP].notna().all(axis=None)


def test_all_numbers_by_hand():
    """KFAC with a layer-wise rate, inverted at every second step: F̂ in use may be that of the step before."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = KFAC(
        model,
        damping=0.1,
        rate="layerwise",
        rate_damping=0.7,
        source="empirical",
        statistics_every=1,
        inverse_every=2,
    )
    averages: list[Tensor] = []
    for step in range(4):
        x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
        a = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        g = torch.softmax(model(x), 1).detach() - nn.functional.one_hot(y, 3)
        new = [a.T @ a / 8, g.T @ g / 8]
        averages = [0.95 * F + 0.05 * N for F, N in zip(averages, new, strict=True)] if averages else new
        if step % 2 == 0:
            A, B = averages
            pi = ((A.trace() / 5) / (B.trace() / 3)).sqrt()
            shifts = pi * 0.1**0.5, 0.1**0.5 / pi
            inverses = [
                torch.linalg.inv(F + shift * torch.eye(len(F)))
                for F, shift in zip((A, B), shifts, strict=True)
            ]
        samples = g[:, :, None] * a[:, None, :]
        gradient = samples.mean(0)
        D = inverses[1] @ gradient @ inverses[0]
        rate = (D * gradient).sum() / ((D * samples).sum((1, 2)).square().mean() + 0.7)
        train(model, optimizer, [(x, y)])
        found = torch.tensor(optimizer.rates()[COLUMNS[1:]].to_numpy())
        expected = [rate, A.trace(), B.trace(), *shifts, D.norm(), gradient.norm()]
        torch.testing.assert_close(found, torch.stack(expected)[None])


def test_ekfac_has_the_trace_of_the_whole_and_one_damping():
    """tr F̂ = tr F = E‖∇ℓ_n‖² with the labels of the data."""
    [(x, y)], model = batches("mlp"), network("mlp")

    def loss(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, one), label)

    samples = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights(model), x, y)
    optimizer = EKFAC(model, source="empirical", damping=0.2)
    train(model, optimizer, [(x, y)])
    rows = optimizer.rates()
    for layer, trace in zip(rows.layer, rows.trace_input, strict=True):
        own = [float(V.square().sum()) for name, V in samples.items() if name.startswith(layer)]
        assert trace == pytest.approx(sum(own) / len(x))
    assert (rows.damping_input == 0.2).all()
    assert rows[["trace_output", "damping_output"]].isna().all(axis=None)


def test_every_group_has_its_own_damping():
    model = network("mlp")
    optimizer = KFAC(model, damping=0.1, groups=[{"layers": "2", "damping": 0.4}])
    train(model, optimizer, batches("mlp"))
    rows = optimizer.rates()
    assert list(rows.damping_input * rows.damping_output) == pytest.approx([0.1, 0.4, 0.1])


def test_before_the_first_step_there_are_no_numbers():
    optimizer = LNGD(network("mlp"))
    rows = optimizer.rates()
    assert list(rows.layer) == ["0", "2", "4"]
    assert rows[COLUMNS[1:]].isna().all(axis=None)
    assert (rows.dtypes[1:] == np.float64).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_state_has_the_numbers_of_the_inverse_and_none_of_a_step(method):
    data, model = batches("mlp", 3), network("mlp")
    optimizer = METHODS[method](model)
    train(model, optimizer, data[:1])
    before, state = optimizer.rates(), optimizer.state_dict()
    again = network("mlp")
    other = METHODS[method](again)
    train(again, other, data[1:])
    other.load_state_dict(state)
    again.load_state_dict(model.state_dict())
    rows = other.rates()
    pd.testing.assert_frame_equal(rows[OF_THE_INVERSE], before[OF_THE_INVERSE])
    assert rows[OF_A_STEP].isna().all(axis=None)
    for one, own in ((model, optimizer), (again, other)):
        train(one, own, data[2:])
    pd.testing.assert_frame_equal(other.rates(), optimizer.rates())


def test_a_state_from_before_they_were_kept_gives_them_at_the_next_inverse():
    [batch], model = batches("mlp"), network("mlp")
    optimizer = LNGD(model, inverse_every=1)
    train(model, optimizer, [batch])
    state = optimizer.state_dict()
    for values in state["state"].values():
        for layer in values.get("layers", {}).values():
            del layer["numbers"]
    optimizer.load_state_dict(state)
    assert optimizer.rates()[OF_THE_INVERSE].isna().all(axis=None)
    train(model, optimizer, [batch])
    assert optimizer.rates()[OF_THE_INVERSE].notna().all(axis=None)


def test_what_is_frozen_has_no_part():
    """A frozen layer has no row, and a frozen bias no entry in D and ∇h."""
    [batch], model = batches("mlp"), network("mlp")
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    optimizer = KFAC(model, 0.1, momentum=0.0, weight_decay=0.0, kl_clip=None)
    before = weights(model)["4.weight"]
    train(model, optimizer, [batch])
    rows = optimizer.rates()
    assert list(rows.layer) == ["2", "4"]
    last = rows.iloc[1]
    assert last.direction_norm == pytest.approx(float((weights(model)["4.weight"] - before).norm()) / 0.1)
    assert last.gradient_norm == pytest.approx(float(model[4].weight.grad.norm()))


class Scalars(TorchDispatchMode):
    """Counts the reads of single numbers, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_no_number_is_read_alone(method):
    model = network("mlp")
    optimizer = METHODS[method](model)
    train(model, optimizer, batches("mlp"))
    with Scalars() as known:
        float(torch.ones(()))
    with Scalars() as reads:
        optimizer.rates()
    assert (known.count, reads.count) == (1, 0)
