"""The errors that fisherlab raises: each one clear sentence with the way out."""

import difflib
import math
from collections.abc import Collection, Iterable


class FisherlabError(Exception):
    """The base class of every error that fisherlab raises on purpose."""


class InputError(FisherlabError, ValueError):
    """A value that the caller gave cannot be used."""


class InputTypeError(FisherlabError, TypeError):
    """An argument has the wrong type."""


class MemoryLimitError(FisherlabError, MemoryError):
    """The work would need more memory than the limit allows."""


class NotSupportedError(FisherlabError, NotImplementedError):
    """The operation does not exist for this kind of object; the message names one that does."""


class NumericalError(FisherlabError, ArithmeticError):
    """A matrix is not finite or cannot be factored."""


def unknown(what: str, name: object, known: Iterable[str]) -> InputError | InputTypeError:
    """The error for a name that is not registered: near names, or all; a number has no near name."""
    names = sorted(known)
    everything = f"known: {', '.join(names)}."
    if not isinstance(name, str):
        return InputTypeError(f"the {what} is given by name, not as {type(name).__name__}; {everything}")
    near = [] if name.isdigit() else difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else everything
    return InputError(f"unknown {what} {name!r}; {hint}")


def known_name(what: str, name: object, known: Collection[str]) -> str:
    """The name itself where it is among the known ones; what is no string may have no hash, and no order.

    Raises:
        InputError: for an unknown name.
        InputTypeError: for what is no string.
    """
    if isinstance(name, str) and name in known:
        return name
    raise unknown(what, name, known)


def bytes_text(count: float) -> str:
    """A number of bytes as a person reads it, such as `1.5 GiB`."""
    power = min(4, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
