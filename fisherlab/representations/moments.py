"""Moments and histograms of many columns at once, as sums over batches and processes."""

import copy
import math

import torch
from torch import Tensor

from fisherlab.base import distributed

INNER_BINS = 100
"""Of equal width: a choice."""

REACH = 5.0
"""Standard deviations from the mean that they cover: a choice; of a normal variable 6e-7 lies beyond."""


class Moments:
    """Central moments of every column of rows [r, k] that come in parts.

    The first part's mean c is the centre of the sums Σ (x − c)^p, p = 1 … 4, so that no digits are lost where
    the mean is far from zero. All are moments of the values themselves (divided by their count).

    Attributes:
        count: r, of all parts.
        minimum: [k].
        maximum: [k].
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Adds rows [r, k] in float64."""
        if not len(rows):
            return
        low, high = rows.aminmax(dim=0)
        zeros = (rows == 0).sum(0)
        if not self.count:
            self._centre = rows.mean(0)
            self._sums = rows.new_zeros(4, rows.shape[1])
            self.minimum, self.maximum, self._zeros = low, high, torch.zeros_like(zeros)
        x = rows - self._centre
        square = x.square()
        parts = (x.sum(0), square.sum(0), (square * x).sum(0), square.square().sum(0))
        self._sums += torch.stack(parts)
        self.minimum, self.maximum = self.minimum.minimum(low), self.maximum.maximum(high)
        self._zeros += zeros
        self.count += len(rows)

    def merge(self, other: "Moments") -> None:
        """Adds the rows of another, whose sums are moved from its centre c' to this one's c.

        Σ (x − c)^p = Σ_q (p over q) (c' − c)^(p−q) Σ (x − c')^q.
        """
        if not other.count:
            return
        if not self.count:
            vars(self).update(copy.deepcopy(vars(other)))
            return
        shift = other._centre - self._centre
        sums = (torch.full_like(shift, other.count), *other._sums)
        for p in range(1, 5):
            self._sums[p - 1] += sum(math.comb(p, q) * shift ** (p - q) * sums[q] for q in range(p + 1))
        self.minimum, self.maximum = self.minimum.minimum(other.minimum), self.maximum.maximum(other.maximum)
        self._zeros += other._zeros
        self.count += other.count

    def gather(self, device: torch.device) -> None:
        """Has the rows of all processes from now on, on this device."""
        if distributed.size() == 1:
            return
        total = Moments()
        for part in distributed.gather_all(self._moved(torch.device("cpu"))):
            total.merge(part)
        vars(self).update(vars(total._moved(device)))

    def _moved(self, device: torch.device) -> "Moments":
        moved = Moments()
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved

    @property
    def zeros(self) -> Tensor:
        """The share of values that are exactly zero, [k]."""
        return self._zeros.double() / self.count

    @property
    def constant(self) -> Tensor:
        """Whether all values of a column are the same, a bool [k]."""
        return self.minimum == self.maximum

    @property
    def mean(self) -> Tensor:
        """E[x], [k]."""
        return self._centre + self._sums[0] / self.count

    @property
    def std(self) -> Tensor:
        """√E[(x − E x)²], [k]."""
        return self._central[0].sqrt()

    @property
    def skewness(self) -> Tensor:
        """E[(x − E x)³] / σ³, [k]; NaN where the column is constant."""
        variance, third, _ = self._central
        return (third / variance**1.5).masked_fill(self.constant, torch.nan)

    @property
    def excess_kurtosis(self) -> Tensor:
        """E[(x − E x)⁴] / σ⁴ − 3, [k]; NaN where the column is constant."""
        variance, _, fourth = self._central
        return (fourth / variance.square() - 3).masked_fill(self.constant, torch.nan)

    @property
    def _central(self) -> tuple[Tensor, Tensor, Tensor]:
        """The second to fourth central moment."""
        b, second, third, fourth = self._sums / self.count
        variance = (second - b**2).clamp_(min=0)
        return (
            variance,
            third - 3 * b * second + 2 * b**3,
            fourth - 4 * b * third + 6 * b**2 * second - 3 * b**4,
        )


class Histograms:
    """Counts of every column of rows [r, k] that come in parts.

    `INNER_BINS` bins of equal width between min and max, but no further than `REACH` standard deviations
    from the mean; what lies beyond has one bin on each side, that reaches to the extreme. A constant column
    has one bin of width zero.

    Args:
        moments: of the same columns.
        columns: their places in `moments`, [k].
    """

    def __init__(self, moments: Moments, columns: Tensor) -> None:
        mean, std = moments.mean[columns], moments.std[columns]
        self._least, self._most = moments.minimum[columns], moments.maximum[columns]
        self._low = self._least.maximum(mean - REACH * std)
        self._high = self._most.minimum(mean + REACH * std)
        self._counts = torch.zeros(len(columns), INNER_BINS + 2, dtype=torch.int64, device=columns.device)

    def add(self, rows: Tensor) -> None:
        """Counts rows [r, k] in float64."""
        place = (rows - self._low) / (self._high - self._low) * INNER_BINS
        inner = place.nan_to_num(0.0, 0.0, 0.0).floor_().clamp_(0, INNER_BINS - 1).long() + 1
        bins = inner.masked_fill(rows < self._low, 0).masked_fill(rows > self._high, INNER_BINS + 1)
        width = self._counts.shape[1]
        bins += width * torch.arange(len(self._counts), device=rows.device)
        self._counts += torch.bincount(bins.flatten(), minlength=self._counts.numel()).view_as(self._counts)

    def gather(self) -> None:
        """Has the counts of all processes from now on."""
        distributed.add_up([self._counts])

    def column(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """(left, right, count) of a column's bins; an outer bin that covers nothing is left out."""
        least, low, high, most = (float(x[place]) for x in (self._least, self._low, self._high, self._most))
        counts = self._counts[place].cpu()
        if least == most:
            edge = counts.new_tensor([least], dtype=torch.float64)
            return edge, edge, counts.sum().reshape(1)
        edges = counts.new_empty(INNER_BINS + 3, dtype=torch.float64)
        edges[0], edges[-1] = least, most
        edges[1:-1] = torch.linspace(low, high, INNER_BINS + 1, dtype=torch.float64, device="cpu")
        kept = edges[1:] > edges[:-1]
        return edges[:-1][kept], edges[1:][kept], counts[kept]
