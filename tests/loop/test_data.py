"""The order of samples, augmentation and state in files."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from fisherlab.base.nested import packed, unpacked
from fisherlab.errors import InputError, NotSupportedError
from fisherlab.loop.augment import PADDING, Augment, augmented, cropped
from fisherlab.loop.objectives import objective
from fisherlab.loop.order import Order


@given(st.integers(4, 60), st.integers(1, 5), st.integers(1, 3))
def test_an_epoch_takes_every_sample_once_but_for_a_rest_that_cannot_be_shared(samples, times, parts):
    batches = Order(samples, times * parts, parts, 0)
    for epoch in range(3):
        taken = [batches.take(epoch * batches.per_epoch + place) for place in range(batches.per_epoch)]
        assert all(parts <= len(part) <= batches.batch for part in taken)
        assert all(len(part) == batches.batch for part in taken[:-1])
        seen = torch.cat(taken).tolist()
        assert len(seen) == len(set(seen)) > samples - parts


@given(st.integers(6, 60), st.integers(6, 20), st.integers(1, 6))
def test_the_batches_are_those_of_one_process(samples, batch, parts):
    alone, shared = Order(samples, batch, 1, 0), Order(samples, batch, parts, 0)
    assert alone.per_epoch - shared.per_epoch == (0 < samples % min(batch, samples) < parts)
    assert all(torch.equal(alone.take(step), shared.take(step)) for step in range(shared.per_epoch))


@given(st.integers(0, 30))
def test_the_order_goes_on_from_any_step(stop):
    straight, broken = Order(23, 4, 1, 9), Order(23, 4, 1, 9)
    expected = [straight.take(step) for step in range(40)]
    for step in range(stop):
        broken.take(step)
    fresh = Order(23, 4, 1, 1)
    fresh.load(broken.state(stop), stop)
    assert all(torch.equal(fresh.take(step), expected[step]) for step in range(stop, 40))


def test_epochs_have_orders_of_their_own():
    batches = Order(50, 50, 1, 0)
    assert not torch.equal(batches.take(0), batches.take(1))


def test_a_batch_that_cannot_be_shared_is_refused():
    for samples, batch in ((100, 2), (2, 100)):
        with pytest.raises(InputError, match="at least 3"):
            Order(samples, batch, 3, 0)


def test_crops_are_windows_of_the_padded_images():
    images = torch.randn(5, 3, 6, 7)
    corners = torch.randint(0, 2 * PADDING + 1, (5, 2))
    padded = pad(images, (PADDING,) * 4)
    for one, whole, (down, right) in zip(cropped(images, corners), padded, corners.tolist(), strict=True):
        assert torch.equal(one, whole[:, down : down + 6, right : right + 7])
    assert torch.equal(cropped(images, torch.full((5, 2), PADDING)), images)


def test_flips_are_left_to_right_and_half_of_them():
    drawn = Augment(("flip",), 0).draw(4000)
    assert set(drawn) == {"flip"}
    assert drawn["flip"].double().mean() == pytest.approx(0.5, abs=0.05)
    images = torch.randn(2, 1, 2, 3)
    flipped = augmented(images, {"flip": torch.tensor([True, False])})
    assert torch.equal(flipped, torch.stack([images[0].flip(-1), images[1]]))


def test_augmentation_goes_on_from_its_state():
    augment, other = Augment(("crop", "flip"), 3), Augment(("crop", "flip"), 4)
    augment.draw(5)
    other.load(augment.state())
    first, second = augment.draw(6), other.draw(6)
    assert all(torch.equal(first[name], second[name]) for name in ("crop", "flip"))


def test_the_default_device_of_torch_does_not_matter():
    """Orders and augmentations are drawn on the CPU."""
    expected = Order(10, 4, 1, 0).take(0), Augment(("crop", "flip"), 0).draw(4)
    with torch.device("meta"):
        order, drawn = Order(10, 4, 1, 0).take(0), Augment(("crop", "flip"), 0).draw(4)
    assert torch.equal(order, expected[0])
    assert all(torch.equal(drawn[name], values) for name, values in expected[1].items())


def test_augmentation_needs_images():
    with pytest.raises(InputError, match="no images"):
        Augment(("flip",), 0).check(torch.zeros(3, 4))


KEYS = st.integers(-5, 5) | st.text(max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@given(NESTED)
def test_nested_values_come_back_with_their_types(value):
    tensors, text = packed(value)
    assert not tensors
    found = unpacked(tensors, text)
    assert found == value
    assert repr(found) == repr(value)


def test_tensors_come_back_with_their_bits_and_layout():
    base = torch.randn(4, 6, dtype=torch.float64)
    state = {0: [base.T, base[:, ::2], base.to(torch.bfloat16)], "e": (torch.empty(0), torch.tensor(3))}
    state["c"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found = unpacked(*packed(state))
    pairs = zip([*state[0], *state["e"], state["c"]], [*found[0], *found["e"], found["c"]], strict=True)
    for old, new in pairs:
        assert torch.equal(old, new)
        assert old.dtype == new.dtype
    assert found[0][0].stride() == base.T.stride()
    assert found["c"].is_contiguous(memory_format=torch.channels_last)


def test_what_a_file_cannot_keep_is_refused():
    with pytest.raises(NotSupportedError, match="a set"):
        packed({"a": {1, 2}})


def test_losses_are_negative_log_likelihoods_and_metrics_their_own():
    outputs, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    classes = objective("categorical")
    assert float(classes.total(outputs, labels)) == pytest.approx(
        float(-outputs.log_softmax(1)[torch.arange(5), labels].sum())
    )
    right = int((outputs.argmax(1) == labels).sum())
    assert classes.value(1.0, float(classes.points(outputs, labels)), 5) == pytest.approx(right / 5)

    words = objective("token-categorical")
    tokens = torch.tensor([[1, -100], [2, 3]])
    three = outputs[:4].reshape(2, 2, 4)
    assert words.count(tokens) == 3
    logs = three.log_softmax(2)
    total = -(logs[0, 0, 1] + logs[1, 0, 2] + logs[1, 1, 3])
    assert float(words.total(three, tokens)) == pytest.approx(float(total))
    assert words.value(float(total), 0.0, 3) == pytest.approx(float((total / 3).exp()))

    pixels, wanted = objective("bernoulli"), torch.rand(5, 4, dtype=torch.float64)
    p = outputs.sigmoid()
    assert float(pixels.total(outputs, wanted)) == pytest.approx(
        float(-(wanted * p.log() + (1 - wanted) * (1 - p).log()).sum())
    )
    assert float(pixels.points(outputs, wanted)) == pytest.approx(float((p - wanted).square().sum()))
    assert float(objective("gaussian").total(outputs, wanted)) == pytest.approx(
        0.5 * float((outputs - wanted).square().sum())
    )


def test_label_smoothing_mixes_in_the_uniform_label():
    outputs, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    own = objective("categorical", 0.2)
    logs = outputs.log_softmax(1)
    expected = -(0.8 * logs[torch.arange(3), labels].sum() + 0.2 * logs.mean(1).sum())
    assert float(own.total(outputs, labels, own.smoothing)) == pytest.approx(float(expected))
    with pytest.raises(InputError, match="smoothing"):
        objective("gaussian", 0.2)
