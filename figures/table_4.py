"""Table 4: the approximations of a layer's Fisher block, as they are registered and as the paper has them."""

from typing import Any

from fisherlab.approximations import registered
from fisherlab.plots import label

from .printed import FORMULA_ERRATA, FORMULAS, errata
from .workshop import Caption, Workshop

_DEFAULT_LABELS = "labels as asked for, the model's own by default"


def make(workshop: Workshop) -> dict[str, Any]:
    """Writes `table-4`: the formulas of the registered classes, those of the paper first."""
    classes = registered()
    order = [*FORMULAS, *(name for name in sorted(classes) if name not in FORMULAS)]
    rows = [
        (label(name), classes[name].formula, FORMULAS.get(name, ""), _note(name, classes[name]))
        for name in order
    ]
    readings = sorted({number for name in FORMULAS for number in FORMULA_ERRATA.get(name, ())})
    caption = Caption(
        "the approximations of a layer's Fisher block",
        "nothing is measured: the formulas of the classes that are registered; F = E[Σ_c vec(V) vec(V)ᵀ], "
        "V = Σ_t g aᵀ, a block is (inputs) ⊗ (outputs)",
        "table 4 with eqs. 3 to 5 and appendix B, in the same notation",
        readings,
    )
    workshop.table("table-4", rows, caption)
    return {"formulas": len(rows)}


def _note(name: str, cls: Any) -> str:
    kind = f"{cls.own_kind} labels" if cls.own_kind else _DEFAULT_LABELS
    kind = "layer-wise sampling, no label" if cls.layerwise else kind
    kind = kind if cls.matrix else "no F̂, no labels: a direction alone"
    return "; ".join([cls.source, kind, *errata(*FORMULA_ERRATA.get(name, ()))])
