"""The passes of a comparison: layers in groups that fit the memory limit, each measured once it is read."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from fisherlab.approximations import Approximation, Statistics, create, layer_work
from fisherlab.base.memory import at_most
from fisherlab.base.progress import Progress, bar
from fisherlab.collect.collector import Collector
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.collect.left_out import made
from fisherlab.comparison.joint import JointModel, LayerParts, step_part
from fisherlab.comparison.layer import WATERFALL, LayerTask, of_vector
from fisherlab.comparison.measure import Row, Target
from fisherlab.comparison.precision import why_noise
from fisherlab.comparison.result import LayerResult
from fisherlab.comparison.targets import (
    GRADIENT,
    added_up,
    layerwise_statistics,
    main_statistics,
    main_target,
    remembered_bytes,
)
from fisherlab.errors import FisherlabError, NumericalError
from fisherlab.exact.fisher import gram_block
from fisherlab.exact.plans import BlockPlan
from fisherlab.likelihoods.labels import LAYERWISE, LabelKind
from fisherlab.linalg.numerics import eigenvectors_kept
from fisherlab.operators import LinearOperator, blocks_of
from fisherlab.statistics import PassRequest, SplitSums, gather

log = logging.getLogger("fisherlab")

# Samples of a layer kept for standard errors and the coupling, as many as fit these bytes: a standard
# error from k samples is itself known to 1/√(2k), 18 % of 16 and 2 % of 1024.
_LEAST_KEPT, _MOST_KEPT = 16, 1024
_KEPT_BYTES, _MOST_KEPT_BYTES = 64 * 2**20, 256 * 2**20
_GATHERED = 0.7  # of the limit, a choice: the rest is for the pieces of work, see `fisherlab.base.memory`
_COUPLING_COLUMNS = 1024  # a choice: a Gram matrix of 8 MiB a layer


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
        noise: the layers whose numbers would be rounding in the model's type, and why; they have none.
        failed: the layers that could not be measured, and why.
        coupled: how many samples the coupling takes of each kind of labels.
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
    noise: dict[str, str] = field(default_factory=dict)
    failed: dict[str, FisherlabError] = field(default_factory=dict)
    coupled: dict[str, int] = field(default_factory=dict)
    _grams: dict[str, Tensor] = field(default_factory=dict)
    _parts: dict[str, LayerParts] = field(default_factory=dict)
    _works: dict[str, PassRequest] = field(default_factory=dict)
    _tasks: dict[str, LayerTask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The methods of the waterfall are added to those asked for."""
        names = {method.name for method in self.asked}
        self._extra = [create(name) for name in WATERFALL if name not in names]
        if self.statistics is not None:
            held = self.statistics
            self._extra = [method for method in self._extra if method.from_exact or held.can_build(method)]
        self._keepable, self._keepable_alone = self.memory // 4, self.memory // 2

    def results(self) -> dict[str, LayerResult]:
        """The numbers of every layer, in the order of the layers."""
        found: dict[str, LayerResult] = {}
        for names in self._groups():
            work = {name: self._work(name) for name in names}
            gathered = gather(self.collector, work, halves=True, failed=self._fail)
            for name in list(gathered):
                started = time.perf_counter()
                with eigenvectors_kept():
                    results, wrong = made({name: partial(self._layer, name, gathered)})
                self._fail(wrong)
                found |= {name: one for name, one in results.items() if one is not None}
                log.debug("layer %s: measured in %.1f s", name, time.perf_counter() - started)
        return {name: found[name] for name in self.plans if name in found}

    def _fail(self, errors: Mapping[str, FisherlabError]) -> None:
        """Takes note of layers that cannot be measured; numbers may go wrong for want of a wider type."""
        wide = self.collector.dtype == torch.float64
        for name, error in errors.items():
            if isinstance(error, NumericalError) and not wide:
                self.noise[name] = str(error)
            else:
                self.failed[name] = error

    def again(self, collector: Collector, plans: Mapping[str, BlockPlan]) -> "Experiment":
        """The same with other plans, for some of the layers."""
        other = replace(
            self,
            collector=collector,
            plans=plans,
            noise={},
            failed={},
            _grams={},
            _parts={},
            _works={},
            _tasks={},
        )
        other._keepable, other._keepable_alone = self._keepable, self._keepable_alone
        return other

    def empty(self, name: str, reason: str) -> LayerResult:
        """A layer without numbers, and why."""
        task = self._task(name)
        samples, kind = task.plan.samples or 0, str(task.plan.kind.target)
        return LayerResult(
            view=task.view,
            plan=task.plan,
            samples=samples,
            positions=task.positions,
            columns=samples * self.collector.sizes.label_columns_of(task.plan.kind.with_columns, name),
            kind=kind,
            damping=math.nan,
            dtype=self.collector.dtype,
            measured={(method.name, kind): Row({"note": reason}) for method in task.asked},
            drawable=False,
        )

    def adopt(self, other: "Experiment") -> None:
        """Takes over the layers that another experiment measured."""
        self.plans = {name: other.plans.get(name, plan) for name, plan in self.plans.items()}
        self._grams.update(other._grams)
        self._parts.update(other._parts)

    def _summed(self, name: str, gathered: SplitSums) -> SplitSums:
        """A layer's sums; those of lazy work are made of the samples kept, each when it is asked for."""
        if not self._works[name].lazy:
            return gathered
        assert gathered.kept is not None
        made = added_up(SplitSums.of_kept(gathered.kept, halves=True))
        return replace(made, batches=gathered.batches)

    def coupling(self) -> Tensor:
        """‖F_lk‖²/(‖F_l‖ ‖F_k‖) from the samples kept, [L, L]; NaN where two layers' labels differ.

        ‖F_lk‖² = ⟨K_l, K_k⟩, so this is the cosine between the two Gram matrices.
        """
        names = list(self.plans)
        matrix = torch.full((len(names), len(names)), math.nan, dtype=torch.float64, device="cpu")
        kinds = [plan.kind if name in self._grams else LAYERWISE for name, plan in self.plans.items()]
        for kind in set(kinds) - {LAYERWISE}:
            places = [place for place, own in enumerate(kinds) if own == kind]
            rows = torch.stack([self._grams[names[place]].flatten() for place in places])
            products = (rows @ rows.T).cpu()
            scale = products.diagonal().sqrt()
            index = torch.tensor(places, device="cpu")
            matrix[index[:, None], index] = products / (scale[:, None] * scale)
        return matrix

    def join(self, results: Mapping[str, LayerResult]) -> None:
        """The joint step of all layers but norms: its decrease share, in the rows of every layer."""
        factored = {name: one for name, one in results.items() if not one.view.vector}
        model = JointModel({name: self._parts[name] for name in factored if name in self._parts})
        reason = self._why_apart(factored)
        for result in results.values():
            why = "joint step: norms are left out" if result.view.vector else reason
            for (method, target), row in result.measured.items():
                if target != result.kind or not row.sweep:
                    continue
                if why:
                    row.add_note(why)
                    continue
                if len(factored) == 1:  # nothing is between layers
                    row.values["damped_step_share"] = row.values.get("decrease_share")
                    continue
                try:
                    row.values["damped_step_share"], count = model.share(method)
                except NumericalError as error:
                    row.add_note(str(error))
                    continue
                if count < len(factored):
                    row.add_note(f"joint step: {count} of {len(factored)} layers")

    def _why_apart(self, factored: Mapping[str, LayerResult]) -> str:
        """Why layers have no joint quadratic model, or an empty text.

        Of some samples alone F has too low a rank: the best step would leave the range of F, in which the
        gradient of all samples lies, and gain nearly everything there.
        """
        if len(factored) == 1:
            return ""
        kinds = {self.plans[name].kind for name in factored}
        if LAYERWISE in kinds:
            return "joint step: the layer-wise Fisher has nothing between layers"
        if len(kinds) > 1:
            return "joint step: the layers' labels differ"
        fewest = min((self.coupled.get(kind, 0) for kind in kinds), default=0)
        if any(one.samples > fewest for one in factored.values()):
            return (
                "damped_step_share is empty: it needs F between all layers of all samples; "
                f"--samples {fewest} or fewer"
            )
        return ""

    # --- what a pass gathers ----------------------------------------------------------------------

    def _groups(self) -> Iterator[list[str]]:
        """Layers one after another, as many as fit at once beside the measurement of one of them."""
        group: list[str] = []
        held = beside = 0
        for name in self.plans:
            kept, sums = self._kept_bytes(name), self._sum_bytes(name)
            own = self._task(name).bytes_beside(kept)
            if group and held + kept + sums + max(beside, own) > self.memory * _GATHERED:
                yield group
                group, held, beside = [], 0, 0
            group.append(name)
            held, beside = held + kept + sums, max(beside, own)
        yield group

    def _kept_bytes(self, name: str) -> int:
        """What a layer's kept samples take after the pass."""
        work, size = self._work(name), self.collector.sizes.bytes
        columns = sum(self.collector.sizes.label_columns_of(kind, name) for kind in work.kinds)
        samples = min(work.keep, self.collector.batches.count() or work.keep)
        return size * samples * self.collector.sizes.numbers(name, columns)

    def _sum_bytes(self, name: str) -> int:
        """What a layer's sums take after the pass: of the halves, of all, and of groups for two targets."""
        work, view = self._work(name), self.collector.layers[name]
        groups = 2 * remembered_bytes(sum(statistic.numbers(view) for statistic in work.statistics))
        return groups + (0 if work.lazy else 3 * 8 * work.numbers(view))

    def _work(self, name: str) -> PassRequest:
        if name not in self._works:
            self._works[name] = self._new_work(self._task(name))
        return self._works[name]

    def _task(self, name: str) -> LayerTask:
        if name not in self._tasks:
            view, activation = self.collector.layers[name], self.collector.activations.get(name)
            self._tasks[name] = LayerTask(
                view=view,
                plan=self.plans[name],
                positions=self.collector.sizes.positions[name],
                identity=activation is not None and activation.name == "identity",
                asked=of_vector(self.asked) if view.vector else self.asked,
                extra=() if view.vector else self._extra,
                memory=self.memory,
                spectra=self.spectra,
                statistics=self.statistics,
            )
        return self._tasks[name]

    def _new_work(self, task: LayerTask) -> PassRequest:
        plan, view = task.plan, task.view
        every = self.statistics is None or view.vector
        methods = [method for method in task.methods if every or method.batch]
        base = layer_work(view, methods, plan.kind)
        own = main_statistics(plan)
        own += [GRADIENT] if self.has_targets else []
        layerwise = task.aims_at_layerwise and not task.why_no_layerwise
        own += layerwise_statistics(task.identity) if layerwise else []
        lazy = plan.method == "gram"
        return PassRequest(
            base.kind,
            (*own, *base.statistics),
            base.bases,
            samples=plan.samples,
            keep=(plan.samples or 0) if lazy else self._kept(task),
            keep_kinds=self._kept_kinds(task),
            lazy=lazy,
            batches=base.batches,
        )

    def _kept_kinds(self, task: LayerTask) -> frozenset[LabelKind]:
        """The labels of the terms of the target, and of the methods, which are fitted again without some."""
        methods = [] if self.statistics is not None and not task.view.vector else task.asked
        used = layer_work(task.view, methods, task.plan.kind).statistics
        target = [LAYERWISE] if task.aims_at_layerwise and not task.why_no_layerwise else []
        return frozenset({task.plan.kind, *target, *(LabelKind(s.kind) for s in used if s.kind is not None)})

    def _kept(self, task: LayerTask) -> int:
        """How many samples are kept for standard errors and the coupling."""
        view, sizes = task.view, self.collector.sizes
        columns = sum(sizes.label_columns_of(k.with_columns, view.name) for k in self._kept_kinds(task))
        numbers = self.collector.sizes.numbers(view.name, columns)
        wanted = max(_LEAST_KEPT, min(_MOST_KEPT, at_most(_KEPT_BYTES, 64) // (8 * numbers)))
        return max(1, min(wanted, at_most(_MOST_KEPT_BYTES, 16) // (8 * numbers)))

    # --- what is measured -------------------------------------------------------------------------

    def _layer(self, name: str, sums: dict[str, SplitSums]) -> LayerResult | None:
        """All of one layer, whose sums are let go; None where it would be rounding (see `noise`)."""
        gathered = self._summed(name, sums.pop(name))
        task = self._task(name)
        plan, view = task.plan, task.view
        target = main_target(view, plan, gathered, task.room)
        if reason := why_noise(target, gathered, self.collector.dtype):
            self.noise[name] = reason
            return None
        samples = gathered.all.samples
        result = LayerResult(
            view=view,
            plan=plan,
            samples=samples,
            positions=task.positions,
            columns=samples * self.collector.sizes.label_columns_of(plan.kind.with_columns, name),
            kind=target.name,
            damping=target.damping,
            dtype=self.collector.dtype,
            drawable=target.affordable,
        )
        if plan.kind != LAYERWISE:
            between = self._between(gathered, plan.kind)
            self._grams[name] = _gram(between)
            if self.coupled[plan.kind] >= samples:
                target.between = between
        with bar(self.progress, f"layer {name}", len(task.methods)) as report:
            task.measure(result, target, gathered, report)
        if target.between is not None and target.gradient is not None:
            rows = {method: row for (method, own), row in result.measured.items() if own == target.name}
            steps = {method: row.part for method, row in rows.items() if row.part is not None}
            gradient = target.gradient.double()
            own = step_part(target.between, gradient, gradient)
            self._parts[name] = LayerParts(target.damping, self._grams[name], own, steps)
        if self.on_target is not None:
            self.on_target(name, target)
        self._let_go(task, result)
        return result

    def _let_go(self, task: LayerTask, result: LayerResult) -> None:
        """Drops a layer's operators where they are too large to be drawn, or many layers hold theirs.

        A quarter of the memory limit is for the operators of many layers, half of it for one that alone
        needs more than that quarter.
        """
        if "exact" in result.operators:
            result.operators["exact"].forget()
        held = 2 * 8 * task.view.size**2 * len(result.operators)  # its own numbers, and those of a picture
        if task.drawn and held <= self._keepable:
            self._keepable -= held
        elif task.drawn and self.memory // 4 < held <= self._keepable_alone:
            self._keepable_alone = 0
        else:
            result.operators.clear()

    def _between(self, gathered: SplitSums, kind: str) -> LinearOperator:
        """F of the first samples in Gram form, as many as all layers with these labels kept."""
        assert gathered.kept is not None
        kept = gathered.kept.head(self._coupling_samples(kind)).double()
        return gram_block(LayerBatch(0, kept.a, {kind: kept.g[kind]}, kept.groups), kind)

    def _coupling_samples(self, kind: str) -> int:
        if kind in self.coupled:
            return self.coupled[kind]
        same = [name for name, plan in self.plans.items() if plan.kind == kind]
        columns = self.collector.sizes.label_columns_of(kind, same[0])
        most = min(_COUPLING_COLUMNS, int((self.memory / (64 * len(self.plans))) ** 0.5))
        self.coupled[kind] = max(1, min([most // columns, *(self._work(name).keep for name in same)]))
        return self.coupled[kind]


def _gram(between: LinearOperator) -> Tensor:
    """K of an operator in Gram form, summed over groups."""
    return torch.stack([block.gram() for block in blocks_of(between)]).sum(0)  # type: ignore[attr-defined]
