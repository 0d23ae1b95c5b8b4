"""What `compare` measures: layers in groups that fit the memory limit, and every layer once it is read."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fisherlab.approximations import (
    Approximation,
    Diagonal,
    NearestKronecker,
    Statistics,
    build_from_block,
    build_operator,
    create,
    layer_work,
    why_not_built,
)
from fisherlab.base.progress import Progress, bar
from fisherlab.collect.collector import Collector
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.comparison.measure import Row, Target, measure
from fisherlab.comparison.result import LayerResult
from fisherlab.comparison.targets import (
    GRADIENT,
    added_up,
    layerwise_bytes,
    layerwise_operations,
    layerwise_statistics,
    layerwise_target,
    main_statistics,
    main_target,
)
from fisherlab.errors import FisherlabError, bytes_text
from fisherlab.exact.fisher import gram_block
from fisherlab.exact.plans import BlockPlan
from fisherlab.layers import LayerView
from fisherlab.likelihoods.labels import LAYERWISE, LAYERWISE_COLUMNS
from fisherlab.linalg.numerics import eigenvectors_kept
from fisherlab.metrics import spectrum
from fisherlab.operators import LinearOperator, blocks_of
from fisherlab.statistics import PassRequest, SplitSums, gather

log = logging.getLogger("fisherlab")

T = TypeVar("T")

# Samples of a layer kept for standard errors and the coupling, as many as fit these bytes: a standard
# error from k samples is itself known to 1/√(2k), 18 % of 16 and 2 % of 1024.
_LEAST_KEPT, _MOST_KEPT = 16, 1024
_KEPT_BYTES = 64 * 2**20
_COUPLING_COLUMNS = 1024  # a choice: a Gram matrix of 8 MiB a layer
_LARGEST_KEPT = 4096  # size of a block whose operators are kept for pictures, as large as spectra are made of
_LAYERWISE_OPERATIONS = 2e12  # derived: twenty seconds a layer at 10¹¹ operations a second
WATERFALL = ("nearest-kronecker", "kfac", "lngd-lr", "lngd")
"""The steps from the nearest Kronecker product to LNGD, measured whatever was asked for."""


class Fitted(NamedTuple):
    """A method's operators and the seconds that they took.

    Attributes:
        all: fitted on all samples.
        halves: fitted on each half, for the population error; none where it is not computed.
        seconds: for all of them.
    """

    all: LinearOperator
    halves: Sequence[LinearOperator]
    seconds: float


@dataclass
class Experiment:
    """What is measured, and what each layer needs for it.

    Attributes:
        collector: the model, its layers and its data.
        plans: how each layer's exact block is computed.
        asked: the methods of the records.
        has_targets: whether the data have labels.
        memory: the limit in bytes.
        spectra: whether to compute eigenvalues.
        progress: see `fisherlab.base.progress`.
        statistics: where the approximations come from; None: from the samples of the exact blocks.
        on_target: called with each layer's name and main target once it is measured.
    """

    collector: Collector
    plans: Mapping[str, BlockPlan]
    asked: Sequence[Approximation]
    has_targets: bool
    memory: int
    spectra: bool
    progress: Progress = False
    statistics: Statistics | None = None
    on_target: Callable[[str, Target], None] | None = None
    _grams: dict[str, Tensor] = field(default_factory=dict)
    _works: dict[str, PassRequest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The methods of the waterfall are added to those asked for."""
        names = {method.name for method in self.asked}
        self._extra = [create(name) for name in WATERFALL if name not in names]
        if self.statistics is not None:
            held = self.statistics
            self._extra = [method for method in self._extra if method.from_exact or held.can_build(method)]
        self._diagonal = Diagonal()
        self._keepable, self._keepable_alone = self.memory // 4, self.memory // 2

    def results(self) -> dict[str, LayerResult]:
        """The numbers of every layer, in the order of the layers."""
        found: dict[str, LayerResult] = {}
        for names in self._groups():
            work = {name: self._work(name) for name in names}
            gathered = gather(self.collector, work, halves=True)
            for name in names:
                started = time.perf_counter()
                with eigenvectors_kept():
                    found[name] = self._layer(name, self._summed(name, gathered.pop(name)))
                log.debug("layer %s: measured in %.1f s", name, time.perf_counter() - started)
        return {name: found[name] for name in self.plans}

    def _summed(self, name: str, gathered: SplitSums) -> SplitSums:
        """A layer's sums; those of lazy work are made of the samples kept, each when it is asked for."""
        if not self._works[name].lazy:
            return gathered
        assert gathered.kept is not None
        return added_up(SplitSums.of_kept(gathered.kept, halves=True))

    def coupling(self) -> Tensor:
        """‖F_lk‖²/(‖F_l‖ ‖F_k‖) from the samples kept, [L, L]; NaN where two layers' labels differ.

        ‖F_lk‖² = ⟨K_l, K_k⟩, so this is the cosine between the two Gram matrices.
        """
        names = list(self.plans)
        matrix = torch.full((len(names), len(names)), math.nan, dtype=torch.float64, device="cpu")
        kinds = [self.plans[name].kind for name in names]
        for kind in set(kinds) - {LAYERWISE}:
            places = [place for place, own in enumerate(kinds) if own == kind]
            rows = torch.stack([self._grams[names[place]].flatten() for place in places])
            products = (rows @ rows.T).cpu()
            scale = products.diagonal().sqrt()
            index = torch.tensor(places, device="cpu")
            matrix[index[:, None], index] = products / (scale[:, None] * scale)
        return matrix

    # --- what a pass gathers ----------------------------------------------------------------------

    def _groups(self) -> Iterator[list[str]]:
        """Layers one after another, as many as fit half of the memory limit at once."""
        group: list[str] = []
        held = 0
        for name in self.plans:
            needed = self._bytes(name)
            if group and held + needed > self.memory // 2:
                yield group
                group, held = [], 0
            group.append(name)
            held += needed
        yield group

    def _bytes(self, name: str) -> int:
        """What a layer's sums and kept samples take after the pass."""
        work, view = self._work(name), self.collector.layers[name]
        size = torch.finfo(self.collector.dtype).bits // 8
        columns = sum(self.collector.sizes.label_columns_of(kind, name) for kind in work.kinds)
        samples = min(work.keep, self.collector.batches.count() or work.keep)
        kept = size * samples * self.collector.sizes.numbers(name, columns)
        return kept if work.lazy else kept + 3 * 8 * work.numbers(view)

    def _work(self, name: str) -> PassRequest:
        if name not in self._works:
            self._works[name] = self._new_work(self.plans[name], self.collector.layers[name])
        return self._works[name]

    def _new_work(self, plan: BlockPlan, view: LayerView) -> PassRequest:
        methods = self._methods(view) if self.statistics is None or view.vector else []
        base = layer_work(view, methods, plan.kind)
        own = main_statistics(plan)
        own += [GRADIENT] if self.has_targets else []
        layerwise = self._aims_at_layerwise(view) and not self._why_no_layerwise(view)
        own += layerwise_statistics(self._identity(view)) if layerwise else []
        lazy = plan.method == "gram"
        return PassRequest(
            base.kind,
            (*own, *base.statistics),
            base.bases,
            samples=plan.samples,
            keep=(plan.samples or 0) if lazy else self._kept(view, plan),
            keep_kinds=frozenset({plan.kind, *([LAYERWISE] if layerwise else [])}),
            lazy=lazy,
        )

    def _kept(self, view: LayerView, plan: BlockPlan) -> int:
        """How many samples are kept for standard errors and the coupling."""
        columns = self.collector.sizes.label_columns_of(plan.kind.with_columns, view.name)
        if self._aims_at_layerwise(view):
            columns += self.collector.sizes.label_columns_of(LAYERWISE_COLUMNS, view.name)
        numbers = self.collector.sizes.numbers(view.name, columns)
        return max(_LEAST_KEPT, min(_MOST_KEPT, _KEPT_BYTES // (8 * numbers)))

    def _methods(self, view: LayerView) -> list[Approximation]:
        """The methods of a layer's records and waterfall; of a norm those that are meant for vectors."""
        return self._asked(view) if view.vector else [*self.asked, *self._extra]

    def _asked(self, view: LayerView) -> list[Approximation]:
        """The methods of a layer's records; a norm's block has its diagonal whatever was asked for."""
        if not view.vector:
            return list(self.asked)
        own = [method for method in self.asked if method.for_vectors and method.name != self._diagonal.name]
        return [self._diagonal, *own]

    def _identity(self, view: LayerView) -> bool:
        return self.collector.activations[view.name].name == "identity"

    def _aims_at_layerwise(self, view: LayerView) -> bool:
        """Whether a method is compared with the layer-wise Fisher too."""
        return any(method.layerwise and method.fits(view) for method in self._asked(view))

    def _why_no_layerwise(self, view: LayerView) -> str:
        """Why the layer-wise Fisher is out of reach, or an empty text."""
        identity = self._identity(view)
        needed = layerwise_bytes(view, identity)
        if needed > self.memory // 4:
            return (
                f"the layer-wise Fisher would need {bytes_text(needed)}, above a quarter of the memory limit"
            )
        plan, positions = self.plans[view.name], self.collector.sizes.positions[view.name]
        operations = 0.0 if identity else layerwise_operations(view, (plan.samples or 0) * positions)
        if operations > _LAYERWISE_OPERATIONS:
            return f"the layer-wise Fisher would take {operations:.1g} operations"
        return ""

    # --- what is measured -------------------------------------------------------------------------

    def _layer(self, name: str, gathered: SplitSums) -> LayerResult:
        plan, view = self.plans[name], self.collector.layers[name]
        target = main_target(view, plan, gathered, self.memory)
        samples = gathered.all.samples
        result = LayerResult(
            view=view,
            plan=plan,
            samples=samples,
            positions=self.collector.sizes.positions[name],
            columns=samples * self.collector.sizes.label_columns_of(plan.kind.with_columns, name),
            kind=target.name,
            damping=target.damping,
            drawable=target.affordable,
        )
        if plan.kind != LAYERWISE:
            self._grams[name] = self._gram(gathered, plan.kind)
        with bar(self.progress, f"layer {name}", len(self._methods(view))) as report:
            self._measure_all(result, target, gathered, report)
        if self.on_target is not None:
            self.on_target(name, target)
        self._let_go(result)
        return result

    def _measure_all(
        self, result: LayerResult, main: Target, gathered: SplitSums, report: Callable[[int], None]
    ) -> None:
        view = result.view
        layerwise = {target.name: target for target in self._layerwise_targets(view, main, gathered)}
        nearest = {name: _nearest_error(target) for name, target in layerwise.items()}
        methods = self._methods(view)
        if not view.vector:
            result.waterfall = dict.fromkeys(WATERFALL)
        keeps = result.view.size <= _LARGEST_KEPT
        exact = _try(partial(spectrum, main.exact)) if self.spectra and main.affordable else None
        if exact is not None:
            result.spectra["exact"] = exact.eigenvalues
        if keeps:
            result.operators["exact"] = main.exact
        yardstick_first = sorted(methods, key=lambda method: method.name != NearestKronecker.name)
        for done, method in enumerate(yardstick_first):
            report(done)
            if reason := why_not_built(method, view):
                if method in self._asked(view):
                    note = "; ".join((reason, *main.notes))
                    result.measured[method.name, main.name] = Row({"note": note}, [], None)
                continue
            fitted = self._fitted(view, main, method, gathered)
            if method.name == NearestKronecker.name:
                nearest[main.name] = _shape_error(main, fitted.all)
            if method in self._asked(view):
                self._measure(result, main, layerwise, method, fitted, nearest)
                if exact is not None:
                    _add_spectrum(result, method.name, fitted.all)
                if keeps:
                    result.operators[method.name] = fitted.all
            if method.name in result.waterfall:
                result.waterfall[method.name] = self._scaled_error(result, main, method, fitted)
        report(len(methods))
        _put_in_order(result, [method.name for method in methods])

    def _measure(
        self,
        result: LayerResult,
        main: Target,
        layerwise: Mapping[str, Target],
        method: Approximation,
        fitted: Fitted,
        nearest: Mapping[str, float | None],
    ) -> None:
        """The rows of one method."""
        for target in (main, *layerwise.values()) if method.layerwise else (main,):
            spectra = self.spectra and target is main
            measured = measure(
                target, fitted.all, fitted.halves or None, nearest.get(target.name), spectra=spectra
            )
            measured.values["seconds"] += fitted.seconds
            if self.statistics is not None and not (method.from_exact or result.view.vector):
                note = f"approximation from saved statistics of {self.statistics.samples} samples"
                measured.values["note"] = "; ".join(filter(None, [measured.values["note"], note]))
            result.measured[method.name, target.name] = measured
        aims = method.layerwise and main.name != LAYERWISE
        if aims and (reason := self._why_no_layerwise(result.view)):
            result.measured[method.name, str(LAYERWISE)] = Row({"note": reason}, [], None)

    def _layerwise_targets(self, view: LayerView, main: Target, gathered: SplitSums) -> Iterator[Target]:
        wanted = self._aims_at_layerwise(view) and main.name != LAYERWISE
        if wanted and not self._why_no_layerwise(view):
            yield layerwise_target(view, gathered, self.memory, self._identity(view))

    def _fitted(self, view: LayerView, main: Target, method: Approximation, gathered: SplitSums) -> Fitted:
        """The method's operator on all samples; if it is asked for, also on the two halves."""
        started = time.perf_counter()
        kind, halves = method.label_kind(self.plans[view.name].kind), main.halves
        wanted = method in self._asked(view)
        if self.statistics is not None and not view.vector and not method.from_exact:
            operators = [self.statistics.build_layer(method, view.name)]
        elif method.from_exact:
            blocks = [main.exact, *(halves.halves if wanted and halves else [])]
            operators = [build_from_block(method, block) for block in blocks]
        else:
            sums = gathered.each if wanted else (gathered.all,)
            operators = [build_operator(method, view, one, kind) for one in sums]
        return Fitted(operators[0], operators[1:], time.perf_counter() - started)

    def _scaled_error(
        self, result: LayerResult, main: Target, method: Approximation, fitted: Fitted
    ) -> float | None:
        measured = result.measured.get((method.name, main.name))
        if measured is not None:
            return measured.values.get("scaled_error")
        return _shape_error(main, fitted.all)

    def _let_go(self, result: LayerResult) -> None:
        """Drops a layer's operators where they are too large to be drawn, or many layers hold theirs.

        A quarter of the memory limit is for the operators of many layers, half of it for one that alone
        needs more than that quarter.
        """
        held = 2 * 8 * result.view.size**2 * len(result.operators)  # its own numbers, and those of a picture
        if result.view.size <= _LARGEST_KEPT and held <= self._keepable:
            self._keepable -= held
        elif result.view.size <= _LARGEST_KEPT and self.memory // 4 < held <= self._keepable_alone:
            self._keepable_alone = 0
        else:
            result.operators.clear()

    def _gram(self, gathered: SplitSums, kind: str) -> Tensor:
        """The Gram matrix over the first samples, as many as all layers with these labels kept."""
        assert gathered.kept is not None
        kept = gathered.kept.head(self._coupling_samples(kind)).double()
        operator = gram_block(LayerBatch(0, kept.a, {kind: kept.g[kind]}, kept.groups), kind)
        return torch.stack([block.gram() for block in blocks_of(operator)]).sum(0)  # type: ignore[attr-defined]

    def _coupling_samples(self, kind: str) -> int:
        same = [name for name, plan in self.plans.items() if plan.kind == kind]
        columns = self.collector.sizes.label_columns_of(kind, same[0])
        most = min(_COUPLING_COLUMNS, int((self.memory / (64 * len(self.plans))) ** 0.5))
        return max(1, min([most // columns, *(self._work(name).keep for name in same)]))


def _try(compute: Callable[[], T]) -> T | None:
    try:
        return compute()
    except (FisherlabError, torch.linalg.LinAlgError):
        return None


def _put_in_order(result: LayerResult, names: Sequence[str]) -> None:
    """What was measured in the order of the methods, after the exact block."""
    places = {name: place for place, name in enumerate(["exact", *names])}
    result.measured = dict(sorted(result.measured.items(), key=lambda item: places[item[0][0]]))
    result.operators = dict(sorted(result.operators.items(), key=lambda item: places[item[0]]))
    result.spectra = dict(sorted(result.spectra.items(), key=lambda item: places[item[0]]))


def _add_spectrum(result: LayerResult, name: str, operator: LinearOperator) -> None:
    """The largest eigenvalues of an approximation, as many as the exact block has."""
    values = _try(operator.eigenvalues)
    if values is not None:
        result.spectra[name] = values[-len(result.spectra["exact"]) :]


def _nearest_error(target: Target) -> float | None:
    return _shape_error(target, build_from_block(NearestKronecker(), target.exact))


def _shape_error(target: Target, approximation: LinearOperator) -> float | None:
    found = _try(partial(target.errors, approximation))
    return None if found is None else found.scaled
