"""mnist-mlp: the small network on which the exact Fisher is compared with its approximations."""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fisherlab.datasets.dataset import Dataset
from fisherlab.models.preprocess import classes, images
from fisherlab.models.registry import ModelSpec, Recipe


def build() -> nn.Sequential:
    """The network 196-20-20-20-10, ReLU, no biases; its layers are "0", "2", "4" and "6"."""
    return nn.Sequential(
        nn.Linear(196, 20, bias=False),
        nn.ReLU(),
        nn.Linear(20, 20, bias=False),
        nn.ReLU(),
        nn.Linear(20, 20, bias=False),
        nn.ReLU(),
        nn.Linear(20, 10, bias=False),
    )


def halved_images(data: Dataset) -> Tensor:
    """Images [n, 1, 28, 28] averaged over 2x2 squares and flattened: [n, 196] in [0, 1]."""
    return avg_pool2d(images(data, 1, 28, 28), 2).flatten(1)


MNIST_MLP = ModelSpec(
    name="mnist-mlp",
    build=build,
    dataset="mnist",
    likelihood="categorical",
    preprocess=halved_images,
    targets=classes,
    default_samples=None,
    description="196-20-20-20-10, ReLU, no bias, images averaged 28 to 14",
    source="LNGD paper, figure 1",
    # 118 steps are half an epoch of MNIST; the rate is the best in benchmarks/results/training.md, table 1
    recipe=Recipe(learning_rate=0.3, warm_up=118, damping=(1e-5, 1.0), batch=256, epochs=5, least_steps=1000),
)
