"""What each number means: the one registry that tables, pages, pictures and summaries read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from fisherlab.records.labels import named, number

Better = Literal["lower", "higher", "one", "none"]
Kind = Literal["text", "count", "number", "share"]

MISSING = "–"
"""What stands where a number was not computed."""


@dataclass(frozen=True)
class Definition:
    """What a number means.

    Attributes:
        name: Its name in words.
        formula: In Unicode.
        meaning: One or two sentences.
    """

    name: str
    formula: str
    meaning: str


@dataclass(frozen=True)
class Metric(Definition):
    """A number of the records, computed by a function of `fisherlab.metrics`.

    Attributes:
        column: Its column in the records.
        heading: Two short lines, for the head of a table.
        better: Which value is best: the lowest, the highest, the nearest to one, or none.
        error: Column of its standard error, if it has one; it follows its own.
        before: Columns that stand before its own in `records.csv`: what it is made of.
        needs_targets: Whether it is empty where the data have no targets.
        plain: Whether it is of F and F̂ alone: ``fisherlab.metrics`` has a function of the column's name that
            takes the two operators, and a comparison calls it. Its column stands before the note.
        late: Whether its columns stand there too, behind those of the first metrics.
        shown: Whether the tables of a terminal have it where they are not asked for all.
    """

    column: str
    heading: tuple[str, str]
    better: Better
    error: str | None = None
    before: tuple[str, ...] = ()
    needs_targets: bool = False
    plain: bool = False
    late: bool = False
    shown: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the records that belong to it."""
        return (*self.before, self.column, *filter(None, [self.error]))

    def text(self, value: Any, spread: Any = None) -> str:
        """A value as tables write it, with its standard error where both are known."""
        text, error = number(value, MISSING), number(spread, MISSING, digits=2)
        return text if MISSING in (text, error) else f"{text}±{error}"


@dataclass(frozen=True)
class Column:
    """A column of a table that is no comparison's.

    Attributes:
        key: Its name in the frame.
        head: Its heading.
        kind: How its values are written: as they are, whole, to three digits, or in percent.
        short: Its heading on a console, in one or two lines; empty: it is not shown there.
    """

    key: str
    head: str
    kind: Kind = "number"
    short: str = ""

    @property
    def right(self) -> bool:
        """Whether its values stand at the right."""
        return self.kind != "text"

    def cell(self, value: Any) -> str:
        """The text of a value; a text stays as it is."""
        if isinstance(value, str):
            return value or MISSING
        if pd.isna(value):
            return MISSING
        if self.kind == "number":
            return number(value)
        return f"{100 * value:.1f} %" if self.kind == "share" else f"{value:,}"


METRICS: tuple[Metric, ...] = (
    Metric(
        "relative error",
        "‖F − F̂‖_F / ‖F‖_F",
        "Distance of the approximation from the exact layer Fisher, in-sample; 0 is exact, "
        "1 is the error of the zero matrix.",
        "relative_error",
        ("rel.", "error"),
        "lower",
    ),
    Metric(
        "scaled error",
        "min over c > 0 of ‖F − c F̂‖_F / ‖F‖_F = √(1 − cos²),  cos = ⟨F, F̂⟩ / (‖F‖_F ‖F̂‖_F)",
        "The relative error after the best rescaling: it compares shapes only.",
        "scaled_error",
        ("scaled", "error"),
        "lower",
    ),
    Metric(
        "best scale",
        "c = ⟨F, F̂⟩ / ‖F̂‖_F²",
        "The factor that reaches the scaled error; 1 where F̂ already has the best scale.",
        "best_scale",
        ("best", "scale"),
        "none",
        shown=False,
    ),
    Metric(
        "population error",
        "√(‖F‖² − 2⟨F, F̂⟩ + ‖F̂‖²) / ‖F‖ with F̂ fitted on one half of the samples, ⟨F, F̂⟩ from "
        "the other half, and ‖F‖² from pairs of different samples",
        "The error against the Fisher of the population instead of that of these samples, "
        "averaged over both directions of the split; ± is a jackknife standard error.",
        "population_error",
        ("popul.", "error"),
        "lower",
        error="population_error_se",
    ),
    Metric(
        "gap to nearest",
        "(scaled error − nearest) / nearest,  nearest = min over A, B of ‖F − A⊗B‖_F / ‖F‖_F",
        "How far the scaled error lies above the best that any Kronecker product A⊗B can reach; "
        "an approximation that is no A⊗B may be negative.",
        "gap_to_nearest",
        ("gap to", "near."),
        "lower",
    ),
    Metric(
        "trace ratio",
        "tr F̂ / tr F",
        "Agreement of the overall scale.",
        "trace_ratio",
        ("trace", "ratio"),
        "one",
        before=("trace_exact", "trace_approx"),
    ),
    Metric(
        "diagonal error",
        "‖diag F − diag F̂‖₂ / ‖diag F‖₂",
        "The relative error of the diagonal alone.",
        "diagonal_error",
        ("diag.", "error"),
        "lower",
        shown=False,
    ),
    Metric(
        "direction cosine",
        "cos(F̂_λ⁻¹∇h, F_λ⁻¹∇h),  F_λ = F + λI, F̂ scaled to tr F",
        "Angle between the approximate and the exact natural gradient at the damping λ.",
        "direction_cosine",
        ("dir.", "cosine"),
        "higher",
        before=("damping",),
        needs_targets=True,
    ),
    Metric(
        "decrease share",
        "(γ(F_λ⁻¹∇h) / γ(Δ))²,  γ(Δ) = √(Δᵀ F_λ Δ) / |Δᵀ∇h|,  Δ = F̂_λ⁻¹∇h",
        "Share of the largest decrease of the damped quadratic model that the direction Δ "
        "reaches; between 0 and 1.",
        "decrease_share",
        ("decr.", "share"),
        "higher",
        needs_targets=True,
    ),
    Metric(
        "preconditioned condition",
        "μ_max / μ_min over the eigenvalues μ of F̂_λ⁻¹F_λ, F̂ scaled to tr F",
        "Spread of the spectrum that is left after preconditioning; 1 is a perfect inverse.",
        "preconditioned_condition",
        ("prec.", "cond."),
        "lower",
        shown=False,
    ),
    Metric(
        "log-det divergence",
        "[tr X − log det X − D] / 2D,  X = F̂_λ⁻¹F_λ, F̂ scaled to tr F",
        "Kullback–Leibler divergence of the normal distributions with the precisions F_λ and F̂_λ, in nats a "
        "dimension.",
        "logdet_divergence",
        ("logdet", "div."),
        "lower",
        late=True,
        shown=False,
    ),
    Metric(
        "scaled log-det divergence",
        "min over c > 0 of that of c F̂_λ = ½[log(tr X / D) − log det X / D]",
        "Half the logarithm of the arithmetic by the geometric mean of the eigenvalues of X: it needs no "
        "common scale.",
        "logdet_divergence_scaled",
        ("logdet", "scaled"),
        "lower",
        late=True,
    ),
    Metric(
        "von Neumann divergence",
        "(tr F log F − ⟨F, log F̂⟩) / tr F,  F̂ scaled to tr F, no damping",
        "Relative entropy of F̂ and F; infinite, and left empty, where F̂ is zero inside the range of F.",
        "von_neumann_divergence",
        ("v. Neu.", "div."),
        "lower",
        late=True,
    ),
    Metric(
        "calibration, top",
        "geometric mean of q_i = u_iᵀF̂u_i / ℓ_i over the eigenpairs (ℓ_i, u_i) of F that carry the first "
        "50 % of tr F, F̂ scaled to tr F",
        "The curvature that F̂ sees at the top of the spectrum: below 1 steps are too long there, above 1 too "
        "short.",
        "calibration_top",
        ("calib.", "top"),
        "one",
        late=True,
        shown=False,
    ),
    Metric(
        "calibration, middle",
        "the same over those of the next 40 %",
        "The curvature that F̂ sees in the middle of the spectrum.",
        "calibration_middle",
        ("calib.", "middle"),
        "one",
        late=True,
        shown=False,
    ),
    Metric(
        "calibration, tail",
        "the same over those of the next 9.9 %",
        "The curvature that F̂ sees in the tail of the spectrum.",
        "calibration_tail",
        ("calib.", "tail"),
        "one",
        late=True,
        shown=False,
    ),
    Metric(
        "joint decrease share",
        "the decrease share of the steps Δ of all layers together, with F between layers and each layer's λ",
        "What block-diagonal methods lose between layers; the same number in all layers' rows of a method. "
        "Norms are left out.",
        "damped_step_share",
        ("joint", "share"),
        "higher",
        needs_targets=True,
        late=True,
    ),
    Metric(
        "root direction cosine",
        "cos(F̂_λ^{-1/2}∇h, F_λ⁻¹∇h),  F̂ scaled to tr F",
        "The direction cosine of the root step, which Adam, Shampoo and SOAP take in training.",
        "root_direction_cosine",
        ("root", "cosine"),
        "higher",
        needs_targets=True,
        late=True,
        shown=False,
    ),
    Metric(
        "root decrease share",
        "(γ(F_λ⁻¹∇h) / γ(Δ))²,  Δ = F̂_λ^{-1/2}∇h",
        "The decrease share of the root step.",
        "root_decrease_share",
        ("root", "share"),
        "higher",
        needs_targets=True,
        late=True,
        shown=False,
    ),
)
"""The metrics of a comparison, in the order of the columns of its tables and of `records.csv`."""

DIRECTIONS: tuple[str, ...] = ("direction_cosine", "decrease_share")
"""Columns of the metrics of the damped direction, which are swept over dampings."""

ROOT_DIRECTIONS: tuple[str, ...] = tuple(f"root_{column}" for column in DIRECTIONS)
"""The same of the root step."""

QUALITIES: tuple[str, ...] = ("scaled_error", *DIRECTIONS)
"""Columns of the metrics that are followed over a training."""

TRACED: dict[str, Definition] = {
    "trace_exact": Definition(
        "tr F",
        "(1/N) Σ_n Σ_c ‖V_{n,c}‖_F²",
        "Trace of the exact Fisher of a layer: V is the gradient of its weights for sample n and label "
        "column c. The traces of the layers add up to that of the network.",
    ),
    "effective_rank": Definition(
        "effective rank",
        "exp(−Σ_i q_i log q_i),  q_i = λ_i / Σ_j λ_j",
        "Of the eigenvalues λ_i of F: between 1 and D = m·d, and no more than the columns N·C that F is "
        "made of.",
    ),
    "condition": Definition(
        "condition number",
        "(λ_max + λ) / (λ_min + λ),  λ = 0.1 tr F / D",
        "Of F damped as for the directions. Where F has fewer columns N·C than D, λ_min is exactly 0.",
    ),
}
"""What a trace has beside the metrics: column -> what it means."""

BY_COLUMN: dict[str, Metric] = {metric.column: metric for metric in METRICS}

_DEFINED: dict[str, Definition] = {**BY_COLUMN, **TRACED}


def name_of(column: str) -> str:
    """The name in words of a metric; a column that is none stays as it is."""
    return _DEFINED[column].name if column in _DEFINED else column


def defined(*columns: str) -> list[Definition]:
    """The definitions of these columns of a comparison or a trace."""
    return [_DEFINED[column] for column in columns]


THEOREMS: tuple[str, ...] = (
    "nearest A⊗B ≤ every A⊗B in relative and in scaled error, in-sample.",
    "EKFAC ≤ KFAC in relative error, in-sample: its diagonal is the best one in KFAC's eigenbasis.",
    "TEKFAC = SOAP ≤ TKFAC = Shampoo with power 1/2 in relative error, in-sample, by the same argument (with "
    "gradients=sample).",
    "KL-SOAP ≤ KL A⊗B and diagonal = Adam ≤ Adafactor in relative error, in-sample, likewise; all with "
    "gradients=sample.",
    "TKFAC, with exact positions, ≤ every A⊗B in von Neumann divergence: it has F's partial traces.",
    "EKFAC ≤ KFAC, TEKFAC ≤ TKFAC, KL-SOAP ≤ KL A⊗B and Adam ≤ Adafactor in von Neumann divergence too.",
    "scaled ≤ unscaled log-det divergence; both and von Neumann's are 0 or above, and 0 where F̂ = F.",
    "tr EKFAC = tr TEKFAC = tr TKFAC = tr F, TKFAC with exact positions.",
    "tr LNGD = tr F_layerwise, with the expected sampling.",
    "0 ≤ decrease share ≤ 1, of one layer and of the joint step, by the Cauchy–Schwarz inequality.",
)
"""What must hold, whatever the data. No other order of the methods is a theorem."""

SCALE_NOTE = "no common scale with the Fisher of the loss: compare scaled errors, not relative errors."
"""How to read the rows of a method with `own_scale`: behind its mark or its name."""


def scale_notes(methods: Iterable[str]) -> list[str]:
    """`SCALE_NOTE` behind the names of those of the methods that it is about; nothing without any."""
    own = [one.label for one in map(named, dict.fromkeys(methods)) if one.own_scale]
    return [f"{', '.join(own)}: {SCALE_NOTE}"] if own else []


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
