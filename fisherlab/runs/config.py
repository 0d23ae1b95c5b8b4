"""One typed configuration a command, as flags give it and as `config.toml` keeps it."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from fisherlab.arguments import Count, FilePath, check_fields
from fisherlab.base.writing import as_path
from fisherlab.errors import InputError, InputTypeError, unknown

DTYPES = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every command's configuration has: values of checked types, as TOML keeps them."""

    command: ClassVar[str]

    def check(self) -> None:
        """Refuses values of another type, and such as are out of their range.

        Raises:
            InputError: for a value out of its range.
            InputTypeError: for a value of another type.
        """
        check_fields(self)

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
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"this is not TOML: {error}; correct that line") from error
        if "command" not in values:
            raise InputError(f"the key 'command' is missing; add the line command = \"{cls.command}\"")
        command = values.pop("command")
        if command != cls.command:
            raise InputError(f'it is for the command {command!r}; give one with command = "{cls.command}"')
        return cls.from_dict(values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The configuration of a command that looks at one model.

    Attributes:
        model: a built-in model, or `package.module:factory`.
    """

    model: str


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(Config):
    """The configuration of a command that looks at layers on samples.

    Attributes:
        checkpoint: a file of weights; None: the model's default weights.
        data: a data set in place of the model's own.
        data_dir: where to look for data first.
        samples: how many; None: as many as the command usually takes.
        layers: names or globs.
        exclude: names or globs of layers to leave out.
        strict: whether a layer that cannot be done stops the command.
        model_output: the name or the place of the outputs among what the model returns; None: its logits, or
            the only tensor.
    """

    checkpoint: FilePath | None = None
    data: str | None = None
    data_dir: FilePath | None = None
    samples: Count | None = None
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    strict: bool = False
    model_output: str | None = None


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_config(path: str | os.PathLike[str], kind: type[AnyConfig]) -> AnyConfig:
    """The configuration of a command in a file, as `Config.from_toml` reads it.

    Raises:
        InputError: with the path in front, also where the file cannot be read.
    """
    if as_path("the configuration", path).is_dir():
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
    except (OSError, ValueError, RecursionError):
        return None
    return command if isinstance(command, str) else None


def absolute(path: str | None) -> str | None:
    """The path from the root; None stays."""
    return None if path is None else str(Path(path).absolute())
