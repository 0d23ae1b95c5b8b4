"""How modules of one type are seen as s = W a, and the registry of such adapters."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from fisherlab.errors import InputTypeError
from fisherlab.operators.inputs import Inputs
from fisherlab.operators.patches import Patches


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
        return weight.flatten(weight.dim() - module.get_parameter("weight").dim() + 1)

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


def register_layer(adapter: Adapter) -> None:
    """Makes the modules of an adapter known to every function.

    Raises:
        InputTypeError: for anything but an `Adapter` with module types.
    """
    if not isinstance(adapter, Adapter) or not all(issubclass(t, nn.Module) for t in adapter.modules):
        raise InputTypeError("register_layer takes an instance of a fisherlab Adapter with module types")
    _ADAPTERS.update(dict.fromkeys(adapter.modules, adapter))


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter of a module's type; None where it is unknown, or has a forward of its own."""
    if "forward" in vars(module):
        return None
    for cls in type(module).__mro__:
        if cls in _ADAPTERS:
            return _ADAPTERS[cls] if type(module).forward is cls.forward else None
    return None
