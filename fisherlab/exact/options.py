"""The options of every analysis, each once: its name, type, default and meaning. Imports nothing heavy."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict, TypeVar, cast, get_type_hints

from annotated_types import Predicate

from fisherlab.arguments import Count, OneOf, checked
from fisherlab.base.progress import Progress
from fisherlab.errors import InputError, InputTypeError

if TYPE_CHECKING:
    import torch


BIAS_MODES = ("joint", "separate", "ignore")


class Option(NamedTuple):
    """What stands beside the type of an option.

    Attributes:
        default: where it is not given.
        meaning: its line in a docstring.
    """

    default: Any
    meaning: str


_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(size: float | str) -> int:
    """A number of bytes from a number or a text such as "4GiB" or "500 MB".

    Raises:
        InputError: for another text, or a size that is not finite, or below one byte.
        InputTypeError: for anything else.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-zA-Z]*)\s*", size)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise InputError(f"cannot read the memory size {size!r}; write it as 4GiB or 500MB")
        size = float(match[1]) * unit
    if isinstance(size, bool) or not isinstance(size, Real):
        raise InputTypeError(f"memory is a number of bytes, or a text such as 4GiB, not {size!r}")
    if not size < math.inf:  # NaN is not either
        raise InputError(f"the memory limit must be finite, not {size}; write it as 4GiB or 500MB")
    if size < 1:
        raise InputError(f"the memory limit must be positive, not {size:g}")
    return int(size)


class _Chosen(TypedDict, total=False):
    exclude: Annotated[
        Iterable[str] | str,
        Option((), "names or globs of layers to leave out of those in `layers`."),
    ]


class _Strict(TypedDict, total=False):
    strict: Annotated[
        bool,
        Option(
            False,
            "True: layers that cannot be done stop the analysis, with a list of them and why; else they are "
            "left out, listed in the coverage and in a warning.",
        ),
    ]


class _Limits(TypedDict, total=False):
    bias: Annotated[str, OneOf(BIAS_MODES), Option("joint", "`joint`, `separate` or `ignore`.")]
    memory: Annotated[
        float | str,
        Predicate(parse_bytes),
        Option("4GiB", 'the limit for all that an analysis holds, in bytes or as text such as "4GiB".'),
    ]
    max_columns: Annotated[
        Count,
        Option(4096, "the most columns N·C of a Gram operator; above, one label a sample is drawn."),
    ]


class _Draws(TypedDict, total=False):
    draws: Annotated[Count, Option(1, "labels a sample for `monte-carlo`.")]


class _Reading(TypedDict, total=False):
    batch_dim: Annotated[int, Option(0, "the dimension that counts samples.")]
    generator: Annotated[
        "torch.Generator | None",
        "for a seed give torch.Generator().manual_seed(seed)",
        Option(None, "seeds whatever is drawn."),
    ]


class _Shown(TypedDict, total=False):
    progress: Annotated[Progress, Option(False, "True for bars on stderr.")]


class _Returned(TypedDict, total=False):
    output: Annotated[
        "str | int | Callable[[Any], torch.Tensor] | None",
        Option(
            None,
            "the name or place of the outputs in what the model returns, or a function of it; None: "
            "`logits`, or the only tensor.",
        ),
    ]


class AnalysisOptions(_Chosen, _Returned, _Limits, _Draws, _Reading, _Strict, _Shown, total=False):
    """The options of `exact_fisher`, `approximate`, `collect_statistics` and `compare`."""


class PassOptions(_Returned, _Draws, _Reading, _Strict, _Shown, total=False):
    """Those that a pass over the data takes."""


class ReadingOptions(_Chosen, _Returned, _Reading, _Strict, _Shown, total=False):
    """Those of `represent`, which makes no blocks."""


class TraceOptions(_Chosen, _Returned, _Limits, _Draws, _Strict, _Shown, total=False):
    """Those of `trace`, which has a seed for the generators of its comparisons."""


F = TypeVar("F", bound=Callable[..., Any])
Kind = TypeVar("Kind", AnalysisOptions, ReadingOptions, TraceOptions)

_PLACE = "        **options: "


def options_of(kind: type) -> dict[str, Option]:
    """The options of one of the types above, in their order."""
    return {name: hint.__metadata__[-1] for name, hint in kind.__annotations__.items()}


DEFAULTS: Mapping[str, Any] = {name: one.default for name, one in options_of(AnalysisOptions).items()}


def takes(kind: type[Kind], *, and_others: bool = False) -> Callable[[F], F]:
    """Shows the options of a function with `**options` in its signature and in its docstring.

    The function itself begins with `completed`; it is given back with `checked` before it.

    Args:
        kind: its options.
        and_others: whether `**options` takes others too; they stay in the signature.
    """

    def shown(function: F) -> F:
        import torch

        names = {"torch": torch}
        function.__signature__ = _signature(function, kind, and_others, names)  # type: ignore[attr-defined]
        function.__annotations__ |= get_type_hints(kind, localns=names, include_extras=True)
        lines = "".join(f"        {name}: {one.meaning}\n" for name, one in options_of(kind).items())
        head, place, tail = (function.__doc__ or "").partition(_PLACE)
        if place:  # without it docstrings were stripped
            function.__doc__ = head + lines + (place + tail if and_others else tail.partition("\n")[2])
        return checked(function)

    return shown


def _signature(
    function: Callable[..., Any], kind: type, and_others: bool, names: dict[str, Any]
) -> inspect.Signature:
    hints = get_type_hints(kind, localns=names)
    found = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[name])
        for name, one in options_of(kind).items()
    ]
    own = inspect.signature(function)
    named = [one for one in own.parameters.values() if and_others or one.kind != one.VAR_KEYWORD]
    # the sort is stable: the options come after what has a place, before other keywords
    return own.replace(parameters=sorted([*found, *named], key=lambda parameter: parameter.kind))


def completed(kind: type[Kind], given: Mapping[str, Any], function: str) -> Kind:
    """The options given, and the defaults of the others.

    Raises:
        TypeError: for an option that the function does not have, in Python's own words.
    """
    known = options_of(kind)
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return cast(Kind, {name: given.get(name, one.default) for name, one in known.items()})


def of_pass(options: AnalysisOptions) -> PassOptions:
    """Those of the options that a pass over the data takes."""
    return cast(PassOptions, {name: options[name] for name in options_of(PassOptions)})  # type: ignore[literal-required]
