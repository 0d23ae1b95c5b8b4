"""The gradients and weights of layers as matrices, read from the parameters."""

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from fisherlab.errors import NumericalError
from fisherlab.layers import Layers


class ParameterMatrices:
    """Reads what the user's backward passes left in the parameters.

    Args:
        parameters: of the model by name, and those added later.
        layers: the layers with a block.
        dtype_of: from a layer to the dtype of its matrices.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        layers: Layers,
        dtype_of: Callable[[str], torch.dtype],
    ) -> None:
        self.parameters, self._layers, self._dtype_of = parameters, layers, dtype_of
        self.names = {name: view.parameters for name, view in layers.items()}

    def trained(self, name: str) -> list[str]:
        """The parameters of a block that are not frozen."""
        return [p for p in self.names[name] if self.parameters[p].requires_grad]

    def device(self, name: str) -> torch.device:
        """Where a layer is."""
        return self.parameters[self.names[name][0]].device

    def has_come(self, name: str, came: Collection[str]) -> bool:
        """Whether one of the gradients that came is a layer's, or one is there and not zero."""
        grads = {p: self.parameters[p].grad for p in self.trained(name)}
        there = {p: grad for p, grad in grads.items() if grad is not None}
        return any(p in came for p in there) or any(bool(grad.any()) for grad in there.values())

    def are_cleared(self) -> bool:
        """Whether there is none."""
        return all(p.grad is None for p in self.parameters.values())

    def were_zeroed(self, versions: Mapping[str, int]) -> bool:
        """Whether gradients with these versions were written since, and are zero now."""
        grads = {name: self.parameters[name].grad for name in versions}
        written = [g for n, g in grads.items() if g is not None and g._version != versions[n]]
        return bool(written) and not any(bool(grad.any()) for grad in written)

    def with_any(self) -> list[str]:
        """The layers that have a gradient."""
        return [
            name
            for name in self.names
            if any(self.parameters[p].grad is not None for p in self.trained(name))
        ]

    def is_any(self, name: str) -> bool:
        """Whether a layer's gradient is not zero."""
        grads = [self.parameters[p].grad for p in self.trained(name)]
        return any(grad is not None and bool(grad.any()) for grad in grads)

    def check_finite(self) -> None:
        """Looks at all of them with one synchronisation.

        Raises:
            NumericalError: where one is not finite; names the layer.
        """
        named = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        largest = torch._foreach_norm(list(named.values()), math.inf)
        by_device = torch.stack([value.float().to(largest[0].device) for value in largest])
        if bool(by_device.isfinite().all()):
            return
        bad = [name for name, fine in zip(named, by_device.isfinite().tolist(), strict=True) if not fine]
        layers = [name for name, view in self._layers.items() if set(view.parameters) & set(bad)]
        where = f"layer {layers[0]!r}" if layers else f"parameter {bad[0]!r}"
        raise NumericalError(
            f"the gradient of {where} is not finite; no weight was changed: lower the learning rate, clip "
            "the gradient, or look at the batch"
        )

    def matrix(self, name: str) -> Tensor:
        """A layer's gradient [m, d]; zero where a parameter has none or is frozen."""
        view = self._layers[name]
        gradients = {}
        for parameter in self.names[name]:
            p = self.parameters[parameter]
            gradients[parameter] = p.grad if p.grad is not None and p.requires_grad else torch.zeros_like(p)
        return view.to_matrix(gradients).to(self._dtype_of(name))

    def weights(self, name: str) -> Tensor:
        """A layer's W [m, d]."""
        view = self._layers[name]
        weights = view.to_matrix({p: self.parameters[p].detach() for p in view.parameters})
        return weights.to(self._dtype_of(name))

    def version(self, name: str) -> list[tuple[Tensor | None, int]]:
        """What changes where a layer's gradients do: the tensors, and how often they were written."""
        grads = [self.parameters[p].grad for p in self.trained(name)]
        return [(grad, -1 if grad is None else grad._version) for grad in grads]

    def of_trained(self, name: str, direction: Tensor) -> Tensor:
        """D, zero for parameters that are frozen."""
        view = self._layers[name]
        if len(self.trained(name)) == len(view.parameters):
            return direction
        trains = {
            p: torch.full_like(self.parameters[p], self.parameters[p].requires_grad) for p in view.parameters
        }
        return direction * view.to_matrix(trains).to(direction.dtype)
