"""What a trace gives: tables of traces, of errors and directions, and of stages; its pictures and files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fisherlab.plots.profiles import MANY
from fisherlab.records.definitions import QUALITIES
from fisherlab.records.frames import compared_layers
from fisherlab.runs.origin import Origin
from fisherlab.runs.save import Picture, Plate, Result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fisherlab.traces.recorder import Recorder

TRACE_COLUMNS = ("checkpoint", "layer", "approximation", "trace_exact", "trace_approx", "trace_ratio")
DIAGNOSTIC_COLUMNS = (
    *("checkpoint", "step", "layer", "approximation", "target", "relative_error", "scaled_error"),
    *("population_error", "population_error_se", "direction_cosine", "decrease_share"),
    *("preconditioned_condition", "effective_rank", "condition", "damping", "samples", "method", "note"),
)
STAGE_COLUMNS = (
    *("checkpoint", "step", "stage", "layers", "approximation", "trace_exact", "trace_approx"),
    "trace_ratio",
)
WHOLE = "all"
"""The stage that is the whole network."""

_NUMBERED = re.compile(r"\d$")


def stage_of(layer: str) -> str:
    """The stage that a layer belongs to: its name up to the first word that ends in a digit, else its first.

    `stages.0.1.conv1` belongs to `stages.0`, `layer1.0.conv2` to `layer1`, `encoder.layers.2.linear1` to
    `encoder.layers.2`, and `embed.proj` to `embed`.
    """
    words = layer.split(".")
    for place, word in enumerate(words):
        if _NUMBERED.search(word):
            return ".".join(words[: place + 1])
    return words[0]


@dataclass
class Traces(Result):
    """The result of `fisherlab.traces.trace`.

    Attributes:
        records: the records of every comparison (columns of `records.csv`), and `main` (whether the target is
            the layer's main one), `effective_rank` and `condition` (of F, at the damping of the row).
        about: names of model and data; checkpoint and step are those of the last checkpoint.
        device: where it was computed.
        best: for each layer the best approximation by each metric, at the last checkpoint.
        left_out: the layers that could not be measured at some checkpoint, and why.
        origin: what the captions call the checkpoints together; empty: their names.
        log: what an optimizer recorded during the training; None: nothing.
        log_words: where that comes from: optimizer, data, model, seed and device.
    """

    records: pd.DataFrame
    about: Origin
    device: str
    best: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    log: "Recorder | None" = None
    log_words: str = ""

    @property
    def checkpoints(self) -> pd.DataFrame:
        """A row a checkpoint: `checkpoint` and `step`."""
        return self.records[["checkpoint", "step"]].drop_duplicates("checkpoint").reset_index(drop=True)

    @cached_property
    def main(self) -> pd.DataFrame:
        """The records against the main target of their layer."""
        return self.records[self.records["main"]].reset_index(drop=True)

    @cached_property
    def compared(self) -> pd.DataFrame:
        """`main` without layers that have only the approximation `diagonal`, where others have more."""
        layers, _ = compared_layers(self.main)
        return self.main[self.main["layer"].isin(layers)].reset_index(drop=True)

    @property
    def traces(self) -> pd.DataFrame:
        """A row a (checkpoint, layer, approximation): tr F, tr F̂ and tr F̂ / tr F."""
        return self.main[list(TRACE_COLUMNS)]

    @property
    def diagnostics(self) -> pd.DataFrame:
        """A row a (checkpoint, layer, approximation, target): errors, directions, and F's spectrum."""
        return self.records[list(DIAGNOSTIC_COLUMNS)]

    @cached_property
    def stages(self) -> pd.DataFrame:
        """A row a (checkpoint, stage, approximation): Σ tr F and Σ tr F̂ over the stage's layers.

        The traces of the blocks add up to that of the block-diagonal matrix. Layers that have only the
        approximation `diagonal` (norms) are left out where others have more. The stage `all` is all layers.
        Where a layer has no tr F̂ (a direction never has one) the stage has none.
        """
        rows = self.compared.assign(stage=self.compared["layer"].map(stage_of))
        both = pd.concat([rows, rows.assign(stage=WHOLE)])
        keys = ["checkpoint", "stage", "approximation"]
        sums = both.groupby(keys, sort=False, as_index=False).agg(
            step=("step", "first"),
            layers=("layer", "count"),
            trace_exact=("trace_exact", "sum"),
            trace_approx=("trace_approx", _whole_sum),
        )
        positive = sums["trace_exact"].where(sums["trace_exact"] > 0)
        return sums.assign(trace_ratio=sums["trace_approx"] / positive)[list(STAGE_COLUMNS)]

    @property
    def network(self) -> pd.DataFrame:
        """The rows of `stages` that are the whole network."""
        return self.stages[self.stages["stage"] == WHOLE]

    @cached_property
    def spread(self) -> pd.DataFrame:
        """A row a (checkpoint, approximation, metric): `low`, `median`, `high`, the quartiles over layers.

        Of the layers of `stages`.
        """
        rows = self.compared
        long = rows.melt(
            ["checkpoint", "step", "approximation"], list(QUALITIES), var_name="metric", value_name="value"
        )
        keys = ["checkpoint", "approximation", "metric"]
        groups = long.groupby(keys, sort=False)["value"]
        table = groups.quantile(np.array([0.25, 0.5, 0.75])).unstack()
        table.columns = pd.Index(["low", "median", "high"])
        steps = long.drop_duplicates(keys).set_index(keys)["step"]
        return table.assign(step=steps).reset_index()

    @cached_property
    def recorded(self) -> pd.DataFrame | None:
        """What the optimizer recorded, a row a (step, layer); None where it recorded nothing."""
        frame = None if self.log is None else self.log.frame
        return frame if frame is not None and len(frame) else None

    @property
    def ends(self) -> list[str]:
        """The first and the last checkpoint; one name where there is but one."""
        names = list(self.checkpoints["checkpoint"])
        return list(dict.fromkeys([names[0], names[-1]]))

    @property
    def checkpoint_words(self) -> str:
        """The checkpoints in a few words."""
        ends = self.ends
        shown = ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[1]} ({len(self.checkpoints)})"
        return f"{shown} of {self.origin}" if self.origin else shown

    @property
    def caption(self) -> str:
        """One line that says what was measured."""
        about = replace(self.about, checkpoint=self.checkpoint_words)
        first = self.main.iloc[0]
        return f"{about.caption(self.device)}; {first['target']} labels, {first['samples']} samples"

    def table(self) -> "RenderableType":
        """A row a layer and approximation, for a terminal; many layers: a row a stage of the network."""
        from fisherlab.traces.table import console_table

        return console_table(self)

    def summary(self) -> dict[str, Any]:
        """Names, checkpoints, the trace of the whole network at each, and the best approximations."""
        rows = self.checkpoints.to_dict("records")
        return {
            "model": self.about.model,
            "dataset": self.about.dataset,
            "checkpoints": [
                {"checkpoint": row["checkpoint"], "step": None if pd.isna(row["step"]) else int(row["step"])}
                for row in rows
            ],
            "seed": self.about.seed,
            "device": self.device,
            "trace_ratio": {
                str(name): {
                    str(c): _number(v) for c, v in zip(own["checkpoint"], own["trace_ratio"], strict=True)
                }
                for name, own in self.network.groupby("approximation", sort=False)
            },
            "layers": self.best,
            **({"not_measured": dict(self.left_out)} if self.left_out else {}),
        }

    def figures(self) -> Iterator[Plate]:
        """Each picture with its words; the optimizer's numbers are those of the training itself."""
        from fisherlab import plots
        from fisherlab.plots import traces, training

        caption, frame = self.caption, self.main
        yield Plate(
            "traces",
            traces.traces(frame, caption=caption),
            "Traces",
            "tr F of every layer, and tr F̂ of its approximations.",
        )
        if frame["trace_ratio"].notna().any():
            yield Plate(
                "trace-ratio",
                traces.ratios(frame, caption=caption),
                "Trace ratio",
                "tr F̂ / tr F: white is 1, blue too small, red too large.",
            )
        if len(self.checkpoints) > 1 and self.compared["layer"].nunique() > 1:
            yield Plate(
                "stages",
                training.stages(self.stages, caption=caption),
                "Stages of the network",
                "Sums of the traces over the layers of a stage, and of all layers.",
            )
        if len(self.checkpoints) > 1:
            few = self.compared["layer"].nunique() <= MANY
            yield Plate(
                "quality",
                training.quality(frame, caption=caption)
                if few
                else training.spread(self.spread, caption=caption),
                "Errors and directions",
                "Scaled error, cosine of the damped direction with the exact one, and its share of the best "
                "decrease, over the training.",
            )
        else:
            yield Plate("errors", plots.errors(frame, caption=caption), "Errors", "Errors of every layer.")
        if self.compared[["effective_rank", "condition"]].notna().any(axis=None):
            yield Plate(
                "spectra",
                training.spectra(self.compared, caption=caption),
                "Spectra",
                "Effective rank exp(−Σ q log q) of F's eigenvalues, and the condition number of F + λI.",
            )
        if self.log is not None and self.recorded is not None:
            words = self.log_words or caption
            yield Plate(
                "optimizer",
                self.log.figure(caption=words),
                "What the optimizer recorded",
                "Rates, traces, dampings, condition numbers and norms of every layer, from the run's log.",
                caption=words,
            )

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        found = {"traces.csv": self.traces, "diagnostics.csv": self.diagnostics, "stages.csv": self.stages}
        return found if self.recorded is None else found | {"optimizer.csv": self.recorded}

    def write_page(
        self, path: Path, summary: Mapping[str, Any], pictures: Sequence[Picture], origin: Mapping[str, Any]
    ) -> Path:
        """Writes the page, with pictures that have been written and the content of `provenance.json`."""
        from fisherlab.report import write_tables
        from fisherlab.traces.page import page

        return write_tables(path, page(self), pictures, origin)


def _whole_sum(values: pd.Series) -> float:
    """The sum; NaN where one of the values is not known."""
    return float(values.sum(skipna=False))


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
