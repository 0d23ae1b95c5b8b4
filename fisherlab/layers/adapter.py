"""How modules of one type are seen as s = W a, and the registry of such adapters."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from fisherlab.arguments import checked
from fisherlab.errors import InputTypeError
from fisherlab.gradients.inputs import Inputs
from fisherlab.gradients.patches import Patches


class Adapter(ABC):
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

    Attributes:
        modules: the types; a subclass with a forward of its own is not taken for one of them.
        sample_first: the first dimension counts samples whatever `batch_dim` says (convolutions).
    """

    modules: ClassVar[tuple[type[nn.Module], ...]]
    sample_first: ClassVar[bool] = False

    @abstractmethod
    def shape(self, module: nn.Module) -> tuple[int, int]:
        """(m, d) of the weight seen as a matrix, without a bias; d is that of one group."""

    @abstractmethod
    def inputs(self, module: nn.Module, x: Tensor, output: Tensor) -> Inputs | Patches:
        """The module's first argument x [l, …] as a [l, t, groups·d], group by group; or as patches."""

    @abstractmethod
    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """Tensors shaped as the module's output, [c, l, …], as [c, l, t, m]."""

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

    def refusal(self, module: nn.Module) -> str:
        """Why this module cannot be seen so, or an empty text."""
        return ""


_ADAPTERS: dict[type[nn.Module], Adapter] = {}


@checked
def register_layer(adapter: Adapter) -> None:
    """Makes the modules of an adapter known to every function.

    Raises:
        InputTypeError: for anything but an `Adapter` with module types.
    """
    types = getattr(adapter, "modules", None)
    known = isinstance(adapter, Adapter) and isinstance(types, (tuple, list)) and len(types) > 0
    if not known or not all(isinstance(t, type) and issubclass(t, nn.Module) for t in adapter.modules):
        raise InputTypeError(
            "register_layer takes an instance of a fisherlab Adapter with a tuple of module types"
        )
    _ADAPTERS.update(dict.fromkeys(adapter.modules, adapter))


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter of a module's type; None where it is unknown, or has a forward of its own."""
    known = _known_type(module)
    if known is None or "forward" in vars(module) or type(module).forward is not known.forward:
        return None
    return _ADAPTERS[known]


def why_unknown(module: nn.Module, *more: type[nn.Module]) -> str:
    """Why a module has no adapter.

    Args:
        module: the module.
        more: further types that are known without an adapter.
    """
    name, known = class_name(type(module)), _known_type(module, *more)
    if "forward" in vars(module):
        return (
            f"the forward of this {name} was replaced on the instance, as accelerate's hooks do; take the "
            "wrapper off first (accelerator.unwrap_model, accelerate.hooks.remove_hook_from_module)"
        )
    if known is not None and type(module).forward is not known.forward:
        return (
            f"{name} is a {class_name(known)} with a forward of its own; if s = W a still holds, give it an "
            "adapter with register_layer"
        )
    return f"{name} is not supported"


def class_name(cls: type) -> str:
    """The name of a class of torch; that of any other with its module."""
    own = cls.__module__.partition(".")[0] == "torch"
    return cls.__qualname__ if own else f"{cls.__module__}.{cls.__qualname__}"


def _known_type(module: nn.Module, *more: type[nn.Module]) -> type[nn.Module] | None:
    return next((cls for cls in type(module).__mro__ if cls in _ADAPTERS or cls in more), None)
