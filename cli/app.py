"""The root of the command line, and what becomes of errors."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from fisherlab import __version__
from fisherlab.errors import (
    FisherlabError,
    InputError,
    InputTypeError,
    MemoryLimitError,
    NotSupportedError,
    NumericalError,
    unknown,
)

from .groups import LazyGroup
from .messages import as_options, messages, speak_of
from .streams import Printable, printable

FAILED, BAD_INPUT = 1, 2
INTERRUPTED, UNREAD = 130, 141  # 128 + SIGINT and 128 + SIGPIPE, as shells have it
_COMMANDS = ("compare", "data", "figures", "list", "report", "represent", "run", "sweep", "trace", "train")

_BAD_INPUT = (InputError, InputTypeError, MemoryLimitError, NotSupportedError, NumericalError)


class Root(LazyGroup):
    """The command `fisherlab`: every error is one line on stderr and an exit code."""

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Runs the command line and exits: 0 done, 1 failed, 2 bad input, 130 interrupted, 141 not read."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **options)
        with _terminable(), printable() as stdout, messages():
            code = self._code(args, options) or _unprinted(stdout)
        sys.exit(code)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names; messages are then in its words."""
        found = super().resolve_command(ctx, args)
        speak_of(found[1])
        return found

    def _code(self, args: Sequence[str] | None, options: dict[str, Any]) -> int:
        try:
            result = super().main(args, standalone_mode=False, **options)
        except (click.Abort, KeyboardInterrupt):
            click.echo("fisherlab: interrupted", err=True)
            return INTERRUPTED
        except click.ClickException as error:
            return _fail(_usage(error), BAD_INPUT)
        except _BAD_INPUT as error:
            _debug(error.__cause__)
            return _fail(str(error), BAD_INPUT)
        except FisherlabError as error:
            return _fail(str(error), FAILED)
        except Exception as error:
            return _unexpected(error)
        return result if isinstance(result, int) else 0


@click.group(
    cls=Root,
    modules={name: f"{__package__}.{name}" for name in _COMMANDS},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fisherlab")
def main() -> None:
    """The exact Fisher of every layer of a network beside its approximations."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM an interruption like Ctrl-C, so that nothing half-written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unprinted(stdout: Printable) -> int:
    """The exit code where all is done; whether it could be printed decides."""
    stdout.flush()
    if stdout.error is None:
        return 0
    if isinstance(stdout.error, BrokenPipeError):  # of a reader that has seen enough, such as `head`
        return UNREAD
    return _fail(f"the output could not be printed: {stdout.error.strerror or stdout.error}", FAILED)


def _fail(message: str, code: int) -> int:
    click.echo(f"fisherlab: error: {as_options(message)}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        return str(unknown("option", error.option_name, error.possibilities))
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see '{context.command_path} --help'" if context else message


def _debug(error: BaseException | None) -> bool:
    """Shows the traceback with -v; returns whether it is shown."""
    log = logging.getLogger("fisherlab")
    if error is not None:
        log.debug("the traceback:", exc_info=error)
    return log.isEnabledFor(logging.DEBUG)


def _unexpected(error: Exception) -> int:
    hint = "" if _debug(error) else "; -v shows the traceback"
    return _fail(f"{type(error).__name__}: {error}{hint}", FAILED)
