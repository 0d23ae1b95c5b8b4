"""Messages on stderr: held back until the input is accepted, so that bad input is one line."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from typing import Any

log = logging.getLogger("fisherlab")


class _Held(MemoryHandler):
    """Keeps messages until `pass_on`, then lets each through at once; what is still held is dropped."""

    def __init__(self, target: logging.Handler) -> None:
        # so many before the input is accepted would be a defect; the handler asks for some number
        super().__init__(capacity=10_000, flushLevel=logging.CRITICAL + 1, target=target, flushOnClose=False)
        self.held = True

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return not self.held

    def pass_on(self) -> None:
        self.held = False
        self.flush()


@contextmanager
def messages() -> Iterator[None]:
    """Sends the package's messages and Python's warnings to stderr, for the time of the block."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("%(message)s"))
    handler = _Held(stream)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
    finally:
        handler.buffer.clear()
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """`-q`: errors only; `-v`: everything, and at once."""
    if quiet:
        log.setLevel(logging.ERROR)
    elif verbose:
        log.setLevel(logging.DEBUG)
        accept()


def accept() -> None:
    """Shows the messages held so far, and from now on each at once: the input has been accepted."""
    for handler in log.handlers:
        if isinstance(handler, _Held):
            handler.pass_on()


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    log.warning("%s", " ".join(str(message).split()))
