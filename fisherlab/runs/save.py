"""One writer for every result: tables, summary, pictures, provenance and the page of a run's directory."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fisherlab.runs.config import Config
from fisherlab.runs.directory import write_json
from fisherlab.runs.origin import Origin
from fisherlab.runs.part import RunPart

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import RenderableType


class Plate(NamedTuple):
    """A picture to be written.

    Attributes:
        name: of its files, without suffix.
        figure: what is drawn.
        heading: the words above it.
        text: what it shows, in a sentence.
        layer: the layer that it shows, if it is one.
        caption: what was measured; None: the caption of the result.
    """

    name: str
    figure: "Figure"
    heading: str
    text: str
    layer: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        path: The image file; a relative path starts at the page's folder. Where a ``.pdf`` of
            the same name lies beside it, the page links to it.
        caption: The sentence under it.
        heading: The words above it.
        layer: The layer that it shows, if it is one: on a page with many layers the picture then
            stands in the layer's section.
    """

    path: str | Path
    caption: str
    heading: str
    layer: str | None = None


class Result(ABC):
    """What a command or a function found: data with the faces that its directory has.

    Attributes:
        about: names of model, data and checkpoint.
        device: where it was computed.
    """

    about: Origin
    device: str

    @property
    @abstractmethod
    def caption(self) -> str:
        """One line that says what was measured."""

    @abstractmethod
    def table(self) -> "RenderableType":
        """For a terminal; `rich.print(result.table())`."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""

    @abstractmethod
    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables by the names of their files."""

    @abstractmethod
    def figures(self) -> Iterator[Plate]:
        """The pictures in their order, each drawn when it is asked for."""

    @abstractmethod
    def write_page(
        self, path: Path, summary: Mapping[str, Any], pictures: Sequence[Picture], origin: Mapping[str, Any]
    ) -> Path:
        """Writes the page, with pictures that have been written; `origin`: what `provenance.json` holds."""

    def save(self, directory: str | Path) -> Path:
        """Writes tables, summary, pictures and the page into a directory that it makes.

        Args:
            directory: must not exist, or be empty.

        Raises:
            InputError: where the directory holds something already, or another process is writing it.
        """
        with RunPart.claim(Path(directory)) as part:
            save_result(self, part)
        return part.out


def save_result(
    result: Result,
    part: RunPart,
    *,
    config: Config | None = None,
    started: float | None = None,
    more: Callable[[Path], None] | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Writes a result into the directory of a run, complete or not at all.

    Args:
        result: what to write.
        part: the directory, claimed; it is finished.
        config: what was done, as `config.toml` says it; None: a function was called.
        started: `time.perf_counter()` at the start of the run; None: its wall time is not known.
        more: writes further files into a folder.
        report: called with the number of pictures done.

    Returns:
        What `summary.json` holds.

    Raises:
        FisherlabError: where files cannot be written.
    """
    summary = result.summary()
    if config is not None:
        run = {"command": config.command, "inputs": config.to_dict(), "directory": str(part.out)}
        summary = run | summary
    with part.written() as folder:
        if config is not None:
            (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        for name, table in result.tables().items():
            table.to_csv(folder / name, index=False)
        write_json(folder / "summary.json", summary)
        if more is not None:
            more(folder)
        pictures = []
        for plate in _written(result.figures(), folder):
            words = f"{plate.text} {plate.caption or result.caption}."
            pictures.append(Picture(f"{plate.name}.png", words, plate.heading, plate.layer))
            report(len(pictures))
        origin = result.about.provenance(result.device, started)
        write_json(folder / "provenance.json", origin)
        result.write_page(folder / "report.html", summary, pictures, origin)
    return summary


def _written(plates: Iterator[Plate], folder: Path) -> Iterator[Plate]:
    """Each picture when it is written, or on its way to be."""
    from fisherlab.plots.workers import MANY, saver

    with _without_collection():
        first = list(islice(plates, MANY))
        with saver(len(first)) as save:
            for plate in chain(first, plates):
                save(plate.figure, folder / plate.name)
                yield plate


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without the cyclic garbage collector, which takes a seventh of the time to draw pictures."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
