"""How an exact block is computed: the choice of a way, the memory limit, names, and refusals."""

import warnings
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import Net
from reference import Case, ggn, names_of, relative
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.errors import InputError, InputTypeError, MemoryLimitError, NotSupportedError
from fisherlab.exact.options import parse_bytes
from fisherlab.exact.plans import make_plans
from fisherlab.likelihoods import as_likelihood
from fisherlab.operators import DenseOperator, GramOperator, PackedOperator, UnitBlockOperator


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest storage that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return made


@pytest.fixture
def wide() -> Case:
    """A layer of 40×41 weights: 13 MB dense, 5 MB packed, 0.1 MB as a Gram operator."""
    model = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    inputs = torch.randn(20, 40, dtype=torch.float64)
    return Case(model, inputs, torch.arange(20) % 3, "categorical")


DENSE_BYTES = 8 * (40 * 41) ** 2


def plans(
    case: Case, kind: str = "predictive", method: str = "auto", memory: int = 2**32, columns: int = 4096
):
    layers = fl.find_layers(case.model)
    collector = Collector(case.model, layers, case.data, as_likelihood(case.likelihood))
    return make_plans(collector, kind, method, memory, columns)


# --- the choice -------------------------------------------------------------------------------------


def test_a_small_block_is_accumulated(categorical):
    F = fl.exact_fisher(categorical.model, categorical.data)
    assert {type(operator) for operator in F.values()} == {PackedOperator}


def test_a_layer_with_positions_is_made_of_the_samples_gradients(sequences):
    F = fl.exact_fisher(sequences.model, sequences.data)
    assert isinstance(F["0"], DenseOperator)
    assert isinstance(F["5"], PackedOperator)


def test_a_limit_below_the_packed_block_forces_the_gram_form(wide):
    found = plans(wide, memory=2 * 2**20)
    assert [plan.method for plan in found.values()] == ["gram", "kronecker"]
    assert found["0"].kind == "predictive"
    assert found["0"].columns == 40
    assert not found["0"].note


def test_plans_share_one_limit_and_say_what_they_cost(wide):
    found = plans(wide)
    assert sum(plan.bytes for plan in found.values()) <= 2**32
    both = found["0"].bytes + found["2"].bytes
    assert [p.method for p in plans(wide, memory=both).values()] == ["kronecker", "kronecker"]
    assert [p.method for p in plans(wide, memory=both - 1).values()] == ["gram", "kronecker"]
    assert str(found["0"]).startswith("0: kronecker, predictive, 40 columns")


def test_the_gram_form_is_taken_where_it_is_cheaper_and_the_block_large():
    model = nn.Sequential(nn.Linear(120, 100), nn.Tanh(), nn.Linear(100, 2)).double()
    case = Case(model, torch.randn(6, 120).double(), torch.arange(6) % 2, "categorical")
    assert plans(case)["0"].method == "gram"
    assert plans(case)["2"].method == "kronecker"


def test_the_three_ways_give_one_block_under_a_limit(wide):
    expected = ggn(wide, names_of("0", wide.model))
    F = fl.exact_fisher(wide.model, wide.data, memory="2MiB")["0"]
    assert isinstance(F, GramOperator)
    assert relative(F.dense(), expected) < 1e-12


# --- limits -----------------------------------------------------------------------------------------


def test_nothing_above_the_limit_is_allocated(wide):
    limit = 2 * 2**20
    with Largest() as largest:
        F = fl.exact_fisher(wide.model, wide.data, memory=limit)
        K = fl.approximate("kfac", wide.model, wide.data)
        F["0"].inner(K["0"]), F["0"].frobenius_norm(), F["0"].trace()
        F["0"].solve(torch.ones(40, 41, dtype=torch.float64), 0.1)
    assert 0 < largest.bytes <= limit


@pytest.mark.parametrize("method", ["kronecker", "per-sample"])
def test_a_block_that_a_method_allows_stays_under_its_limit(wide, method):
    limit = DENSE_BYTES // 2
    with Largest() as largest:
        try:
            fl.exact_fisher(wide.model, wide.data, method=method, memory=limit, layers="0")
        except MemoryLimitError:
            return
    assert largest.bytes <= limit


def test_a_comparison_never_makes_the_dense_block_of_a_gram_operator(wide):
    with Largest() as largest:
        c = fl.compare(wide.model, wide.data, ("kfac", "ekfac", "lngd"), memory="2MiB")
    assert set(c.records["method"]) == {"gram", "kronecker"}
    assert largest.bytes < DENSE_BYTES / 2


@pytest.mark.parametrize("method", ["kronecker", "per-sample"])
def test_a_method_that_does_not_fit_is_refused_with_the_way_out(wide, method):
    with pytest.raises(MemoryLimitError, match=r"layer '0' would need .* use method='gram'"):
        fl.exact_fisher(wide.model, wide.data, method=method, memory="1MiB", strict=True)


def test_a_limit_below_the_gram_form_is_refused_with_the_way_out(wide):
    with pytest.raises(MemoryLimitError, match=r"even the Gram form of layer .* smaller max_columns"):
        fl.exact_fisher(wide.model, wide.data, memory="20KiB")


def test_a_layerwise_block_above_the_limit_is_refused(wide):
    with pytest.raises(MemoryLimitError, match="layer-wise Fisher of layer '0'"):
        fl.exact_fisher(wide.model, wide.data, kind="layerwise", memory="100KiB", strict=True)


# --- max_columns ------------------------------------------------------------------------------------


def test_more_columns_than_allowed_draw_one_label_a_sample(wide):
    with pytest.warns(UserWarning, match=r"layer '0': .*one label a sample is drawn") as caught:
        F = fl.exact_fisher(wide.model, wide.data, memory="2MiB", max_columns=39)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert F["0"].columns == 20
    assert plans(wide, memory=2**21, columns=39)["0"].kind == "drawn"


def test_the_drawn_block_is_that_of_monte_carlo_labels_in_expectation(wide):
    exact = fl.exact_fisher(wide.model, wide.data)["0"]
    traces = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(200):
            generator = torch.Generator().manual_seed(number)
            F = fl.exact_fisher(
                wide.model, wide.data, layers="0", memory="2MiB", max_columns=39, generator=generator
            )
            traces.append(float(F["0"].trace()))
    found = torch.tensor(traces)
    assert abs(found.mean() - exact.trace()) < 4 * found.std() / 200**0.5


def test_more_samples_than_columns_use_the_first_samples(wide):
    with pytest.warns(UserWarning, match="the first 8 of 20 samples are used"):
        F = fl.exact_fisher(wide.model, wide.data, kind="empirical", method="gram", max_columns=8)
    first = wide.take(slice(0, 8))
    expected = fl.exact_fisher(first.model, first.data, kind="empirical")
    for layer, operator in F.items():
        assert relative(operator.dense(), expected[layer].dense()) < 1e-12


def test_max_columns_must_be_positive(wide):
    with pytest.raises(InputError, match="max_columns must be at least 1"):
        fl.exact_fisher(wide.model, wide.data, max_columns=0)


def test_a_comparison_says_that_labels_were_drawn(wide):
    records = fl.compare(wide.model, wide.data, "kfac", memory="2MiB", max_columns=39).records
    row = records[records["layer"] == "0"].iloc[0]
    assert (row["kind"], row["target"], row["method"], row["columns"]) == (
        "monte-carlo",
        "monte-carlo",
        "gram",
        20,
    )
    assert "one label a sample is drawn" in row["note"]


# --- several positions, other dimensions -------------------------------------------------------------


def test_kronecker_accumulation_refuses_several_positions_by_name(sequences):
    with pytest.raises(NotSupportedError, match=r"layer '[02]' has 4 positions .* method='gram'"):
        fl.exact_fisher(sequences.model, sequences.data, method="kronecker")
    assert issubclass(NotSupportedError, NotImplementedError)


def over_first() -> Net:
    """Sequences with the samples in dimension 1: [t, n, d] to [n, K]."""
    return Net(lambda net, x: net.inner(x).tanh().mean(0), inner=nn.Linear(3, 4))


@pytest.mark.parametrize("method", ["per-sample", "gram", "auto"])
def test_the_dimension_of_the_samples_can_be_named(method):
    model = over_first().double()
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    rows = torch.stack(
        [
            ggn(
                Case(turned(model), x[:, n][None], torch.zeros(1).long(), "categorical"),
                ("model.inner.weight", "model.inner.bias"),
            )
            for n in range(7)
        ]
    )
    F = fl.exact_fisher(model, (x, torch.arange(7) % 4), method=method, batch_dim=1)["inner"]
    assert relative(F.dense(), rows.mean(0)) < 1e-12


def turned(model: nn.Module) -> Net:
    """A model of [t, n, d] that takes [n, t, d]."""
    return Net(lambda net, x: net.model(x.transpose(0, 1)), model=model)


def test_the_layerwise_block_is_stored_by_units(categorical):
    F = fl.exact_fisher(categorical.model, categorical.data, kind="layerwise")
    assert {type(operator) for operator in F.values()} == {UnitBlockOperator}
    for method in ("gram", "per-sample"):
        with pytest.raises(NotSupportedError, match="closed form"):
            fl.exact_fisher(categorical.model, categorical.data, kind="layerwise", method=method)


def test_a_float32_model_gives_float64_blocks_near_those_of_float64(categorical):
    exact = fl.exact_fisher(categorical.model, categorical.data)
    single = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.LeakyReLU(0.2))
    single.append(nn.Linear(4, 3))
    single.load_state_dict(categorical.model.state_dict())
    for method in ("kronecker", "gram", "per-sample"):
        F = fl.exact_fisher(single, categorical.data, method=method)
        for layer, operator in F.items():
            assert operator.dtype == torch.float64
            assert relative(operator.dense(), exact[layer].dense()) < 1e-5


# --- data that can be read once -----------------------------------------------------------------------


def read_once(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    yield from case.batches(16, 16, 8)


def test_one_pass_is_enough_for_accumulation(categorical):
    expected = fl.exact_fisher(categorical.model, categorical.data)
    F = fl.exact_fisher(categorical.model, read_once(categorical))
    for layer, operator in F.items():
        assert relative(operator.dense(), expected[layer].dense()) < 1e-13


def test_a_gram_block_of_data_of_unknown_length_uses_the_first_samples(categorical):
    with pytest.warns(UserWarning, match="the first 10 samples are used"):
        F = fl.exact_fisher(
            categorical.model, read_once(categorical), kind="empirical", method="gram", max_columns=10
        )
    first = categorical.take(slice(0, 10))
    expected = fl.exact_fisher(first.model, first.data, kind="empirical")
    for layer, operator in F.items():
        assert relative(operator.dense(), expected[layer].dense()) < 1e-12


def test_two_passes_over_data_that_can_be_read_once_are_refused(categorical):
    with pytest.raises(InputError, match="read only once"):
        fl.exact_fisher(categorical.model, read_once(categorical), method="per-sample")


# --- names and arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "predictiv"}, "did you mean predictive"),
        ({"method": "grams"}, "did you mean gram"),
        ({"likelihood": "categorial"}, "did you mean categorical"),
        ({"layers": "nothing*"}, "unknown layer"),
        ({"bias": "joined"}, "did you mean joint"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"memory": "lots"}, "cannot read the memory size"),
    ],
)
def test_wrong_arguments_are_named(categorical, options, message):
    with pytest.raises(InputError, match=message):
        fl.exact_fisher(categorical.model, categorical.data, **options)


def test_a_likelihood_of_another_type_is_a_type_error(categorical):
    with pytest.raises(InputTypeError, match="likelihood must be a string or a Likelihood"):
        fl.exact_fisher(categorical.model, categorical.data, nn.CrossEntropyLoss())


@pytest.mark.parametrize("alias", [("type-2", "predictive"), ("mc", "monte-carlo")])
def test_kinds_have_aliases(categorical, alias):
    one, two = (fl.exact_fisher(categorical.model, categorical.data, kind=kind)["2"] for kind in alias)
    assert torch.equal(one.dense(), two.dense())


def test_the_empirical_kind_needs_targets(categorical):
    with pytest.raises(InputError, match="empirical kind needs targets"):
        fl.exact_fisher(categorical.model, (categorical.inputs, None), kind="empirical")


# --- sizes in words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 * 2**30),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        (" 1.5 KiB ", 1536),
        ("12", 12),
        ("7b", 7),
        ("1TiB", 2**40),
        (123, 123),
    ],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@given(st.integers(1, 2**50))
def test_a_number_is_a_number_of_bytes(size):
    assert parse_bytes(size) == parse_bytes(str(size)) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 GiBs", "-1", "1.2.3MB", "0", 0, -5, ".", "4 xb", 0.5])
def test_other_sizes_are_refused(text):
    with pytest.raises(InputError, match="memory"):
        parse_bytes(text)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), "9" * 400], ids=["nan", "inf", "text"])
def test_sizes_that_are_not_finite_are_refused(size):
    with pytest.raises(InputError, match=r"the memory limit must be finite, not .*; write it as 4GiB"):
        fl.exact_fisher(nn.Linear(2, 2), torch.ones(3, 2), memory=size)


@pytest.mark.parametrize("size", [None, [1], True, b"4GiB"], ids=["none", "list", "bool", "bytes"])
def test_sizes_of_another_type_are_refused(size):
    with pytest.raises(InputTypeError, match="memory must be a number or a string, not "):
        fl.exact_fisher(nn.Linear(2, 2), torch.ones(3, 2), memory=size)


def test_a_fraction_of_a_byte_is_dropped():
    assert parse_bytes(4.5e9 + 0.5) == 4_500_000_000


@pytest.mark.parametrize("make", [fl.exact_fisher, partial(fl.approximate, "kfac")])
@pytest.mark.parametrize(("logits", "warned"), [(1.0, False), (3000.0, True)])
def test_what_a_type_does_not_hold_is_warned_of(make, logits, warned):
    """In float32 the block of a sure network is the edge of the type, or zero; in float64 it is right."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).float()
    model[2].weight.data *= logits
    inputs = torch.randn(20, 4)
    likely = model(inputs).topk(2).values
    chosen = likely[:, 0] - likely[:, 1] > (80 if warned else 0)  # e⁻⁸⁰: gradients of 1e-17
    assert chosen.sum() > 5
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make(model, (inputs[chosen], None))
        made = [str(one.message) for one in said]
        make(model.double(), (inputs[chosen].double(), None))
    assert any("give the model in float64" in text for text in made) == warned
    assert len(said) == len(made)
