"""Values of summaries and provenance as the words of a page."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of every leaf; names of nested mappings are joined by a dot."""
    pairs: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{words(key)}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name} · ")
        else:
            pairs.append((name, show(value)))
    return pairs


def show(value: object) -> str:
    """The text of a value."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)} {show(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value)) or "–"
    return str(value)


def words(key: object) -> str:
    """A key with spaces in the place of underscores."""
    return str(key).replace("_", " ")
