"""Sums of a layer: counting, adding, merging, and the rule for bases."""

import pytest
import torch
from torch import Tensor

from fisherlab.approximations import DEFAULT_APPROXIMATIONS, create_all
from fisherlab.collect.collector import Collector
from fisherlab.collect.layer_batch import LayerBatch, half_of
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import OneHot
from fisherlab.layers import BlockShape, find_layers
from fisherlab.likelihoods import Categorical
from fisherlab.statistics import LayerSums, PassRequest, Statistic, gather, moments

A = Statistic("input-moment", moments.input_moment)
B = Statistic("output-moment", moments.output_moment, "predictive")


def batch(n: int, t: int = 2, dtype: torch.dtype = torch.float64) -> LayerBatch:
    return LayerBatch(
        0,
        torch.randn(n, t, 3, dtype=dtype),
        {kind: torch.randn(2, n, t, 4, dtype=dtype) for kind in ("predictive", "empirical")},
    )


def filled(*batches: LayerBatch) -> LayerSums:
    sums = LayerSums()
    for one in batches:
        sums.count(one)
        sums.add((A, B), one)
    return sums


def bases() -> tuple[Tensor, Tensor]:
    return tuple(torch.linalg.qr(torch.randn(k, k).double()).Q for k in (3, 4))


def test_keys_name_the_labels():
    assert A.key == "input-moment"
    assert B.key == "output-moment/predictive"
    assert Statistic("x", moments.input_trace, "empirical") == Statistic(
        "x", moments.output_trace, "empirical"
    )
    assert Statistic("x", moments.input_trace, "empirical") != Statistic(
        "x", moments.input_trace, "predictive"
    )


def test_a_statistic_reads_its_own_labels():
    one = batch(5)
    expected = moments.output_moment(one.a, one.g["predictive"])
    assert torch.equal(B(one), expected)
    assert torch.equal(A(one), moments.input_moment(one.a, None))


def test_means_are_over_samples_and_counts_over_positions():
    one, two = batch(5), batch(3)
    sums = filled(one, two)
    assert (sums.samples, sums.positions) == (8, 16)
    assert torch.allclose(sums.sum(A), A(one) + A(two))
    assert torch.allclose(sums.mean(A), (A(one) + A(two)) / 8)


def test_sums_are_kept_in_float64():
    parts = [batch(5, dtype=torch.float32) for _ in range(20)]
    sums = filled(*parts)
    assert sums.sum(B).dtype == torch.float64
    exact = sum(B(part).double() for part in parts)
    assert torch.equal(sums.sum(B), exact)


def test_merging_is_adding():
    one, two = batch(5), batch(3)
    merged, expected = filled(one) + filled(two), filled(one, two)
    assert (merged.samples, merged.positions) == (8, 16)
    for statistic in (A, B):
        assert torch.equal(merged.sum(statistic), expected.sum(statistic))


def test_merging_leaves_both_sides_as_they_were():
    one, two = filled(batch(5)), filled(batch(3))
    before = one.sum(A).clone()
    _ = one + two
    assert torch.equal(one.sum(A), before)
    assert one.samples == 5


def test_sums_that_one_side_lacks_are_left_out():
    two = LayerSums()
    other = batch(3)
    two.count(other)
    two.add((A,), other)
    merged = filled(batch(5)) + two
    assert set(merged.values) == {"input-moment"}
    with pytest.raises(InputError, match="'output-moment/predictive' was not collected"):
        merged.sum(B)


def test_second_moments_merge_only_in_a_shared_basis():
    one, two = batch(5), batch(3)
    shared, other = bases(), bases()

    def with_basis(source: LayerBatch, basis: tuple[Tensor, Tensor]) -> LayerSums:
        sums = filled(source)
        sums.bases["ekfac"] = basis
        sums.add([sums.rotated("ekfac", "predictive")], source)
        return sums

    same = with_basis(one, shared) + with_basis(two, shared)
    statistic = same.rotated("ekfac", "predictive")
    expected = sum(moments.rotated_square(b.a, b.g["predictive"], *shared) for b in (one, two))
    assert torch.allclose(same.sum(statistic), expected)
    different = with_basis(one, shared) + with_basis(two, other)
    assert not different.bases
    assert set(different.values) == {A.key, B.key}


# --- passes -------------------------------------------------------------------------------------------


@pytest.fixture
def collector(categorical) -> Collector:
    layers = find_layers(categorical.model)
    return Collector(categorical.model, layers, categorical.batches(7, 20, 13), Categorical())


def test_halves_are_summed_apart(collector, categorical):
    work = {"2": PassRequest("predictive", (A, B))}
    whole, one, other = gather(collector, work, halves=True)["2"].each
    assert (whole.samples, one.samples, other.samples) == (40, 20, 20)
    for part, number in ((one, 0), (other, 1)):
        half = categorical.take(half_of(0, 40) == number)
        source = Collector(half.model, collector.layers, half.data, Categorical())
        (expected,) = gather(source, work)["2"].each
        for statistic in (A, B):
            assert torch.allclose(part.sum(statistic), expected.sum(statistic), atol=1e-12)
    assert torch.allclose(whole.sum(B), one.sum(B) + other.sum(B))


def test_only_the_first_samples_where_asked(collector, categorical):
    work = {
        "2": PassRequest("predictive", (A,), samples=10, keep=9, keep_kinds=frozenset({"predictive"})),
        "4": PassRequest("predictive", (A,)),
    }
    gathered = gather(collector, work)
    assert [gathered[name].all.samples for name in work] == [10, 40]
    assert gathered["4"].kept is None
    kept = gathered["2"].kept
    assert kept.a.shape == (9, 1, 5)
    assert kept.g["predictive"].shape == (2, 9, 1, 4)
    inputs = categorical.model[:2](categorical.inputs).detach()
    assert torch.allclose(kept.a[:, 0], inputs[:9], atol=1e-14)


def test_a_second_pass_sums_in_the_basis_of_each_part(collector):
    made = []

    def basis(sums: LayerSums) -> tuple[Tensor, Tensor]:
        made.append(sums.samples)
        return (
            torch.linalg.eigh(sums.sum(A)).eigenvectors,
            torch.linalg.eigh(sums.sum(B)).eigenvectors,
        )

    work = {"2": PassRequest("predictive", (A, B), {"own": basis})}
    parts = gather(collector, work, halves=True)["2"].each
    assert made == [40, 20, 20]
    for sums in parts:
        S = sums.sum(sums.rotated("own", "predictive"))
        # the diagonal of Σ_c g gᵀ ⊗ a aᵀ in its basis has the trace of the block
        assert S.sum() > 0
        assert sums.bases["own"][0].shape == (5, 5)
    assert not torch.allclose(parts[1].bases["own"][1].abs(), parts[2].bases["own"][1].abs())


def test_sizes_of_sums_are_known_before_they_are_made():
    g = torch.randn(2, 5, 3, 4)
    for one_hot, a in (
        (False, torch.randn(5, 3, 6)),
        (True, OneHot(torch.randint(6, (5, 3)), 6, torch.float32)),
    ):
        layer = BlockShape("layer", 4, 6, one_hot=one_hot)
        for method in create_all(DEFAULT_APPROXIMATIONS):
            kind = method.label_kind("predictive")
            for statistic in method.statistics(layer, kind):
                found = statistic(LayerBatch(0, a, {kind: g}))
                assert statistic.numbers(layer) == found.numel(), (one_hot, statistic.key)
