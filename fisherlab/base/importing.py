"""Objects that are imported by a name of the user's, with the working directory importable."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fisherlab.errors import InputError, unknown


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Put the working directory at the head of the import path, for the time of the block."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def import_object(name: str, what: str) -> Any:
    """The object that ``package.module:NAME`` names.

    Args:
        name: as the user gave it.
        what: the kind of thing that is wanted, for the errors, such as ``factory``.

    Raises:
        InputError: if the name has another form, or the module cannot be imported or has no such object.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise InputError(f"{name!r} is not of the form package.module:{what}.")
    with working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise InputError(f"the module {module_name!r} cannot be imported: {one_line(error)}.") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise unknown(f"{what} of {module_name}", attribute, _offered(module))
    return found


def _offered(module: ModuleType) -> list[str]:
    """The functions and classes that a module defines itself, or says that it offers."""
    own = vars(module).items()
    defined = [name for name, value in own if getattr(value, "__module__", None) == module.__name__]
    return defined or [name for name in getattr(module, "__all__", ()) if isinstance(name, str)]


def one_line(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}".rstrip(".: ")
