"""Greedy decoding and beam search, against enumeration and plain loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import made, translation_set
from torch import Tensor

from fisherlab.datasets.spelling import BOS, EOS, PAD
from fisherlab.models.decoding import Translations, beam_search, translate
from fisherlab.models.nets.transformer import Transformer

VOCABULARY = 5  # <pad>, <bos>, <eos>, and two words
A, B = 3, 4


def table(seed: int, sources: int, sharpness: float = 1.0):
    """A model whose log-probabilities are drawn for each source and prefix."""

    def next_tokens(prefixes: Tensor, rows: Tensor) -> Tensor:
        logs = []
        for prefix, row in zip(prefixes.tolist(), rows.tolist(), strict=True):
            generator = torch.Generator().manual_seed(hash((seed, row, *prefix)) % 2**40)
            logits = sharpness * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
            logs.append(logits.index_fill(0, torch.tensor([PAD, BOS]), -torch.inf).log_softmax(0))
        return torch.stack(logs)

    assert sources
    return next_tokens


def log_probability(next_tokens, row: int, words: tuple[int, ...]) -> float:
    """The sum of the log-probabilities of a sequence, token by token."""
    total = 0.0
    for place, word in enumerate(words):
        prefix = torch.tensor([[BOS, *words[:place]]])
        total += float(next_tokens(prefix, torch.tensor([row]))[0, word])
    return total


def sequences(longest: int) -> list[tuple[int, ...]]:
    """All that end with <eos>, and those of the longest length."""
    found = [(*words, EOS) for n in range(longest) for words in itertools.product((A, B), repeat=n)]
    return found + list(itertools.product((A, B), repeat=longest))


def words_of(found: Translations, row: int) -> tuple[int, ...]:
    return tuple(token for token in found.tokens[row].tolist() if token != PAD)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), alpha=st.sampled_from([0.0, 0.6, 1.5]), longest=st.integers(1, 4))
def test_a_wide_beam_finds_the_best_sequence_of_all(seed: int, alpha: float, longest: int) -> None:
    model = table(seed, 2)
    found = beam_search(model, 2, longest=longest, beam=100, length_penalty=alpha)
    for row in range(2):
        totals = {words: log_probability(model, row, words) for words in sequences(longest)}
        score = {words: total / ((5 + len(words)) / 6) ** alpha for words, total in totals.items()}
        best = max(score, key=score.__getitem__)
        assert words_of(found, row) == best
        assert float(found.log_probability[row]) == pytest.approx(totals[best], abs=1e-12)
        assert bool(found.ended[row]) == (best[-1] == EOS)
    assert math.fsum(map(math.exp, totals.values())) == pytest.approx(1)  # nothing was left out above


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), beam=st.integers(1, 4), alpha=st.sampled_from([0.0, 0.6]))
def test_scores_are_sums_of_log_probabilities(seed: int, beam: int, alpha: float) -> None:
    model = table(seed, 3)
    found = beam_search(model, 3, longest=5, beam=beam, length_penalty=alpha)
    for row in range(3):
        words = words_of(found, row)
        assert float(found.log_probability[row]) == pytest.approx(log_probability(model, row, words))
        assert EOS not in words[:-1]
        assert (words[-1] == EOS) == bool(found.ended[row])


def greedy(next_tokens, row: int, longest: int) -> tuple[int, ...]:
    """The likeliest token each time, one sentence at a time."""
    words: tuple[int, ...] = ()
    while len(words) < longest and EOS not in words:
        prefix = torch.tensor([[BOS, *words]])
        words += (int(next_tokens(prefix, torch.tensor([row]))[0].argmax()),)
    return words


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), alpha=st.sampled_from([0.0, 0.6, 2.0]))
def test_a_beam_of_one_is_greedy_decoding(seed: int, alpha: float) -> None:
    model = table(seed, 6)
    found = beam_search(model, 6, longest=7, beam=1, length_penalty=alpha)
    for row in range(6):
        assert words_of(found, row) == greedy(model, row, 7)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), beam=st.integers(1, 3))
def test_sources_do_not_depend_on_each_other(seed: int, beam: int) -> None:
    together = beam_search(table(seed, 5), 5, longest=6, beam=beam)
    for row in range(5):
        alone = beam_search(
            lambda prefixes, rows, row=row: table(seed, 5)(prefixes, rows + row), 1, longest=6, beam=beam
        )
        assert words_of(alone, 0) == words_of(together, row)


PROBABILITIES = {
    (): {A: 0.6, B: 0.4},
    (A,): {A: 0.35, B: 0.35, EOS: 0.3},
    (B,): {EOS: 0.9, A: 0.05, B: 0.05},
}


def trap(prefixes: Tensor, rows: Tensor) -> Tensor:
    """The likelier first word leads to unlikely endings."""
    logs = torch.full((len(rows), VOCABULARY), -torch.inf, dtype=torch.float64)
    for place, prefix in enumerate(prefixes[:, 1:].tolist()):
        for word, p in PROBABILITIES.get(tuple(prefix), {EOS: 1.0}).items():
            logs[place, word] = math.log(p)
    return logs


def test_a_beam_finds_what_greedy_decoding_misses() -> None:
    narrow, wide = (beam_search(trap, 1, longest=4, beam=beam, length_penalty=0.0) for beam in (1, 2))
    assert words_of(narrow, 0)[0] == A
    assert float(narrow.log_probability[0].exp()) == pytest.approx(0.6 * 0.35)
    assert words_of(wide, 0) == (B, EOS)
    assert float(wide.log_probability[0].exp()) == pytest.approx(0.4 * 0.9)


def test_a_larger_length_penalty_prefers_longer_sequences() -> None:
    def model(prefixes: Tensor, rows: Tensor) -> Tensor:
        """Ends at once with probability 0.5, else after five certain words."""
        logs = torch.full((len(rows), VOCABULARY), -torch.inf, dtype=torch.float64)
        length = prefixes.shape[1] - 1
        if length == 0:
            logs[:, EOS], logs[:, A] = math.log(0.5), math.log(0.5) - 0.01
        else:
            logs[:, A if length < 5 else EOS] = 0.0
        return logs

    short, long = (beam_search(model, 1, longest=9, beam=2, length_penalty=alpha) for alpha in (0.0, 1.0))
    assert words_of(short, 0) == (EOS,)
    assert words_of(long, 0) == (A,) * 5 + (EOS,)


def test_the_length_is_bounded() -> None:
    def never(prefixes: Tensor, rows: Tensor) -> Tensor:
        logs = torch.full((len(rows), VOCABULARY), -torch.inf, dtype=torch.float64)
        logs[:, A] = 0.0
        return logs

    found = beam_search(never, 2, longest=6, beam=3)
    assert found.tokens.tolist() == [[A] * 6] * 2
    assert not found.ended.any()


def test_ended_sources_cost_nothing() -> None:
    asked = []

    def model(prefixes: Tensor, rows: Tensor) -> Tensor:
        """Source i ends after i + 1 words."""
        asked.append(rows.tolist())
        logs = torch.full((len(rows), VOCABULARY), -torch.inf, dtype=torch.float64)
        ends = rows < prefixes.shape[1]
        logs[ends, EOS], logs[~ends, A] = 0.0, 0.0
        return logs

    beam_search(model, 3, longest=50, beam=2)
    assert asked == [[0, 1, 2], [1, 2], [2]]


@pytest.fixture(scope="module")
def translator() -> Transformer:
    return made(lambda: Transformer(vocabulary=13, dim=12, depth=2, heads=3))


def model_log_probabilities(model: Transformer, source: Tensor, words: tuple[int, ...]) -> Tensor:
    """log p [t, V] of a whole sequence from one pass of the model."""
    target = torch.tensor([[BOS, *words[:-1]]])
    return model(source, target)[0].log_softmax(-1).detach()


@pytest.mark.parametrize("beam", [1, 3])
def test_translations_have_the_log_probabilities_of_the_model(translator, beam: int) -> None:
    source = translation_set().inputs[0]
    found = translate(translator, source, longest=8, beam=beam, batch=4)
    assert found.tokens.shape[0] == len(source)
    for row in range(len(source)):
        words = words_of(found, row)
        logs = model_log_probabilities(translator, source[row : row + 1], words)
        expected = sum(float(logs[place, word]) for place, word in enumerate(words))
        assert float(found.log_probability[row]) == pytest.approx(expected, abs=1e-9)
        assert not {PAD, BOS} & set(words)
        if beam == 1:
            allowed = logs.index_fill(1, torch.tensor([PAD, BOS]), -torch.inf)
            assert words == tuple(allowed.argmax(1).tolist())


def test_batches_and_order_change_nothing(translator) -> None:
    source = translation_set().inputs[0]
    whole, parts = (translate(translator, source, longest=8, beam=2, batch=batch) for batch in (9, 2))
    back = translate(translator, source.flip(0), longest=8, beam=2)
    assert torch.equal(whole.tokens, parts.tokens)
    assert torch.equal(whole.tokens, back.tokens.flip(0))
    torch.testing.assert_close(whole.log_probability, parts.log_probability)


def test_the_modes_of_the_model_stay(translator) -> None:
    translator.train()
    translator.encoder[0].eval()
    translate(translator, translation_set().inputs[0][:2], longest=3)
    assert translator.training
    assert not translator.encoder[0].mlp.training
    translator.eval()
