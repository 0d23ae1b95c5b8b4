"""How modules of one type are seen as s = W a, and the registry of such adapters."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from fisherlab.arguments import checked
from fisherlab.errors import InputTypeError
from fisherlab.gradients.inputs import Inputs
from fisherlab.gradients.patches import Patches


class ModuleAdapter(ABC):
    """What fisherlab knows of modules of some types; see `Adapter` and `FusedAdapter`.

    Attributes:
        modules: the types, or qualified names of types whose package is not to be imported
            (`"transformers.pytorch_utils.Conv1D"`: the module's name as in `__module__`, then the class's); a
            subclass with a forward of its own is not taken for one of them.
    """

    modules: ClassVar[tuple[type[nn.Module] | str, ...]]

    def refusal(self, module: nn.Module) -> str:
        """Why this module cannot be seen so, or an empty text."""
        return ""


class Adapter(ModuleAdapter):
    """Modules of one type as s_t = W a_t, with l rows (samples, or several rows a sample) and t positions.

    One for a module of your own gives `shape`, `inputs` and `outputs`, is registered once, and every
    function of fisherlab then sees the module:

        class Pointwise(nn.Module):  # y[n, h, w] = weight x[n, h, w]
            ...

        class PointwiseAdapter(Adapter):
            modules = (Pointwise,)

            def shape(self, module):
                return tuple(module.weight.shape)

            def inputs(self, module, x, output):
                return x.flatten(1, -2)

            def outputs(self, module, g):
                return g.flatten(2, -2)

        fisherlab.register_layer(PointwiseAdapter())

    A module that computes several projections in one forward is a `FusedAdapter`'s.

    Attributes:
        modules: the types, or qualified names of types whose package is not to be imported
            (`"transformers.pytorch_utils.Conv1D"`: the module's name as in `__module__`, then the class's); a
            subclass with a forward of its own is not taken for one of them.
        sample_first: the first dimension counts samples whatever `batch_dim` says (convolutions).
        family: what tables call such layers; empty: by the module's type.
    """

    family: ClassVar[str] = ""
    sample_first: ClassVar[bool] = False

    @abstractmethod
    def shape(self, module: nn.Module) -> tuple[int, int]:
        """(m, d) of the weight seen as a matrix, without a bias; d is that of one group."""

    @abstractmethod
    def inputs(self, module: nn.Module, x: Tensor, output: Tensor) -> Inputs | Patches:
        """What `argument` gave, x [l, …], as a [l, t, groups·d], group by group; or as patches."""

    @abstractmethod
    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """Tensors shaped as the module's output, [c, l, …], as [c, l, t, m]."""

    def argument(self, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        """What is kept of a call, as one tensor: its first argument, or several in one where a needs them."""
        return args[0] if args else next(iter(keywords.values()), None)

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """Tensors shaped as the weight, with any leading dimensions, as [..., m, d]."""
        leading = weight.shape[: weight.dim() - module.get_parameter("weight").dim()]
        return weight.reshape(*leading, *self.shape(module))

    def weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The inverse of `matrix` for one matrix [m, d]: shaped as the weight."""
        return matrix.reshape(module.get_parameter("weight").shape)

    def applied(self, module: nn.Module, x: Tensor, output: Tensor, weight: Tensor) -> Tensor | None:
        """The module's function of x with another weight, no bias and no hooks; None: by way of a."""
        return None

    def groups(self, module: nn.Module) -> int:
        """G: the weight is a block-diagonal matrix of G blocks [m/G, d]."""
        return 1

    def why_not(self, module: nn.Module, x: Tensor, output: Tensor) -> str:
        """Why a call that is looked at was not as the adapter says, or an empty text."""
        return ""


_ADAPTERS: dict[type[nn.Module] | str, ModuleAdapter] = {}
_RECOGNISERS: list[Callable[[nn.Module], ModuleAdapter | None]] = []


@checked
def register_layer(adapter: ModuleAdapter) -> None:
    """Makes the modules of an adapter known to every function, in the place of what was known of them.

    Raises:
        InputTypeError: for anything but an `Adapter` or a `FusedAdapter` with module types, or their
            qualified names.
    """
    types = getattr(adapter, "modules", None)
    known = isinstance(adapter, ModuleAdapter) and isinstance(types, (tuple, list)) and len(types) > 0
    if not known or not all(map(_names_modules, adapter.modules)):
        raise InputTypeError(
            "register_layer takes an instance of a fisherlab Adapter with a tuple of module types, or of "
            "their qualified names ('package.module.Class')"
        )
    for one in adapter.modules:
        for other in [key for key in _ADAPTERS if _qualified(key) == one or _qualified(one) == key]:
            del _ADAPTERS[other]
        _ADAPTERS[one] = adapter


def _names_modules(one: object) -> bool:
    if isinstance(one, str):
        parts = one.replace(".<locals>", "").split(".")
        return len(parts) > 1 and all(part.isidentifier() for part in parts)
    return isinstance(one, type) and issubclass(one, nn.Module)


def recognise_by(recogniser: Callable[[nn.Module], ModuleAdapter | None]) -> None:
    """Asks a function for the adapter of modules that no registered type, with its forward, is."""
    _RECOGNISERS.append(recogniser)


def adapter_of(module: nn.Module) -> ModuleAdapter | None:
    """The adapter of a module's type, or of what it is recognised as; None where its forward was replaced."""
    if "forward" in vars(module):
        return None
    known = _known_type(module)
    if known is not None and type(module).forward is known.forward:
        return _of_type(known)
    return next(filter(None, (recogniser(module) for recogniser in _RECOGNISERS)), None)


def kin_adapter(module: nn.Module) -> ModuleAdapter | None:
    """The adapter of the type that a module is of, or derives from, whatever its forward is."""
    known = _known_type(module)
    return None if known is None else _of_type(known)


def why_replaced(module: nn.Module) -> str:
    """That a module's forward is not that of its class, or an empty text."""
    if "forward" not in vars(module):
        return ""
    return (
        f"the forward of this {class_name(type(module))} was replaced on the instance, as accelerate's hooks "
        "do; take the wrapper off first (accelerator.unwrap_model, accelerate.hooks.remove_hook_from_module)"
    )


def why_unknown(module: nn.Module) -> str:
    """Why a module has no adapter."""
    name, known = class_name(type(module)), _known_type(module)
    if known is not None and type(module).forward is not known.forward:
        return (
            f"{name} is a {class_name(known)} with a forward of its own; if s = W a still holds, give it an "
            "adapter with register_layer"
        )
    return f"a parameter of {name}"


def why_no_gradient(module: nn.Module) -> str:
    """Why what autograd gives the parameters of a module is no gradient of the loss, or an empty text."""
    if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return ""
    if module.max_norm is not None:
        return f"an {class_name(type(module))} with max_norm changes its weight in the forward pass"
    return "scale_grad_by_freq is no gradient of the loss" if module.scale_grad_by_freq else ""


def class_name(cls: type) -> str:
    """The name of a class of `torch.nn`; that of any other with its module."""
    return cls.__qualname__ if getattr(nn, cls.__qualname__, None) is cls else _qualified(cls)


def _qualified(cls: type | str) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"


def _of_type(cls: type[nn.Module]) -> ModuleAdapter | None:
    return _ADAPTERS.get(cls) or _ADAPTERS.get(_qualified(cls))


def _known_type(module: nn.Module) -> type[nn.Module] | None:
    return next((cls for cls in type(module).__mro__ if _of_type(cls) is not None), None)
