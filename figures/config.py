"""The configuration of `fisherlab figures`, as flags give it and as `config.toml` keeps it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

from fisherlab.arguments import FilePath, OneOf, Seed
from fisherlab.base.devices import resolve_device
from fisherlab.errors import InputError
from fisherlab.runs.config import Config, absolute
from fisherlab.runs.flags import Flag

from .catalogue import chosen

SCALE_NAMES = ("smoke", "cpu", "gpu", "paper")


@dataclass(frozen=True, kw_only=True)
class FiguresConfig(Config):
    """What `fisherlab figures` makes, as its options say. Nothing heavy is imported before `resolved`.

    Attributes:
        names: of figures and tables; empty, or `all`: every one.
        runs: a directory.
        seed: runs with several seeds take the next ones.
    """

    command: ClassVar[str] = "figures"

    names: tuple[str, ...] = ()
    scale: Annotated[
        str, OneOf(SCALE_NAMES), Flag("How large the experiments are.", "|".join(SCALE_NAMES))
    ] = "cpu"
    runs: Annotated[
        FilePath | None, Flag("Finished training runs to use where they fit, such as OUT/runs.", "DIR")
    ] = None
    data_dir: Annotated[FilePath | None, Flag("Where to look for data first.", "DIR")] = None
    device: Annotated[str, Flag("Where to compute.", "auto|cpu|cuda[:i]")] = "auto"
    seed: Annotated[Seed, Flag("The first seed.", shown="0")] = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot be used.

        Raises:
            InputError: for an unknown name or scale, a seed out of its range, or runs that are no directory.
            InputTypeError: for a value of another type.
        """
        self.check()
        chosen(self.names)
        if self.runs is not None and not Path(self.runs).is_dir():
            raise InputError(f"the directory of runs {self.runs!r} does not exist; check the path")

    def resolved(self) -> Self:
        """The same work with every name written out, the device chosen and paths made absolute.

        Raises:
            InputError: for a device that this machine does not have.
        """
        return replace(
            self,
            names=tuple(entry.name for entry in chosen(self.names)),
            runs=absolute(self.runs),
            data_dir=absolute(self.data_dir),
            device=resolve_device(self.device),
        )
