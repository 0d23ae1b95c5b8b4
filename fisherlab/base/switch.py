"""Something of the process's that is another while anybody needs it so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Switch:
    """Changes a setting for as long as anybody has it open, and puts it back after the last.

    Several may be open, and end in any order.

    Args:
        get: gives what is set.
        put: sets it.
        change: from what was set to what it is to be.
    """

    def __init__(
        self, get: Callable[[], Any], put: Callable[[Any], Any], change: Callable[[Any], Any]
    ) -> None:
        self._get, self._put, self._change = get, put, change
        self._open, self._before = 0, None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Open until it ends."""
        if not self._open:
            self._before = self._get()
            self._put(self._change(self._before))
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._put(self._before)
                self._before = None
