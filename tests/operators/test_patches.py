"""Patches of images against torch's own unfolding, and their second moment without unfolding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fisherlab.gradients.inputs import row_moment
from fisherlab.gradients.patches import Patches
from fisherlab.linalg.numerics import gram

TWO = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60)
@given(kernel=TWO, stride=TWO, dilation=TWO, channels=st.integers(1, 4), ones=st.booleans())
def test_patches_in_two_dimensions(kernel, stride, dilation, channels, ones):
    images = torch.randn(3, channels, 8, 9, dtype=torch.float64)
    patches = Patches(images, kernel, stride, dilation, ones)
    expected = functional.unfold(images, kernel, dilation, 0, stride).mT
    if ones:
        expected = torch.cat([expected, torch.ones_like(expected[..., :1])], -1)
    a = patches.unfolded()
    assert a.shape == patches.shape == expected.shape
    assert torch.equal(a, expected)
    moment = torch.einsum("ntd,nte->de", expected, expected)
    assert torch.allclose(patches.second_moment(), moment, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_patches_in_other_dimensions_are_what_a_convolution_sees(dimensions):
    images = torch.randn(2, 3, *(7, 6, 5)[:dimensions], dtype=torch.float64)
    kernel, stride, dilation = (3, 2, 2)[:dimensions], (2, 1, 2)[:dimensions], (1, 2, 1)[:dimensions]
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64)
    convolved = getattr(functional, f"conv{dimensions}d")(images, weight, None, stride, 0, dilation)
    patches = Patches(images, kernel, stride, dilation)
    assert torch.allclose(patches.unfolded() @ weight.flatten(1).T, convolved.flatten(2).mT, atol=1e-12)
    assert torch.allclose(patches.second_moment(), row_moment(patches.unfolded().contiguous()), atol=1e-12)


@pytest.mark.parametrize("width", [5, 166, 193, 300])
def test_the_gram_matrix_is_whole(width):
    X = torch.randn(301, width, dtype=torch.float64)
    assert torch.allclose(gram(X), X.T @ X, rtol=1e-12, atol=1e-12)
