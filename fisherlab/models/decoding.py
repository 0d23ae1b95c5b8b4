"""From a source to its translation: greedy decoding and beam search, for many sentences at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fisherlab.datasets.spelling import BOS, EOS, PAD

NextTokens = Callable[[Tensor, Tensor], Tensor]
"""From prefixes int64 [l, t], which start with <bos>, and the numbers int64 [l] of the sources that they are
translations of, to log p(next token) [l, V]; −∞ for a token that may not follow."""

LENGTH_PENALTY = 0.6
"""α of Wu et al. (2016), as Vaswani et al. (2017) choose it."""


@runtime_checkable
class Translator(Protocol):
    """An encoder and a decoder, such as `fisherlab.models.nets.transformer.Transformer`."""

    output: nn.Module
    """Vectors [l, dim] to logits [l, V]."""

    def encode(self, source: Tensor) -> Tensor:
        """The memory [n, s, dim] of sources int64 [n, s]."""

    def decode(self, target: Tensor, memory: Tensor, padded: Tensor) -> Tensor:
        """Prefixes int64 [n, t], memory [n, s, dim] and its padding bool [n, s] to vectors [n, t, dim]."""


@dataclass(frozen=True, eq=False)
class Translations:
    """The best sequence found for each of n sources.

    Attributes:
        tokens: int64 [n, t]: those after <bos>, up to and with <eos>, and then padding.
        log_probability: float64 [n], the sum of the tokens' log-probabilities.
        ended: bool [n], False where the sequence reached the limit without <eos>.
    """

    tokens: Tensor
    log_probability: Tensor
    ended: Tensor


@torch.no_grad()
def translate(
    model: Translator,
    source: Tensor,
    *,
    longest: int,
    beam: int = 1,
    length_penalty: float = LENGTH_PENALTY,
    batch: int = 128,
) -> Translations:
    """Translates in evaluation mode; sentences of like length go together.

    Args:
        model: its parameters say on which device.
        source: int64 [n, s], padded with 0.
        longest: the most tokens of a translation, with <eos>.
        beam: see `beam_search`; 1 is greedy decoding.
        length_penalty: see `beam_search`.
        batch: sources at a time.
    """
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    lengths = (source != PAD).sum(1)
    order = lengths.argsort(stable=True)
    parts = []
    with _evaluating(model):
        for chosen in order.split(batch):
            some = source[chosen, : int(lengths[chosen].max())].to(device)
            found = beam_search(
                _next_tokens(model, some),
                len(some),
                longest=longest,
                beam=beam,
                length_penalty=length_penalty,
                device=device,
            )
            parts.append(found)
    back = order.argsort().to(device)
    width = max((part.tokens.shape[1] for part in parts), default=0)
    tokens = [pad(part.tokens, (0, width - part.tokens.shape[1]), value=PAD) for part in parts]
    return Translations(
        torch.cat(tokens)[back],
        torch.cat([part.log_probability for part in parts])[back],
        torch.cat([part.ended for part in parts])[back],
    )


def beam_search(
    next_tokens: NextTokens,
    sources: int,
    *,
    longest: int,
    beam: int = 1,
    length_penalty: float = LENGTH_PENALTY,
    device: torch.device | str = "cpu",
) -> Translations:
    """The sequence y with the largest score that a beam finds, for each source.

    The score is Σ_t log p(y_t | y_<t) / ((5 + |y|) / 6)^α, with |y| the number of tokens, <eos> among them
    (Wu et al. 2016, arXiv:1609.08144, eq. 14). Of the sequences of a step, ended ones among them, the `beam`
    best go on; those that did not end are compared at their present length. A source is done when its best
    sequence has ended and no other one can overtake it. A beam of 1 takes the likeliest token each time
    (greedy decoding); a beam as wide as there are prefixes finds the best sequence of all.

    Args:
        next_tokens: the model.
        sources: how many, n.
        longest: the most tokens of a sequence, with <eos>.
        beam: how many sequences are kept for each source.
        length_penalty: α, 0 or more; the larger, the longer the sequences.
        device: where the sequences are.
    """
    beams = _Beams(sources, longest, length_penalty, torch.device(device))
    for _ in range(longest):
        live = beams.live()
        row, place = live.nonzero(as_tuple=True)
        if not len(row):
            break
        beams.extend(live, next_tokens(beams.prefixes[row, place], row), beam)
    return beams.best()


class _Beams:
    """Up to k sequences for each of n sources, the best one first.

    Attributes:
        prefixes: int64 [n, k, t], from <bos> on.
    """

    def __init__(self, sources: int, longest: int, length_penalty: float, device: torch.device) -> None:
        self._longest, self._alpha = longest, length_penalty
        self.prefixes = torch.full((sources, 1, 1), BOS, device=device)
        self._total = torch.zeros(sources, 1, dtype=torch.float64, device=device)  # log-probabilities
        self._length = torch.zeros(sources, 1, dtype=torch.int64, device=device)
        self._ended = torch.zeros(sources, 1, dtype=torch.bool, device=device)

    def live(self) -> Tensor:
        """The sequences [n, k] that go on: none of a source whose best one cannot be overtaken."""
        reachable = self._score(self._total, torch.full_like(self._length, self._longest))
        reachable = reachable.masked_fill(self._ended, -torch.inf).amax(1)
        settled = self._ended[:, 0] & (self._score(self._total, self._length)[:, 0] >= reachable)
        return ~self._ended & ~settled[:, None] & (self._total > -torch.inf)

    def extend(self, live: Tensor, logs: Tensor, beam: int) -> None:
        """Lets the live ones [n, k] go on by one token, log p [l, V], and keeps the best `beam`."""
        n, k = live.shape
        each = min(beam, logs.shape[1])  # no more than these of one sequence can be among the best
        values, tokens = logs.topk(each)
        total = self._total.new_full((n, k, each), -torch.inf)
        total[..., 0] = self._total
        total[live] = self._total[live][:, None] + values
        following = torch.full((n, k, each), PAD, device=tokens.device)
        following[live] = tokens
        length = (self._length + live)[..., None].expand_as(total)
        ended = (self._ended[..., None] | (following == EOS)).flatten(1)
        kept = self._score(total, length).flatten(1).topk(min(beam, k * each)).indices  # [n, kept]
        old = kept // each
        self.prefixes = torch.cat(
            [
                self.prefixes.gather(1, old[..., None].expand(-1, -1, self.prefixes.shape[2])),
                following.flatten(1).gather(1, kept)[..., None],
            ],
            2,
        )
        self._total, self._length = total.flatten(1).gather(1, kept), length.flatten(1).gather(1, kept)
        self._ended = ended.gather(1, kept)

    def best(self) -> Translations:
        """The first one of each source."""
        return Translations(self.prefixes[:, 0, 1:], self._total[:, 0], self._ended[:, 0])

    def _score(self, total: Tensor, length: Tensor) -> Tensor:
        return total / ((5 + length) / 6).pow(self._alpha)


def _next_tokens(model: Translator, source: Tensor) -> NextTokens:
    """The model's log-probabilities for some sources [n, s]; padding and <bos> may not follow."""
    memory, padded = model.encode(source), source == PAD

    def next_tokens(prefixes: Tensor, rows: Tensor) -> Tensor:
        vectors = model.decode(prefixes, memory[rows], padded[rows])[:, -1]
        logs = model.output(vectors).log_softmax(-1)
        return logs.index_fill(1, torch.tensor([PAD, BOS], device=logs.device), -torch.inf)

    return next_tokens


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; the modes of all its modules are as before afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
