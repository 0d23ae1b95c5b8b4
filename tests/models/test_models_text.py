from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import made, parameters, text_set, translation_set
from torch import Tensor, nn

from fisherlab import find_layers, models
from fisherlab.errors import InputError
from fisherlab.models.nets.charlm import CharLM
from fisherlab.models.nets.charlstm import CharLSTM
from fisherlab.models.nets.transformer import (
    PADDING,
    Transformer,
    both_masks,
    sinusoids,
    source_mask,
    target_mask,
)

SPEC = models.spec("transformer-small")


@pytest.fixture(scope="module")
def lm() -> CharLM:
    return made(lambda: CharLM(vocabulary=11, context=8, dim=12, depth=2, heads=3))


@pytest.fixture(scope="module")
def translator() -> Transformer:
    return made(lambda: Transformer(vocabulary=13, dim=12, depth=2, heads=3))


def tokens(samples: int, length: int, vocabulary: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (samples, length), generator=generator)


def assert_equal_before(first: Tensor, second: Tensor, place: int) -> None:
    """Two outputs [n, t, V] are equal before a position, and differ at it."""
    torch.testing.assert_close(first[:, :place], second[:, :place], rtol=0, atol=1e-13)
    assert (first[:, place] - second[:, place]).abs().amax() > 1e-6


def test_the_number_of_parameters() -> None:
    block = 12 * 128**2 + 13 * 128
    assert parameters(CharLM(vocabulary=70)) == (2 * 70 + 64) * 128 + 4 * block + 256
    assert parameters(CharLSTM(vocabulary=70)) == 70 * 128 + 2 * 4 * (2 * 128**2 + 2 * 128) + 129 * 70
    cross = 4 * 128**2 + 4 * 128 + 256
    rest = 2 * 4000 * 128 + 4000 + 2 * 256
    assert parameters(Transformer()) == 4 * block + 2 * cross + rest
    assert parameters(Transformer(tied=True)) == 4 * block + 2 * cross + rest - 4000 * 128


@settings(max_examples=10)
@given(place=st.integers(0, 7), change=st.integers(1, 10), seed=st.integers(0, 99))
def test_the_language_model_is_causal(lm, place: int, change: int, seed: int) -> None:
    x = tokens(3, 8, 11, seed)
    y = x.clone()
    y[:, place] = (y[:, place] + change) % 11
    assert_equal_before(lm(x), lm(y), place)


def test_the_recurrent_language_model_is_causal() -> None:
    lm = made(lambda: CharLSTM(vocabulary=11, dim=12))
    x = tokens(3, 8, 11)
    for place in (0, 3, 7):
        y = x.clone()
        y[:, place] = (y[:, place] + 4) % 11
        assert_equal_before(lm(x), lm(y), place)
    torch.testing.assert_close(lm(x[1:2]), lm(x)[1:2])
    assert find_layers(lm).coverage()["covered"].all()


def test_the_language_models_samples_are_independent(lm) -> None:
    x = tokens(3, 5, 11)
    assert lm(x).shape == (3, 5, 11)
    torch.testing.assert_close(lm(x[1:2]), lm(x)[1:2])


def test_positions_are_looked_up_by_every_sample(lm) -> None:
    seen = []
    handle = lm.positions.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    lm(tokens(3, 5, 11))
    handle.remove()
    assert seen == [(3, 5, 12)]


@settings(max_examples=10)
@given(place=st.integers(0, 5), change=st.integers(1, 11), seed=st.integers(0, 99))
def test_the_decoder_is_causal(translator, place: int, change: int, seed: int) -> None:
    source, x = tokens(3, 7, 13, seed), tokens(3, 6, 13, seed + 1)
    y = x.clone()
    y[:, place] = 1 + (y[:, place] - 1 + change) % 12
    assert_equal_before(translator(source, x), translator(source, y), place)


@settings(max_examples=8)
@given(sources=st.integers(1, 4), targets=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_nothing(translator, sources: int, targets: int, seed: int) -> None:
    source, target = tokens(3, 5, 13, seed), tokens(3, 6, 13, seed + 1)
    padded = nn.functional.pad(source, (0, sources), value=PADDING)
    longer = nn.functional.pad(target, (0, targets), value=PADDING)
    torch.testing.assert_close(translator(padded, longer)[:, :6], translator(source, target))


def test_the_translation_depends_on_all_of_the_source(translator) -> None:
    source, target = tokens(1, 5, 13), tokens(1, 4, 13)
    before = translator(source, target)
    for place in range(5):
        changed = source.clone()
        changed[:, place] = 1 + source[:, place] % 12
        assert (translator(changed, target) - before).abs().amax(-1).min() > 1e-6


def test_translations_are_independent(translator) -> None:
    source, target = translation_set().inputs
    whole = translator(source, target)
    assert whole.shape == (9, 7, 13)
    torch.testing.assert_close(translator(source[4:5], target[4:5]), whole[4:5])


def test_weights_are_tied_on_request_alone(translator) -> None:
    tied = Transformer(13, 12, 1, 3, tied=True)
    assert tied.output.weight is tied.embedding.weight
    assert translator.output.weight is not translator.embedding.weight
    assert translator.embedding.weight[PADDING].abs().sum() == 0


def test_products_of_positions_depend_on_their_distance_alone() -> None:
    x = sinusoids(20, 16)
    products = x @ x.T
    for distance in range(20):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(x[0], torch.tensor([0.0, 1.0] * 8, dtype=torch.float64))
    torch.testing.assert_close(x[1, 0], torch.tensor(1.0, dtype=torch.float64).sin())


def mask_of(layer: str):
    """The mask of a layer: that of the last glob which matches."""
    return [mask for glob, mask in SPEC.masks.items() if fnmatchcase(layer, glob)][-1]


def test_gradients_vanish_exactly_outside_the_masks(translator) -> None:
    data = translation_set()
    source, target = inputs = SPEC.preprocess(data)
    outputs: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=name: outputs.setdefault(name, []).append(output)
        )
        for name, module in translator.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding) and "out_proj" not in name
    ]
    logits = translator(source, target)
    for handle in handles:
        handle.remove()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), SPEC.targets(data).flatten(), reduction="sum")
    for name, calls in outputs.items():
        gradients = torch.cat(torch.autograd.grad(loss, calls, retain_graph=True), 1).abs().sum(-1)
        assert torch.equal(gradients > 0, mask_of(name)(inputs)), name
    assert len(outputs) == 22


@pytest.mark.parametrize(
    ("layer", "mask"),
    [
        ("embedding", both_masks),
        ("encoder.1.attention.k", source_mask),
        ("encoder.1.attention.out_proj", source_mask),
        ("encoder_norm", source_mask),
        ("decoder.0.attention.v", target_mask),
        ("decoder.0.cross_attention.q", target_mask),
        ("decoder.0.cross_attention.k", source_mask),
        ("decoder.1.cross_attention.v.bias", source_mask),
        ("decoder.1.cross_attention.out_proj", target_mask),
        ("decoder_norm", target_mask),
        ("output.bias", target_mask),
    ],
)
def test_projections_have_the_mask_of_what_they_see(layer: str, mask) -> None:
    assert mask_of(layer) is mask


@pytest.mark.parametrize("name", ["transformer-small", "transformer-small-tied"])
def test_every_layer_has_a_mask_and_every_mask_a_layer(name: str) -> None:
    spec = models.spec(name)
    layers = find_layers(spec.build())
    for glob in spec.masks:
        assert any(fnmatchcase(layer, glob) for layer in layers), glob
    for layer, view in layers.items():  # of samples' gradients no positions are counted
        assert view.why_by_gradients or any(fnmatchcase(layer, glob) for glob in spec.masks), layer


def test_a_forward_pass_is_the_decoders_after_the_encoders(translator) -> None:
    source, target = translation_set().inputs
    memory = translator.encode(source)
    assert memory.shape == (*source.shape, 12)
    logits = translator.output(translator.decode(target, memory, source == PADDING))
    assert torch.equal(logits, translator(source, target))
    one = translator.decode(target[:, :3], memory, source == PADDING)  # a prefix gives the same beginning
    torch.testing.assert_close(translator.output(one), logits[:, :3])


def test_targets_mark_padding_outside_the_vocabulary() -> None:
    data = translation_set()
    targets = SPEC.targets(data)
    assert torch.equal(targets == -100, data.targets == 0)
    assert torch.equal(targets[targets != -100], data.targets[data.targets != 0])
    assert torch.equal(models.spec("charlm").targets(text_set()), text_set().targets)


def test_text_of_the_other_kind_is_refused() -> None:
    with pytest.raises(InputError, match="'letters' holds single texts"):
        SPEC.preprocess(text_set())
    with pytest.raises(InputError, match="'pairs' holds pairs"):
        models.spec("charlm").preprocess(translation_set())
