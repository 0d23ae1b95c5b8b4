"""What a value of a configuration is on the command line, beside its type and default: words and bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_type_hints


@dataclass(frozen=True)
class Flag:
    """The option of a value, in the field's type: `Annotated[int, Flag("Samples a step.", least=1)] = 256`.

    Attributes:
        help: what the option is for.
        metavar: what stands for its value; empty: the name of its type.
        shown: the default in words; empty: the default itself, where there is one.
        name: of the option; empty: that of the field.
        least: the least value that is allowed.
        above_zero: whether it must be a finite number above 0.
    """

    help: str
    metavar: str = ""
    shown: str = ""
    name: str = ""
    least: int | None = None
    above_zero: bool = False


class FlaggedField(NamedTuple):
    """A field that is an option: its type, as annotated, its default and its option."""

    type: Any
    default: Any
    flag: Flag


# A configuration is made often, its hints are read once; mypy takes no class for hashable, as `cache` asks.
_FLAGGED: dict[type, Mapping[str, FlaggedField]] = {}


def flagged(config: type) -> Mapping[str, FlaggedField]:
    """The fields of a configuration that are options, by name."""
    if config not in _FLAGGED:
        hints = get_type_hints(config, include_extras=True)
        _FLAGGED[config] = {
            field.name: FlaggedField(hints[field.name].__origin__, field.default, flag)
            for field in fields(config)
            for flag in getattr(hints[field.name], "__metadata__", ())
            if isinstance(flag, Flag)
        }
    return _FLAGGED[config]


def least_values(config: type) -> Mapping[str, int]:
    """The least value of each option that has one, as `Config.check` takes them."""
    return {name: flag.least for name, (_, _, flag) in flagged(config).items() if flag.least is not None}
