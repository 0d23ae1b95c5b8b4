"""transformer-small: an encoder and a decoder for translation, on `nn.MultiheadAttention`."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fisherlab.datasets.dataset import Dataset
from fisherlab.models.preprocess import next_tokens, text_pairs, vocabulary
from fisherlab.models.registry import ModelSpec

PADDING = 0
"""The token that fills short sentences up."""


class Transformer(nn.Module):
    """Encoder and decoder with norms before each part (Vaswani et al. 2017; Xiong et al. 2020).

    One embedding serves source and target, which share a vocabulary. Padding of the source is
    masked; the decoder is causal, so the logits of a token do not depend on padding after it.

    Args:
        vocabulary: the number of tokens; token 0 is padding.
        dim: of the tokens' vectors.
        depth: the number of blocks of the encoder, and of the decoder.
        heads: of each attention.
        tied: whether the output layer's weight is the embedding's.
    """

    def __init__(
        self, vocabulary: int = 4000, dim: int = 128, depth: int = 2, heads: int = 4, *, tied: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=PADDING)
        self.encoder = nn.ModuleList(EncoderBlock(dim, heads) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim)
        self.decoder = nn.ModuleList(DecoderBlock(dim, heads) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocabulary)
        self._initialise()
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Source int64 [n, s] and target input int64 [n, t] to logits [n, t, vocabulary]."""
        return self.output(self.decode(target, self.encode(source), source == PADDING))

    def encode(self, source: Tensor) -> Tensor:
        """The memory [n, s, dim] of sources int64 [n, s]."""
        padded = source == PADDING  # [n, s]
        x = self._embed(source)  # [n, s, dim]
        for block in self.encoder:
            x = block(x, padded)
        return self.encoder_norm(x)

    def decode(self, target: Tensor, memory: Tensor, padded: Tensor) -> Tensor:
        """Target input int64 [n, t], memory [n, s, dim] and padding bool [n, s] to vectors [n, t, dim].

        The output layer makes logits of them.
        """
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).triu(1)
        x = self._embed(target)  # [n, t, dim]
        for block in self.decoder:
            x = block(x, memory, later, padded)
        return self.decoder_norm(x)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens [n, t] to √dim times their vectors plus the positions, [n, t, dim]."""
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5
        return x + sinusoids(x.shape[1], x.shape[2]).to(x)

    def _initialise(self) -> None:
        """Linear weights uniform after Glorot, biases 0; the embedding's of variance 1 / dim."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0


class EncoderBlock(nn.Module):
    """Self-attention over the source and an MLP, each with a norm before it and x added after it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = _mlp(dim)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        """[n, s, dim] to [n, s, dim]; `padded` bool [n, s] is True where nobody looks."""
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=padded, need_weights=False)[0]
        return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(nn.Module):
    """Causal self-attention over the target, attention to the encoder's output, and an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = _mlp(dim)

    def forward(self, x: Tensor, memory: Tensor, later: Tensor, padded: Tensor) -> Tensor:
        """[n, t, dim] with memory [n, s, dim] to [n, t, dim]; masks [t, t] and [n, s] hide where True."""
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, attn_mask=later, need_weights=False)[0]
        y = self.cross_attention_norm(x)
        x = x + self.cross_attention(y, memory, memory, key_padding_mask=padded, need_weights=False)[0]
        return x + self.mlp(self.mlp_norm(x))


def _mlp(dim: int) -> nn.Sequential:
    """Two Linear layers with ReLU, four times as wide between them."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))


def sinusoids(length: int, dim: int) -> Tensor:
    """The positions [length, dim] of Vaswani et al. (2017), section 3.5, in float64.

    Entry (t, 2i) is sin(t / 10000^(2i / dim)) and entry (t, 2i + 1) the cosine of the same.
    """
    rates = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * rates  # [length, dim / 2]
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def source_mask(inputs: tuple[Tensor, ...]) -> Tensor:
    """True where the source holds a token, bool [n, s]."""
    return inputs[0] != PADDING


def target_mask(inputs: tuple[Tensor, ...]) -> Tensor:
    """True where the target input holds a token, bool [n, t]."""
    return inputs[1] != PADDING


def both_masks(inputs: tuple[Tensor, ...]) -> Tensor:
    """The source's positions and then the target's, bool [n, s + t]."""
    return torch.cat([source_mask(inputs), target_mask(inputs)], 1)


def build_for(data: Dataset, *, tied: bool = False) -> Transformer:
    """The model with the joint vocabulary of a translation set."""
    return Transformer(vocabulary(data), tied=tied)


TRANSFORMER_SMALL = ModelSpec(
    name="transformer-small",
    build=Transformer,
    build_for=build_for,
    dataset="multi30k",
    likelihood="token-categorical",
    preprocess=text_pairs,
    targets=next_tokens,
    default_samples=32,
    description="translation: 2 + 2 pre-norm blocks of width 128 with 4 heads, joint vocabulary",
    source="Vaswani et al. (2017), small; norms as in Xiong et al. (2020)",
    masks={
        "embedding": both_masks,
        "encoder*": source_mask,
        "decoder*": target_mask,
        "decoder.*.cross_attention.[kv]*": source_mask,
        "output*": target_mask,
    },
)

TRANSFORMER_SMALL_TIED = replace(
    TRANSFORMER_SMALL,
    name="transformer-small-tied",
    build=partial(Transformer, tied=True),
    build_for=partial(build_for, tied=True),
    description="transformer-small with one matrix for the embedding and the output layer",
    source="Press and Wolf (2017); section 3.4 of Vaswani et al. (2017)",
    masks={glob: mask for glob, mask in TRANSFORMER_SMALL.masks.items() if glob != "embedding"},
)
"""The matrix that both share is in no block of the Fisher; it steps with the other parameters."""
