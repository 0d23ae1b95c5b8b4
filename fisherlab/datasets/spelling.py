"""Tokens as text: the special ones, the mark in front of words, and sentences as they are written."""

from collections.abc import Sequence

from torch import Tensor

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIAL_TOKENS))

WORD_MARK = "▁"
"""Stands for the space in front of a word."""


def unended(tokens: Tensor) -> Tensor:
    """Tokens with padding in place of <eos>, so that inputs and targets of a decoder end together."""
    return tokens.masked_fill(tokens == EOS, PAD)


def spelled(vocabulary: Sequence[str], tokens: Tensor) -> tuple[str, ...]:
    """The sentences of tokens int64 [n, t], each up to its <eos>; without <pad> and <bos>.

    Tokens are written one after another, with a space for each mark. This undoes the splitting of
    `fisherlab.datasets.tokens` exactly: only <unk> is not what was written.
    """
    return tuple(_sentence(vocabulary, row) for row in tokens.tolist())


def _sentence(vocabulary: Sequence[str], row: list[int]) -> str:
    words = row[: row.index(EOS)] if EOS in row else row
    text = "".join(vocabulary[token] for token in words if token not in (PAD, BOS))
    return text.replace(WORD_MARK, " ").strip()
