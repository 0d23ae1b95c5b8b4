"""`nn.EmbeddingBag` written out as an embedding and the sum over each bag, so that its rows can be seen."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.layers.adapter import register_layer
from fisherlab.layers.fused import FusedAdapter, Part, Record
from fisherlab.layers.linear import EMBEDDING

_NONE = -1  # of a place in a bag that holds no index


class BagAdapter(FusedAdapter):
    """One embedding with a position for each index of a bag: what is summed, or its mean, follows it.

    A bag is a sample, or one of several rows of it; bags of other lengths are filled up.
    """

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.EmbeddingBag,)

    def parts(self, module: nn.Module) -> Sequence[Part]:
        """The table alone, with the module's own name."""
        return [Part("", "weight", adapter=EMBEDDING)]

    def batch_dim(self, module: Any) -> int:
        """Bags come first."""
        return 0

    def refusal(self, module: Any) -> str:
        """What is no linear map of the weight."""
        if module.mode == "max":
            return "an EmbeddingBag with mode='max' is no linear map of its weight"
        return EMBEDDING.refusal(module)

    def forward(
        self,
        module: Any,
        record: Record,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Σ or the mean of the rows in each bag, weighted or not; the padding index counts as none."""
        if (input.dim() == 1) != (offsets is not None) or (
            per_sample_weights is not None and module.mode != "sum"
        ):
            return type(module).forward(
                module, input, offsets, per_sample_weights
            )  # which says what is wrong
        indices, shares = input.long(), per_sample_weights
        if offsets is not None:
            place = _places(len(input), offsets, module.include_last_offset)
            indices = _filled(indices, place, _NONE)
            shares = None if shares is None else _filled(shares, place, 0)
        if module.padding_idx is not None:
            indices = indices.masked_fill(indices == module.padding_idx, _NONE)
        valid = indices != _NONE
        rows = functional.embedding(indices.clamp(min=0), module.weight)
        record("", indices, rows)
        shares = valid.to(rows) if shares is None else shares * valid
        if module.mode == "mean":
            shares = shares / valid.sum(1, keepdim=True).clamp(min=1)
        return (shares.unsqueeze(1) @ rows).squeeze(1)


def _places(total: int, offsets: Tensor, closed: bool) -> tuple[Tensor, Tensor, int, int]:
    """The bag and the place of each index, one bag after another; how many bags, and the longest."""
    starts = offsets[:-1] if closed else offsets
    places = torch.arange(total, device=offsets.device)
    bags = torch.searchsorted(starts, places, right=True) - 1
    ends = offsets[1:] if closed else torch.cat([offsets[1:], offsets.new_tensor([total])])
    longest = int((ends - starts).max()) if len(starts) else 0
    return bags, places - starts[bags], len(starts), longest


def _filled(values: Tensor, place: tuple[Tensor, Tensor, int, int], fill: int) -> Tensor:
    """Values of bags one after another as [bags, longest]."""
    bags, places, count, longest = place
    return values.new_full((count, longest), fill).index_put((bags, places), values)


register_layer(BagAdapter())
