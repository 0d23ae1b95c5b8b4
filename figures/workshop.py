"""What every figure and table is made with: the scale, the runs, and how files and captions are written."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fisherlab.base.writing import write
from fisherlab.plots import save
from fisherlab.plots.methods import printed_number

from .method_runs import MethodRun, MethodRuns
from .printed import errata
from .scales import Scale

Draw = Callable[[str, str], Figure]
"""From a title and a caption to a figure."""

TABLE_COLUMNS = ("quantity", "measured", "printed", "note")


@dataclass(frozen=True)
class Caption:
    """What stands under a figure or table.

    Attributes:
        title: what it shows.
        measured: data, network, seed and device of what was measured; what was not, and why.
        printed: what the paper prints, beside it.
        readings: numbers of the readings that bear on it.
        notes: further sentences.
    """

    title: str
    measured: str
    printed: str
    readings: Sequence[int] = ()
    notes: Sequence[str] = ()

    def lines(self, scale: Scale) -> list[str]:
        """The caption, a paragraph a line, without the title."""
        remark = f", {scale.remark}" if scale.remark else ""
        body = [f"Measured (scale {scale.name}{remark}): {self.measured}"]
        return [*body, f"Printed in the paper: {self.printed}", *self.notes, *errata(*self.readings)]


@dataclass(frozen=True)
class Workshop:
    """The means of an exhibit.

    Attributes:
        scale: of the experiments.
        seed: the first one.
        device: where to compute.
        data_dir: where to look for data first.
        folder: where files are written.
        runs: the training runs.
    """

    scale: Scale
    seed: int
    device: str
    data_dir: str | None
    folder: Path
    runs: MethodRuns

    def figure(self, name: str, draw: Draw, caption: Caption, frame: pd.DataFrame) -> None:
        """Writes `name.png`, `.pdf`, `.csv` (the numbers drawn) and `.txt` (the caption).

        Args:
            name: of the files.
            draw: from the title and the text of the caption to the figure, which shows both.
            caption: under it.
            frame: the numbers.
        """
        lines = caption.lines(self.scale)
        title = f"{_heading(name)}: {caption.title}"
        save(draw(title, "\n".join(lines)), self.folder / name)
        self._csv(name, frame)
        self._text(f"{name}.txt", [title, *lines])

    def table(self, name: str, rows: Iterable[Sequence[object]], caption: Caption) -> pd.DataFrame:
        """Writes `name.csv` and `name.md` with the columns `quantity, measured, printed, note`."""
        frame = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
        self._csv(name, frame)
        heading = f"# {_heading(name)}: {caption.title}"
        body = "".join("| " + " | ".join(line) + " |\n" for line in _lines(frame))
        self._text(f"{name}.md", [heading, "", body.rstrip(), "", *_bullets(caption.lines(self.scale))])
        return frame

    def _csv(self, name: str, frame: pd.DataFrame) -> None:
        write(self.folder / f"{name}.csv", frame.to_csv(index=False).encode())

    def _text(self, name: str, lines: Iterable[str]) -> None:
        write(self.folder / name, ("\n".join(lines) + "\n").encode())


def described(runs: Sequence[MethodRun], words: str) -> str:
    """Network, data, seeds and device of some runs, in a sentence's words."""
    seeds = sorted({run.seed for run in runs})
    data = " and ".join(dict.fromkeys(run.data for run in runs))
    devices = " and ".join(dict.fromkeys(run.device for run in runs))
    named = ", ".join(map(str, seeds))
    return f"{words}; data {data}; seed{'s' * (len(seeds) > 1)} {named}; device {devices}"


def _heading(name: str) -> str:
    """`Figure 1` of `figure-1` and of `figure-1-second`."""
    return " ".join(name.split("-")[:2]).capitalize()


def _lines(frame: pd.DataFrame) -> list[list[str]]:
    """Heading, rule and rows as texts: what was measured to four digits, what is printed as it is."""
    rows = [
        [quantity, _cell(measured, lambda value: f"{value:.4g}"), _cell(printed, _as_printed), note]
        for quantity, measured, printed, note in frame.itertuples(index=False)
    ]
    return [list(TABLE_COLUMNS), ["---"] * len(TABLE_COLUMNS), *rows]


def _cell(value: object, written: Callable[[float], str]) -> str:
    if value is None or value == "" or value != value:  # NaN
        return "–"
    return written(value) if isinstance(value, float) else str(value)


def _as_printed(value: float) -> str:
    """A value of the paper as it stands there; a share that follows from two of them, to four digits."""
    return printed_number(value) if value >= 1 else f"{value:.4g}"


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]
