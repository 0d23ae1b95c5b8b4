"""The names of the figures and tables, what each shows, and what makes it."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fisherlab.errors import unknown

if TYPE_CHECKING:
    from .workshop import Workshop

EVERYTHING = "all"


@dataclass(frozen=True)
class Exhibit:
    """A figure or table, made by the module of its name.

    Attributes:
        name: as on the command line, and of its files.
        title: what it shows.
    """

    name: str
    title: str

    @property
    def make(self) -> "Callable[[Workshop], dict[str, Any]]":
        """What writes it and returns its numbers for `summary.json`; imported now."""
        module = importlib.import_module(f"{__package__}.{self.name.replace('-', '_')}")
        made: Callable[[Workshop], dict[str, Any]] = module.make
        return made


@dataclass(frozen=True)
class TrainingExhibit(Exhibit):
    """Training with several methods: as curves in a figure, as epochs and time to a target in a table.

    Attributes:
        task: the attribute of `Scale` that is trained.
        table: the number of the paper's table with the printed values.
        heading: of its caption.
    """

    task: str
    table: int
    heading: str

    @property
    def make(self) -> "Callable[[Workshop], dict[str, Any]]":
        """As of `Exhibit`."""
        from .trainings import write_curves, write_table

        write = write_curves if self.name.startswith("figure") else write_table
        return partial(write, name=self.name, task=self.task, number=self.table, title=self.heading)


_FOUR = "SGD, Adam, KFAC and LNGD"

ENTRIES: tuple[Exhibit, ...] = (
    Exhibit("figure-1", "exact Fisher, LNGD's approximation and the error, as heat maps"),
    TrainingExhibit("figure-2", "training on CIFAR-10: SGD, Adam, KFAC, LNGD", "images", 1, "training"),
    TrainingExhibit(
        "figure-3", "training on ImageNet: SGD, Adam, KFAC, LNGD", "imagenet", 2, "ResNet-50 on ImageNet"
    ),
    TrainingExhibit(
        "figure-4", "training of translation: SGD, Adam, KFAC, LNGD", "translation", 3, "translation"
    ),
    Exhibit("figure-5", "KFAC's and LNGD's approximations as heat maps, and all methods"),
    Exhibit("figure-6", "representation vectors of two layers: coordinates and norms"),
    TrainingExhibit("figure-7", "the ablation: LNGD, LNGD-lr, LNGD-sample", "ablation", 5, "the ablation"),
    TrainingExhibit(
        "table-1",
        "CIFAR-10: epochs and time to a target, best accuracy",
        "images",
        1,
        f"CIFAR-10 with {_FOUR}",
    ),
    TrainingExhibit(
        "table-2",
        "ImageNet: epochs and time to a target, best accuracy",
        "imagenet",
        2,
        f"ImageNet with {_FOUR}",
    ),
    TrainingExhibit(
        "table-3",
        "translation: steps and time to a target, best value",
        "translation",
        3,
        f"translation with {_FOUR}",
    ),
    Exhibit("table-4", "the approximations' formulas"),
    TrainingExhibit(
        "table-5",
        "the ablation: LNGD, LNGD-lr, LNGD-sample",
        "ablation",
        5,
        "the ablation, LNGD, LNGD-lr and LNGD-sample",
    ),
    TrainingExhibit("table-6", "CIFAR-10 with all methods", "images", 6, "CIFAR-10 with all methods"),
    Exhibit("theorem-1", "layer-wise rates against the best single rate"),
    Exhibit("theorem-2", "the two-layer network against the bound (1 − α)^k"),
)


def chosen(names: Iterable[str]) -> tuple[Exhibit, ...]:
    """The entries of these names, in the order of the catalogue; `all`, or no name: every one.

    Raises:
        InputError: for a name that does not exist.
    """
    known = {entry.name: entry for entry in ENTRIES}
    wanted = tuple(names) or (EVERYTHING,)
    for name in wanted:
        if name not in known and name != EVERYTHING:
            raise unknown("figure or table", name, [*known, EVERYTHING])
    return tuple(entry for entry in ENTRIES if EVERYTHING in wanted or entry.name in wanted)
