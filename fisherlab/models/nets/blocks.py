"""The pre-norm transformer block that `vit-tiny` and `charlm` share, of plain Linear layers."""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2), a Linear for each projection.

    Args:
        dim: of the tokens.
        heads: of dim / heads numbers each.
        causal: whether a token sees only itself and those before it.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, dim] to [n, t, dim]."""
        q, k, v = (self._split(project(x)) for project in (self.q, self.k, self.v))  # [n, heads, t, width]
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # [n, heads, t, t]
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        mixed = scores.softmax(-1) @ v  # [n, heads, t, width]
        return self.out(mixed.transpose(1, 2).flatten(2))  # [n, t, dim]

    def _split(self, x: Tensor) -> Tensor:
        """[n, t, dim] to [n, heads, t, dim / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the MLP is four times as wide, with GELU.

    Args:
        dim: of the tokens.
        heads: of the attention.
        causal: as for `Attention`.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal=causal)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, dim] to [n, t, dim]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def places(x: Tensor) -> Tensor:
    """The numbers 0 .. t − 1 for each sample, int64 [n, t], of tokens or features [n, t, ...].

    Each sample looks up its own, so that the gradient of a position embedding is a sum over samples.
    """
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
