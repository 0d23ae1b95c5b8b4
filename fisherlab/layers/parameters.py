"""Parameters that no call of a module tells of: raw ones, tied ones, and the originals of other weights.

Their blocks are made of the samples' gradients, which autograd has for any function of a parameter.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fisherlab.gradients.inputs import Inputs
from fisherlab.layers.adapter import Adapter
from fisherlab.layers.view import LayerView


class ParameterAdapter(Adapter):
    """A parameter of any shape as a vector [p, 1].

    Args:
        dims: of the parameter.
    """

    modules = ()
    family = "Parameter"

    def __init__(self, dims: int) -> None:
        self._dims = dims

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Unknown of a module, which may have several."""
        raise NotImplementedError

    def inputs(self, module: nn.Module, x: Tensor, output: Tensor) -> Inputs:
        """None: calls are not read."""
        raise NotImplementedError

    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """None: calls are not read."""
        raise NotImplementedError

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """[..., p, 1]."""
        return weight.reshape(*weight.shape[: weight.dim() - self._dims], -1, 1)


def parameter_view(name: str, parameter: nn.Parameter, module_name: str, module: nn.Module) -> LayerView:
    """The block of one parameter alone, a vector, named as it is.

    Args:
        name: its full name.
        parameter: the parameter.
        module_name: of the module that has it.
        module: the module.
    """
    return LayerView(
        name=name,
        outputs=parameter.numel(),
        inputs=1,
        vector=True,
        by_gradients=True,
        module_name=module_name,
        modules=(module,),
        adapter=ParameterAdapter(parameter.dim()),
        weight=name,
    )


def why_no_block(parameter: nn.Parameter) -> str:
    """Why a parameter can be in no block at all, or an empty text."""
    if not parameter.requires_grad:
        return "frozen (requires_grad is False)"
    if parameter.is_complex():
        return "complex parameters are not supported"
    if parameter.layout != torch.strided:
        return "sparse parameters are not supported"
    return "" if parameter.numel() else "it has no entries"


def made_of(module: nn.Module, short: str) -> str:
    """Which weight is computed from a parameter, by `parametrize` or by a hook; empty: none is known."""
    if isinstance(module, ParametrizationList):
        return "the original of a parametrized tensor"
    base = short.rpartition("_")[0]  # weight_norm, spectral_norm and pruning add _g, _v or _orig
    computed = vars(module).get(base, module._buffers.get(base))
    return f"its module's {base} is computed from it" if isinstance(computed, Tensor) else ""
