"""Random numbers of samples: they do not depend on the batches, and follow their distributions."""

import math

import pytest
import torch
from reference import seed
from torch import Tensor

from fisherlab.likelihoods import Bernoulli, Categorical, Gaussian, TokenCategorical, draws
from fisherlab.likelihoods.draws import categorical, normal, uniform

LIKELIHOODS = (Categorical(), TokenCategorical(), Bernoulli(), Gaussian())


def some_outputs(likelihood) -> Tensor:
    return torch.randn(7, 4) if likelihood.name == "categorical" else torch.randn(7, 3, 4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: one.name)
@pytest.mark.parametrize("sizes", [(1, 6), (3, 3, 1), (5, 2)])
def test_the_draws_of_a_sample_do_not_depend_on_the_batches(likelihood, sizes):
    outputs = some_outputs(likelihood)
    whole = likelihood.draw(outputs, 5, seed(1))
    generator = seed(1)
    parts = [likelihood.draw(part, 5, generator) for part in outputs.split(sizes)]
    assert whole.shape[:2] == (5, 7)
    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("chunk", [1, 200, 400])
def test_the_chunks_of_a_categorical_do_not_change_its_draws(monkeypatch, chunk):
    logits = torch.randn(6, 5, 9)
    whole = categorical(logits, 3, seed(0))
    monkeypatch.setattr(draws, "_CHUNK_BYTES", chunk)
    assert torch.equal(categorical(logits, 3, seed(0)), whole)


def test_draws_of_a_large_vocabulary_make_no_large_tensors(monkeypatch):
    """Beside one chunk of rows, nothing is made of the size of the outputs, times draws or not."""
    made = []
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda *args, **kw: made.append(softmax(*args, **kw)) or made[-1])
    monkeypatch.setattr(draws, "_CHUNK_BYTES", 2**22)
    logits = torch.zeros(4, 16, 50_000)
    found = categorical(logits, 20, seed(2))
    assert found.shape == (20, 4, 16)
    assert max(one.nbytes for one in made) <= 2**22
    mean = found.double().mean() / 50_000
    assert abs(float(mean) - 0.5) < 5 / math.sqrt(12 * found.numel())


def test_positions_of_a_sample_are_drawn_from_their_own_distributions():
    """Positions and draws are not mixed up: each position is sure of its own class."""
    sure = torch.tensor([[0, 3, 1], [2, 2, 4]])
    logits = 1e4 * torch.nn.functional.one_hot(sure, 5).float()
    assert torch.equal(categorical(logits, 6, seed(0)), sure.expand(6, 2, 3))


def test_frequencies_are_the_probabilities_and_positions_are_independent():
    logits = torch.tensor([[[0.0, 1.0, -1.0], [0.5, 0.0, 0.5]]], dtype=torch.float64)
    count = 20_000
    found = torch.nn.functional.one_hot(categorical(logits, count, seed(4))[:, 0], 3).double()
    p = torch.softmax(logits[0], -1)
    assert ((found.mean(0) - p).abs() < 5 * torch.sqrt(p * (1 - p) / count)).all()
    both = torch.einsum("sk,sl->kl", found[:, 0], found[:, 1]) / count
    expected = torch.outer(p[0], p[1])
    assert ((both - expected).abs() < 5 * torch.sqrt(expected / count)).all()


def test_a_class_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(50, 5)
    assert set(categorical(logits, 40, seed(0)).flatten().tolist()) == {1, 3}


def test_a_class_of_tiny_probability_keeps_its_share(monkeypatch):
    """Also for logits in float32: shares are summed in float64."""
    points = torch.tensor([0.5, 1 - 2e-9, 1 - 0.5e-9], dtype=torch.float64)
    monkeypatch.setattr(draws, "uniform", lambda *_: points.reshape(3, 1))
    logits = torch.log(torch.tensor([[1.0, 1e-9]], dtype=torch.float32))
    assert categorical(logits, 3, None).flatten().tolist() == [0, 0, 1]


def test_uniform_and_normal_numbers():
    like = torch.zeros(4, dtype=torch.float32)
    u = uniform(like, 3, (50, 20), seed(0))
    assert u.shape == (3, 4, 50, 20)
    assert u.dtype == torch.float64
    assert 0 < u.min() < u.max() < 1
    z = normal(like, 3, (50, 20), seed(0))
    assert z.dtype == torch.float32
    assert torch.allclose(torch.special.ndtr(z.double()), u, atol=1e-6)
