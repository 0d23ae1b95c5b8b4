"""Plain torch models with their data and likelihoods: built in, or imported by name."""

from fisherlab.models.checkpoints import load_weights
from fisherlab.models.loading import Loaded, Prepared, check_layers, load, prepare
from fisherlab.models.nets.autoencoder import MNIST_AUTOENCODER
from fisherlab.models.nets.charlm import CHARLM
from fisherlab.models.nets.charlstm import CHARLSTM
from fisherlab.models.nets.cifar_resnet import CIFAR_RESNET8, CIFAR_RESNET18, CIFAR_RESNET20
from fisherlab.models.nets.cnn import CIFAR_CNN
from fisherlab.models.nets.mlp import MNIST_MLP
from fisherlab.models.nets.resnet50 import RESNET50
from fisherlab.models.nets.transformer import TRANSFORMER_SMALL, TRANSFORMER_SMALL_TIED
from fisherlab.models.nets.vit import VIT_TINY
from fisherlab.models.registry import ModelSpec, Recipe, names, register, spec
from fisherlab.models.trained import TrainedWeights, trained_weights

__all__ = [
    "Loaded",
    "ModelSpec",
    "Prepared",
    "Recipe",
    "TrainedWeights",
    "check_layers",
    "load",
    "load_weights",
    "names",
    "prepare",
    "register",
    "spec",
    "trained_weights",
]

for _model in (
    MNIST_MLP,
    MNIST_AUTOENCODER,
    CIFAR_CNN,
    CIFAR_RESNET8,
    CIFAR_RESNET20,
    CIFAR_RESNET18,
    RESNET50,
    VIT_TINY,
    CHARLM,
    CHARLSTM,
    TRANSFORMER_SMALL,
    TRANSFORMER_SMALL_TIED,
):
    register(_model)
