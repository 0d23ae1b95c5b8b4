"""Checkpoints of a run: weights, and the state that continues it; complete or not in the index."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fisherlab.base.nested import packed, unpacked
from fisherlab.base.tensorfiles import read_tensors, write_tensors
from fisherlab.base.writing import reported, write
from fisherlab.errors import InputError
from fisherlab.train.run.log import finite

log = logging.getLogger("fisherlab")

WEIGHTS, STATES = "checkpoints", "states"
INDEX = f"{WEIGHTS}/index.json"
_STATE = "state"  # of a header: the nested values whose tensors the file holds


@dataclass(frozen=True)
class Entry:
    """A line of the index; paths are relative to the run's directory.

    Attributes:
        step: steps done.
        epoch: passes over the data done.
        weights: the file of weights, which `--checkpoint` takes.
        weights_sha256: its sha256.
        state: the file of everything else; None where only the weights are kept.
        state_sha256: its sha256.
        value: the metric, if it was measured at this step.
        best: whether it was the best one so far.
    """

    step: int
    epoch: float
    weights: str
    weights_sha256: str
    state: str | None
    state_sha256: str | None
    value: float | None
    best: bool


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read: its line of the index, the weights, and the rest."""

    entry: Entry
    weights: dict[str, Tensor]
    state: Any


class Checkpoints:
    """Those of one run.

    Kept are the first one (`init`), the last ones with their states, the best one, and those at given steps.

    Args:
        folder: the run's directory.
        keep_last: how many of the last ones.
        keep_best: whether the best one stays.
        steps: those that stay.

    Raises:
        InputError: where the index is there but damaged.
    """

    def __init__(self, folder: Path, keep_last: int, keep_best: bool, steps: Collection[int]) -> None:
        self._folder, self._last, self._best = folder, keep_last, keep_best
        self._steps = frozenset(steps)
        self.entries = _read_index(folder)

    def save(
        self,
        step: int,
        epoch: float,
        weights: Mapping[str, Tensor],
        state: Any,
        *,
        value: float | None = None,
        best: bool = False,
    ) -> Entry:
        """Writes a checkpoint, and drops those that are no longer kept.

        Files are written beside their places and renamed; the index comes last, so that at any moment it
        names complete files only.

        Raises:
            FisherlabError: where the files cannot be written.
        """
        name = "init" if step == 0 else f"step-{step:08d}"
        paths = f"{WEIGHTS}/{name}.safetensors", f"{STATES}/{name}.safetensors"
        tensors, text = packed(state)
        own = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in weights.items()}
        with reported(
            f"the checkpoint at step {step} of", self._folder, "mend this and continue with --resume"
        ):
            for folder in (WEIGHTS, STATES):
                (self._folder / folder).mkdir(parents=True, exist_ok=True)
            sums = (
                write_tensors(self._folder / paths[0], own, {"step": str(step)}),
                write_tensors(self._folder / paths[1], tensors, {_STATE: text}),
            )
            entry = Entry(step, epoch, paths[0], sums[0], paths[1], sums[1], value, best)
            self.entries = [one for one in self.entries if one.step != step] + [entry]
            self._tidy()
        return entry

    def newest(self, *, drop: bool = True) -> LoadedCheckpoint | None:
        """The newest checkpoint that is whole, None where there is none yet; a damaged one is passed over.

        Args:
            drop: whether later ones are dropped, which the run makes again.

        Raises:
            InputError: where all are damaged.
        """
        candidates = [entry for entry in reversed(self.entries) if entry.state]
        for entry in candidates:
            found = self._read(entry)
            if found is not None:
                if drop:
                    self.entries = [one for one in self.entries if one.step <= entry.step]
                    self._tidy()
                if entry is not candidates[0]:
                    log.warning("the run continues from the checkpoint before, at step %d", entry.step)
                return found
        if candidates:
            raise InputError(
                f"every checkpoint in {str(self._folder)!r} is damaged; start the run anew with --force"
            )
        return None

    def drop_states(self) -> None:
        """Keeps the weights alone, once the run has ended."""
        self.entries = [_without_state(entry) for entry in self.entries]
        self._write_index()
        self._sweep()
        if (self._folder / STATES).exists():
            (self._folder / STATES).rmdir()

    def _tidy(self) -> None:
        """Drops what is no longer kept: from the index first, then the files."""
        last = {entry.step for entry in self.entries[-self._last :]}
        best = [entry.step for entry in self.entries if entry.best][-1:] if self._best else []
        kept = {0, *last, *best, *self._steps}
        self.entries = [
            entry if entry.step in last else _without_state(entry)
            for entry in self.entries
            if entry.step in kept
        ]
        self._write_index()
        self._sweep()

    def _write_index(self) -> None:
        content = {"checkpoints": [finite(asdict(entry)) for entry in self.entries]}
        write(self._folder / INDEX, (json.dumps(content, indent=1) + "\n").encode())

    def _sweep(self) -> None:
        """Removes files that the index does not name."""
        named = {
            self._folder / path for entry in self.entries for path in (entry.weights, entry.state) if path
        }
        for folder in (WEIGHTS, STATES):
            for path in (self._folder / folder).glob("*"):
                if path not in named and path != self._folder / INDEX:
                    path.unlink()

    def _read(self, entry: Entry) -> LoadedCheckpoint | None:
        """A checkpoint whose files have the sums of the index; None where they do not."""
        assert entry.state is not None
        for path, known in ((entry.weights, entry.weights_sha256), (entry.state, entry.state_sha256)):
            if _sum_of(self._folder / path) != known:
                log.warning("the checkpoint at step %d is damaged (%s)", entry.step, path)
                return None
        weights, state = (read_tensors(self._folder / path) for path in (entry.weights, entry.state))
        own = {name: tensor.clone() for name, tensor in weights.tensors.items()}
        return LoadedCheckpoint(entry, own, unpacked(state.tensors, state.header[_STATE]))


def _read_index(folder: Path) -> list[Entry]:
    path = folder / INDEX
    if not path.exists():
        return []
    try:
        return [Entry(**one) for one in json.loads(path.read_text(encoding="utf-8"))["checkpoints"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"the index {str(path)!r} is damaged ({type(error).__name__}); start the run anew with --force"
        ) from error


def _sum_of(path: Path) -> str | None:
    """The sha256 of a file; None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _without_state(entry: Entry) -> Entry:
    return Entry(**{**asdict(entry), "state": None, "state_sha256": None})
