"""The names of the figures and tables, what each shows, and the module that makes it."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fisherlab.errors import unknown

if TYPE_CHECKING:
    from .work import Work

EVERYTHING = "all"


@dataclass(frozen=True)
class Exhibit:
    """A figure or table.

    Attributes:
        name: as on the command line, and of its files.
        title: what it shows.
    """

    name: str
    title: str

    @property
    def make(self) -> "Callable[[Work], dict[str, Any]]":
        """The function of its module; the module is imported now."""
        module = importlib.import_module(f"{__package__}.{self.name.replace('-', '_')}")
        made: Callable[[Work], dict[str, Any]] = module.make
        return made


ENTRIES: tuple[Exhibit, ...] = (
    Exhibit("figure-1", "exact Fisher, LNGD's approximation and the error, as heat maps"),
    Exhibit("figure-2", "training on CIFAR-10: SGD, Adam, KFAC, LNGD"),
    Exhibit("figure-3", "training on ImageNet: SGD, Adam, KFAC, LNGD"),
    Exhibit("figure-4", "training of translation: SGD, Adam, KFAC, LNGD"),
    Exhibit("figure-5", "KFAC's and LNGD's approximations as heat maps, and all methods"),
    Exhibit("figure-6", "representation vectors of two layers: coordinates and norms"),
    Exhibit("figure-7", "the ablation: LNGD, LNGD-lr, LNGD-sample"),
    Exhibit("table-1", "CIFAR-10: epochs and time to a target, best accuracy"),
    Exhibit("table-2", "ImageNet: epochs and time to a target, best accuracy"),
    Exhibit("table-3", "translation: steps and time to a target, best value"),
    Exhibit("table-4", "the approximations' formulas"),
    Exhibit("table-5", "the ablation: LNGD, LNGD-lr, LNGD-sample"),
    Exhibit("table-6", "CIFAR-10 with all methods"),
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
