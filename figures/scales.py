"""How large the experiments are: a small table a scale, from minutes on a laptop to the paper's protocol."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fisherlab.optim.methods import OPTIMIZERS

METHODS = ("sgd", "adam", "kfac", "ekfac", "tkfac", "ngplus", "lngd", "lngd-lr", "lngd-sample")
_FAMILY = ("lngd", "lngd-lr", "lngd-sample")
_NO_NORMS = {method: {"damping": (1e-5, 1.0)} for method in _FAMILY}
_SLOW_START = {method: {"warm_up": 100, **own} for method, own in _NO_NORMS.items()}


@dataclass(frozen=True)
class TrainingTask:
    """A training that several methods do.

    Attributes:
        name: in the names of its runs.
        words: network and data, as captions say it.
        common: values of `TrainConfig` for all methods.
        rates: the learning rate of each method.
        own: further values of single methods.
        rates_from: where the learning rates come from, in words.
        seeds: how many.
        stands_for: the paper's task where this is another one; empty where it is the same.
    """

    name: str
    words: str
    common: Mapping[str, Any]
    rates: Mapping[str, float]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rates_from: str = ""
    seeds: int = 1
    stands_for: str = ""

    def values(self, method: str) -> dict[str, Any]:
        """The values of `TrainConfig` for a method, without seed and device."""
        momentum = {"momentum": 0.9} if method == "sgd" else {}
        own = {"optimizer": method, "lr": self.rates[method], **momentum, **self.own.get(method, {})}
        if method in OPTIMIZERS:
            own["options"] = {"kl_clip": math.inf, **own.get("options", {})}  # the paper knows none
        return {**self.common, **own}


@dataclass(frozen=True)
class Scale:
    """The experiments of a scale.

    Attributes:
        name: of the scale.
        remark: what a reader must know of all its numbers.
        digits: the network of figures 1 and 5 and of theorem 1, trained with LNGD.
        samples: of its Fisher; None: all.
        images: of figure 2 and of tables 1 and 6.
        imagenet: of figure 3 and table 2; None: the printed values alone.
        translation: of figure 4 and table 3; None: the printed values alone.
        vectors: samples of figure 6.
        theorem_steps: steps of theorem 1.
    """

    name: str
    remark: str
    digits: TrainingTask
    samples: int | None
    images: TrainingTask
    imagenet: TrainingTask | None
    translation: TrainingTask | None
    vectors: int
    theorem_steps: int

    @property
    def ablation(self) -> TrainingTask:
        """The task of figure 7 and table 5: ImageNet, or the images in its place where it is not trained."""
        return self.imagenet or replace(self.images, stands_for="ResNet-50 on ImageNet")


_MLP_RATES = {"sgd": 0.3, "adam": 0.03, "kfac": 0.03, "ekfac": 0.01, "tkfac": 0.03, "ngplus": 0.03} | {
    "lngd": 0.3,
    "lngd-lr": 0.1,
    "lngd-sample": 0.03,
}
_CNN_RATES = {"sgd": 0.1, "adam": 0.03, "kfac": 0.01, "ekfac": 0.01, "tkfac": 0.01, "ngplus": 0.03} | {
    "lngd": 0.3,
    "lngd-lr": 0.3,
    "lngd-sample": 1.0,
}
_BENCHMARK = "learning rates of benchmarks/results/training.md, mnist-mlp"
_LINEAR = {"schedule": "polynomial", "power": 1.0, "weight_decay": 0.0}


def _digits(name: str, **size: Any) -> TrainingTask:
    """The network of figure 1, trained with LNGD at a constant rate after a warm-up."""
    return TrainingTask(
        name,
        "196-20-20-20-10, ReLU, no bias (mnist-mlp) on MNIST averaged to 14×14",
        {"model": "mnist-mlp", "batch": 256, "weight_decay": 0.0, **size},
        {"lngd": 0.3},
        _NO_NORMS,
        "lr 0.3 after a warm-up, as fisherlab trains this network by itself",
    )


def _translation(**size: Any) -> TrainingTask:
    """Translation with tied embeddings, at the settings and rates that benchmarks/translation.py found."""
    common = {"model": "transformer-small-tied", "batch": 32, "label_smoothing": 0.1, **_LINEAR, **size}
    return TrainingTask(
        "translation",
        "transformer-small-tied on Multi30k English-German",
        common,
        {"sgd": 0.3, "adam": 0.003, "kfac": 0.03, "lngd": 0.03},
        {
            "kfac": {"options": {"other_lr": 1.0}},
            "lngd": {"damping": (1e-5, 1e4), "options": {"other_lr": 1.0, "rate_damping": 1e-7}},
        },
        "the best of three each in benchmarks/translation.py",
        stands_for="Transformer-Big on WMT English-German",
    )


SMOKE = Scale(
    "smoke",
    "which checks that everything runs and says nothing about the methods",
    digits=_digits("digits", samples=5120, epochs=10, warm_up=118),
    samples=500,
    images=TrainingTask(
        "images",
        "mnist-mlp on MNIST averaged to 14×14",
        {"model": "mnist-mlp", "samples": 5120, "batch": 128, "epochs": 6, "warm_up": 24, **_LINEAR},
        _MLP_RATES,
        _SLOW_START,
        _BENCHMARK,
        stands_for="ResNet-18 on CIFAR-10",
    ),
    imagenet=None,
    translation=None,
    vectors=500,
    theorem_steps=30,
)

CPU = Scale(
    "cpu",
    "",
    digits=_digits("digits", epochs=5, warm_up=118),
    samples=5000,
    images=TrainingTask(
        "images",
        "cifar-cnn (convolutions 3-16-32-32, no norms) on CIFAR-10, tested on training batch 5, held out",
        {
            "model": "cifar-cnn",
            "split": "train-1-4",
            "test_split": "held-out",
            "samples": 12800,
            "batch": 128,
            "epochs": 10,
            "warm_up": 100,
            **_LINEAR,
        },
        _CNN_RATES,
        _NO_NORMS,
        "of three neighbours in 0.003, 0.01, 0.03, … the one with the lowest training loss, seed 0",
        seeds=2,
        stands_for="ResNet-18 on CIFAR-10",
    ),
    imagenet=None,
    translation=_translation(samples=6400, epochs=1, warm_up=20, eval_samples=0, evaluate_every=0.2),
    vectors=1000,
    theorem_steps=60,
)

_RESNET_RATES = {"sgd": 0.1, "adam": 0.001, "kfac": 0.03, "ekfac": 0.01, "tkfac": 0.03, "ngplus": 0.1} | {
    "lngd": 0.1,
    "lngd-lr": 0.1,
    "lngd-sample": 0.03,
}
_RESNET = "learning rates from the paper's grid, stated and not searched here"
_SECOND_ORDER = tuple(method for method in METHODS if method not in ("sgd", "adam"))


def _cifar(epochs: int, drop: float, every: int, seeds: int) -> TrainingTask:
    """The paper's CIFAR-10: crop and flip, batch 256, weight decay 0.004, drops of the rate by 10."""
    return TrainingTask(
        "images",
        "cifar-resnet18 on CIFAR-10",
        {
            "model": "cifar-resnet18",
            "batch": 256,
            "epochs": epochs,
            "schedule": "step",
            "step_every": drop,
            "augment": ("crop", "flip"),
            "weight_decay": 0.004,
        },
        _RESNET_RATES,
        {method: {"statistics_every": every, "inverse_every": every} for method in _SECOND_ORDER},
        _RESNET,
        seeds,
    )


GPU = Scale(
    "gpu",
    "",
    digits=CPU.digits,
    samples=None,
    images=_cifar(epochs=40, drop=8.0, every=50, seeds=1),
    imagenet=None,
    translation=_translation(epochs=20, warm_up=900),
    vectors=2000,
    theorem_steps=60,
)

_IMAGENET_SGD = {"epochs": 80, "schedule": "cosine", "warm_up_epochs": 5.0}
_IMAGENET_OTHER = {"schedule": "polynomial", "power": 2.0}

PAPER = Scale(
    "paper",
    "",
    digits=CPU.digits,
    samples=None,
    images=_cifar(epochs=200, drop=40.0, every=100, seeds=5),
    imagenet=TrainingTask(
        "imagenet",
        "resnet50 on ImageNet",
        {"model": "resnet50", "batch": 256, "weight_decay": 0.004, "precision": "bf16-mixed"},
        _RESNET_RATES,
        {
            "sgd": _IMAGENET_SGD,
            "adam": {"epochs": 80, "warm_up_epochs": 5.0, **_IMAGENET_OTHER},
            "kfac": {"epochs": 50, "warm_up_epochs": 5.0, **_IMAGENET_OTHER}
            | {"statistics_every": 500, "inverse_every": 500},
        }
        | {
            method: {"epochs": 50, "statistics_every": 500, "inverse_every": 500, **_IMAGENET_OTHER}
            for method in _FAMILY
        },
        _RESNET,
        seeds=5,
    ),
    translation=_translation(epochs=40, warm_up=1800),
    vectors=10_000,
    theorem_steps=200,
)

SCALES: Mapping[str, Scale] = MappingProxyType({scale.name: scale for scale in (SMOKE, CPU, GPU, PAPER)})
"""The scales by name."""
