"""Optimizers from elsewhere: any importable class of torch.optim.Optimizer, and what it is found to take."""

import importlib.metadata
import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.arguments import check, expected_of
from fisherlab.base.importing import import_object, one_line
from fisherlab.base.nested import packed, unpacked
from fisherlab.errors import FisherlabError, InputError, NotSupportedError
from fisherlab.models.seeding import seeded
from fisherlab.optim import NaturalGradient
from fisherlab.optim.methods import NamedOptimizer

log = logging.getLogger("fisherlab")

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NEEDED = inspect.Parameter.empty
_NEWER = {"torch.optim:Muon": "2.9"}  # classes that PyTorch has from that version
_SIZES = (4, 3, 2, 2, 2, 2)  # of the parameters of a trial


class ForeignOptimizer(NamedOptimizer):
    """One that takes parameters: of PyTorch, or by its import name."""

    def options(self) -> dict[str, Any]:
        """Its options with their defaults; of a class that hands others on, those of its bases too."""
        found: dict[str, Any] = {}
        for kind in inspect.getmro(self.make):  # type: ignore[arg-type]
            if kind is torch.optim.Optimizer:
                break
            if "__init__" not in vars(kind):
                continue
            given = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[
                2:
            ]  # after self, params
            found = {
                one.name: one.default
                for one in given
                if one.kind not in _VARIADIC and (kind is self.make or one.default is not _NEEDED)
            } | found
            if not any(one.kind is one.VAR_KEYWORD for one in given):
                break
        return found

    def typed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values compared with the annotations of the class, or with the types of its defaults.

        Raises:
            InputTypeError: for a value of another type.
            InputError: for one that is not among those named.
        """
        defaults, hints = self.options(), self._hints()
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        for name, value in values.items():
            check(name, value, hints.get(name, _kind_of(defaults.get(name))))
        return values

    def missing(self, given: Mapping[str, Any]) -> list[str]:
        """The options without a default that are not given."""
        return [name for name, value in self.options().items() if value is _NEEDED and name not in given]

    def _hints(self) -> dict[str, Any]:
        """Annotations by option; none of a class whose annotations name what cannot be found."""
        found: dict[str, Any] = {}
        for kind in inspect.getmro(self.make):  # type: ignore[arg-type]
            if kind is not torch.optim.Optimizer and inspect.isfunction(vars(kind).get("__init__")):
                try:
                    found = expected_of(vars(kind)["__init__"]) | found
                except (NameError, AttributeError, TypeError):
                    continue
        return found

    def takes_matrices_only(self, options: Mapping[str, Any]) -> bool:
        """Whether it takes a step of a matrix and none of a vector, as Muon; found by trying."""
        try:
            self._try((1,), options, steps=1)
        except (Exception, SystemExit):  # whatever it raises, the question is whether a matrix does better
            try:
                self._try((2,), options, steps=1)
            except (Exception, SystemExit):
                return False
            return True
        return False

    def check_steps(
        self, dimensions: Iterable[int], options: Mapping[str, Any], device: torch.device
    ) -> None:
        """Takes steps of parameters with so many dimensions, as a training will.

        Raises:
            InputError: where it refuses its options, cannot take a plain step, or has no learning rate.
        """
        missing = self.missing(options)
        if missing:
            flags = " ".join("--lr X" if name == "lr" else f"--set {name}=VALUE" for name in missing)
            raise InputError(
                f"{self.name} has no default for {' and '.join(missing)}; give {flags}, or name a class of "
                "your own that has"
            )
        parameters = inspect.signature(self.make.step).parameters  # type: ignore[attr-defined]
        if "closure" in parameters and parameters["closure"].default is _NEEDED:
            raise InputError(f"{self.name} needs a closure in each step, which training does not give it")
        if callable(getattr(self.make, "train", None)) and callable(getattr(self.make, "eval", None)):
            raise InputError(
                f"{self.name} has other weights in evaluation than in training, which training does not know"
            )
        dimensions = sorted(set(dimensions))
        try:
            state = self._try(dimensions, options, steps=3, device=device)
            again = self._try(dimensions, options, steps=3, device=device, resumed=True)
        except _RefusedError as error:
            plain = isinstance(error.__cause__, ValueError | TypeError)
            what = "its options" if plain else "a list of parameters"
            raise InputError(f"the optimizer {self.name} refuses {what}: {error}") from error
        except NotSupportedError as error:
            raise InputError(f"{self.name} cannot be resumed: {error}") from error
        except FisherlabError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{self.name} cannot take a plain step of gradients: {one_line(error)}; use another optimizer"
            ) from error
        if any(not torch.equal(one, other) for one, other in zip(state, again, strict=True)):
            log.warning(
                "%s does not keep all that it knows in its state_dict: a run that is resumed goes on another "
                "way than one that is not interrupted",
                self.name,
            )

    def _try(
        self,
        dimensions: Sequence[int],
        options: Mapping[str, Any],
        *,
        steps: int,
        device: torch.device | str = "cpu",
        resumed: bool = False,
    ) -> list[Tensor]:
        """Parameters after a few steps; `resumed`: by a new optimizer with the old one's state in each.

        The gradients are not drawn, and the state of the generators is as it was.
        """
        weights = [nn.Parameter(_wave(_SIZES[:n], 0).to(device)) for n in dimensions]
        devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            optimizer = self._made(weights, options)
            for step in range(steps):
                if resumed and step:
                    state = unpacked(*packed(optimizer.state_dict()))
                    optimizer = self._made(weights, options)
                    optimizer.load_state_dict(state)
                for weight in weights:
                    weight.grad = _wave(weight.shape, step + 1).to(device)
                optimizer.step()
                optimizer.zero_grad()
        packed(optimizer.state_dict())
        return [weight.detach() for weight in weights]

    def _made(self, weights: list[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        try:
            optimizer: torch.optim.Optimizer = self.make(weights, **options)
        except (Exception, SystemExit) as error:
            raise _RefusedError(one_line(error)) from error
        if any("lr" not in group for group in optimizer.param_groups):
            raise InputError(f"{self.name} keeps no learning rate in its groups, so no schedule reaches it")
        return optimizer


class _RefusedError(Exception):
    """What a constructor said."""


def is_foreign(name: object) -> bool:
    """Whether it is the name of an importable class."""
    return isinstance(name, str) and (":" in name or "." in name)


def foreign(name: str) -> NamedOptimizer:
    """The optimizer of an import name, `package.module:Class` or `package.module.Class`.

    Raises:
        InputError: where it cannot be imported, or is no class of an optimizer.
    """
    full = name if ":" in name else ":".join(name.rpartition(".")[::2])
    if full in _NEWER and not hasattr(torch.optim, full.partition(":")[2]):
        raise InputError(
            f"PyTorch has {name} from version {_NEWER[full]}, and this is {torch.__version__}; run: pip "
            f"install 'torch>={_NEWER[full]}'"
        )
    kind = seeded(lambda: import_object(full, "optimizer"), 0)
    if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
        what = f"the class {kind.__name__}" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise InputError(f"{name!r} is {what}, not a class that derives from torch.optim.Optimizer")
    if kind is torch.optim.Optimizer:
        raise InputError(
            f"{name!r} is the base of optimizers and takes no step; name one that derives from it"
        )
    own = issubclass(kind, NaturalGradient)
    return (NamedOptimizer if own else ForeignOptimizer)(name, kind, {}, "imported", full)


def origin_of(kind: Any) -> dict[str, Any]:
    """A class with its distribution and that one's version, which a file of the user's does not have."""
    known = importlib.metadata.packages_distributions().get(kind.__module__.partition(".")[0], [])
    package = next(iter(known), None)
    version = importlib.metadata.version(package) if package else None
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "package": package, "version": version}


def _kind_of(default: Any) -> Any:
    """The annotation of an option without one, by its default."""
    return {bool: bool, int: float, float: float, str: str}.get(type(default), Any)  # 1 may be meant as 1.0


def _wave(shape: Sequence[int], step: int) -> Tensor:
    """Numbers that look like none in particular."""
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel()).add(0.7 * step).mul(1.3).cos().reshape(shape)
