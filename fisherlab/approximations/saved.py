"""Statistics as an object that can be merged, saved, read again and gone on from."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fisherlab.approximations.base import Approximation, build_operator, create
from fisherlab.arguments import checked
from fisherlab.base.nested import packed, unpacked
from fisherlab.base.tensorfiles import read_tensors, write_tensors
from fisherlab.base.writing import as_path, place_for, reported
from fisherlab.collect.batches import hash_of, is_finite
from fisherlab.errors import InputError, InputTypeError
from fisherlab.layers import BlockShape
from fisherlab.operators import LinearOperator
from fisherlab.statistics import LayerSums

_FAMILY = "fisherlab-statistics-"
_FORMAT = _FAMILY + "3"
_WHAT = "the statistics file"
_SAVE_SECONDS = 30.0  # a choice: what an interruption costs at most, and seldom enough not to be felt
_SHARED = ("model_sha256", "likelihood", "dtype", "statistics")


@dataclass
class Statistics:
    """Sums over samples for every layer: mergeable, saveable, and enough to build approximations.

    Attributes:
        shapes: for each layer its name and size.
        sums: for each layer its `LayerSums`.
        kind: the labels.
        about: the model's class and hash, the data's hash, the likelihood, the dtype, the drawn labels, a
            hash of what was summed, and the layers that were left out.
    """

    shapes: dict[str, BlockShape]
    sums: dict[str, LayerSums]
    kind: str
    about: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's class name."""
        return self.about.get("model", "")

    @property
    def left_out(self) -> dict[str, str]:
        """The layers that could not be summed, and why."""
        found: dict[str, str] = json.loads(self.about.get("left_out", "{}"))
        return found

    @property
    def samples(self) -> int:
        """N."""
        return next(iter(self.sums.values())).samples

    @checked
    def build(self, approximation: str | Approximation, **options: Any) -> dict[str, LinearOperator]:
        """The operators of one approximation, layer by layer.

        Raises:
            InputError: where the statistics that it needs were not collected.
        """
        method = create(approximation, **options)
        return {
            name: self.build_layer(method, name) for name, shape in self.shapes.items() if method.fits(shape)
        }

    def build_layer(self, method: Approximation, name: str) -> LinearOperator:
        """The operator of one approximation for one layer; raises as `build`."""
        if method.from_exact:
            raise InputError(
                f"{method.name} is made from the exact block, not from statistics; use fisherlab.approximate"
            )
        if method.two_pass and method.name not in self.sums[name].bases:
            raise InputError(
                f"the statistics hold no second pass for {method.name}; collect with "
                f"approximations=({method.name!r},)"
            )
        return build_operator(method, self.shapes[name], self.sums[name], method.label_kind(self.kind))

    def can_build(self, method: Approximation) -> bool:
        """Whether the sums that a method needs are there, for every layer that it is meant for."""
        kind = method.label_kind(self.kind)
        fitting = [name for name, shape in self.shapes.items() if method.fits(shape)]
        return not method.from_exact and all(
            all(self.sums[n].has(s) for s in method.statistics(self.shapes[n].group, kind))
            and (not method.two_pass or method.name in self.sums[n].bases)
            for n in fitting
        )

    def fitting(self, model: nn.Module, layers: Mapping[str, BlockShape], kind: str) -> "Statistics":
        """The statistics of these layers, if they are those of this model.

        Raises:
            InputError: names what differs.
        """
        if self.about.get("model_sha256") != model_hash(model):
            raise InputError("the statistics were made from other weights; collect them again")
        if self.kind != kind:
            raise InputError(
                f"the statistics are of the kind {self.kind!r}, not {kind!r}; collect them again"
            )
        for name, layer in layers.items():
            if self.shapes.get(name) != layer.shape:
                raise InputError(f"the statistics hold no layer {name!r} of this shape; collect them again")
        shapes = {name: self.shapes[name] for name in layers}
        return Statistics(shapes, {name: self.sums[name] for name in layers}, self.kind, self.about)

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics over both sets of samples.

        Second moments in a basis (EKFAC, TEKFAC) are kept only where both sides share the basis.

        Raises:
            InputError: where layers, kinds or models differ.
            InputTypeError: for anything but statistics.
        """
        check_statistics(other)
        if self.shapes != other.shapes or self.kind != other.kind:
            raise InputError("statistics of different layers or kinds cannot be merged")
        for key in _SHARED:
            if self.about.get(key) != other.about.get(key):
                raise InputError(f"statistics with another {key} cannot be merged")
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        about = dict(self.about)
        for key in ("data", "labels"):
            about[key] = "+".join(filter(None, (self.about.get(key), other.about.get(key))))
        return Statistics(self.shapes, sums, self.kind, about)

    def made_from(self, about: Mapping[str, str], path: str | os.PathLike[str]) -> "Statistics":
        """The statistics themselves, if they were made from what `about` says.

        Raises:
            InputError: names what differs.
        """
        for key, value in about.items():
            if value and self.about.get(key) != value:
                raise InputError(
                    f"the statistics in {str(path)!r} were made with another {key.replace('_', ' ')}; "
                    "delete the file or give another path"
                )
        return self

    @checked
    def save(self, path: str | os.PathLike[str], progress: Mapping[str, int] | None = None) -> None:
        """Writes a safetensors file with a header and a checksum; beside the target, then renamed.

        Args:
            path: where; the folder must be there.
            progress: how far unfinished statistics have come.

        Raises:
            FisherlabError: where the system does not let it be written; nothing half-written stays.
            InputError: for no samples, sums that are not finite, or a folder that is not there.
            InputTypeError: for anything but a path.
        """
        file = place_for(_WHAT, path)
        for name, sums in self.sums.items():
            _check_sums(file, name, sums, 0 if progress else 1)
        layers = [
            {**asdict(shape), "samples": self.sums[name].samples, "positions": self.sums[name].positions}
            for name, shape in self.shapes.items()
        ]
        tensors, text = packed([(self.sums[name].values, self.sums[name].bases) for name in self.shapes])
        header: dict[str, Any] = {"kind": self.kind, "about": self.about, "layers": layers}
        header |= {"torch": torch.__version__, "progress": dict(progress or {})}
        with reported(_WHAT, file):
            write_tensors(file, tensors, {"format": _FORMAT, "header": json.dumps(header), "sums": text})


def check_statistics(value: object) -> None:
    """Refuses anything but statistics (`InputTypeError`)."""
    if not isinstance(value, Statistics):
        raise InputTypeError(
            f"these are no statistics but {type(value).__name__}; make them with collect_statistics(...), or "
            "read them with load_statistics(path)"
        )


@checked
def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Statistics from a file that `Statistics.save` wrote.

    Raises:
        InputError: for a file that is missing, damaged, of another version of fisherlab, or something else.
        InputTypeError: for anything but a path.
    """
    return _load(path)[0]


class PartialFile:
    """The sums of an unfinished collection in `<path>.part`: the `Keeper` of a pass.

    Args:
        path: where the statistics will be saved.
        shapes: the layers.
        kind: the labels.
        about: what the sums depend on; a file made with anything else is refused.
        device: where the sums are made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shapes: dict[str, BlockShape],
        kind: str,
        about: dict[str, str],
        device: torch.device,
    ) -> None:
        self._path = Path(f"{os.fspath(path)}.part")
        self._shapes, self._kind, self._about, self._device = shapes, kind, about, device
        self._saved = time.monotonic()

    def state(self) -> tuple[int, int, dict[str, LayerSums]] | None:
        """The pass, the samples that it has read, and the sums."""
        if not self._path.exists():
            return None
        found, progress = _load(self._path, self._device)
        found.made_from(self._about, self._path)
        return progress["stage"], progress["done"], found.sums

    def tick(self, stage: int, done: int, sums: Mapping[str, LayerSums]) -> None:
        """Saves the sums where the last time is half a minute ago."""
        if time.monotonic() - self._saved < _SAVE_SECONDS:
            return
        Statistics(self._shapes, dict(sums), self._kind, self._about).save(
            self._path, {"stage": stage, "done": done}
        )
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)


def model_hash(model: nn.Module) -> str:
    """The sha256 of a model's parameters and buffers with their names, in hexadecimal."""
    return hash_of(model.state_dict())


def _load(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[Statistics, dict[str, int]]:
    file = as_path(_WHAT, path)
    if not file.is_file():
        raise InputError(f"there is no statistics file {str(path)!r}")
    try:
        tensors, texts, sealed = read_tensors(file)
    except InputError as error:
        raise InputError(f"{str(path)!r} {error}; collect the statistics again") from error
    if not sealed or texts.get("format") != _FORMAT:
        if texts.get("format", "").startswith(_FAMILY):
            raise InputError(
                f"{str(path)!r} holds statistics of another version of fisherlab; collect them again"
            )
        raise InputError(
            f"{str(path)!r} holds no statistics but other tensors; give a file of Statistics.save"
        )
    try:
        header = json.loads(texts["header"])
        found = _from_header(header, unpacked(tensors, texts["sums"], device))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} holds no statistics ({type(error).__name__}); collect them"
        ) from error
    for name, sums in found.sums.items():
        _check_sums(file, name, sums, 0 if header["progress"] else 1)
    return found, header["progress"]


def _from_header(header: Mapping[str, Any], parts: Sequence[Any]) -> Statistics:
    shapes: dict[str, BlockShape] = {}
    sums: dict[str, LayerSums] = {}
    for fields, (values, bases) in zip(header["layers"], parts, strict=True):
        counts = fields.pop("samples"), fields.pop("positions")
        shape = BlockShape(**fields)
        shapes[shape.name], sums[shape.name] = shape, LayerSums(*counts, values, bases)
    return Statistics(shapes, sums, header["kind"], header["about"])


def _check_sums(file: Path, name: str, sums: LayerSums, positions: int) -> None:
    """Refuses counts and sums that no data give (`InputError`); the first batches may be padding alone."""
    trouble = next(
        (f"a sum {key!r} that is not finite" for key, t in sums.values.items() if not is_finite(t)), ""
    )
    if sums.samples < 1 or sums.positions < positions:
        trouble = f"{sums.samples} samples with {sums.positions} positions that count"
    if trouble:
        raise InputError(f"the statistics {str(file)!r} have {trouble} in layer {name!r}; collect them again")
