"""Hooks on a user's model that end with the optimizer, and stay behind when the model is copied."""

import weakref
from collections.abc import Callable
from typing import Any


class Hook:
    """Calls a method for as long as its object lives; a copy, or one that was pickled, does nothing.

    Args:
        method: bound; its object is not kept alive.
        *first: arguments before those of the call.
    """

    def __init__(self, method: Callable[..., Any] | None = None, *first: Any) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)
        self._first = first

    def __call__(self, *args: Any) -> None:
        """What torch calls."""
        method = None if self._method is None else self._method()
        if method is not None:
            method(*self._first, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, ()
