"""Statistics of a whole model, from which approximations are built; and `approximate` in one call."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fisherlab.approximations.base import (
    Approximation,
    build_from_block,
    build_operator,
    create,
    create_all,
    registered,
    why_not_built,
    without_matrix,
)
from fisherlab.approximations.saved import PartialFile, Statistics, load_statistics, model_hash
from fisherlab.base import distributed
from fisherlab.base.memory import limited
from fisherlab.base.writing import as_path, place_for
from fisherlab.collect.batches import masks_of
from fisherlab.collect.collector import Collector
from fisherlab.collect.left_out import LeftOutLayers, made
from fisherlab.errors import InputError, MemoryLimitError, bytes_text
from fisherlab.exact.edges import warn_of_edges
from fisherlab.exact.fisher import exact_fisher, no_layerwise
from fisherlab.exact.options import DEFAULTS, AnalysisOptions, completed, of_pass, parse_bytes, takes
from fisherlab.layers import BlockShape, Layers, LayerView, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.likelihoods.labels import LAYERWISE, LabelKind
from fisherlab.operators import LinearOperator
from fisherlab.statistics import Basis, LayerSums, PassRequest, SplitSums, check_size, gather

DEFAULT_APPROXIMATIONS = ("kfac", "ekfac", "tkfac", "lngd")


@takes(AnalysisOptions)
def collect_statistics(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    approximations: Iterable[str | Approximation] | str | Approximation = DEFAULT_APPROXIMATIONS,
    *,
    path: str | os.PathLike[str] | None = None,
    **options: Unpack[AnalysisOptions],
) -> Statistics:
    """The sums that these approximations need, in one pass over the data, two for EKFAC and TEKFAC.

    With a `path` they are saved there, and read from there where they are complete. Every half minute the
    work so far is written beside it (`<path>.part`), so that a call after an interruption goes on from
    the last batch written: with the same sums, to the bit.

    Args:
        model: as for `exact_fisher`, as are data, likelihood, kind and layers.
        data: `(inputs, targets)` tensors, or an iterable of such batches.
        likelihood: what the outputs mean.
        kind: the labels.
        layers: names, globs, or `find_layers(...)`; None: all.
        approximations: names or instances.
        path: where the sums are kept; None: nowhere.
        **options: of every analysis, see `AnalysisOptions`.

    Raises:
        InputError: as `exact_fisher`; where the file at `path` was made from another model, other data or
            with other options.
        MemoryLimitError: where the sums, or the label columns of one sample, do not fit the limit.
    """
    given = completed(AnalysisOptions, options, "collect_statistics")
    methods = [method for method in create_all(approximations) if not method.from_exact]
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    memory = parse_bytes(given["memory"])
    with limited(memory):
        chosen = layers_for(methods, model, layers, data, given)
        collector = Collector(model, chosen, data, likelihood, **of_pass(given))
        if kind == LAYERWISE:
            collector.leave_out(no_layerwise(collector))
        return _collected(collector, methods, kind, path, memory)


def _collected(
    collector: Collector,
    methods: Sequence[Approximation],
    kind: LabelKind,
    path: str | os.PathLike[str] | None,
    memory: int,
) -> Statistics:
    """The sums that the methods need of a collector's layers, see `collect_statistics`."""
    chosen, work = collector.layers, _work(collector, methods, kind, memory)
    about = _identity(collector, work, kind)
    keeper = None
    if path is not None:
        if as_path("the statistics file", path).exists():
            found = load_statistics(path).made_from(about, path)
            collector.leave_out({name: why for name, why in found.left_out.items() if name in chosen})
            collector.tell()
            return found
        place_for("the statistics file", path)
        shapes = {name: view.shape for name, view in chosen.items()}
        if distributed.size() == 1:
            keeper = PartialFile(path, shapes, kind, about, collector.device)
    gathered = gather(collector, work, keeper=keeper)
    collector.tell()
    sums = {name: own.all for name, own in gathered.items()}
    about["data"] = collector.batches.fingerprint()
    about["left_out"] = json.dumps(dict(collector.layers.left_out))
    statistics = Statistics({name: chosen[name].shape for name in sums}, sums, kind, about)
    if path is not None:
        if distributed.rank() == 0:
            statistics.save(path)
        distributed.gather_all(None)  # no process goes on before the file is there
    if keeper is not None:
        keeper.finish()
    return statistics


def _identity(collector: Collector, work: Mapping[str, PassRequest], kind: str) -> dict[str, str]:
    """What the sums depend on; statistics with the same are sums of the same terms."""
    wanted = []
    for name, task in sorted(work.items()):
        view = collector.layers[name]
        keys = [*(statistic.key for statistic in task.statistics), *task.bases]
        keys += [] if view.mask is None else ["positions that count"]
        wanted.append((view.shape, view.activation, keys))
    return {
        "kind": kind,
        "model": type(collector.model).__name__,
        "model_sha256": model_hash(collector.model),
        "data": collector.batches.fingerprint(),
        "likelihood": collector.likelihood.name,
        "dtype": str(collector.dtype).removeprefix("torch."),
        "labels": collector.labels,
        "statistics": hashlib.sha256(repr(wanted).encode()).hexdigest(),
    }


def _work(
    collector: Collector, methods: Sequence[Approximation], kind: LabelKind, memory: int
) -> dict[str, PassRequest]:
    """What the passes must sum for these methods; refuses sums, or label columns, that do not fit."""
    check_batches(methods, collector)
    work = {name: layer_work(view, methods, kind) for name, view in collector.layers.items()}
    held = sum(task.numbers(collector.layers[name]) for name, task in work.items())
    if 8 * held > memory:
        raise MemoryLimitError(
            f"the statistics would need {bytes_text(8 * held)}, more than the memory limit of "
            f"{bytes_text(memory)}; take fewer layers or approximations, or a larger limit"
        )
    needs = {n: task.kinds | ({task.kind} if task.bases else frozenset()) for n, task in work.items()}
    collector.sizes.require_room(needs, collector.batches.samples)
    return work


@takes(AnalysisOptions, and_others=True)
def approximate(
    approximation: str | Approximation,
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    **options: Any,
) -> dict[str, LinearOperator]:
    """One approximation of every layer's Fisher.

    Args:
        approximation: a registered name, or an instance.
        model: as for `exact_fisher`, as are data, likelihood, kind and layers.
        data: `(inputs, targets)` tensors, or an iterable of such batches.
        likelihood: what the outputs mean.
        kind: the labels.
        layers: names, globs, or `find_layers(...)`; None: all.
        **options: options of the approximation, such as `sharing="reduce"` for `kfac`.

    Returns:
        For each layer a `LinearOperator` in column-vec order. A layer whose inputs and output gradients are
        not known is left out, with a warning, by a method that needs more than the samples' gradients.
    """
    own = {name: options.pop(name) for name in DEFAULTS if name in options}
    given, method = completed(AnalysisOptions, own, "approximate"), create(approximation, **options)
    if not method.matrix:
        raise InputError(without_matrix(method))
    if method.from_exact and not method.batch:
        exact = exact_fisher(model, data, likelihood, kind, layers, **given)
        return _from_blocks(method, exact, given["strict"])
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    memory = parse_bytes(given["memory"])
    with limited(memory):
        chosen = layers_for([method], model, layers, data, given)
        collector = Collector(model, chosen, data, likelihood, **of_pass(given))
        without = {
            name: why
            for name, view in collector.layers.items()
            if not view.vector and (why := why_not_built(method, view))  # few methods are meant for vectors
        }
        if kind == LAYERWISE:
            without |= no_layerwise(collector)
        known = [create(name) for name in sorted(registered())] if without else []
        others = ", ".join(one.name for one in known if one.of_gradients or one.from_exact)
        way_out = f"of such layers {others} can be made"
        collector.leave_out(
            {n: f"{why}, and the layer is {collector.remarks[n]} ({way_out})" for n, why in without.items()}
        )
        gathered = gather(collector, _work(collector, [method], kind, memory))
        labels = method.label_kind(kind)
        makers = {
            name: partial(_built, method, view, gathered, labels)
            for name, view in collector.layers.items()
            if method.fits(view)
        }
        built = collector.each_layer(makers)
        collector.tell()
        warn_of_edges(built, collector.dtype)
        return built


def _from_blocks(
    method: Approximation, exact: Mapping[str, LinearOperator], strict: bool
) -> dict[str, LinearOperator]:
    """The operators that a method makes of the exact blocks; layers where it fails are left out."""
    left_out = LeftOutLayers(strict)
    found, wrong = made({name: partial(build_from_block, method, block) for name, block in exact.items()})
    left_out.add(wrong, none_left=not found)
    left_out.tell()
    return found


def _built(
    method: Approximation, layer: LayerView, gathered: dict[str, SplitSums], labels: str
) -> LinearOperator:
    """A layer's operator; its sums are let go."""
    own = gathered.pop(layer.name)
    if method.batch:
        return build_from_block(method, own.batches[method.batch].block())
    return build_operator(method, layer.shape, own.all, labels)


def layer_work(layer: BlockShape, methods: Sequence[Approximation], kind: LabelKind) -> PassRequest:
    """What the passes must sum for one layer and these methods."""
    methods = [method for method in methods if method.fits(layer)]
    statistics = [s for m in methods for s in m.statistics(layer.group, m.label_kind(kind))]
    bases = {m.name: partial(basis_of, m, layer, kind.with_columns) for m in methods if m.two_pass}
    batches = frozenset(method.batch for method in methods if method.batch)
    return PassRequest(kind.with_columns, statistics, bases, batches=batches)


def check_batches(methods: Iterable[Approximation], collector: Collector) -> None:
    """Raises `InputError` where a method takes batches of more samples than there are."""
    samples = collector.batches.count()
    for method in methods:
        if method.batch and samples is not None:
            check_size(method.batch, samples)


def layers_for(
    methods: Iterable[Approximation],
    model: nn.Module,
    layers: Layers | Iterable[str] | str | None,
    data: Any,
    given: Mapping[str, Any],
) -> Layers:
    """The layers asked for, with the activations that the methods name and the masks of the data."""
    return select_layers(
        model,
        layers,
        given["exclude"],
        bias=given["bias"],
        activations=named_activations(methods),
        masks=masks_of(data),
    )


def named_activations(methods: Iterable[Approximation]) -> Mapping[str, str]:
    """The activations that the methods' options name, by layer."""
    named: dict[str, str] = {}
    for method in methods:
        named.update(getattr(method, "activations", {}))
    return named


def basis_of(method: Approximation, layer: BlockShape, kind: str, sums: LayerSums) -> Basis:
    """The basis of the second pass; [G, …] for a grouped layer."""
    if layer.groups == 1:
        found = method.basis(layer, sums, kind)
        assert found is not None
        return found
    groups = [basis_of(method, layer.group, kind, sums.group(g)) for g in range(layer.groups)]
    U_A, U_B = (_stacked([basis[side] for basis in groups]) for side in (0, 1))
    return U_A, U_B


def _stacked(bases: Sequence[Tensor | None]) -> Tensor | None:
    known = [U for U in bases if U is not None]
    return torch.stack(known) if known else None
