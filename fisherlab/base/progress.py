"""Progress of a long pass: a bar on stderr, only on a terminal and only when it takes a while."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[str, int, int | None], None]
"""False: none; True: a bar; or a function of (what, samples done, samples in all or None)."""

Report = Callable[[int], None]


@contextmanager
def bar(progress: Progress, what: str, total: int | None) -> Iterator[Report]:
    """A function to call with the number of samples done so far."""
    if callable(progress):
        report = progress
        yield lambda done: report(what, done, total)
    elif not progress or not sys.stderr.isatty():
        yield lambda done: None
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda done: bars.update(task, completed=done)
