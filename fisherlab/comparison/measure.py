"""One layer measured: every number of a row of `records.csv` for an exact block and its approximations."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fisherlab import metrics
from fisherlab.approximations import Approximation
from fisherlab.base.memory import limit
from fisherlab.comparison.joint import StepPart, step_part
from fisherlab.comparison.population import PopulationEstimate, Refit
from fisherlab.divergences import BAND_NAMES, Calibration, Curvature, Divergences
from fisherlab.errors import FisherlabError, MemoryLimitError, NumericalError, bytes_text
from fisherlab.operators import DenseOperator, LinearOperator, PackedOperator, blocks_of
from fisherlab.records.columns import PLAIN
from fisherlab.records.definitions import DIRECTIONS

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Dampings of the sweep, in units of the mean eigenvalue of F."""

_ROUNDING = 1e-6  # a choice, above the errors of about 1e-7 that are lost in rounding (`metrics.errors`)
_STEP_COPIES = 6  # an estimate: what a step is made of, beside those that are there
_DENSE_COPIES = 5  # an estimate: F, its eigenvectors, F̂, their product, and what a decomposition works in

ROW_DAMPING = 1e-1
"""The damping of a record's directions, in the same unit."""


def dense_bytes(entries: int) -> int:
    """What directions and spectra of a dense block with so many entries take at once."""
    return _DENSE_COPIES * 8 * entries


@dataclass
class Target:
    """What approximations of a layer are compared with.

    Attributes:
        name: `predictive` (or the kind asked for), or `layerwise`.
        exact: F.
        gradient: ∇h [m, d]; None without targets.
        halves: for the population error; None where it is not computed.
        memory: bytes for the dense matrices of directions and spectra, what the block leaves of the limit.
        notes: remarks that hold for every row.
        between: F of the samples of the coupling; None where there is no joint step.
    """

    name: str
    exact: LinearOperator
    gradient: Tensor | None
    halves: PopulationEstimate | None
    memory: int
    notes: Sequence[str] = ()
    between: LinearOperator | None = None

    def __post_init__(self) -> None:
        """The trace of F, and the mean of its eigenvalues: the unit of dampings."""
        self.trace = float(self.exact.trace())
        self.unit = self.trace / self.exact.shape[0]
        self._judged: tuple[LinearOperator, metrics.Errors] | None = None

    @cached_property
    def norm(self) -> float:
        """‖F‖."""
        return float(self.exact.frobenius_norm())

    def errors(self, approximation: LinearOperator) -> metrics.Errors:
        """The errors of an approximation; those of the latest one are remembered."""
        if self._judged is None or self._judged[0] is not approximation:
            self._judged = approximation, metrics.errors(self.exact, approximation, self.norm)
        return self._judged[1]

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of F, [D]."""
        return self.exact.diagonal()

    @property
    def dense_bytes(self) -> int:
        """What directions, spectra and pictures of the block take at once, where they are dense."""
        return dense_bytes(
            sum(
                block.shape[0] ** 2
                for block in blocks_of(self.exact)
                if isinstance(block, (PackedOperator, DenseOperator))
            )
        )

    @property
    def step_bytes(self) -> int:
        """What the steps of F and F̂ take at all dampings."""
        return 8 * self.exact.outputs * self.exact.inputs * (2 * len(DAMPINGS) + _STEP_COPIES)

    @property
    def affordable(self) -> bool:
        """Whether these fit the memory limit."""
        return self.dense_bytes <= self.memory and self.step_bytes <= limit()

    def check_memory(self) -> None:
        """Raises `MemoryLimitError` where it does not."""
        if not self.affordable:
            needed = max(self.dense_bytes, self.step_bytes)
            raise MemoryLimitError(
                f"directions and spectra would need {bytes_text(needed)}, more than the "
                f"{bytes_text(self.memory)} left of the memory limit"
            )

    @cached_property
    def curvature(self) -> Curvature:
        """The leading eigenpairs of F; its eigenvalues are then known to all that asks for them."""
        self.check_memory()
        return Curvature(self.exact)

    @property
    def damping(self) -> float:
        """λ of the rows."""
        return ROW_DAMPING * self.unit

    @cached_property
    def inverse(self) -> LinearOperator:
        """(F + λI)⁻¹ at the damping of the rows."""
        return self.exact.inverse(self.damping)

    @property
    def dampings(self) -> list[float]:
        """Each λ of the sweep."""
        return [factor * self.unit for factor in DAMPINGS]

    @cached_property
    def steps(self) -> list[Tensor]:
        """(F + λI)⁻¹ ∇h for each of them."""
        assert self.gradient is not None
        return metrics.exact_steps(self.exact, self.gradient, self.dampings)


@dataclass
class Row:
    """The numbers of one row.

    Attributes:
        values: by column.
        sweep: the directions at each damping.
        preconditioned: eigenvalues of F̂_λ⁻¹F.
        calibration: the curvature that F̂ sees.
        part: what its step at the damping of the rows adds to that of all layers.
    """

    values: dict[str, Any]
    sweep: list[dict[str, float]] = field(default_factory=list)
    preconditioned: Tensor | None = None
    calibration: Calibration | None = None
    part: StepPart | None = None

    def add_note(self, note: str) -> None:
        """Adds a remark behind those that are there."""
        self.values["note"] = "; ".join(filter(None, [self.values.get("note", ""), note]))


NO_DIVERGENCES = "no spectra: no divergences"


def measure(
    target: Target,
    approximation: LinearOperator,
    fits: Sequence[LinearOperator] | None,
    refit: Refit | None,
    nearest_error: float | None,
    *,
    spectra: bool = True,
) -> Row:
    """All numbers of one approximation against one target.

    Args:
        target: F and what belongs to it.
        approximation: F̂.
        fits: F̂ fitted on each half of the samples, for the population error.
        refit: F̂ fitted on a half without some of its samples, for its standard error.
        nearest_error: the scaled error of the nearest Kronecker product.
        spectra: whether to compute the preconditioned spectrum and the divergences.
    """
    started = time.perf_counter()
    F, notes = target.exact, list(target.notes)
    values: dict[str, Any] = {"trace_exact": target.trace}
    values["trace_approx"] = float(approximation.trace())
    values["damping"] = target.damping
    values["bytes"] = stored_bytes(approximation)
    with _noted(notes):
        values["trace_ratio"] = metrics.quotient_of_traces(target.trace, values["trace_approx"])
        found = target.errors(approximation)
        values["relative_error"], values["scaled_error"], values["best_scale"] = found
        values["diagonal_error"] = metrics.diagonal_error(target.diagonal, approximation)
        if nearest_error is not None and nearest_error > _ROUNDING:
            values["gap_to_nearest"] = values["scaled_error"] / nearest_error - 1
        elif nearest_error is not None:
            notes.append("the block is a Kronecker product to rounding: no gap to the nearest")
    for column in PLAIN:
        with _noted(notes):
            values[column] = float(getattr(metrics, column)(F, approximation))
    if target.halves is not None and fits is not None:
        error, standard_error, note = target.halves.error(fits, refit)
        values["population_error"], values["population_error_se"] = error, standard_error
        notes += [note] if note else []
    row = Row(values)
    with _noted(notes):
        if target.trace == 0:
            raise NumericalError("the block is zero: no damping is in proportion to it")
        matched = approximation * metrics.matching_scale(target.trace, values["trace_approx"])
        target.check_memory()
        with _noted(notes):
            row.sweep, step = _sweep(target, matched, notes)
            row.part = _part(target, step)
            values |= _at_row(row.sweep)
        with _noted(notes):
            values["preconditioned_condition"] = metrics.preconditioned_condition(
                F, matched, target.damping, target.inverse
            )
        if spectra:
            with _noted(notes):
                row.preconditioned = metrics.preconditioned_spectrum(F, matched, target.damping)
            with _noted(notes):
                row.calibration = _divergences(target, approximation, values, notes)
    if target.gradient is None:
        notes.append("no targets: directions are empty")
    values["note"] = "; ".join(dict.fromkeys(notes))
    values["seconds"] = time.perf_counter() - started
    return row


def _divergences(
    target: Target, approximation: LinearOperator, values: dict[str, Any], notes: list[str]
) -> Calibration | None:
    """The divergences and calibrations, written into the values."""
    curvature, found = target.curvature, Divergences(target.exact, approximation)
    with _noted(notes):
        values["logdet_divergence"], values["logdet_divergence_scaled"] = found.logdet(target.damping)
    with _noted(notes):
        values["von_neumann_divergence"] = found.von_neumann()
    with _noted(notes):
        seen = found.calibration(curvature)
        for band, count, mean in zip(BAND_NAMES, curvature.directions, seen.bands, strict=True):
            values[f"directions_{band}"], values[f"calibration_{band}"] = count, mean
            if mean is None:
                notes.append(f"no direction of its own in the {band} of the spectrum")
        return seen
    return None


def measure_direction(target: Target, method: Approximation, groups: int, dtype: torch.dtype) -> Row:
    """The numbers of a direction without a matrix: those of its step, the same at every damping.

    Args:
        target: F and what belongs to it.
        method: gives the step.
        groups: G, each with a gradient of its own.
        dtype: of the gradients that ∇h is a sum of.
    """
    started, notes = time.perf_counter(), [*target.notes, "a direction without a matrix: no errors"]
    row = Row({"damping": target.damping})
    if target.gradient is None:
        notes.append("no targets: directions are empty")
    with _noted(notes):
        if target.trace == 0:
            raise NumericalError("the block is zero: no damping is in proportion to it")
        target.check_memory()
        if target.gradient is not None:
            rounding = torch.finfo(dtype).eps
            step = method.step(target.gradient.unflatten(0, (groups, -1)), rounding).flatten(0, 1)
            row.sweep, row.part = _qualities(target, [step] * len(target.dampings)), _part(target, step)
            row.values |= _at_row(row.sweep)
    row.values["note"] = "; ".join(dict.fromkeys(notes))
    row.values["seconds"] = time.perf_counter() - started
    return row


def stored_bytes(operator: LinearOperator) -> int:
    """What the operator's own tensors take."""
    held = {id(v): v for block in blocks_of(operator) for v in _tensors(vars(block))}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _tensors(attributes: Mapping[str, Any]) -> Iterator[Tensor]:
    for name, value in attributes.items():
        # Names with an underscore are caches.
        if name.startswith("_"):
            continue
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from (part for part in value if isinstance(part, Tensor))


def _sweep(
    target: Target, matched: LinearOperator, notes: list[str]
) -> tuple[list[dict[str, float]], Tensor | None]:
    """The steps F̂_λ⁻¹∇h and the root steps F̂_λ^{-1/2}∇h at each damping, and the step at that of the rows."""
    if target.gradient is None:
        return [], None
    gradient = target.gradient.to(matched.dtype)
    steps = list(matched.solves(gradient, target.dampings))
    sweep = _qualities(target, steps)
    with _noted(notes):
        roots = [matched.power(-0.5, damping).apply(gradient) for damping in target.dampings]
        for row, quality in zip(sweep, _qualities(target, roots), strict=True):
            row |= {f"root_{name}": quality[name] for name in DIRECTIONS}
    return sweep, steps[DAMPINGS.index(ROW_DAMPING)]


def _part(target: Target, step: Tensor | None) -> StepPart | None:
    """What a step is in the joint step of all layers."""
    if step is None or target.between is None or target.gradient is None:
        return None
    return step_part(target.between, step, target.gradient.double())


def _qualities(target: Target, steps: Sequence[Tensor]) -> list[dict[str, float]]:
    """How good a step is at each damping of the sweep."""
    assert target.gradient is not None
    curvatures = target.exact.quadratic(torch.stack(list(steps)).to(target.exact.dtype))
    rows = []
    for damping, best, step, curvature in zip(target.dampings, target.steps, steps, curvatures, strict=True):
        quality = metrics.step_quality(curvature, best, step, target.gradient, damping)
        rows.append(
            {
                "damping": damping,
                "direction_cosine": quality.cosine,
                "decrease_share": quality.decrease_share,
            }
        )
    return rows


def _at_row(sweep: list[dict[str, float]]) -> dict[str, float]:
    """The numbers at the damping of the rows."""
    found = sweep[DAMPINGS.index(ROW_DAMPING)] if sweep else {}
    return {name: value for name, value in found.items() if name != "damping"}


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Numbers that cannot be had stay empty, and the note says why."""
    try:
        yield
    except FisherlabError as error:
        notes.append(str(error))
    except torch.linalg.LinAlgError as error:
        notes.append(f"no convergence: {error}")
