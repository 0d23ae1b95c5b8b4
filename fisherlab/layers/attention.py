"""`nn.MultiheadAttention` written out, so that its projections can be seen while it runs."""

import math
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.base.switch import Switch
from fisherlab.layers.adapter import register_layer
from fisherlab.layers.fused import FusedAdapter, Part, Record, of_rows

without_fast_path = Switch(
    torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, lambda _: False
)
"""Without the fast path of `nn.TransformerEncoder`, which calls no attention and has no rule for vmap."""


class AttentionAdapter(FusedAdapter):
    """q, k and v, which are rows of one weight where all have one size, and the out-projection."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.MultiheadAttention,)
    children: ClassVar[tuple[str, ...]] = ("out_proj",)

    def parts(self, module: Any) -> list[Part]:
        """Three."""
        size, bias = module.embed_dim, None if module.in_proj_bias is None else "in_proj_bias"
        found = []
        for place, name in enumerate("qkv"):
            rows = slice(place * size, (place + 1) * size)
            if module._qkv_same_embed_dim:
                found.append(Part(name, "in_proj_weight", bias, rows, rows))
            else:
                found.append(Part(name, f"{name}_proj_weight", bias, None, rows))
        return found

    def batch_dim(self, module: Any) -> int:
        """The first dimension or the second."""
        return int(not module.batch_first)

    def while_open(self) -> AbstractContextManager[None]:
        """Without the fast path, which does not call the module."""
        return without_fast_path()

    def forward(
        self,
        module: Any,
        record: Record,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The arguments and the result of `nn.MultiheadAttention.forward`."""
        if query.dim() != 3:  # one sample alone: its projections are then not seen
            given = (
                *(query, key, value, key_padding_mask, need_weights),
                *(attn_mask, average_attn_weights, is_causal),
            )
            return type(module).forward(module, *given)
        projected = []
        for part, x in zip(self.parts(module), (query, key, value), strict=True):
            projected.append(_project(module, part, x))
            record(part.name, x, projected[-1])
        if not module.batch_first:
            projected = [x.transpose(0, 1) for x in projected]
        q, k, v = projected
        n, target, _ = q.shape
        k, v, extra = _with_extra(module, k, v)
        mask = _mask(module, q, k.shape[1] - extra, key_padding_mask, attn_mask)
        if mask is not None and extra:
            mask = functional.pad(mask, (0, extra))
        heads = [x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k, v)]
        scores = heads[0] @ heads[1].mT / math.sqrt(heads[0].shape[-1])
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        if module.training:
            weights = functional.dropout(weights, module.dropout)
        mixed = (weights @ heads[2]).transpose(1, 2).reshape(n, target, module.embed_dim)
        output = module.out_proj(mixed if module.batch_first else mixed.transpose(0, 1))
        if not need_weights:
            return output, None
        return output, weights.mean(1) if average_attn_weights else weights


def _project(module: Any, part: Part, x: Tensor) -> Tensor:
    weight = of_rows(getattr(module, part.weight), part.rows, 1)
    bias = None if part.bias is None else of_rows(getattr(module, part.bias), part.bias_rows, 0)
    return functional.linear(x, weight, bias)


def _with_extra(module: Any, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keys and values with `bias_k`, `bias_v` and a zero position, and how many were added."""
    added = 0
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(len(k), 1, -1)], 1)
        v = torch.cat([v, module.bias_v.expand(len(v), 1, -1)], 1)
        added += 1
    if module.add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(len(x), 1, x.shape[-1])], 1) for x in (k, v))
        added += 1
    return k, v, added


def _mask(
    module: Any, q: Tensor, keys: int, padding: Tensor | None, attention: Tensor | None
) -> Tensor | None:
    """Both masks as numbers to be added to the scores, [n or 1, heads or 1, target, source]."""
    masks = []
    if padding is not None:
        masks.append(_additive(padding, q.dtype)[:, None, None, :])
    if attention is not None:
        additive = _additive(attention, q.dtype)
        by_head = additive.unflatten(0, (len(q), module.num_heads)) if additive.dim() == 3 else additive
        masks.append(by_head.expand(*by_head.shape[:-1], keys))
    return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
    return mask.to(dtype)


register_layer(AttentionAdapter())
