"""Models of the user's own, named as ``package.module:factory``."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fisherlab.errors import FisherlabError, InputError
from fisherlab.models.seeding import seeded


class Imported(NamedTuple):
    """What a factory gave: a model, and its own data and likelihood if it gave them."""

    model: nn.Module
    data: tuple[Tensor, Tensor] | None
    likelihood: Any


def is_import(name: str) -> bool:
    """Whether a model name is of the form ``package.module:factory``."""
    return ":" in name


def import_model(name: str, seed: int) -> Imported:
    """Import a factory and call it, with the working directory importable.

    Args:
        name: ``package.module:factory``. ``factory()`` returns a module, or a tuple
            ``(model, (inputs, targets), likelihood)``.
        seed: of the random state for the time of the call.

    Raises:
        InputError: if the factory cannot be imported or called, or returns something else.
    """
    with _working_directory_importable():
        factory = seeded(lambda: _import_factory(name), seed)
        try:
            made = seeded(factory, seed)
        except FisherlabError:
            raise
        except Exception as error:
            raise InputError(f"the model factory {name!r} failed: {_short(error)}.") from error
    return _understood(name, made)


def _import_factory(name: str) -> Callable[[], Any]:
    """The object that ``package.module:factory`` names."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise InputError(f"{name!r} is not of the form package.module:factory.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"the module {module_name!r} cannot be imported: {_short(error)}.") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise InputError(f"the module {module_name!r} has no {attribute!r}.")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(
            f"{name!r} is a {type(factory).__name__}, not a factory; name a function that "
            f"takes nothing and returns a model."
        )
    return factory


def _understood(name: str, made: Any) -> Imported:
    """The factory's return value, checked."""
    match made:
        case nn.Module():
            return Imported(made, None, "categorical")
        case (nn.Module() as model, (Tensor() as inputs, Tensor() as targets), likelihood):
            if len(inputs) != len(targets):
                raise InputError(
                    f"{name!r} gave {len(inputs)} inputs with {len(targets)} targets; "
                    f"their first dimensions must agree."
                )
            return Imported(model, (inputs, targets), likelihood)
    raise InputError(
        f"{name!r} returned a {type(made).__name__}; return a torch.nn.Module, or a tuple "
        f"(model, (inputs, targets), likelihood) with tensors for inputs and targets."
    )


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Put the working directory at the head of the import path, for the time of the block."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _short(error: Exception) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}".rstrip(".: ")
