"""Linear layers on vectors and sequences, and embeddings."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from fisherlab.errors import InputError
from fisherlab.gradients.inputs import OneHot
from fisherlab.layers.adapter import Adapter, register_layer, why_no_gradient


class LinearAdapter(Adapter):
    """Every dimension between the first and the last counts positions."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """[out_features, in_features]."""
        return module.out_features, module.in_features  # type: ignore[return-value]

    def inputs(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """[l, …, d] as [l, t, d]."""
        if x.dim() < 2:
            raise InputError(f"a Linear layer sees a tensor of shape {list(x.shape)} without samples")
        return x.reshape(len(x), -1, x.shape[-1])

    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """[c, l, …, m] as [c, l, t, m]."""
        return g.reshape(*g.shape[:2], -1, g.shape[-1])

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight

    def weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The matrix itself."""
        return matrix

    def applied(self, module: nn.Module, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """X Wᵀ."""
        return functional.linear(x, weight)


class EmbeddingAdapter(Adapter):
    """s = W a with one-hot a, which stay indices; W is the transposed weight [dim, num]."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Embedding,)

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """[embedding_dim, num_embeddings]."""
        return module.embedding_dim, module.num_embeddings  # type: ignore[return-value]

    def inputs(self, module: Any, x: Tensor, output: Tensor) -> OneHot:
        """Indices [l, …]; the padding index, whose row has no gradient, gives a zero vector."""
        indices = x.reshape(len(x), -1)
        if module.padding_idx is not None:
            indices = indices.masked_fill(indices == module.padding_idx, -1)
        return OneHot(indices, module.num_embeddings, output.dtype)

    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """[c, l, …, dim] as [c, l, t, dim]."""
        return g.reshape(*g.shape[:2], -1, g.shape[-1])

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The transpose."""
        return weight.mT

    def weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The transpose."""
        return matrix.mT

    def refusal(self, module: nn.Module) -> str:
        """Lookups that change the weight or its gradient are no linear map of it."""
        return why_no_gradient(module)


LINEAR = LinearAdapter()

for _adapter in (LINEAR, EmbeddingAdapter()):
    register_layer(_adapter)
