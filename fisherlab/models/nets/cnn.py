"""cifar-cnn: a small convolutional network without norms."""

from torch import nn

from fisherlab.models.preprocess import classes, small_images
from fisherlab.models.registry import ModelSpec


def build() -> nn.Sequential:
    """Three convolutions 3x3 with biases, ReLU, a global average and a Linear: 14,666 parameters.

    Images are [n, 3, 32, 32]; the layers are "0", "2", "4" and "8".
    """
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),  # [n, 16, 32, 32]
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),  # [n, 32, 16, 16]
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),  # [n, 32, 8, 8]
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),  # [n, 32]
        nn.Linear(32, 10),
    )


CIFAR_CNN = ModelSpec(
    name="cifar-cnn",
    build=build,
    dataset="cifar10",
    likelihood="categorical",
    preprocess=small_images,
    targets=classes,
    default_samples=64,
    description="convolutions 3-16-32-32, ReLU, global average, with biases",
    source="in the manner of Krizhevsky (2009), made for analysis",
)
