"""Models from elsewhere: the user's ``package.module:factory``, or ``LIBRARY:NAME`` of a library."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from fisherlab.base.importing import import_object, one_line, working_directory_importable
from fisherlab.errors import FisherlabError, InputError
from fisherlab.models.huggingface import STAND_IN, pretrained
from fisherlab.models.seeding import seeded

TRANSFORMERS = "transformers"


class Imported(NamedTuple):
    """What a factory gave: a model, and its own data and likelihood if it gave them.

    A library's model has no data of its own; `from_package` names where it comes from. `stand_in` says what
    stands in the place of data, `weights` where weights are from, if not as initialised.
    """

    model: nn.Module
    data: Any
    likelihood: Any
    from_package: str = ""
    stand_in: str = ""
    weights: str = ""


def is_import(name: str) -> bool:
    """Whether a model name is of the form ``package.module:factory`` or ``library:NAME``."""
    return ":" in name


def import_module_of(name: str, seed: int) -> None:
    """Import the module of a factory, so that what it registers is known; of other names nothing.

    Args:
        name: as for `import_model`.
        seed: of the random state for the time of the import.

    Raises:
        InputError: as for `import_model`.
    """
    if is_import(name) and name.partition(":")[0] not in (TRANSFORMERS, *_LIBRARIES):
        _factory(name, seed)


def import_model(name: str, seed: int) -> Imported:
    """Import a factory and call it, with the working directory importable.

    Args:
        name: ``package.module:factory``. ``factory()`` returns a module, or a tuple ``(model, data)`` or
            ``(model, data, likelihood)`` with data as `Batches` takes them. ``torchvision:NAME`` and
            ``timm:NAME`` are the classifiers of these libraries, without pretrained weights;
            ``transformers:CONFIG_OR_PATH`` see `pretrained`.
        seed: of the random state for the time of the call.

    Raises:
        InputError: if the factory cannot be imported or called, or returns something else, or if
            the library is not installed or has no such model.
    """
    library, _, model_name = name.partition(":")
    if library == TRANSFORMERS:
        made = seeded(lambda: pretrained(model_name, seed), seed)
        stand_in = STAND_IN.format(seed=seed)
        return Imported(made.model, made.data, made.likelihood, stand_in=stand_in, weights=made.weights)
    if library in _LIBRARIES:
        return Imported(
            seeded(lambda: _library_model(library, model_name), seed), None, "categorical", library
        )
    factory = _factory(name, seed)
    with working_directory_importable():
        try:
            made = seeded(factory, seed)
        except FisherlabError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"the model factory {name!r} failed: {one_line(error)}.") from error
    return _understood(name, made)


def _torchvision_model(torchvision: Any, name: str) -> nn.Module:
    """A classifier of torchvision, as initialised."""
    models = torchvision.models
    _check_known("torchvision", name, models.list_models(module=models))
    return models.get_model(name, weights=None)


def _timm_model(timm: Any, name: str) -> nn.Module:
    """A model of timm, as initialised."""
    _check_known("timm", name, timm.list_models())
    return timm.create_model(name, pretrained=False)


_LIBRARIES: dict[str, Callable[[Any, str], nn.Module]] = {
    "torchvision": _torchvision_model,
    "timm": _timm_model,
}


def _library_model(library: str, name: str) -> nn.Module:
    """The model of that name in a library."""
    try:
        package = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the model '{library}:{name}' needs {error.name}; run: pip install {error.name}"
        ) from error
    except Exception as error:
        raise InputError(f"{library} is installed but cannot be imported: {one_line(error)}.") from error
    try:
        return _LIBRARIES[library](package, name)
    except FisherlabError:
        raise
    except Exception as error:
        raise InputError(f"the model '{library}:{name}' cannot be made: {one_line(error)}.") from error


def _check_known(library: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that a library does not have; it may have a thousand, so only near ones are named."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{library}'s list_models() names them all."
        raise InputError(f"unknown {library} model {name!r}; {hint}")


def _factory(name: str, seed: int) -> Callable[[], Any]:
    """The factory of that name."""
    return seeded(lambda: _import_factory(name), seed)


def _import_factory(name: str) -> Callable[[], Any]:
    """The object that ``package.module:factory`` names."""
    factory = import_object(name, "factory")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(
            f"{name!r} is of type {type(factory).__name__}, not a factory; name a function that takes "
            f"nothing and returns a model."
        )
    return factory


def _understood(name: str, made: Any) -> Imported:
    """The factory's return value, checked."""
    match made:
        case nn.Module():
            return Imported(made, None, "categorical")
        case (nn.Module() as model, data):
            return Imported(model, data, "categorical")
        case (nn.Module() as model, data, likelihood):
            return Imported(model, data, likelihood)
    raise InputError(
        f"{name!r} returned {_types(made)}; return a torch.nn.Module, or a tuple (model, data) or (model, "
        f"data, likelihood) with data as fisherlab.compare takes them, such as (inputs, targets)."
    )


def _types(made: Any) -> str:
    """A value by its type, a tuple by the types in it, such as ``(Linear, (dict, Tensor), str)``."""
    if isinstance(made, tuple):
        return f"({', '.join(map(_types, made))})"
    return str(None) if made is None else type(made).__name__
