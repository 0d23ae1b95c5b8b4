import pytest
import torch
from model_cases import image_set, made, parameters, random_images
from torch import nn
from torch.nn import functional

from fisherlab import models
from fisherlab.errors import InputError
from fisherlab.models.nets import cifar_resnet
from fisherlab.models.nets.blocks import Attention
from fisherlab.models.nets.resnet50 import ResNet50
from fisherlab.models.nets.vit import VisionTransformer
from fisherlab.models.preprocess import colour_images, small_images

SMALL = ("cifar-cnn", "cifar-resnet8", "cifar-resnet20", "cifar-resnet18", "vit-tiny")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar-cnn", 448 + 4640 + 9248 + 330),
        ("cifar-resnet8", 432 + 32 + 2 * 2336 + (4608 + 9216 + 128) + (18432 + 36864 + 256) + 650),
        ("cifar-resnet20", 269_722),
        ("cifar-resnet18", 11_173_962),
        ("resnet50", 25_557_032),
        ("vit-tiny", 9_408 + 64 * 192 + 6 * 444_864 + 384 + 1_930),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name: str, count: int) -> None:
    assert parameters(models.spec(name).build()) == count


def few_images(name: str) -> torch.Tensor:
    """Two images, as small as the model takes."""
    return random_images(2, size=32 if name in ("vit-tiny", "resnet50") else 16)


@pytest.mark.parametrize("name", [*SMALL, "resnet50"])
def test_samples_are_independent_in_evaluation_mode(name: str) -> None:
    model, x = made(models.spec(name).build), few_images(name)
    with torch.no_grad():
        whole = model(x)
        torch.testing.assert_close(model(x[1:]), whole[1:])
    assert whole.shape == (2, 1000 if name == "resnet50" else 10)
    assert whole.isfinite().all()
    assert not torch.allclose(whole[0], whole[1], rtol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = made(models.spec(name).build)
    functional.cross_entropy(model(few_images(name)), torch.tensor([0, 1])).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # A key's bias adds the same number to all scores of a query, so softmax does not see it.
    seen = {name for name, gradient in gradients.items() if gradient.abs().max() > 1e-15}
    assert set(gradients) - seen <= {name for name in gradients if name.endswith("attention.k.bias")}


@pytest.mark.parametrize("name", ["cifar-cnn", "cifar-resnet20"])
def test_stages_halve_the_image(name: str) -> None:
    model = made(models.spec(name).build)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    model(random_images(1))
    assert sizes == ([32, 16, 8] if name == "cifar-cnn" else [32] * 7 + [16] * 6 + [8] * 6)


def test_option_a_keeps_every_second_pixel_and_adds_zeros() -> None:
    x = random_images(2, size=6)
    y = cifar_resnet.Subsample(3)(x)
    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert y[:, [0, 4, 5]].abs().sum() == 0


def test_only_shortcuts_between_shapes_are_convolutions() -> None:
    def shortcuts(name: str) -> list[nn.Module]:
        modules = models.spec(name).build().modules()
        return [m.shortcut for m in modules if isinstance(m, cifar_resnet.BasicBlock)]

    kinds = [nn.Identity, nn.Identity, cifar_resnet.Subsample]
    assert [type(s) for s in shortcuts("cifar-resnet20")] == [kinds[i] for i in (0, 0, 0, 2, 0, 0, 2, 0, 0)]
    projections = [isinstance(s, cifar_resnet.Projection) for s in shortcuts("cifar-resnet18")]
    assert projections == [False, False, True, False, True, False, True, False]


def test_a_block_whose_last_norm_is_zero_is_its_shortcut() -> None:
    block = made(lambda: cifar_resnet.BasicBlock(3, 3, 1, projection=False))
    nn.init.zeros_(block.norm2.weight)
    nn.init.zeros_(block.norm2.bias)
    x = random_images(2, size=4)
    torch.testing.assert_close(block(x), x.relu())


def test_resnet50_is_torchvisions() -> None:
    try:
        from torchvision.models import resnet50
    except Exception:
        pytest.skip("torchvision is not there, or does not run")
    own, other = made(ResNet50), resnet50().double().eval()
    other.load_state_dict(own.state_dict())
    x = random_images(2, size=64)
    with torch.no_grad():
        torch.testing.assert_close(own(x), other(x))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal: bool) -> None:
    own = made(lambda: Attention(12, 3, causal=causal))
    other = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([own.q.weight, own.k.weight, own.v.weight]))
        other.in_proj_bias.copy_(torch.cat([own.q.bias, own.k.bias, own.v.bias]))
        other.out_proj.load_state_dict(own.out.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64) if causal else None
    torch.testing.assert_close(own(x), other(x, x, x, attn_mask=mask)[0])


def test_the_vit_sees_patches_whose_order_only_positions_tell() -> None:
    model = made(lambda: VisionTransformer(dim=12, depth=2, heads=3))
    x, order = random_images(2), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, order]
    shuffled = patches.unflatten(2, (8, 8)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    before = model(x)
    assert not torch.allclose(model(shuffled), before)
    model.positions.weight.data = model.positions.weight[order]
    torch.testing.assert_close(model(shuffled), before)


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_channels_are_standardised(name: str) -> None:
    data = image_set(name, (3, 32, 32))
    mean = {"cifar10": (0.49140, 0.48216, 0.44653), "imagenet": (0.485, 0.456, 0.406)}[name]
    deviation = {"cifar10": (0.24703, 0.24349, 0.26159), "imagenet": (0.229, 0.224, 0.225)}[name]
    x = colour_images(data)
    assert torch.equal(x, small_images(data))
    for channel in range(3):
        restored = x[:, channel] * deviation[channel] + mean[channel]
        torch.testing.assert_close(restored, data.inputs[:, channel])


@pytest.mark.parametrize(
    ("model", "data", "shape", "reason"),
    [
        ("cifar-cnn", "imagenet", (3, 64, 64), r"images \[n, 3, 32, 32\]"),
        ("vit-tiny", "mnist", (1, 28, 28), r"images \[n, 3, 32, 32\]"),
        (
            "resnet50",
            "mnist",
            (1, 28, 28),
            "cifar10 or imagefolder or imagenet, not from the data set 'mnist'",
        ),
        ("mnist-mlp", "cifar10", (3, 32, 32), r"images \[n, 1, 28, 28\]"),
        ("mnist-autoencoder", "cifar10", (3, 32, 32), r"images \[n, 1, 28, 28\]"),
        ("charlm", "cifar10", (3, 32, 32), "'cifar10' has no vocabulary"),
        ("transformer-small", "cifar10", (3, 32, 32), "'cifar10' has no vocabulary"),
    ],
)
def test_data_of_another_kind_are_refused(model, data, shape, reason) -> None:
    with pytest.raises(InputError, match=reason):
        models.spec(model).preprocess(image_set(data, shape))
