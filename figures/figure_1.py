"""Figure 1: the exact Fisher, LNGD's approximation and the absolute error of one layer, as heat maps."""

from typing import Any

from .blocks import blocks, draw, errors_sentence
from .workshop import Caption, Workshop

_BLOCKS = {
    "figure-1": ("2", "20→20, 400×400", False),
    "figure-1-trace-matched": ("2", "20→20, 400×400", True),
    "figure-1-second": ("4", "the second 20→20, 400×400", True),
    "figure-1-first-layer": ("0", "the first layer, 196→20, 3920×3920", True),
}
"""The files: layer, its size, and whether LNGD's block is scaled to the trace of F."""


def make(workshop: Workshop) -> dict[str, Any]:
    """Writes `figure-1`, `figure-1-trace-matched`, `figure-1-second` and `figure-1-first-layer`."""
    layers = list(dict.fromkeys(layer for layer, _, _ in _BLOCKS.values()))
    found = blocks(workshop, layers, ["lngd"])
    for name, (layer, size, matched) in _BLOCKS.items():
        scaled = "trace-matched" if matched else "as computed"
        caption = Caption(
            f"exact Fisher and LNGD, layer {layer} ({size}), {scaled}",
            found.described(workshop),
            "heat maps without numbers, of one 400×400 block",
            (6, 23),
            [errors_sentence(found, layer, ["lngd"])],
        )
        draw(workshop, name, found, layer, {"LNGD": ("lngd", matched)}, caption)
    return {"data": found.data, "layers": {layer: found.numbers(layer) for layer in layers}}
