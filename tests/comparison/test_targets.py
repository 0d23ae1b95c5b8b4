"""The sums of samples that are kept: of all by adding those of the halves."""

import torch

from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.comparison.targets import added_up
from fisherlab.statistics import SplitSums, Statistic, moments

STATISTICS = (
    Statistic("input-moment", moments.input_moment),
    Statistic("input-trace", moments.input_trace, "drawn"),
    Statistic("squared-gradient", moments.squared_gradient, "drawn"),
)


def gathered():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, 4, 5, generator=generator)
    g = torch.randn(2, 9, 4, 3, generator=generator)
    return SplitSums.of_kept(LayerBatch(0, a, {"drawn": g}), halves=True)


def test_sums_of_halves_add_up():
    plain = gathered()
    shared = added_up(plain)
    for _ in range(2):  # made, and remembered
        for statistic in STATISTICS:
            for own, other in zip(shared.each, plain.each, strict=True):
                torch.testing.assert_close(own.sum(statistic), other.sum(statistic))
                assert own.samples == other.samples


def test_a_sum_of_a_half_is_made_once():
    calls = []

    def count(a, _):
        calls.append(len(a))
        return moments.input_moment(a, None)

    statistic = Statistic("counted", count)
    sums = added_up(gathered()).each
    for one in (*sums, *sums):
        one.sum(statistic)
    assert sorted(calls) == [4, 5]


def test_second_moments_are_made_in_the_basis_of_their_own_sums():
    both, half, other = added_up(gathered()).each
    identity = torch.eye(5).double()
    both.bases["ekfac"] = (identity.flip(0), None)
    half.bases["ekfac"] = other.bases["ekfac"] = (identity, None)
    squares = [sums.sum(sums.rotated("ekfac", "drawn")) for sums in (both, half, other)]
    torch.testing.assert_close(squares[0].flip(1), squares[1] + squares[2])
