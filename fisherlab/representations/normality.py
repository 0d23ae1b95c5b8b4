"""How far values are from a normal distribution, and the scaled chi distribution of norms."""

from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray[Any, np.dtype[np.float64]]

LEAST = 8
"""Values below which nothing is tested."""


def normal_distances(values: Array) -> tuple[Array, Array]:
    """Distances of every column from the normal distribution with its own mean and standard deviation.

    Args:
        values: [n, k], independent down each column; the standard deviation is that of n − 1.

    Returns:
        The Kolmogorov–Smirnov distance D = sup ∣F_n − Φ∣, [k], and the Anderson–Darling statistic
        A² (1 + 0.75/n + 2.25/n²), [k], whose 5 % point is 0.752 (Stephens 1974; D'Agostino & Stephens 1986,
        table 4.7). NaN for a constant column, and for fewer than `LEAST` values.
    """
    n, columns = values.shape
    if n < LEAST:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    spread = values.std(0, ddof=1)
    spread[values.min(0) == values.max(0)] = np.nan
    z = np.sort((values - values.mean(0)) / spread, axis=0)
    u, rank = special.ndtr(z), np.arange(1, n + 1)[:, None]
    distance = np.maximum(rank / n - u, u - (rank - 1) / n).max(0)
    logs = special.log_ndtr(z) + special.log_ndtr(-z[::-1])
    squared = -n - ((2 * rank - 1) * logs).sum(0) / n
    return distance, squared * (1 + 0.75 / n + 2.25 / n**2)


def lilliefors_p(distance: Array, n: int) -> Array:
    """P(D ≥ distance) of n normal values whose mean and standard deviation were estimated.

    The table of the Kolmogorov–Smirnov test does not hold then (Lilliefors 1967). Below 0.1: the fit of
    Dallal & Wilkinson (1986, The American Statistician 40); above: the polynomials of Stephens' statistic
    (√n − 0.01 + 0.85/√n) D, as R's `nortest` has them.
    """
    D = np.asarray(distance, dtype=float)
    size = min(n, 100)
    scaled = D * (n / size) ** 0.49
    exponent = (
        -7.01256 * scaled**2 * (size + 2.78019)
        + 2.99587 * scaled * np.sqrt(size + 2.78019)
        - 0.122119
        + 0.974598 / np.sqrt(size)
        + 1.67997 / size
    )
    p = np.exp(np.minimum(exponent, 0.0))
    k = (np.sqrt(n) - 0.01 + 0.85 / np.sqrt(n)) * D
    above = np.select(
        [k <= 0.302, k <= 0.5, k <= 0.9, k <= 1.31],
        [
            np.ones_like(k),
            np.polyval([81.218052, -138.55152, 80.709644, -19.828315, 2.76773], k),
            np.polyval([-32.355711, 94.029866, -97.490286, 40.662806, -4.901232], k),
            np.polyval([2.423045, -12.234627, 23.186922, -19.558097, 6.198765], k),
        ],
        0.0,
    )
    return np.where(np.isnan(D), np.nan, np.where(p > 0.1, np.clip(above, 0.0, 1.0), p))


def holm(p: Array) -> Array:
    """P values adjusted for their number (Holm 1979): max_{j ≤ i} (k − j + 1) p_(j), at most 1; NaN stays."""
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return adjusted


def chi_fit(mean_square: float, variance_of_square: float) -> tuple[float, float]:
    """(ν, σ) of r = σ χ_ν with these moments of r²: ν = 2 E[r²]² / Var[r²], σ² = E[r²] / ν.

    For r = ‖x‖ with m independent centred normal coordinates of one variance, ν = m. Coordinates that depend
    on each other or differ in variance give fewer degrees of freedom, means that are not zero give more. NaN
    for a constant r.
    """
    if not variance_of_square > 0:
        return np.nan, np.nan
    freedom = 2 * mean_square**2 / variance_of_square
    return freedom, (mean_square / freedom) ** 0.5


def chi_cdf(r: Array, freedom: float, scale: float) -> Array:
    """P(σ χ_ν ≤ r)."""
    return special.gammainc(freedom / 2, (np.asarray(r) / scale) ** 2 / 2)


def chi_quantile(p: Array, freedom: float, scale: float) -> Array:
    """The inverse of `chi_cdf`."""
    return scale * np.sqrt(2 * special.gammaincinv(freedom / 2, p))


def chi_distance(values: Array, freedom: float, scale: float) -> float:
    """The largest ∣F_n − P(σ χ_ν ≤ ·)∣ of values [n]; NaN without a fit, or for fewer than `LEAST` values."""
    n = len(values)
    if n < LEAST or np.isnan(freedom):
        return np.nan
    u, rank = chi_cdf(np.sort(values), freedom, scale), np.arange(1, n + 1)
    return float(np.maximum(rank / n - u, u - (rank - 1) / n).max())
