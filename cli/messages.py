"""Messages on stderr: held back until the input is accepted, so that bad input is one line.

The package speaks of arguments, `exclude=('a', 'b')`; here they are the command's options, `--exclude a,b`.
"""

import ast
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from typing import Any

import click

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
    speak_of(None)
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


def speak_of(command: click.Command | None) -> None:
    """From now on arguments in messages are the options of this command, where it has them."""
    options = [flag for one in getattr(command, "params", ()) for flag in one.opts if flag.startswith("--")]
    _options.clear()
    _options.update({flag.removeprefix("--").replace("-", "_"): flag for flag in options})


def as_options(text: str) -> str:
    """A text in one line, with the options of the command in the place of arguments."""
    return _ARGUMENT.sub(_as_option, " ".join(text.split()))


def _as_option(found: re.Match[str]) -> str:
    name, given = found["name"], found["value"] or ""
    if name not in _options:
        return found[0]
    try:
        value = ast.literal_eval(given)
    except (SyntaxError, ValueError):
        value = given
    words = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is True else str(value)
    return f"{_options[name]} {words}".rstrip()


_options: dict[str, str] = {}  # by the argument's name
# an argument is no part of a quoted text, and no value of an option
_ARGUMENT = re.compile(r"""(?<![\w'"=.-])(?P<name>[a-z_]+)=(?P<value>\([^()]*\)|'[^']*'|"[^"]*"|\w+)?""")


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    log.warning("%s", as_options(str(message)))
