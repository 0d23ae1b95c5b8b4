"""resnet50: the residual network for ImageNet, with torchvision's parameter names."""

from torch import Tensor, nn
from torch.nn import functional

from fisherlab.models.preprocess import classes, colour_images
from fisherlab.models.registry import ModelSpec


class ResNet50(nn.Module):
    """ResNet-50 v1.5 for 1,000 classes: 25,557,032 parameters.

    Parameters are named as torchvision names them, so weights of its `resnet50` can be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, 224, 224] to logits [n, 1000]."""
        x = functional.relu(self.bn1(self.conv1(x)))  # [n, 64, 112, 112]
        x = functional.max_pool2d(x, 3, stride=2, padding=1)  # [n, 64, 56, 56]
        x = self.layer1(x)  # [n, 256, 56, 56]
        x = self.layer2(x)  # [n, 512, 28, 28]
        x = self.layer3(x)  # [n, 1024, 14, 14]
        x = self.layer4(x)  # [n, 2048, 7, 7]
        return self.fc(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 (with the stride: v1.5) and 1x1 to four times the width, and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if before != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[n, before, h, w] to [n, 4 width, h / stride, w / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(self.downsample(x) + y)


def _stage(before: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width; the first changes channels and size."""
    first = Bottleneck(before, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))


RESNET50 = ModelSpec(
    name="resnet50",
    build=ResNet50,
    dataset="imagenet",
    likelihood="categorical",
    preprocess=colour_images,
    targets=classes,
    default_samples=4,
    description="50 layers of bottlenecks, batch norm, 1,000 classes; takes torchvision's weights",
    source="He et al. (2016), table 1, the stride in the convolution 3x3 (v1.5)",
)
