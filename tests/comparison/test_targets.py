"""The sums of samples that are kept: of all by adding those of the halves."""

import pytest
import torch

from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.comparison.targets import added_up
from fisherlab.statistics import KeptSums, SplitSums, Statistic, SumsWithout, moments

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


@pytest.mark.parametrize("half", [0, 1])
def test_sums_without_some_samples_are_those_of_the_others(half):
    whole = added_up(gathered()).halves[half]
    out, stays = torch.tensor([0, 2]), torch.tensor([1, 3, 4][: whole.samples - 2])
    rest = SumsWithout(whole, KeptSums(whole.batch.at(out)))
    expected = KeptSums(whole.batch.at(stays))
    assert (rest.samples, rest.positions) == (expected.samples, expected.positions)
    for statistic in STATISTICS:
        torch.testing.assert_close(rest.sum(statistic), expected.sum(statistic))
        torch.testing.assert_close(rest.mean(statistic), expected.mean(statistic))


def test_without_some_samples_second_moments_stay_in_the_basis_of_all():
    _, whole, _ = added_up(gathered()).each
    U = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double())[0]
    whole.bases["ekfac"] = (U, None)
    rest = whole
    for place in (0, 1):
        rest = SumsWithout(rest, KeptSums(whole.batch.at(torch.tensor([place]))))
    expected = KeptSums(whole.batch.at(torch.arange(2, whole.samples)))
    expected.bases["ekfac"] = (U, None)
    found = rest.sum(rest.rotated("ekfac", "drawn"))
    torch.testing.assert_close(found, expected.sum(expected.rotated("ekfac", "drawn")))


def test_groups_of_a_layer_keep_their_bases():
    """Sums of some samples are rotated by what was found for the half that they are left out of."""
    a, g = torch.randn(8, 1, 4).double(), torch.randn(2, 8, 1, 6).double()
    sums = KeptSums(LayerBatch(0, a, {"drawn": g}, groups=2))
    sums.group(1).bases["ekfac"] = (torch.eye(2).double(), None)
    rest = SumsWithout(sums, KeptSums(LayerBatch(0, a[:3], {"drawn": g[:, :3]}, groups=2))).group(1)
    assert rest.bases["ekfac"][1] is None
    statistic = rest.rotated("ekfac", "drawn")
    expected = statistic(LayerBatch(0, a[3:, :, 2:], {"drawn": g[:, 3:, :, 3:]}))
    torch.testing.assert_close(rest.sum(statistic), expected)
