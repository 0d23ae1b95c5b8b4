"""Linear layers on vectors and sequences, under torch's name and others, bilinear ones, and embeddings."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.errors import InputError
from fisherlab.gradients.inputs import OneHot
from fisherlab.layers.adapter import Adapter, class_name, register_layer, why_no_gradient


class LinearAdapter(Adapter):
    """Every dimension between the first and the last counts positions."""

    modules: ClassVar[tuple[type[nn.Module] | str, ...]] = (
        nn.Linear,
        "torch_geometric.nn.dense.linear.Linear",
        "transformers.models.falcon.modeling_falcon.FalconLinear",
    )

    def shape(self, module: Any) -> tuple[int, int]:
        """[out_features, in_features]."""
        outputs, inputs = module.weight.shape
        return outputs, inputs

    def inputs(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """[l, …, d] as [l, t, d]."""
        _check_samples(module, x)
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


class TransposedLinearAdapter(LinearAdapter):
    """GPT-2's linear layer, whose weight is [in, out]: y = x weight + bias."""

    modules: ClassVar[tuple[type[nn.Module] | str, ...]] = ("transformers.pytorch_utils.Conv1D",)

    def shape(self, module: Any) -> tuple[int, int]:
        """[out, in]."""
        inputs, outputs = module.weight.shape
        return outputs, inputs

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The transpose."""
        return weight.mT

    def weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The transpose."""
        return matrix.mT

    def applied(self, module: nn.Module, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """X weight."""
        return x @ weight


class BilinearAdapter(Adapter):
    """y_k = x1ᵀ A_k x2: W is weight.flatten(1) [out, in1·in2], and a is x1 ⊗ x2."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Bilinear,)

    def shape(self, module: Any) -> tuple[int, int]:
        """[out_features, in1_features · in2_features]."""
        return len(module.weight), module.weight[0].numel()

    def argument(self, module: nn.Module, input1: Tensor, input2: Tensor) -> Tensor:  # type: ignore[override]
        """Both inputs, one after the other in the last dimension; their products are made when needed."""
        return torch.cat([input1, input2], -1)

    def inputs(self, module: Any, x: Tensor, output: Tensor) -> Tensor:
        """[l, …, in1 + in2] as [l, t, in1·in2]."""
        _check_samples(module, x)
        left, right = self._both(module, x)
        return (left.unsqueeze(-1) * right.unsqueeze(-2)).reshape(len(x), -1, self.shape(module)[1])

    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """[c, l, …, m] as [c, l, t, m]."""
        return g.reshape(*g.shape[:2], -1, g.shape[-1])

    def applied(self, module: nn.Module, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """x1ᵀ A_k x2."""
        return functional.bilinear(*self._both(module, x), weight)

    def _both(self, module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = x.split(list(module.weight.shape[1:]), -1)
        return left.contiguous(), right.contiguous()


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


def _check_samples(module: nn.Module, x: Tensor) -> None:
    if x.dim() < 2:
        raise InputError(
            f"a {class_name(type(module))} sees a tensor of shape {list(x.shape)} without samples"
        )


LINEAR, TRANSPOSED, EMBEDDING = LinearAdapter(), TransposedLinearAdapter(), EmbeddingAdapter()

for _adapter in (LINEAR, TRANSPOSED, BilinearAdapter(), EMBEDDING):
    register_layer(_adapter)
