"""cifar-resnet8, cifar-resnet20 and cifar-resnet18: residual networks for images of 32x32."""

from torch import Tensor, nn
from torch.nn import functional

from fisherlab.models.preprocess import classes, small_images
from fisherlab.models.registry import ModelSpec


class CifarResNet(nn.Module):
    """A convolution 3x3, stages of residual blocks, a global average and a Linear.

    Each stage but the first halves height and width with its first block.

    Args:
        widths: the channels of each stage.
        blocks: the number of blocks in each stage.
        projection: whether a shortcut between shapes is a convolution 1x1 with norm (option B of
            He et al. 2016), or the image subsampled with channels of zeros added (option A).
    """

    def __init__(self, widths: tuple[int, ...], blocks: int, *, projection: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        inputs = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential(
            *(
                _stage(before, width, blocks, 1 if place == 0 else 2, projection)
                for place, (before, width) in enumerate(zip(inputs, widths, strict=True))
            )
        )
        self.linear = nn.Linear(widths[-1], 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, 32, 32] to logits [n, 10]."""
        x = functional.relu(self.norm(self.conv(x)))  # [n, widths[0], 32, 32]
        x = self.stages(x)  # [n, widths[-1], 8, 8] after three stages
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """relu(x' + norm(conv(relu(norm(conv(x)))))), two convolutions 3x3; x' is the shortcut."""

    def __init__(self, before: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if before != width:
            self.shortcut = Projection(before, width, stride) if projection else Subsample(width - before)

    def forward(self, x: Tensor) -> Tensor:
        """[n, before, h, w] to [n, width, h / stride, w / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(self.shortcut(x) + y)


class Projection(nn.Sequential):
    """The shortcut of option B: a convolution 1x1 and a norm."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class Subsample(nn.Module):
    """The shortcut of option A, without parameters: every second pixel, and channels of zeros."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to [n, c + added, h / 2, w / 2], half of the zeros on each side."""
        below = self.added // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, below, self.added - below))


def _stage(before: int, width: int, blocks: int, stride: int, projection: bool) -> nn.Sequential:
    """Blocks of one width; the first changes channels and size."""
    first = BasicBlock(before, width, stride, projection)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, projection) for _ in range(blocks - 1)))


def build_resnet8() -> CifarResNet:
    """The smallest of the family of ResNet-20, one block a stage: 75,290 parameters."""
    return CifarResNet((16, 32, 64), blocks=1, projection=False)


def build_resnet20() -> CifarResNet:
    """ResNet-20 of He et al. (2016), section 4.2, shortcuts of option A: 269,722 parameters."""
    return CifarResNet((16, 32, 64), blocks=3, projection=False)


def build_resnet18() -> CifarResNet:
    """ResNet-18 with a first convolution 3x3 for CIFAR, shortcuts of option B: 11,173,962 parameters."""
    return CifarResNet((64, 128, 256, 512), blocks=2, projection=True)


CIFAR_RESNET8 = ModelSpec(
    name="cifar-resnet8",
    build=build_resnet8,
    dataset="cifar10",
    likelihood="categorical",
    preprocess=small_images,
    targets=classes,
    default_samples=64,
    description="8 layers, 16-32-64 channels, batch norm, shortcuts without parameters",
    source="He et al. (2016), section 4.2 with n = 1, option A",
)

CIFAR_RESNET20 = ModelSpec(
    name="cifar-resnet20",
    build=build_resnet20,
    dataset="cifar10",
    likelihood="categorical",
    preprocess=small_images,
    targets=classes,
    default_samples=64,
    description="20 layers, 16-32-64 channels, batch norm, shortcuts without parameters",
    source="He et al. (2016), section 4.2, option A",
)

CIFAR_RESNET18 = ModelSpec(
    name="cifar-resnet18",
    build=build_resnet18,
    dataset="cifar10",
    likelihood="categorical",
    preprocess=small_images,
    targets=classes,
    default_samples=64,
    description="18 layers, 64-128-256-512 channels, batch norm, first convolution 3x3",
    source="He et al. (2016), table 1, with a stem for images of 32x32",
)
