"""What the paper prints: the values of its tables, as they are, and what is known to be wrong with them.

Liu, Li, Gao, Wang, A Layer-Wise Natural Gradient Optimizer for Training Deep Neural Networks, NeurIPS 2024.
All times are of TensorFlow on one A100; each value is the mean of five runs there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Column = Mapping[str, float | None]
"""From a method to a value; None where the table has a dash."""


@dataclass(frozen=True)
class PrintedTable:
    """A table of the paper on training.

    Attributes:
        number: of the table.
        task: network and data.
        target: what the runs are to reach.
        metric: of which this is a value.
        columns: name of a column to its values by method.
        errata: numbers of the readings that bear on it, keys of `ERRATA`.
    """

    number: int
    task: str
    target: str
    metric: str
    columns: Mapping[str, Column]
    errata: tuple[int, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order of the rows."""
        return tuple(next(iter(self.columns.values())))


def _columns(names: tuple[str, ...], rows: Mapping[str, tuple[float | None, ...]]) -> Mapping[str, Column]:
    columns = zip(*rows.values(), strict=True)
    return {name: dict(zip(rows, values, strict=True)) for name, values in zip(names, columns, strict=True)}


def _picked(
    rows: Mapping[str, tuple[float | None, ...]], *methods: str
) -> dict[str, tuple[float | None, ...]]:
    return {method: rows[method] for method in methods}


EPOCHS, SECONDS, PER_EPOCH = "epochs to target", "seconds to target", "seconds an epoch"
ACCURACY = "best accuracy, %"
HOURS, STEPS, PER_THOUSAND, BLEU = (
    "hours to target",
    "thousand steps to target",
    "seconds per 1,000 steps",
    "best BLEU",
)

_CIFAR: Mapping[str, tuple[float | None, ...]] = {
    "sgd": (79, 268.67, 3.40, 91.88),
    "adam": (72, 248.83, 3.77, 92.62),
    "kfac": (45, 241.86, 5.87, 93.34),
    "ekfac": (41, 247.64, 6.04, None),
    "tkfac": (39, 239.20, 5.98, None),
    "ngplus": (40, 204.45, 5.11, None),
    "lngd": (36, 189.69, 5.08, 93.61),
}
_IMAGENET: Mapping[str, tuple[float | None, ...]] = {
    "sgd": (78, 11.28, 520.55, 76.47),
    "adam": (None, None, None, 74.05),
    "kfac": (39, 8.02, 739.93, 76.58),
    "lngd": (36, 6.46, 646.44, 76.73),
    "lngd-lr": (35, 7.43, 764.39, 76.50),
    "lngd-sample": (41, 7.06, 619.86, 76.57),
}
_WMT: Mapping[str, tuple[float | None, ...]] = {
    "sgd": (None, None, None, 31.87),
    "adam": (25, 3.39, 488.16, 33.05),
    "kfac": (22, 3.75, 613.63, 33.45),
    "lngd": (19, 2.85, 540, 33.55),
}

_CIFAR_COLUMNS = (EPOCHS, SECONDS, PER_EPOCH, ACCURACY)
_IMAGENET_COLUMNS = (EPOCHS, HOURS, PER_EPOCH, ACCURACY)
_CIFAR_TASK = ("ResNet-18 on CIFAR-10", "91 %", "test accuracy")
_IMAGENET_TASK = ("ResNet-50 on ImageNet", "75.9 %", "top-1 accuracy")

TABLES: Mapping[int, PrintedTable] = MappingProxyType(
    {
        1: PrintedTable(
            1,
            *_CIFAR_TASK,
            _columns(_CIFAR_COLUMNS, _picked(_CIFAR, "sgd", "adam", "kfac", "lngd")),
            (19, 20, 21),
        ),
        2: PrintedTable(
            2,
            *_IMAGENET_TASK,
            _columns(_IMAGENET_COLUMNS, _picked(_IMAGENET, "sgd", "adam", "kfac", "lngd")),
            (21,),
        ),
        3: PrintedTable(
            3,
            "Transformer-Big on WMT English-German",
            "BLEU 32",
            "BLEU",
            _columns((STEPS, HOURS, PER_THOUSAND, BLEU), _WMT),
            (21,),
        ),
        5: PrintedTable(
            5,
            *_IMAGENET_TASK,
            _columns(_IMAGENET_COLUMNS, _picked(_IMAGENET, "lngd", "lngd-lr", "lngd-sample")),
            (15, 21),
        ),
        6: PrintedTable(6, *_CIFAR_TASK, _columns(_CIFAR_COLUMNS, _CIFAR), (19, 20, 21, 22)),
    }
)
"""Tables 1, 2, 3, 5 and 6 by number; table 4 holds formulas, `FORMULAS`."""

FORMULAS: Mapping[str, str] = MappingProxyType(
    {
        "kfac": "A ⊗ B",
        "ekfac": "(U_A ⊗ U_B) S (U_A ⊗ U_B)ᵀ, S_ii = E[(U_Bᵀ ∇h)²_i]",
        "tkfac": "δ P ⊗ Q, P ∝ E[‖g‖² a aᵀ], Q ∝ E[‖a‖² g gᵀ]",
        "ngplus": "I_d ⊗ E[V Vᵀ] (m ≤ d), else E[VᵀV] ⊗ I_m",
        "lngd": "Φ ⊗ Ψ, Φ = E[VᵀV], Ψ = diag(E[V Vᵀ])/tr Φ",
    }
)
"""Table 4 with eqs. 3 to 5 and appendix B, in the notation of fisherlab: a block is (inputs) ⊗ (outputs)."""

FORMULA_ERRATA: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"ekfac": (16,), "tkfac": (24,), "lngd": (1, 3, 23)}
)
"""By method the readings that bear on its formula."""

ERRATA: Mapping[int, str] = MappingProxyType(
    {
        1: "the paper writes Ψ as d × d; it is diagonal, m × m",
        3: "the paper describes a draw; its expectation over ε is in closed form, which is what is used",
        5: "the histograms are marginals over the data; the assumption is on p(a_l ∣ a_{l−1}), which they "
        "do not test",
        6: "the paper calls the 400×400 block that of the first layer; the first layer's is 3920×3920, the "
        "20→20 layers have 400×400",
        9: "F_l in the denominator of eq. 12 is read as the empirical Fisher of the batch",
        10: "eq. 13 has 1/N but no sum over samples; the sum of squares over samples is used",
        15: 'the paper\'s "exact Fisher" of LNGD-lr is read as labels drawn from the model',
        16: "S is printed as the square of U_Bᵀ∇h alone; both bases belong there: "
        "S_ii = E[((U_A ⊗ U_B)ᵀ vec V)²_i]",
        17: "Cauchy-Schwarz compares block-diagonal models only",
        18: "the theorem's Ψ is a full Gram matrix, not eq. 5's: it is about another, KFAC-like method",
        19: "printed epochs × seconds an epoch ≠ printed total: Adam 271.4 (248.83 printed), KFAC 264.2 "
        "(241.86), TKFAC 233.2 (239.20), LNGD 182.9 (189.69)",
        20: 'the paper\'s text says "at least 100 % and 30 % more epochs and time"; by its table SGD takes '
        "+119 % epochs and +42 % time, Adam +100 % and +31 %",
        21: '"acceleration" is 1 − t_LNGD/t_x in the paper\'s tables and t_x/t_LNGD − 1 in its appendix E.3; '
        "here time saved is 1 − t_LNGD/t_x",
        22: 'the text of table 6 claims the "smallest time per epoch": true among second-order methods only',
        23: "F_LNGD and F have no common scale; their shapes are compared after matching the traces",
        24: "for more than one position the published form drops products of different positions; the exact "
        "partial traces are used",
    }
)
"""Readings where the paper is silent or contradicts itself; the numbers are those of the method's page."""


FLAGGED: Mapping[tuple[str, str], int] = MappingProxyType(
    dict.fromkeys(((SECONDS, method) for method in ("adam", "kfac", "tkfac", "lngd")), 19)
)
"""By column and method the reading that says what is wrong with one printed value."""


def errata(*numbers: int) -> tuple[str, ...]:
    """The sentences of some readings, each with its number in front."""
    return tuple(f"reading {number}: {ERRATA[number]}" for number in numbers)
