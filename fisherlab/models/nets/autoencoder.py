"""mnist-autoencoder: the deep autoencoder of the second-order literature."""

from torch import Tensor, nn

from fisherlab.datasets.dataset import Dataset
from fisherlab.models.preprocess import images
from fisherlab.models.registry import ModelSpec


def build() -> nn.Sequential:
    """784-1000-500-250-30-250-500-1000-784 with biases, tanh units and a linear code layer.

    The widths are those of Hinton and Salakhutdinov (2006); tanh takes the place of their
    logistic units, whose gradients all but vanish at torch's default initialisation. The output
    is the logits of the 784 pixels. The layers are "0", "2", "4", "6" (the code),
    "7", "9", "11" and "13".
    """
    return nn.Sequential(
        nn.Linear(784, 1000),
        nn.Tanh(),
        nn.Linear(1000, 500),
        nn.Tanh(),
        nn.Linear(500, 250),
        nn.Tanh(),
        nn.Linear(250, 30),
        nn.Linear(30, 250),
        nn.Tanh(),
        nn.Linear(250, 500),
        nn.Tanh(),
        nn.Linear(500, 1000),
        nn.Tanh(),
        nn.Linear(1000, 784),
    )


def pixels(data: Dataset) -> Tensor:
    """Images [n, 1, 28, 28] flattened: [n, 784] in [0, 1], the inputs and also the targets."""
    return images(data, 1, 28, 28).flatten(1)


MNIST_AUTOENCODER = ModelSpec(
    name="mnist-autoencoder",
    build=build,
    dataset="mnist",
    likelihood="bernoulli",
    preprocess=pixels,
    targets=pixels,
    default_samples=500,
    description="784-1000-500-250-30 and back, tanh, targets are the inputs",
    source="widths of Hinton, Salakhutdinov (2006), as in Martens, Grosse (2015)",
)
