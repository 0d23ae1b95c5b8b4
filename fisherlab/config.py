"""One typed configuration a command, as flags give it and as `config.toml` keeps it."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from fisherlab.errors import InputError, InputTypeError, unknown

BIAS_MODES = ("joint", "separate", "ignore")
DTYPES = ("float32", "float64")

_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every command's configuration has: values of checked types, as TOML keeps them."""

    command: ClassVar[str]

    def check(self, least: Mapping[str, int]) -> None:
        """Refuses values of another type, numbers below their least one, and a seed that is too large.

        Raises:
            InputError: for a number out of its range.
            InputTypeError: for a value of another type.
        """
        expected = get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), expected[field.name])
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"{name} must be at least {lowest}, not {value}")
        seed = getattr(self, "seed", 0)
        if seed is not None and seed >= 2**63:
            raise InputError(f"seed must be below 2^63, not {seed}")

    def to_dict(self) -> dict[str, Any]:
        """The values that are set, as JSON and TOML write them."""
        given = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def to_toml(self) -> str:
        """The text of `config.toml`."""
        import tomli_w

        return tomli_w.dumps({"command": self.command, **self.to_dict()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these values.

        Raises:
            InputError: for an unknown key, a missing model or a value that cannot be used.
            InputTypeError: for a value of another type.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown("key", name, known)
        needs_model = any(field.name == "model" and field.default is MISSING for field in fields(cls))
        if needs_model and "model" not in values:
            raise InputError("the key 'model' is missing; add a line such as model = \"mnist-mlp\"")
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**given)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The configuration that a `config.toml` holds.

        Raises:
            InputError: as for `from_dict`, and for text that is not TOML or is for another command.
            InputTypeError: as for `from_dict`.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"this is not TOML: {error}; correct that line") from error
        if "command" not in values:
            raise InputError(f"the key 'command' is missing; add the line command = \"{cls.command}\"")
        command = values.pop("command")
        if command != cls.command:
            raise InputError(f'it is for the command {command!r}; give one with command = "{cls.command}"')
        return cls.from_dict(values)


AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """What `fisherlab compare` computes. Nothing heavy is imported before `resolved`.

    Attributes:
        model: a built-in model, or `package.module:factory`.
        checkpoint: a file of weights; None: the model's default weights.
        data: a data set in place of the model's own.
        data_dir: where to look for data first.
        samples: how many; None: the model's default.
        layers: names or globs.
        approximations: names; empty: the default ones.
        kind: the labels of the Fisher.
        likelihood: its name; None: the model's own.
        bias: `joint`, `separate` or `ignore`.
        memory: the limit for all exact blocks together, such as "4GiB".
        max_columns: the most columns N·C of a Gram operator.
        dtype: `float32` or `float64`; None: the model's own.
        draws: labels a sample for `monte-carlo`.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        statistics: a file of statistics that the approximations are built from; where there is none yet they
            are collected and saved there. None: those of the samples alone.
        seed: of initial weights, training, the choice of samples and drawn labels.
        spectra: whether to compute eigenvalues.
        save_matrices: whether to write `blocks.safetensors`.
    """

    command: ClassVar[str] = "compare"

    model: str
    checkpoint: str | None = None
    data: str | None = None
    data_dir: str | None = None
    samples: int | None = None
    layers: tuple[str, ...] = ("*",)
    approximations: tuple[str, ...] = ()
    kind: str = "predictive"
    likelihood: str | None = None
    bias: str = "joint"
    memory: str = "4GiB"
    max_columns: int = 4096
    dtype: str | None = None
    draws: int = 1
    device: str = "auto"
    statistics: str | None = None
    seed: int = 0
    spectra: bool = True
    save_matrices: bool = False

    def __post_init__(self) -> None:
        """Refuses values that no model or data could make right.

        Raises:
            InputError: for a number out of its range, or a name that is not known.
            InputTypeError: for a value of another type.
        """
        self.check({"samples": 1, "max_columns": 1, "draws": 1, "seed": 0})
        if self.bias not in BIAS_MODES:
            raise unknown("bias mode", self.bias, BIAS_MODES)
        if self.dtype not in (None, *DTYPES):
            raise unknown("dtype", str(self.dtype), DTYPES)

    def resolved(self) -> "CompareConfig":
        """The same work with every name checked, the device chosen and paths made absolute.

        The module of a `package.module:factory` is imported first, so that what it registers is known.

        Raises:
            InputError: for an unknown approximation, kind, likelihood or memory size, a device that this
                machine does not have, or a module that cannot be imported.
        """
        from fisherlab.approximations import DEFAULT_APPROXIMATIONS, create_all
        from fisherlab.likelihoods import as_likelihood, check_kind
        from fisherlab.models.imported import import_module_of
        from fisherlab.plans import parse_bytes

        import_module_of(self.model, self.seed)
        approximations = self.approximations or DEFAULT_APPROXIMATIONS
        create_all(approximations)
        parse_bytes(self.memory)
        if self.likelihood is not None:
            as_likelihood(self.likelihood)
        return replace(
            self,
            checkpoint=absolute(self.checkpoint),
            data_dir=absolute(self.data_dir),
            statistics=absolute(self.statistics),
            approximations=tuple(approximations),
            kind=check_kind(self.kind),
            device=resolve_device(self.device),
        )


def read_config(path: str | os.PathLike[str], kind: type[AnyConfig] = CompareConfig) -> AnyConfig:  # type: ignore[assignment]
    """The configuration of a command in a file, as `Config.from_toml` reads it.

    Raises:
        InputError: with the path in front, also where the file cannot be read.
    """
    if Path(path).is_dir():
        raise InputError(
            f"{str(path)!r} is a directory; give a file, such as {str(Path(path, 'config.toml'))!r}"
        )
    try:
        return kind.from_toml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {str(path)!r}: it is not a text file in UTF-8") from error
    except (InputError, InputTypeError) as error:
        raise InputError(f"in {str(path)!r}: {error}") from error


def command_of(path: str | os.PathLike[str]) -> str | None:
    """The command that a `config.toml` is for; None where the file cannot be read or does not say so."""
    try:
        command = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("command")
    except (OSError, ValueError):
        return None
    return command if isinstance(command, str) else None


def resolve_device(device: str) -> str:
    """`cpu`, or `cuda:<index>` of a GPU that is there; `auto` takes the GPU if there is one.

    Raises:
        InputError: for another name, or a GPU that this machine does not have.
    """
    import torch

    kind, _, index = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise InputError(f"unknown device {device!r}; give auto, cpu, cuda or cuda:<index>")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return "cpu"
    if int(index or 0) >= count:
        found = f"it has {count} CUDA GPU{'s' * (count != 1)}" if count else "it has no usable CUDA GPU"
        raise InputError(f"the device {device!r} is not on this machine: {found}; give --device cpu")
    return f"cuda:{int(index or 0)}"


def absolute(path: str | None) -> str | None:
    """The path from the root; None stays."""
    return None if path is None else str(Path(path).absolute())


def _check_type(name: str, value: Any, expected: Any) -> None:
    options = expected.__args__ if isinstance(expected, UnionType) else (expected,)
    if not any(_fits(value, one) for one in options):
        words = " or ".join(_described(one) for one in options if one is not type(None))
        shown = list(value) if isinstance(value, tuple) else value
        raise InputTypeError(f"{name} must be {words}, not {shown!r}")


def _fits(value: Any, expected: Any) -> bool:
    origin, inner = get_origin(expected), next(iter(get_args(expected)), None)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected


def _described(expected: Any) -> str:
    origin = get_origin(expected)
    if origin is dict:
        return "a table"
    if origin is tuple:
        return f"a list of {_WORDS[get_args(expected)[0]].split()[-1]}s"
    return _WORDS[expected]
