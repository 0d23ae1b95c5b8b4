"""The configuration of `fisherlab figures`, as flags give it and as `config.toml` keeps it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from fisherlab.base.devices import resolve_device
from fisherlab.errors import InputError, unknown
from fisherlab.runs.config import Config, absolute

from .catalogue import chosen

SCALE_NAMES = ("smoke", "cpu", "gpu", "paper")


@dataclass(frozen=True, kw_only=True)
class FiguresConfig(Config):
    """What `fisherlab figures` makes. Nothing heavy is imported before `resolved`.

    Attributes:
        names: of figures and tables; empty, or `all`: every one.
        scale: one of `SCALE_NAMES`.
        runs: a directory with finished training runs, which are used where they fit.
        data_dir: where to look for data first.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        seed: the first one; runs with several seeds take the next ones.
    """

    command: ClassVar[str] = "figures"

    names: tuple[str, ...] = ()
    scale: str = "cpu"
    runs: str | None = None
    data_dir: str | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot be used.

        Raises:
            InputError: for an unknown name or scale, a seed out of its range, or runs that are no directory.
            InputTypeError: for a value of another type.
        """
        self.check({"seed": 0})
        chosen(self.names)
        if self.scale not in SCALE_NAMES:
            raise unknown("scale", self.scale, SCALE_NAMES)
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
