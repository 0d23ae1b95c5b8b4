"""One layer as the matrix W of s = W a, and the one layout that the rest of fisherlab works in.

Whatever the module, its inputs become `a [n, t, d]` and its output gradients `g [c, n, t, m]`:
n samples, t positions, d inputs (a joint bias is the last of them, with input 1), m outputs,
c columns. Nothing outside this package knows module types.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fisherlab.errors import InputError


@dataclass(frozen=True)
class BlockShape:
    """The name and size of a block of parameters, with or without a module behind it.

    Attributes:
        name: the layer's name.
        outputs: m.
        inputs: d, a bias counted.
    """

    name: str
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        """D = m·d."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class LayerView(BlockShape):
    """A block of parameters [m, d] of one module.

    Attributes:
        name: the module's name in `named_modules()`; a separate bias block adds `.bias`.
        module_name: the module's own name.
        module: the module.
        weight: the full name of the weight parameter in the block, or None.
        bias: the full name of the bias parameter in the block, or None; it is the last column.
        activation: the name of the element-wise function that follows, where the user gave it;
            None: found from the graph of a forward pass.
    """

    module_name: str
    module: nn.Module
    weight: str | None
    bias: str | None
    activation: str | None = None

    @property
    def family(self) -> str:
        """The module's type name, as shown in tables."""
        return type(self.module).__name__

    @property
    def parameters(self) -> tuple[str, ...]:
        """The full names of the parameters in the block."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def with_activation(self, activation: str) -> "LayerView":
        """The same block with the activation that follows it named."""
        return replace(self, activation=activation)

    def to_inputs(self, x: Tensor, samples: int, batch_dim: int = 0) -> Tensor:
        """The module's input as a [n, t, d]; a leading k·n is read as n × k positions.

        Raises:
            InputError: where the batch dimension is no multiple of the number of samples.
        """
        a = self._by_position(x.unsqueeze(0), samples, batch_dim)[0]
        if self.bias is None:
            return a
        ones = a.new_ones(*a.shape[:-1], 1)
        return ones if self.weight is None else torch.cat([a, ones], dim=-1)

    def to_outputs(self, g: Tensor, samples: int, batch_dim: int = 0) -> Tensor:
        """C tensors shaped as the module's output, [c, …], as [c, n, t, m]."""
        return self._by_position(g, samples, batch_dim)

    def to_matrix(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Gradients by parameter name, with any leading dimensions, as one [..., m, d] matrix."""
        parts = []
        if self.weight is not None:
            parts.append(gradients[self.weight])
        if self.bias is not None:
            parts.append(gradients[self.bias].unsqueeze(-1))
        return torch.cat(parts, dim=-1)

    def _by_position(self, x: Tensor, samples: int, batch_dim: int) -> Tensor:
        shape = x.shape[1:]
        if len(shape) < 2 or shape[batch_dim] % samples:
            raise InputError(
                f"layer {self.name!r} sees a tensor of shape {list(shape)} for {samples} samples; "
                "name the dimension that counts samples with batch_dim"
            )
        if batch_dim != 0:
            x = x.movedim(batch_dim + 1 if batch_dim >= 0 else batch_dim, 1)
        return x.reshape(len(x), samples, -1, x.shape[-1])
