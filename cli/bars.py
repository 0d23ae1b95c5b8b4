"""Bars of trainings on stderr, on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bars(Protocol):
    """Is told of a training how many of its steps are done, with numbers to show beside the bar."""

    def __call__(self, what: str, step: int, steps: int, numbers: str = "") -> None:
        """With so many of `steps` done."""


@contextmanager
def bars(wanted: bool) -> Iterator[Bars]:
    """A bar for the training that is under way; one that is told of later takes its place."""
    if not wanted or not sys.stderr.isatty():
        yield lambda what, step, steps, numbers="": None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[numbers]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, progress.TaskID] = {}

        def report(what: str, step: int, steps: int, numbers: str = "") -> None:
            if what not in tasks:
                for old in tasks.values():
                    shown.update(old, visible=False)
                tasks[what] = shown.add_task(what, total=steps, numbers=numbers)
            shown.update(tasks[what], completed=step, numbers=numbers)

        yield report
