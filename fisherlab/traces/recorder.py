"""What an optimizer knows while it trains: a row a layer each time it is asked."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    *("step", "layer", "rate", "trace_input", "trace_output", "damping_input", "damping_output"),
    *("condition", "direction_norm", "gradient_norm"),
)


class Recorder:
    """Keeps `optimizer.diagnostics()` over the steps of a training, and draws them.

    Example::

        recorder = Recorder()
        for step, (x, y) in enumerate(loader):
            ...
            optimizer.step()
            if step % 100 == 0:
                recorder.record(step, optimizer)
        recorder.save("run/live")
    """

    def __init__(self) -> None:
        self._parts: list[pd.DataFrame] = []

    @classmethod
    def from_log(cls, lines: Iterable[Mapping[str, Any]]) -> "Recorder":
        """Those of a run's `log.jsonl`, in its lines of the kind "layers"."""
        recorder = cls()
        for line in lines:
            if line.get("kind") == "layers":
                recorder.append(line["step"], pd.DataFrame(line["layers"]))
        return recorder

    def record(self, step: int, optimizer: Any) -> None:
        """Appends the diagnostics of an optimizer of `fisherlab.optim` after its step."""
        self.append(step, optimizer.diagnostics())

    def append(self, step: int, diagnostics: pd.DataFrame) -> None:
        """Appends a row a layer, with the columns of `diagnostics()`; absent ones are empty."""
        rows = diagnostics.assign(step=step).reindex(columns=list(COLUMNS))
        numbers = [name for name in COLUMNS if name not in ("step", "layer")]
        self._parts.append(rows.astype(dict.fromkeys(numbers, "float64")))

    @property
    def frame(self) -> pd.DataFrame:
        """All rows: `step, layer, rate, trace_input, …, gradient_norm`."""
        return (
            pd.concat(self._parts, ignore_index=True) if self._parts else pd.DataFrame(columns=list(COLUMNS))
        )

    def figure(self, *, caption: str) -> "Figure":
        """Rate, trace, dampings, condition number and norms against the step.

        Raises:
            InputError: where nothing was recorded.
        """
        from fisherlab.plots.training import optimizer

        return optimizer(self.frame, caption=caption)

    def save(self, path_without_suffix: str | Path, *, caption: str = "") -> list[Path]:
        """Writes `.csv`, `.png` and `.pdf`, each beside its place and renamed.

        Args:
            path_without_suffix: where to; missing folders are made.
            caption: data, model, seed and device, written under the picture.

        Raises:
            InputError: where nothing was recorded.
        """
        from fisherlab.base.writing import write
        from fisherlab.plots import save

        base = Path(path_without_suffix)
        figure = self.figure(caption=caption)
        table = base.with_name(base.name + ".csv")
        write(table, self.frame.to_csv(index=False).encode())
        return [table, *save(figure, base)]
