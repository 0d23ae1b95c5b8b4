"""Figure 5: KFAC's (top) and LNGD's (bottom) approximation beside the exact Fisher; and all methods."""

from typing import Any

from fisherlab.approximations import registered
from fisherlab.plots import label

from .blocks import Blocks, blocks, draw, errors_sentence
from .workshop import Caption, Workshop

LAYER = "2"  # the first of 20→20, 400×400, as in figure 1
_ORDER = ("kfac", "ekfac", "tkfac", "tekfac", "nearest-kronecker", "lngd", "lngd-lr", "foof", "ngplus")
_PER_PAGE = 5  # rows of heat maps, a choice: readable on the height of a page


def make(workshop: Workshop) -> dict[str, Any]:
    """Writes `figure-5`, and `figure-5-extended`, `-extended-2` and so on with all methods."""
    others = sorted(name for name, cls in registered().items() if cls.matrix and name not in _ORDER)
    methods = [*_ORDER, *others]
    found = blocks(workshop, [LAYER], methods)
    _sheet(workshop, "figure-5", found, ["kfac", "lngd"], "KFAC (top) and LNGD (bottom)")
    for start in range(0, len(methods), _PER_PAGE):
        page = start // _PER_PAGE + 1
        name = "figure-5-extended" + (f"-{page}" if page > 1 else "")
        _sheet(workshop, name, found, methods[start : start + _PER_PAGE], f"all methods, page {page}")
    return {"data": found.data, "layers": {LAYER: found.numbers(LAYER)}}


def _sheet(workshop: Workshop, name: str, found: Blocks, methods: list[str], what: str) -> None:
    """Writes one picture with a row a method."""
    caption = Caption(
        f"{what}, layer {LAYER} (20→20, 400×400), trace-matched",
        found.described(workshop),
        "heat maps without numbers, KFAC in the top row, LNGD in the bottom row",
        (6, 23),
        [f"The pictures show F̂ scaled to the trace of F. {errors_sentence(found, LAYER, methods)}"],
    )
    draw(workshop, name, found, LAYER, {label(method): (method, True) for method in methods}, caption)
