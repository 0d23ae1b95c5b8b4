"""One typed configuration a command, as flags give it and as `config.toml` keeps it."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

from fisherlab.errors import InputError, InputTypeError, unknown

BIAS_MODES = ("joint", "separate", "ignore")
DTYPES = ("float32", "float64")

_WORDS = {str: "a string", int: "an integer", bool: "true or false", tuple: "a list of strings"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
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
        for name, expected in get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), expected)
        for name, least in {"samples": 1, "max_columns": 1, "draws": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2^63, not {self.seed}")
        if self.bias not in BIAS_MODES:
            raise unknown("bias mode", self.bias, BIAS_MODES)
        if self.dtype not in (None, *DTYPES):
            raise unknown("dtype", str(self.dtype), DTYPES)

    def resolved(self) -> "CompareConfig":
        """The same work with every name checked, the device chosen and paths made absolute.

        Raises:
            InputError: for an unknown approximation, kind, likelihood or memory size, or a device
                that this machine does not have.
        """
        from fisherlab.approximations import DEFAULT_APPROXIMATIONS, create_all
        from fisherlab.likelihoods import as_likelihood, check_kind
        from fisherlab.plans import parse_bytes

        approximations = self.approximations or DEFAULT_APPROXIMATIONS
        create_all(approximations)
        parse_bytes(self.memory)
        if self.likelihood is not None:
            as_likelihood(self.likelihood)
        return replace(
            self,
            checkpoint=_absolute(self.checkpoint),
            data_dir=_absolute(self.data_dir),
            statistics=_absolute(self.statistics),
            approximations=tuple(approximations),
            kind=check_kind(self.kind),
            device=resolve_device(self.device),
        )

    def to_dict(self) -> dict[str, Any]:
        """The values that are set, as JSON and TOML write them."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def to_toml(self) -> str:
        """The text of `config.toml`."""
        import tomli_w

        return tomli_w.dumps({"command": "compare", **self.to_dict()})

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
        if "model" not in values:
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
            raise InputError("the key 'command' is missing; add the line command = \"compare\"")
        command = values.pop("command")
        if command != "compare":
            raise unknown("command", str(command), ["compare"])
        return cls.from_dict(values)


def read_config(path: str | os.PathLike[str]) -> CompareConfig:
    """The configuration in a file, as `CompareConfig.from_toml` reads it.

    Raises:
        InputError: with the path in front, also where the file cannot be read.
    """
    try:
        return CompareConfig.from_toml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {str(path)!r}: it is not a text file in UTF-8") from error
    except (InputError, InputTypeError) as error:
        raise InputError(f"in {str(path)!r}: {error}") from error


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


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _check_type(name: str, value: Any, expected: Any) -> None:
    options: Iterable[Any] = getattr(expected, "__args__", (expected,))
    if expected == tuple[str, ...]:
        options = (tuple,)
    fits = type(value) in options
    if isinstance(value, tuple):
        fits = fits and all(type(item) is str for item in value)
    if not fits:
        words = " or ".join(_WORDS[option] for option in options if option in _WORDS)
        shown = list(value) if isinstance(value, tuple) else value
        raise InputTypeError(f"{name} must be {words}, not {shown!r}")
