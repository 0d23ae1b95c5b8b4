"""Statistics of a whole model, from which approximations are built; and `approximate` in one call."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.approximations.base import Approximation, columns_kind, create, create_all
from fisherlab.collect import Collector
from fisherlab.errors import InputError
from fisherlab.exact import DEFAULT_COLUMNS, DEFAULT_MEMORY, exact_fisher, parse_bytes
from fisherlab.layers import BlockShape, Layers, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.operators import LinearOperator
from fisherlab.progress import Progress
from fisherlab.statistics import LayerSums, LayerWork, gather

DEFAULT_APPROXIMATIONS = ("kfac", "ekfac", "tkfac", "lngd")
_FORMAT = "fisherlab-statistics-1"


@dataclass
class Statistics:
    """Sums over samples for every layer: mergeable, saveable, and enough to build approximations.

    Attributes:
        shapes: for each layer its name and size.
        sums: for each layer its `LayerSums`.
        kind: the labels.
        model: the model's class name.
    """

    shapes: dict[str, BlockShape]
    sums: dict[str, LayerSums]
    kind: str
    model: str

    @property
    def samples(self) -> int:
        """N."""
        return next(iter(self.sums.values())).samples

    def build(self, approximation: str | Approximation, **options: Any) -> dict[str, LinearOperator]:
        """The operators of one approximation, layer by layer.

        Raises:
            InputError: where the statistics that it needs were not collected.
        """
        method = create(approximation, **options)
        if method.from_exact:
            raise InputError(
                f"{method.name} is made from the exact block, not from statistics; use fisherlab.approximate"
            )
        kind = method.label_kind(self.kind)
        for name in self.shapes if method.two_pass else ():
            if method.name not in self.sums[name].bases:
                raise InputError(
                    f"the statistics hold no second pass for {method.name}; collect with "
                    f"approximations=({method.name!r},)"
                )
        return {name: method.build(shape, self.sums[name], kind) for name, shape in self.shapes.items()}

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics over both sets of samples.

        Second moments in a basis (EKFAC, TEKFAC) are kept only where both sides share the basis.

        Raises:
            InputError: where layers or kinds differ.
        """
        if self.shapes != other.shapes or self.kind != other.kind:
            raise InputError("statistics of different layers or kinds cannot be merged")
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return Statistics(self.shapes, sums, self.kind, self.model)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with a header; beside the target, then renamed."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        layers = []
        for place, (name, shape) in enumerate(self.shapes.items()):
            sums = self.sums[name]
            for key, value in sums.values.items():
                tensors[f"{place}|sum|{key}"] = value.contiguous()
            for method, (U_A, U_B) in sums.bases.items():
                tensors[f"{place}|input basis|{method}"] = U_A.contiguous()
                tensors[f"{place}|output basis|{method}"] = U_B.contiguous()
            counts = [sums.samples, sums.positions]
            layers.append([shape.name, shape.outputs, shape.inputs, *counts])
        header = {"kind": self.kind, "model": self.model, "layers": layers}
        header["torch"] = torch.__version__
        metadata = {"format": _FORMAT, "header": json.dumps(header)}
        path = Path(path)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(tensors, beside, metadata)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink()
            raise


def load_statistics(path: str | Path) -> Statistics:
    """Statistics from a file that `Statistics.save` wrote.

    Raises:
        InputError: for a file that is missing, damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"there is no statistics file {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{str(path)!r} is damaged or no safetensors file ({error})") from error
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{str(path)!r} does not hold statistics of fisherlab")
    try:
        return _from_header(json.loads(metadata["header"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is damaged: its header cannot be read ({error})") from error


def _from_header(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
    shapes: dict[str, BlockShape] = {}
    sums: dict[str, LayerSums] = {}
    for place, (name, outputs, inputs, samples, positions) in enumerate(header["layers"]):
        shapes[name] = BlockShape(name, outputs, inputs)
        own = [key.split("|", 2) for key in tensors if key.startswith(f"{place}|")]
        values = {key: tensors[f"{place}|sum|{key}"] for _, what, key in own if what == "sum"}
        bases = {
            key: (tensors[f"{place}|input basis|{key}"], tensors[f"{place}|output basis|{key}"])
            for _, what, key in own
            if what == "input basis"
        }
        sums[name] = LayerSums(samples, positions, values, bases)
    return Statistics(shapes, sums, header["kind"], header["model"])


def collect_statistics(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    approximations: Iterable[str | Approximation] | str | Approximation = DEFAULT_APPROXIMATIONS,
    *,
    bias: str = "joint",
    memory: int | str = DEFAULT_MEMORY,
    max_columns: int = DEFAULT_COLUMNS,
    batch_dim: int = 0,
    draws: int = 1,
    generator: torch.Generator | None = None,
    progress: Progress = False,
) -> Statistics:
    """The sums that these approximations need, in one pass over the data, two for EKFAC and TEKFAC.

    Arguments as for `exact_fisher`; `approximations` are names or instances.
    """
    parse_bytes(memory)
    methods = [method for method in create_all(approximations) if not method.from_exact]
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    chosen = select_layers(model, layers, bias=bias, activations=named_activations(methods))
    collector = Collector(
        model,
        chosen,
        data,
        likelihood,
        draws=draws,
        batch_dim=batch_dim,
        generator=generator,
        progress=progress,
    )
    work = {name: layer_work(view, methods, kind) for name, view in chosen.items()}
    gathered = gather(collector, work)
    shapes = {n: BlockShape(n, view.outputs, view.inputs) for n, view in chosen.items()}
    sums = {name: gathered[name].sums[0] for name in chosen}
    return Statistics(shapes, sums, kind, type(model).__name__)


def approximate(  # noqa: D417
    approximation: str | Approximation,
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    *,
    bias: str = "joint",
    memory: int | str = DEFAULT_MEMORY,
    max_columns: int = DEFAULT_COLUMNS,
    batch_dim: int = 0,
    draws: int = 1,
    generator: torch.Generator | None = None,
    progress: Progress = False,
    **options: Any,
) -> dict[str, LinearOperator]:
    """One approximation of every layer's Fisher.

    Args:
        approximation: a registered name, or an instance.
        model: as for `exact_fisher`, as are the other arguments.
        **options: options of the approximation, such as `sharing="reduce"` for `kfac`.

    Returns:
        For each layer a `LinearOperator` in column-vec order.
    """
    method = create(approximation, **options)
    common: dict[str, Any] = {
        "bias": bias,
        "memory": memory,
        "max_columns": max_columns,
        "batch_dim": batch_dim,
        "draws": draws,
        "generator": generator,
        "progress": progress,
    }
    if method.from_exact:
        exact = exact_fisher(model, data, likelihood, kind, layers, **common)
        return {name: method.from_block(block) for name, block in exact.items()}
    statistics = collect_statistics(model, data, likelihood, kind, layers, approximations=method, **common)
    return statistics.build(method)


def layer_work(view: BlockShape, methods: Sequence[Approximation], kind: str) -> LayerWork:
    """What the passes must sum for one layer and these methods."""
    statistics = [s for m in methods for s in m.statistics(view, m.label_kind(kind))]
    columns = columns_kind(kind)
    bases = {m.name: _basis_of(m, view, columns) for m in methods if m.two_pass}
    return LayerWork(columns, statistics, bases)


def named_activations(methods: Iterable[Approximation]) -> Mapping[str, str]:
    """The activations that the methods' options name, by layer."""
    named: dict[str, str] = {}
    for method in methods:
        named.update(getattr(method, "activations", {}))
    return named


def _basis_of(method: Approximation, view: BlockShape, kind: str) -> Any:
    def basis(sums: LayerSums) -> tuple[Tensor, Tensor]:
        found = method.basis(view, sums, kind)
        assert found is not None
        return found

    return basis
