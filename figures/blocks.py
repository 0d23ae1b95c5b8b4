"""The blocks of figures 1 and 5: exact Fisher and approximations of the network that LNGD trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fisherlab import metrics
from fisherlab.approximations import approximate
from fisherlab.exact.fisher import exact_fisher
from fisherlab.models import prepare
from fisherlab.operators import LinearOperator
from fisherlab.plots import label, number
from fisherlab.plots.magnitudes import choose_window
from fisherlab.plots.matrices import heatmap

from .method_runs import MethodRun
from .workshop import Caption, Workshop, described

CUTOUT = 40  # rows and columns: two 20×20 blocks of the layer each way, large enough to see entries

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Blocks:
    """The blocks of the network's layers.

    Attributes:
        run: the training.
        exact: F by layer, of its last weights.
        approximations: F̂ by name and layer.
        samples: how many F is of.
    """

    run: MethodRun
    exact: Mapping[str, LinearOperator]
    approximations: Mapping[str, Mapping[str, LinearOperator]]
    samples: int

    def numbers(self, layer: str) -> dict[str, dict[str, float]]:
        """By approximation: relative error, the same with the best scale, and tr F̂/tr F."""
        F = self.exact[layer]
        return {
            name: {
                "relative_error": float(metrics.relative_error(F, operators[layer])),
                "scaled_error": float(metrics.scaled_error(F, operators[layer])[0]),
                "trace_ratio": float(metrics.trace_ratio(F, operators[layer])),
            }
            for name, operators in self.approximations.items()
        }

    def described(self, workshop: Workshop) -> str:
        """Network, data, seed, device, checkpoint."""
        task, summary = workshop.scale.digits, self.run.finished.summary
        return (
            f"{described([self.run], task.words)}; trained with LNGD ({task.rates_from}) for "
            f"{summary['step']:,} steps to a test accuracy of {100 * summary['value']:.1f} %; predictive "
            f"Fisher of {self.samples:,} training samples, float64"
        )

    @property
    def data(self) -> list[str]:
        """The label of the data."""
        return [str(self.run.finished.summary["dataset"])]


def blocks(workshop: Workshop, layers: Iterable[str], approximations: Iterable[str]) -> Blocks:
    """Trains the network, or finds it, and computes these blocks.

    Raises:
        FisherlabError: where the training diverged.
    """
    run = workshop.runs.of(workshop.scale.digits, "lngd")[0]
    prepared = prepare(
        "mnist-mlp",
        seed=workshop.seed,
        checkpoint=run.checkpoint,
        data_dir=workshop.data_dir,
        samples=_available(workshop, run),
        dtype=torch.float64,
        device=workshop.device,
    )
    given = prepared.model, prepared.data, prepared.likelihood
    wanted = list(layers)
    exact = exact_fisher(*given, layers=wanted)
    made = {name: approximate(name, *given, layers=wanted) for name in approximations}
    return Blocks(run, exact, made, len(prepared.dataset))


def draw(
    workshop: Workshop,
    name: str,
    found: Blocks,
    layer: str,
    rows: Mapping[str, tuple[str, bool]],
    caption: Caption,
) -> None:
    """Writes heat maps of a layer, and as the numbers the entries of the marked square.

    Args:
        workshop: the means.
        name: of the files.
        found: the blocks.
        layer: its name.
        rows: what a row is called -> (approximation, whether its trace is matched to F's).
        caption: under the figure.
    """
    F = found.exact[layer]
    exact = _dense(F)
    shown = {
        words: _dense(found.approximations[approximation][layer])
        for words, (approximation, _) in rows.items()
    }
    for words, (_, matched) in rows.items():
        if matched:
            shown[words] = shown[words] * (np.trace(exact) / np.trace(shown[words]))
    workshop.figure(
        name,
        lambda title, text: heatmap(
            exact,
            shown,
            layer=layer,
            outputs=F.outputs,
            inputs=F.inputs,
            caption=text,
            title=title,
            cutout=CUTOUT,
        ),
        caption,
        _entries(exact, shown),
    )


def errors_sentence(found: Blocks, layer: str, approximations: Iterable[str]) -> str:
    """Relative and scaled error and trace ratio of approximations of a layer, as computed."""
    own = found.numbers(layer)
    parts = []
    for name in approximations:
        parts.append(" ".join([label(name), ", ".join(map(number, own[name].values()))]))
    return (
        f"Layer {layer}, relative error ‖F − F̂‖/‖F‖, the same with the best scale, and tr F̂/tr F: "
        + "; ".join(parts)
    )


def _dense(operator: LinearOperator) -> Array:
    return np.asarray(operator.dense().cpu())


def _entries(exact: Array, shown: dict[str, Array]) -> pd.DataFrame:
    """A row an entry of the marked square: its row and column in the block, F and each F̂."""
    window = choose_window(exact, CUTOUT, None)
    span = slice(None) if window is None else slice(window.start, window.start + window.size)
    start = 0 if window is None else window.start
    rows, columns = np.indices(exact[span, span].shape) + start
    content = {"row": rows.ravel(), "column": columns.ravel(), "exact": exact[span, span].ravel()}
    return pd.DataFrame(content | {name: matrix[span, span].ravel() for name, matrix in shown.items()})


def _available(workshop: Workshop, run: MethodRun) -> int | None:
    """The scale's number of samples, or all that the training had where these are fewer."""
    had = int(run.finished.summary["samples"])
    return had if workshop.scale.samples is None else min(workshop.scale.samples, had)
