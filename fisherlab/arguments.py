"""Arguments of public functions, compared with their annotations before anything is done.

`checked` stands before a function, `check_fields` in a dataclass. What is allowed is what the signature says:
types, and beside them ranges in the words of annotated-types, as in `Annotated[int, Ge(1)]`, or the names of
`OneOf`. A text among these is the way out that an error names. Imports nothing heavy.
"""

import inspect
import math
import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields
from functools import wraps
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate

from fisherlab.errors import InputError, InputTypeError, known_name

F = TypeVar("F", bound=Callable[..., Any])


class OneOf(NamedTuple):
    """Beside a string: the names that it may be."""

    names: tuple[str, ...]


class IsPath(NamedTuple):
    """Beside a path: that files may have it.

    Attributes:
        longest: bytes of a name.
    """

    longest: int = 255


Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]  # what a torch.Generator takes
Finite = Annotated[float, Predicate(math.isfinite)]
Positive = Annotated[float, Predicate(math.isfinite), Gt(0)]
NotNegative = Annotated[float, Predicate(math.isfinite), Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
FilePath = Annotated[str, IsPath()]
AnyPath = Annotated[str | os.PathLike[str], IsPath()]

_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_LONGEST_PATH = 4095  # bytes, of Linux


def _may_be_path(value: Any, longest: int) -> bool:
    try:
        text = os.fsencode(value)
        text.decode()  # it is written into files of JSON and TOML
    except (TypeError, UnicodeError):
        return False
    names = map(len, text.split(os.fsencode(os.sep)))
    return 0 < len(text) <= _LONGEST_PATH and b"\0" not in text and max(names) <= longest


_BOUNDS: Mapping[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", lambda value, bound: value >= bound, "at least {}"),
    Gt: ("gt", lambda value, bound: value > bound, "above {}"),
    Le: ("le", lambda value, bound: value <= bound, "at most {}"),
    Lt: ("lt", lambda value, bound: value < bound, "below {}"),
    MinLen: ("min_length", lambda value, bound: len(value) >= bound, "of at least {} entries"),
    Predicate: ("func", lambda value, holds: holds(value), "finite"),  # any other raises an error of its own
    IsPath: ("longest", _may_be_path, "a path in UTF-8 with names of 1 to {} bytes"),
    OneOf: ("names", lambda value, names: value in names, "one of {}"),
}
_WORDS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "booleans"),
    str: ("a string", "strings"),
    NoneType: ("None", "None"),
    os.PathLike: ("a path", "paths"),
    Callable: ("a function", "functions"),
}
# Hints are read once; mypy takes no class for hashable, as `cache` asks.
_FIELDS: dict[type, Mapping[str, Any]] = {}


def checked(function: F) -> F:
    """The function, which now first compares its arguments with their annotations.

    Raises:
        InputTypeError: when it is called, for an argument of another type.
        InputError: when it is called, for one out of its range.
    """
    order = [one.name for one in inspect.signature(function).parameters.values() if one.kind not in _VARIADIC]
    expected: dict[str, Any] = {}  # found at the first call: annotations may name what is defined later

    @wraps(function)
    def with_checks(*args: Any, **keywords: Any) -> Any:
        if not expected:
            expected.update(expected_of(function))
        for name, value in (*zip(order, args, strict=False), *keywords.items()):
            if name in expected:
                check(name, value, expected[name])
        return function(*args, **keywords)

    return with_checks  # type: ignore[return-value]


def check_fields(instance: Any) -> None:
    """Compares the fields of a dataclass with their annotations; raises as `check`."""
    for name, annotation in expected_fields(type(instance)).items():
        check(name, getattr(instance, name), annotation)


def expected_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument of a function; what `**` and `*` take together is left out."""
    plain = inspect.unwrap(function)
    parameters = inspect.signature(plain).parameters.values()
    left_out = {"return", *(one.name for one in parameters if one.kind in _VARIADIC)}
    own = {name: hint for name, hint in function.__annotations__.items() if name not in left_out}
    return get_type_hints(SimpleNamespace(__annotations__=own), plain.__globals__, include_extras=True)


def expected_fields(kind: type) -> Mapping[str, Any]:
    """The annotation of each field of a dataclass."""
    if kind not in _FIELDS:
        hints = get_type_hints(kind, include_extras=True)
        _FIELDS[kind] = {field.name: hints[field.name] for field in fields(kind)}
    return _FIELDS[kind]


def check(name: str, value: Any, annotation: Any) -> None:
    """Compares a value with an annotation.

    Raises:
        InputTypeError: for a value of another type.
        InputError: for one out of its range, or a name that is not known.
    """
    if _fits(value, annotation):
        return
    right_type = _fits(value, annotation, loosely=True)
    way_out = "".join(f"; {one}" for one in _parts(annotation)[1] if isinstance(one, str))
    for one in _options(annotation):
        kind, bounds = _parts(one)
        if bounds and right_type and _fits(value, kind):
            for bound in bounds:
                if isinstance(bound, OneOf):
                    known_name(name, value, bound.names)
            raise InputError(f"{name} must be {_ranges(bounds)}, not {_shown(value)}{way_out}")
    refused = InputError if right_type else InputTypeError
    raise refused(f"{name} must be {described(annotation)}, not {_shown(value)}{way_out}")


def described(annotation: Any, *, several: bool = False) -> str:
    """The types of an annotation in words, such as "a whole number or None"; of entries the ranges too."""
    words: dict[str, None] = {}
    for one in _options(annotation):
        kind, bounds = _parts(one)
        ranges = _ranges(bounds) if several else ""
        words[_described(kind, several) + (f", each {ranges}" if ranges else "")] = None
    *first, last = sorted(words, key=lambda one: one == "None")  # None comes last
    return f"{', '.join(first)} or {last}" if first else last


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, also of one with something beside it."""
    kind, bounds = _parts(annotation)
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _options(Annotated[one, *bounds] if bounds and one is not NoneType else one)
    else:
        yield annotation


def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and what stands beside it."""
    bounds = getattr(annotation, "__metadata__", ())
    return (annotation.__origin__ if bounds else annotation), bounds


def _fits(value: Any, annotation: Any, loosely: bool = False) -> bool:
    """Whether a value fits an annotation; `loosely`: its types alone."""
    kind, bounds = _parts(annotation)
    if bounds:
        fits = _fits(value, kind, loosely)
        return fits and (loosely or value is None or all(_within(value, bound) for bound in bounds))
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (Union, UnionType):
        return any(_fits(value, one, loosely) for one in inner)
    if origin is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if origin is float:
        return _is_number(value)
    if origin is Any or not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True  # of Any, a type variable or a protocol nothing is known
    return isinstance(value, origin) and (not inner or _entries_fit(value, origin, inner, loosely))


def _entries_fit(value: Any, origin: type, inner: tuple[Any, ...], loosely: bool) -> bool:
    """Whether the entries of a container fit; of an iterator none is taken out."""
    if origin is type:
        return issubclass(value, inner[0])
    if issubclass(origin, Mapping):
        keys, values = inner
        return all(_fits(key, keys, loosely) and _fits(one, values, loosely) for key, one in value.items())
    if origin is tuple and inner[-1] is not ...:
        pairs = zip(value, inner, strict=False)
        return len(value) == len(inner) and all(_fits(one, its, loosely) for one, its in pairs)
    if not _has_entries(origin) or isinstance(value, Iterator):
        return True
    if isinstance(value, (str, bytes)):
        return _fits(value, inner[0], loosely)
    if isinstance(value, (Sequence, AbstractSet)):
        return all(_fits(one, inner[0], loosely) for one in value)
    try:
        return _fits(next(iter(value), None), inner[0], loosely)  # the first of them says what they are
    except TypeError:  # a tensor without dimensions
        return False


def _has_entries(origin: type) -> bool:
    """Whether the parameters of a generic type are those of its entries: of an array they are not."""
    return issubclass(origin, Iterable) and origin.__module__ in ("builtins", "collections.abc")


def _is_number(value: Any) -> bool:
    """Whether it is a real number, or a tensor that holds one, as torch takes them too."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        holds = not isinstance(value, int) or abs(value) < 2**63  # else torch does not take it
        return isinstance(value, Real) and not isinstance(value, bool) and holds
    dense = value.layout == torch.strided and not (value.is_nested or value.is_meta)
    return dense and value.numel() == 1 and not (value.is_complex() or value.dtype == torch.bool)


def _within(value: Any, bound: Any) -> bool:
    if type(bound) not in _BOUNDS:
        return True
    attribute, holds, _ = _BOUNDS[type(bound)]
    return bool(holds(value, getattr(bound, attribute)))


def _ranges(bounds: Iterable[Any]) -> str:
    """Ranges in words, such as "at least 0 and below 1"."""
    known = [(bound, *_BOUNDS[type(bound)]) for bound in bounds if type(bound) in _BOUNDS]
    return " and ".join(words.format(getattr(bound, attribute)) for bound, attribute, _, words in known)


def _described(kind: Any, several: bool) -> str:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in _WORDS:
        return _WORDS[origin][several]
    if origin is type and inner:
        return f"a class that derives from {_name(inner[0])}"
    name = _name(origin)
    if not inner or not isinstance(origin, type) or not _has_entries(origin):
        return f"{name}s" if several else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
    if issubclass(origin, Mapping):
        return f"a mapping of {described(inner[0], several=True)} to {described(inner[1], several=True)}"
    if origin is tuple and inner[-1] is not ...:
        return f"a tuple of {' and '.join(described(one) for one in inner)}"
    return ("" if origin is Iterable else "a list of ") + described(inner[0], several=True)


def _name(kind: Any) -> str:
    name, module = getattr(kind, "__name__", str(kind)), getattr(kind, "__module__", "")
    return f"{'torch.nn' if 'torch.nn' in module else 'torch'}.{name}" if module.startswith("torch") else name


def _shown(value: Any) -> str:
    """A plain value as it is written, in few characters; any other by its class."""
    if value is None or isinstance(value, (str, bytes, Real, complex, list, tuple, set, dict)):
        return " ".join(reprlib.repr(value).split())
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {_name(type(value))}"
