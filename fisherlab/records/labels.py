"""The words that plots, tables and pages use for approximations and metrics."""

import math
import re

APPROXIMATIONS: dict[str, str] = {
    "diagonal": "diagonal",
    "kfac": "KFAC",
    "kfac-reduce": "KFAC-reduce",
    "ekfac": "EKFAC",
    "tkfac": "TKFAC",
    "tekfac": "TEKFAC",
    "lngd": "LNGD",
    "lngd-lr": "LNGD-lr",
    "lngd-sample": "LNGD-sample",
    "ngplus": "NG+",
    "foof": "FOOF",
    "nearest-kronecker": "nearest A⊗B",
}
"""Registered name of an approximation -> the way its paper writes it."""

METRICS: dict[str, str] = {
    "relative_error": "relative error",
    "scaled_error": "scaled error",
    "best_scale": "best scale",
    "population_error": "population error",
    "gap_to_nearest": "gap to nearest",
    "trace_ratio": "trace ratio",
    "diagonal_error": "diagonal error",
    "direction_cosine": "direction cosine",
    "decrease_share": "decrease share",
    "preconditioned_condition": "preconditioned condition",
}
"""Column of the records -> the metric's name in words."""

_LONG_WORD = re.compile(r"^(.{3}).*?(\d*)$", re.DOTALL)
"""What stays of a word of a long name."""


def label(name: str) -> str:
    """The written form of an approximation's name; a third party's name stays as it is."""
    return APPROXIMATIONS.get(name, name)


def number(value: object, missing: str = "n/a", digits: int = 3) -> str:
    """``value`` to so many significant digits, short: ``0.310``, ``12.3``, ``1.23e4``.

    Args:
        value: A real number, or None, or pandas' NA.
        missing: The text for a value that is None or not a number.
        digits: Significant digits.

    Returns:
        The text; infinity is ``∞``.
    """
    if not isinstance(value, int | float) and not hasattr(value, "__float__"):
        return missing
    x = float(value)
    if math.isnan(x):
        return missing
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if x == 0:
        return "0"
    mantissa, _, exponent = f"{x:#.{digits}g}".partition("e")
    mantissa = mantissa.rstrip(".").replace("-", "−")
    return f"{mantissa}e{int(exponent)}".replace("-", "−") if exponent else mantissa


def plain(value: float) -> str:
    """A round number as a tick says it: ``0.05``, ``2000``, ``5e−5``."""
    if value == 0 or 1e-4 < abs(value) < 1e5:
        return f"{value:g}".replace("-", "−")
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")


def short(name: object, most: int) -> str:
    """A layer's name in at most so many characters.

    The words before its last one keep three letters and their number, one after the other from
    the left, until it fits (``dec.lay.1.cross_attention.out_proj``); then its beginning is cut
    off behind an ellipsis.
    """
    words = str(name).split(".")
    for place in range(len(words) - 1):
        if len(".".join(words)) <= most:
            break
        words[place] = _LONG_WORD.sub(r"\1\2", words[place])
    text = ".".join(words)
    return text if len(text) <= most else "…" + text[1 - most :]


def ordinal(number: int) -> str:
    """The number as ``2nd``, ``3rd`` or ``11th``."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
