"""Figure 6: histograms of two layers' representation vectors, their coordinates and their norms."""

from typing import Any

from fisherlab.layers import find_layers
from fisherlab.models import prepare
from fisherlab.plots import histograms, isotropies, number
from fisherlab.representations import Representations, represent

from .method_runs import MethodRun
from .workshop import Caption, Workshop, described

_SHARES = {"figure-6": 1 / 3, "figure-6-second": 2 / 3}
"""The files, and how deep in the network their layer lies."""

_OUTPUT = "output"
_PRINTED = (
    "histograms without numbers, of two layers of ResNet-18 on CIFAR-10: some coordinates, and the norms"
)


def make(workshop: Workshop) -> dict[str, Any]:
    """Writes `figure-6`, `figure-6-second` and `figure-6-assumption`, of the network that LNGD trained.

    Raises:
        FisherlabError: where the training diverged.
    """
    run = workshop.runs.of(workshop.scale.images, "lngd")[0]
    found, layers = _represented(workshop, run)
    for name, layer in zip(_SHARES, layers, strict=True):
        _histograms(workshop, name, found, layer, _caption(workshop, run, found, layer))
    caption = _caption(workshop, run, found, "")
    workshop.figure(
        "figure-6-assumption",
        lambda title, text: isotropies(found.assumption, title=title, caption=text),
        caption,
        found.assumption,
    )
    rows = found.assumption.set_index("layer")["isotropy_samples"]
    return {"data": [str(run.finished.summary["dataset"])], "isotropy_samples": rows.to_dict()}


def _represented(workshop: Workshop, run: MethodRun) -> tuple[Representations, list[str]]:
    """The vectors of the last weights, and the two layers that are drawn."""
    config = workshop.scale.images.common
    prepared = prepare(
        str(config["model"]),
        seed=workshop.seed,
        checkpoint=run.checkpoint,
        data_dir=workshop.data_dir,
        samples=min(workshop.scale.vectors, int(run.finished.summary["samples"])),
        device=workshop.device,
    )
    views = find_layers(prepared.model)
    names = [name for name, view in views.items() if view.weight is not None and not view.vector]
    layers = [names[round(share * (len(names) - 1))] for share in _SHARES.values()]
    return represent(prepared.model, prepared.data, prepared.likelihood, layers=layers), layers


def _histograms(workshop: Workshop, name: str, found: Representations, layer: str, caption: Caption) -> None:
    """Writes one layer's histograms; the numbers are the counts of its bins."""
    tables = [
        table[(table["layer"] == layer) & (table["vector"] == _OUTPUT)]
        for table in (found.histograms, found.quantiles, found.moments)
    ]
    workshop.figure(
        name,
        lambda title, text: histograms(*tables, layer=layer, vector=_OUTPUT, title=title, caption=text),
        caption,
        tables[0],
    )


def _caption(workshop: Workshop, run: MethodRun, found: Representations, layer: str) -> Caption:
    """Of one layer's histograms, or of the assumption where no layer is named."""
    task = workshop.scale.images
    words = f"a stand-in for {task.stands_for}: {task.words}" if task.stands_for else task.words
    rows = found.assumption.set_index("layer")
    shown = [layer] if layer else list(rows.index)
    means = ", ".join(f"layer {one} {number(rows.loc[one, 'isotropy_samples'])}" for one in shown)
    title = f"outputs of layer {layer} over the data" if layer else "is E[Σ_c q qᵀ] isotropic, as assumed?"
    return Caption(
        title,
        f"{described([run], words)}; trained with LNGD; vectors of {found.samples:,} training samples",
        _PRINTED,
        (5,),
        [
            "Layers at one and two thirds of the network. The assumption itself, isotropy of each sample's "
            f"E[q qᵀ], mean over samples, 1 = consistent: {means}"
        ],
    )
