"""Plain torch models with their data and likelihoods: built in, or imported by name."""

from fisherlab.models.autoencoder import MNIST_AUTOENCODER
from fisherlab.models.checkpoints import load_weights
from fisherlab.models.loading import Loaded, Prepared, load, prepare
from fisherlab.models.mlp import MNIST_MLP
from fisherlab.models.registry import ModelSpec, Recipe, names, register, spec
from fisherlab.models.trained import TrainedWeights, trained_weights

__all__ = [
    "Loaded",
    "ModelSpec",
    "Prepared",
    "Recipe",
    "TrainedWeights",
    "load",
    "load_weights",
    "names",
    "prepare",
    "register",
    "spec",
    "trained_weights",
]

for _model in (MNIST_MLP, MNIST_AUTOENCODER):
    register(_model)
