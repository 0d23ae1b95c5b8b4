"""`fisherlab report`: one page from finished runs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from fisherlab.arguments import FilePath
from fisherlab.errors import InputError
from fisherlab.runs.config import Config

from . import options, rundirs
from .messages import accept
from .printing import print_json

if TYPE_CHECKING:
    from fisherlab.runs.part import RunPart

_PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """What `fisherlab report` shows.

    Attributes:
        runs: the directories of finished runs.
        title: of the page; None: the runs' names.
    """

    command: ClassVar[str] = "report"

    runs: tuple[FilePath, ...] = ()
    title: str | None = None

    def __post_init__(self) -> None:
        """Refuses no run, and a run that is named twice.

        Raises:
            InputError: for either.
            InputTypeError: for a value of another type.
        """
        self.check()
        if not self.runs:
            raise InputError("name at least one finished run")
        places = [Path(run).resolve() for run in self.runs]
        for place, run in enumerate(self.runs):
            if places[place] in places[:place]:
                raise InputError(f"the run {run!r} is named twice; name each once")


@click.command("report", short_help="One page from one or more finished runs.")
@click.argument("runs", metavar="RUN…", nargs=-1, required=True)
@click.option("--title", metavar="TEXT", help="Of the page.  [default: the runs' names]")
@options.output
def command(*, output: options.Output, runs: tuple[str, ...], title: str | None) -> None:
    """Write one page from finished runs of any command, with their tables, pictures and provenance.

    Runs of one command stand side by side: settings that differ, medians over layers, losses and curves. The
    page is one file that needs no other.
    """
    perform(ReportConfig(runs=runs, title=title), output)


def perform(config: ReportConfig, output: options.Output) -> None:
    """Writes the page's directory and says where it is.

    Raises:
        InputError: for a directory that holds no finished run; nothing has been written then.
    """
    started = time.perf_counter()
    runs = [Path(run).absolute() for run in config.runs]
    with rundirs.claimed(output, "report", "-".join(run.name for run in runs[:3])) as part:
        out = part.out
        if out.resolve() in [run.resolve() for run in runs]:
            raise InputError(f"{str(out)!r} is one of the runs; choose another --out")
        summary = _write(ReportConfig(runs=tuple(map(str, runs)), title=config.title), part, output, started)
    if output.as_json:
        print_json(summary)
        return
    click.echo(f"run directory: {out}\nreport: {out / _PAGE}")


def _write(config: ReportConfig, part: "RunPart", output: options.Output, started: float) -> dict[str, Any]:
    """Writes the directory; returns what `summary.json` holds."""
    from fisherlab.base.progress import bar
    from fisherlab.report.runs import origin, write_report
    from fisherlab.runs.directory import write_json
    from fisherlab.runs.finished import read_run

    found = [read_run(Path(run)) for run in config.runs]
    accept()
    summary = {"command": config.command, "inputs": config.to_dict(), "directory": str(part.out)}
    with part.written() as folder, bar(output.progress, "page", None):
        (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        write_report(folder / _PAGE, found, title=config.title or ", ".join(run.name for run in found))
        write_json(folder / "summary.json", summary)
        write_json(folder / "provenance.json", origin(found, time.perf_counter() - started))
    return summary
