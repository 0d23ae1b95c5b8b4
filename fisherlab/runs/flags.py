"""What a value of a configuration is on the command line, beside its type, range and default: words."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_type_hints


@dataclass(frozen=True)
class Flag:
    """The option of a value, in the field's type: `Annotated[Count, Flag("Samples a step.")] = 256`.

    Attributes:
        help: what the option is for.
        metavar: what stands for its value; empty: the name of its type.
        shown: the default in words; empty: the default itself, where there is one.
        name: of the option; empty: that of the field.
    """

    help: str
    metavar: str = ""
    shown: str = ""
    name: str = ""


class FlaggedField(NamedTuple):
    """A field that is an option: its type without a range, its default and its option."""

    type: Any
    default: Any
    flag: Flag


# A configuration is made often, its hints are read once; mypy takes no class for hashable, as `cache` asks.
_FLAGGED: dict[type, Mapping[str, FlaggedField]] = {}


def flagged(config: type) -> Mapping[str, FlaggedField]:
    """The fields of a configuration that are options, by name."""
    if config not in _FLAGGED:
        hints, types = get_type_hints(config, include_extras=True), get_type_hints(config)
        _FLAGGED[config] = {
            field.name: FlaggedField(types[field.name], field.default, flag)
            for field in fields(config)
            for flag in getattr(hints[field.name], "__metadata__", ())
            if isinstance(flag, Flag)
        }
    return _FLAGGED[config]
