"""How close the matrices M_n = Σ_c q qᵀ are to a multiple of I, which layer-wise sampling takes for them."""

import math

import torch
from torch import Tensor

from fisherlab.base import distributed

_TOTALS = ("samples", "_counted", "_traces", "_squared_traces", "_squares", "_isotropies")


class Isotropy:
    """Isotropy (tr M)² / (m ‖M‖²) ∈ [1/m, 1] of the samples' M_n = Σ_t Σ_c q qᵀ, and of their mean.

    It is 1 where M is a multiple of I, and 1/m where M has rank 1. M_n is a sum of rank·T products q qᵀ, so
    a sample's isotropy cannot exceed `limit`. Positions are pooled, as in the histograms: M_n a multiple
    of I is necessary for layer-wise sampling, which takes every position's part for I and positions as
    independent, and not sufficient where T > 1.

    Args:
        outputs: m.
        rank: how many columns q a sample's output Hessian gives, C.
        positions: T.
        drawn: whether columns come from drawn labels; the products of a label with itself are left out then,
            so that a sample's (tr M)² and ‖M‖² are estimated without bias.
    """

    def __init__(self, outputs: int, rank: int, positions: int, drawn: bool) -> None:
        self._m, self._drawn = outputs, drawn
        self.limit = min(1.0, rank * positions / outputs)
        self.samples = 0
        self._sum: Tensor | None = None
        self._batch: _Batch | None = None
        self._traces = self._squared_traces = self._squares = 0.0
        self._isotropies, self._counted = 0.0, 0

    def add(self, q: Tensor) -> None:
        """Adds columns q [c, n, t, m] of the samples at hand, some or all of them."""
        if self._batch is None:
            self._batch = _Batch(self._m, self._drawn)
        self._batch.add(q.double())

    def end_batch(self) -> None:
        """The samples at hand have all their columns; the next ones are others."""
        assert self._batch is not None
        batch, self._batch = self._batch, None
        batch.finish()
        squared_traces, squares = batch.trace.square(), batch.squares
        self._sum = batch.total if self._sum is None else self._sum + batch.total
        self.samples += len(squares)
        self._traces += float(batch.trace.sum())
        self._squared_traces += float(squared_traces.sum())
        self._squares += float(squares.sum())
        if self._drawn:
            squared_traces, squares = squared_traces - batch.own_traces, squares - batch.own_squares
        known = squares > 0
        self._isotropies += float((squared_traces[known] / squares[known]).sum()) / self._m
        self._counted += int(known.sum())

    def gather(self, device: torch.device) -> None:
        """Has the samples of all processes from now on; sums are on this device."""
        if distributed.size() == 1 or not sum(distributed.gather_all(self.samples)):
            return
        if self._sum is None:
            self._sum = torch.zeros(self._m, self._m, dtype=torch.float64, device=device)
        numbers = [getattr(self, name) for name in _TOTALS]
        totals = torch.tensor(numbers, dtype=torch.float64, device=device)
        distributed.add_up([self._sum, totals])
        for name, total in zip(_TOTALS, totals.tolist(), strict=True):
            setattr(self, name, type(getattr(self, name))(total))

    @property
    def of_mean(self) -> float:
        """(tr M̄)² / (m ‖M̄‖²) of M̄ = (1/N) Σ_n M_n; NaN where M̄ = 0."""
        square = self._square_of_sum()
        return self._traces**2 / (self._m * square) if square > 0 else math.nan

    @property
    def of_population(self) -> float:
        """The same of E[M]: both squares without the products of a sample with itself.

        ‖M̄‖² has the expectation ‖E M‖² + (E‖M_n‖² − ‖E M‖²)/N, so few samples make `of_mean` too small.
        Unbiased squares can, by chance, give a little more than 1; NaN for a single sample.
        """
        square = self._square_of_sum() - self._squares
        if self.samples < 2 or not square > 0:
            return math.nan
        return (self._traces**2 - self._squared_traces) / (self._m * square)

    @property
    def mean_of_samples(self) -> float:
        """The mean over samples of (tr M_n)² / (m ‖M_n‖²), those with M_n = 0 left out.

        With drawn labels it is a mean of ratios of estimates: a few percent too large.
        """
        return self._isotropies / self._counted if self._counted else math.nan

    def _square_of_sum(self) -> float:
        return 0.0 if self._sum is None else float(self._sum.square().sum())


class _Batch:
    """M_n of the samples of one batch: the matrices themselves, or their columns where those are fewer."""

    def __init__(self, outputs: int, drawn: bool) -> None:
        self._m, self._drawn = outputs, drawn
        self._columns: list[Tensor] = []
        self._matrices: Tensor | None = None
        self.own_squares: Tensor | float = 0.0
        self.own_traces: Tensor | float = 0.0

    def add(self, q: Tensor) -> None:
        """Columns [c, n, t, m]."""
        if self._drawn:
            self._add_own(q)
        self._columns.append(q.transpose(0, 1).flatten(1, 2))
        if self._matrices is not None or sum(x.shape[1] for x in self._columns) > self._m:
            for rows in self._columns:
                found = rows.mT @ rows
                self._matrices = found if self._matrices is None else self._matrices.add_(found)
            self._columns.clear()

    def finish(self) -> None:
        """Sets `total` Σ_n M_n [m, m], and tr M_n and ‖M_n‖², [n]."""
        if self._matrices is None:
            rows = torch.cat(self._columns, 1)
            self.total = rows.flatten(0, 1).T @ rows.flatten(0, 1)
            self.trace = rows.square().sum((1, 2))
            self.squares = (rows @ rows.mT).square().sum((1, 2))
        else:
            self.total = self._matrices.sum(0)
            self.trace = self._matrices.diagonal(dim1=1, dim2=2).sum(1)
            self.squares = self._matrices.square().sum((1, 2))

    def _add_own(self, q: Tensor) -> None:
        """Σ over labels of (tr q qᵀ)² and ‖q qᵀ‖², [n], each summed over positions first."""
        small = q @ q.mT if q.shape[2] <= q.shape[3] else q.mT @ q
        squares = small.square().sum((0, 2, 3))
        traces = q.square().sum((2, 3)).square().sum(0)
        self.own_squares = self.own_squares + squares
        self.own_traces = self.own_traces + traces
