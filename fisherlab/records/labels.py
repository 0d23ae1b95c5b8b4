"""The words and colours of approximations, and how numbers and names are written."""

import math
import re
from typing import NamedTuple


class Named(NamedTuple):
    """How tables, pages and pictures show what has a name.

    Attributes:
        label: Its written form.
        colour: In pictures, hexadecimal; None: one by its place.
        own_scale: Whether it has no common scale with the Fisher of the loss.
    """

    label: str
    colour: str | None = None
    own_scale: bool = False


VARIANTS: dict[str, Named] = {
    "kfac-reduce": Named("KFAC-reduce", "#56b4e9"),
    "lngd-sample": Named("LNGD-sample", "#8c3a00", own_scale=True),
    "adamw": Named("AdamW"),
}
"""What has a name but is no registered approximation: optimizers, and approximations with options."""

_LONG_WORD = re.compile(r"^(.{3}).*?(\d*)$", re.DOTALL)
"""What stays of a word of a long name."""


def named(name: str) -> Named:
    """How an approximation or an optimizer is shown: as its class says, else by its name.

    The registry, and torch with it, is not imported before a name is looked up: processes that only draw look
    up none.
    """
    from fisherlab.approximations import registered

    cls = registered().get(name)
    return VARIANTS.get(name, Named(name)) if cls is None else Named(cls.label, cls.colour, cls.own_scale)


def label(name: str) -> str:
    """The written form of the name of an approximation or an optimizer."""
    return named(name).label


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
