"""Layers that are left out: one list of them with the reasons, as a warning or as an error."""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from fisherlab.errors import FisherlabError, InputError, MemoryLimitError, NotSupportedError, NumericalError

T = TypeVar("T")

Reasons = Mapping[str, str | FisherlabError]
"""Why layers are left out: in words, or the error that they would be refused with."""


class LeftOutLayers:
    """The list of the layers that were left out of an analysis.

    Args:
        strict: whether they stop it.
    """

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._all: dict[str, str | FisherlabError] = {}
        self._untold: dict[str, str | FisherlabError] = {}

    def add(self, reasons: Reasons, *, none_left: bool) -> None:
        """Takes note of layers.

        Raises:
            FisherlabError: where none is left; lists all that were left out.
        """
        self._all |= reasons
        self._untold |= reasons
        if reasons and none_left:
            raise _error_of("no layer can be measured", self._all)

    def tell(self) -> None:
        """Says what was added since it last did, in a warning at the line that called fisherlab.

        Raises:
            FisherlabError: where the list is strict; lists them.
        """
        untold, self._untold = self._untold, {}
        if not untold:
            return
        if self._strict:
            raise _error_of("strict, and not measured", untold, "; leave them out with exclude=")
        warnings.warn(f"not measured: {_listed(untold)}", stacklevel=_outside())


def made(makers: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, FisherlabError]]:
    """What is made of every layer, and the errors of those where that fails; what else is wrong is raised."""
    found: dict[str, T] = {}
    wrong: dict[str, FisherlabError] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (MemoryLimitError, NotSupportedError, NumericalError) as error:
            wrong[name] = error
        except torch.linalg.LinAlgError as error:
            wrong[name] = NumericalError(str(error))
    return found, wrong


def _listed(reasons: Reasons) -> str:
    """Every layer with its reason, in one line."""
    texts = {name: str(reason).rstrip(".") for name, reason in reasons.items()}
    return "; ".join(text if repr(n) in text else f"layer {n!r}: {text}" for n, text in texts.items())


def _error_of(head: str, reasons: Reasons, way_out: str = "") -> FisherlabError:
    """An error that lists layers: about memory or numbers where all theirs are, else an `InputError`."""
    classes = {type(one) for one in reasons.values()}
    found: type[FisherlabError] = InputError
    for kind in (MemoryLimitError, NumericalError):
        found = kind if classes == {kind} else found
    return found(f"{head}: {_listed(reasons)}{way_out}")


def _outside() -> int:
    """The `stacklevel` at the caller of the first line outside this package."""
    level, frame = 1, sys._getframe(1)
    own = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == own:
        frame, level = frame.f_back, level + 1
    return level
