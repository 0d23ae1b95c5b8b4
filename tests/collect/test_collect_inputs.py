"""What a pass gives where positions are masked, and for models with several inputs."""

import pytest
import torch
from model_cases import Net
from reference import Case
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.errors import InputError
from fisherlab.likelihoods import as_likelihood

Y = torch.arange(6) % 2


def one_pass(case: Case, kind: str, **options) -> dict[str, LayerBatch]:
    layers = fl.find_layers(case.model, **options)
    source = Collector(case.model, layers, case.data, as_likelihood(case.likelihood))
    (batches,) = source.passes(dict.fromkeys(layers, frozenset({kind})), "")
    return batches


# --- masks ----------------------------------------------------------------------------------------------


def mean_of_some(net: Net, x: Tensor) -> Tensor:
    """The mean over the positions [n, t, 3] whose last entry is positive."""
    weights = valid_of(x).to(x.dtype).unsqueeze(-1)
    return net.head((net.inner(x).tanh() * weights).sum(1) / 4)


def valid_of(x: Tensor) -> Tensor:
    return x[..., 2] > 0


@pytest.fixture
def some() -> Case:
    model = Net(mean_of_some, inner=nn.Linear(3, 4), head=nn.Linear(4, 2)).double()
    return Case(model, torch.randn(6, 4, 3).double(), Y, "categorical")


def test_masked_positions_are_zero_and_not_counted(some):
    masks, valid = {"inner": valid_of}, valid_of(some.inputs)
    batches = one_pass(some, "predictive", masks=masks)
    batch = batches["inner"]
    assert 0 < batch.positions == int(valid.sum()) < 24
    assert batch.half(0).positions + batch.half(1).positions == batch.positions
    assert batch.head(2).positions == int(valid[:2].sum())
    assert torch.equal(batch.a[~valid], torch.zeros(24 - batch.positions, 4).double())
    whole = one_pass(some, "predictive")["inner"]
    assert torch.equal(batch.a[valid], whole.a[valid])
    for kind in ("predictive", "layerwise", "layerwise:2"):
        g = one_pass(some, kind, masks=masks)["inner"].g[kind]
        assert not g[:, ~valid].any()
        assert g[:, valid].abs().sum((0, 2)).all()
    assert torch.equal(batch.g["predictive"], whole.g["predictive"])
    assert batches["head"].positions == 6
    layers = fl.find_layers(some.model, masks=masks)
    sums = fl.collect_statistics(some.model, some.data, layers=layers).sums
    assert [sums[name].positions for name in ("inner", "head")] == [batch.positions, 6]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda x: x[..., 2], "must be a bool"),
        (lambda x: valid_of(x)[:, :3], r"shape \[2, 3\]; .* \[2, 4\]"),
        (lambda x: valid_of(x) & False, "hides positions that the loss depends on"),
    ],
    ids=["numbers", "shape", "hiding"],
)
def test_masks_that_do_not_fit_are_refused(some, mask, message):
    layers = fl.find_layers(some.model, masks={"inner": mask})
    with pytest.raises(InputError, match=f"the mask of layer 'inner' .*{message}"):
        fl.exact_fisher(some.model, (some.inputs[:2], some.targets[:2]), layers=layers)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda x: 3, "gives int; it must be a bool for each sample"),
        (lambda x: None, "gives NoneType; it must be a bool for each sample"),
        (lambda x: valid_of(x).numpy(), "gives ndarray; it must be a bool for each sample"),
        (lambda x: {}["mask"], r"fails on the model's inputs \(KeyError: 'mask'\)"),
    ],
    ids=["number", "nothing", "array", "raising"],
)
@pytest.mark.parametrize("method", ["auto", "per-sample"])
def test_masks_that_give_no_tensor_are_refused_whoever_asks_for_them(some, mask, message, method):
    model = nn.Sequential(some.model, nn.LayerNorm(some.model(some.inputs).shape[-1]))
    for name, layer in (("0.inner", "*inner"), ("1", "1")):
        layers = fl.find_layers(model.double(), masks={layer: mask})
        with pytest.raises(InputError, match=f"the mask of layer '{name}' {message}"):
            fl.exact_fisher(model, some.data, some.likelihood, layers=layers, method=method)


def test_ignored_tokens_have_no_gradient_of_their_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    targets = torch.randint(5, (6, 4))
    targets[torch.rand(6, 4) < 0.4] = -100
    case = Case(model, torch.randn(6, 4, 3).double(), targets, "token-categorical")
    ignored = targets == -100
    for kind in ("predictive", "empirical", "monte-carlo"):
        g = one_pass(case, kind)["0"].g[kind]
        assert not g[:, ignored].any()
        assert g[:, ~ignored].abs().sum((0, 2)).all()


# --- several inputs ---------------------------------------------------------------------------------------


def passing(net: Net, x: Tensor, scale: Tensor) -> Tensor:
    """Two inputs: what passes, and how much of it."""
    return net.head(net.inner(x).tanh() * net.gate(scale).sigmoid())


def joined(model: Net) -> Net:
    """The same network with its inputs side by side."""
    parts = dict(model.named_children())
    return Net(lambda net, x: passing(net, x[:, :3], x[:, 3:]), **parts)


@pytest.fixture(scope="module")
def gated() -> tuple[Net, Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Net(passing, inner=nn.Linear(3, 4), gate=nn.Linear(2, 4), head=nn.Linear(4, 2)).double()
    x, scale = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    F = fl.exact_fisher(joined(model), (torch.cat([x, scale], 1), Y))
    return model, x, scale, {name: block.dense() for name, block in F.items()}


@pytest.mark.parametrize("method", ["auto", "per-sample", "gram"])
@pytest.mark.parametrize("form", ["tuple", "dictionary", "batches", "loader", "no targets"])
def test_models_with_several_inputs(gated, form, method):
    model, x, scale, expected = gated
    named = {"scale": scale, "x": x}
    parts = zip(x.split(4), scale.split(4), Y.split(4), strict=True)
    samples = [((one, two), y) for one, two, y in zip(x, scale, Y, strict=True)]
    data = {
        "tuple": ((x, scale), Y),
        "dictionary": (named, Y),
        "batches": [({"x": one, "scale": two}, y) for one, two, y in parts],
        "loader": DataLoader(samples, batch_size=4),
        "no targets": named,
    }[form]
    found = fl.exact_fisher(model, data, method=method)
    assert list(found) == ["inner", "gate", "head"]
    for name, block in found.items():
        assert torch.allclose(block.dense(), expected[name], rtol=1e-12, atol=1e-14)


def test_every_function_takes_several_inputs(gated):
    model, x, scale, _ = gated
    whole = fl.compare(joined(model), (torch.cat([x, scale], 1), Y), ("kfac", "ekfac"), spectra=False)
    for data in (((x, scale), Y), ({"x": x, "scale": scale}, Y)):
        records = fl.compare(model, data, ("kfac", "ekfac"), spectra=False).records
        for column in ("relative_error", "direction_cosine"):
            assert records[column].tolist() == pytest.approx(whole.records[column].tolist(), rel=1e-10)
