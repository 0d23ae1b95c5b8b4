"""What each number of the records means: the one place for headings, formulas and explanations."""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from fisherlab.records.labels import METRICS as NAMES
from fisherlab.records.labels import number

Better = Literal["lower", "higher", "one", "none"]


@dataclass(frozen=True)
class Metric:
    """A number of the records.

    Attributes:
        column: Its column in the records.
        heading: Two short lines, for the head of a table.
        formula: Its definition in Unicode.
        meaning: One or two sentences.
        better: Which value is best: the lowest, the highest, the nearest to one, or none.
        error: Column of its standard error, if it has one.
    """

    column: str
    heading: tuple[str, str]
    formula: str
    meaning: str
    better: Better
    error: str | None = None

    @property
    def name(self) -> str:
        """Its name in words."""
        return NAMES[self.column]


METRICS: tuple[Metric, ...] = (
    Metric(
        "relative_error",
        ("rel.", "error"),
        "‖F − F̂‖_F / ‖F‖_F",
        "Distance of the approximation from the exact layer Fisher, in-sample; 0 is exact, "
        "1 is the error of the zero matrix.",
        "lower",
    ),
    Metric(
        "scaled_error",
        ("scaled", "error"),
        "min over c > 0 of ‖F − c F̂‖_F / ‖F‖_F = √(1 − cos²),  cos = ⟨F, F̂⟩ / (‖F‖_F ‖F̂‖_F)",
        "The relative error after the best rescaling: it compares shapes only.",
        "lower",
    ),
    Metric(
        "best_scale",
        ("best", "scale"),
        "c = ⟨F, F̂⟩ / ‖F̂‖_F²",
        "The factor that reaches the scaled error; 1 where F̂ already has the best scale.",
        "none",
    ),
    Metric(
        "population_error",
        ("popul.", "error"),
        "√(‖F‖² − 2⟨F, F̂⟩ + ‖F̂‖²) / ‖F‖ with F̂ fitted on one half of the samples, ⟨F, F̂⟩ from "
        "the other half, and ‖F‖² from pairs of different samples",
        "The error against the Fisher of the population instead of that of these samples, "
        "averaged over both directions of the split; ± is a jackknife standard error.",
        "lower",
        "population_error_se",
    ),
    Metric(
        "gap_to_nearest",
        ("gap to", "near."),
        "(scaled error − nearest) / nearest,  nearest = min over A, B of ‖F − A⊗B‖_F / ‖F‖_F",
        "How far the scaled error lies above the best that any Kronecker product A⊗B can reach; "
        "an approximation that is no A⊗B may be negative.",
        "lower",
    ),
    Metric(
        "trace_ratio",
        ("trace", "ratio"),
        "tr F̂ / tr F",
        "Agreement of the overall scale.",
        "one",
    ),
    Metric(
        "diagonal_error",
        ("diag.", "error"),
        "‖diag F − diag F̂‖₂ / ‖diag F‖₂",
        "The relative error of the diagonal alone.",
        "lower",
    ),
    Metric(
        "direction_cosine",
        ("dir.", "cosine"),
        "cos(F̂_λ⁻¹∇h, F_λ⁻¹∇h),  F_λ = F + λI, F̂ scaled to tr F",
        "Angle between the approximate and the exact natural gradient at the damping λ.",
        "higher",
    ),
    Metric(
        "decrease_share",
        ("decr.", "share"),
        "(γ(F_λ⁻¹∇h) / γ(Δ))²,  γ(Δ) = √(Δᵀ F_λ Δ) / |Δᵀ∇h|,  Δ = F̂_λ⁻¹∇h",
        "Share of the largest decrease of the damped quadratic model that the direction Δ "
        "reaches; between 0 and 1.",
        "higher",
    ),
    Metric(
        "preconditioned_condition",
        ("prec.", "cond."),
        "μ_max / μ_min over the eigenvalues μ of F̂_λ⁻¹F_λ, F̂ scaled to tr F",
        "Spread of the spectrum that is left after preconditioning; 1 is a perfect inverse.",
        "lower",
    ),
)
"""The metrics of a table, in the order of its columns."""

THEOREMS: tuple[str, ...] = (
    "nearest A⊗B ≤ every A⊗B in relative and in scaled error, in-sample.",
    "EKFAC ≤ KFAC in relative error, in-sample: its diagonal is the best one in KFAC's eigenbasis.",
    "TEKFAC ≤ TKFAC in relative error, in-sample, by the same argument.",
    "tr EKFAC = tr TEKFAC = tr TKFAC = tr F, TKFAC with exact positions.",
    "tr LNGD = tr F_layerwise, with the expected sampling.",
    "0 ≤ decrease share ≤ 1, by the Cauchy–Schwarz inequality.",
)
"""What must hold, whatever the data. No other order of the methods is a theorem."""

SCALE_NOTE = (
    "LNGD and FOOF have no common scale with the Fisher of the loss, and NG+'s trace is a multiple of its "
    "own: compare their scaled errors, not their relative errors."
)
"""How to read the rows of LNGD, FOOF and NG+."""

STAND_IN = "stand-in"
"""Mark in the name of a data set that stands in for another."""


def best_rows(values: pd.Series, better: Better) -> list[bool]:
    """Which rows hold the best value, to the three digits that are shown.

    Args:
        values: One metric of rows with one target; missing values are NaN.
        better: Which value is best.

    Returns:
        A flag for each row; none is set where fewer than two values are known.
    """
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    known = [value for value in numbers if math.isfinite(value)]
    if better == "none" or len(known) < 2:
        return [False] * len(numbers)
    best = number(min(known, key=lambda value: _badness(value, better)))
    return [number(value) == best for value in numbers]


def _badness(value: float, better: Better) -> float:
    if better == "one":
        return abs(math.log(value)) if value > 0 else math.inf
    return -value if better == "higher" else value
