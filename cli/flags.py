"""The options of a command, made from its configuration, and the values that were given."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from typing import Any, get_args, get_origin

import click

from fisherlab.errors import InputError
from fisherlab.runs.config import Config
from fisherlab.runs.flags import FlaggedField, flagged


def options_of(config: type[Config], *names: str) -> Callable[[Any], Any]:
    """Adds the options of a configuration: those of these fields, or all; one that is not given is None."""
    found = flagged(config)

    def add(command: Any) -> Any:
        for name in reversed(names or list(found)):
            command = _option(name, found[name])(command)
        return command

    return add


def given_values(config: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given, as the configuration has them.

    Raises:
        InputError: where a list or an assignment cannot be read.
    """
    known = flagged(config)
    found = {name: value for name, value in values.items() if value not in (None, ())}
    for name, value in found.items():
        kinds = _kinds(known[name].type)
        if dict in kinds:
            found[name] = dict(map(_assigned, value))
        elif tuple in kinds:
            listed = _listed(name, value, kinds[tuple])
            found[name] = listed[0] if len(listed) == 1 and kinds[tuple] in kinds else listed
    return found


def _option(name: str, field: FlaggedField) -> Callable[[Any], Any]:
    flag, kinds, default = field.flag, _kinds(field.type), field.default
    words = f"--{(flag.name or name).replace('_', '-')}"
    more: dict[str, Any] = {"metavar": flag.metavar or None, "default": None}
    if bool in kinds:
        more = {"default": None} if default else {"default": None, "is_flag": True}
        words += f"/--no-{name.replace('_', '-')}" if default else ""
    elif dict in kinds:
        more = {"metavar": flag.metavar, "multiple": True}
    elif tuple not in kinds:
        more["type"] = next(iter(kinds))
    plain = "" if default is MISSING or not default or bool in kinds or dict in kinds else str(default)
    shown = flag.shown or plain
    return click.option(words, name, help=flag.help + (f"  [default: {shown}]" if shown else ""), **more)


def _kinds(annotated: Any) -> dict[type, type]:
    """The types that a value may have, but None; a tuple with the type of its entries."""
    options: Iterable[Any] = (annotated,) if get_origin(annotated) in (tuple, dict) else get_args(annotated)
    found = {}
    for one in options or (annotated,):
        if one is not type(None):
            found[get_origin(one) or one] = next(iter(get_args(one)), one)
    return found


def _listed(name: str, text: str, convert: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values of a text with commas."""
    try:
        return tuple(convert(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"{name} takes numbers separated by commas, not {text!r}") from error


def _assigned(text: str) -> tuple[str, Any]:
    """The name and the value of KEY=VALUE; the value as TOML or Python writes it, else a text."""
    import ast
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set takes KEY=VALUE, not {text!r}")
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = value
        if not isinstance(found, bool | int | float | tuple):  # what TOML can keep
            found = value
    return name.strip().replace("-", "_"), tuple(found) if isinstance(found, list) else found
