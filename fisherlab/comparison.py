"""The experiment: model × layers × approximations → tidy records."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fisherlab.approximations import (
    DEFAULT_APPROXIMATIONS,
    Approximation,
    create,
    create_all,
    layer_work,
    named_activations,
)
from fisherlab.collect import Collector
from fisherlab.errors import FisherlabError, InputError
from fisherlab.exact import (
    DEFAULT_COLUMNS,
    DEFAULT_MEMORY,
    Plan,
    block_statistic,
    build_block,
    layerwise_block,
    make_plans,
    parse_bytes,
)
from fisherlab.layers import Layers, LayerView, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.measure import Measured, Target, measure
from fisherlab.metrics import scaled_error, spectrum
from fisherlab.operators import GramOperator, LinearOperator
from fisherlab.operators.packing import packed_size
from fisherlab.population import Halves, self_product
from fisherlab.progress import Progress, bar
from fisherlab.result import About, Comparison, LayerResult
from fisherlab.statistics import Gathered, LayerWork, Statistic, gather, moments

T = TypeVar("T")

_KEPT_SAMPLES = 1024
_COUPLING_COLUMNS = 2048
_WATERFALL = ("nearest-kronecker", "kfac", "lngd-lr", "lngd")


def compare(
    model: nn.Module,
    data: Any,
    approximations: Iterable[str | Approximation] | str | Approximation = DEFAULT_APPROXIMATIONS,
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
    spectra: bool = True,
    about: About | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Comparison:
    """The exact Fisher of every layer beside its approximations, all in two passes over the data.

    Args:
        model: the network; in evaluation mode during the call, and unchanged by it.
        data: `(inputs, targets)` tensors, or an iterable of such batches that can be read twice.
        approximations: names or instances.
        likelihood: as for `exact_fisher`, like the arguments down to `progress`.
        kind: the labels of the target; the LNGD family is compared with `layerwise` as well.
        layers: names, globs, or `find_layers(...)`; None: all.
        bias: `joint`, `separate` or `ignore`.
        memory: the limit for all exact blocks together, in bytes or as text such as "4GiB".
        max_columns: the most columns N·C of a Gram operator.
        batch_dim: the dimension that counts samples.
        draws: labels a sample for `monte-carlo`.
        generator: seeds the drawn labels.
        progress: True for bars on stderr.
        spectra: whether to compute eigenvalues (the slowest part for large blocks).
        about: what the records call the model, the data, the checkpoint and the seed.
        on_plan: called with each layer's plan before the work.

    Returns:
        A `Comparison`: `.records`, `.directions`, `.coupling`, `.table()`, `.heatmap(layer, name)`,
        `.spectrum(layer)`, `.save(directory)`.

    Raises:
        InputError: for an unknown name, or data that do not fit the model.
        MemoryLimitError: where not even the Gram form of a block fits the limit.
    """
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    methods = create_all(approximations)
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
    limit = parse_bytes(memory)
    plans = make_plans(collector, kind, "auto", limit, max_columns, copies=3)
    for plan in plans.values():
        if on_plan is not None:
            on_plan(plan)
    has_targets = collector.batches.first(1)[1] is not None
    if not has_targets:
        _refuse_empirical(methods)
    experiment = _Experiment(collector, plans, methods, has_targets, limit, spectra)
    gathered = gather(collector, experiment.work(), halves=True)
    about = about or About(model=type(model).__name__)
    return experiment.measure(gathered, about, progress)


@dataclass
class _Experiment:
    """What is measured, and what each layer needs for it."""

    collector: Collector
    plans: Mapping[str, Plan]
    asked: Sequence[Approximation]
    has_targets: bool
    memory: int
    spectra: bool
    _methods: list[Approximation] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Adds the methods of the waterfall to those asked for."""
        names = {method.name for method in self.asked}
        extra = [create(name) for name in _WATERFALL if name not in names]
        self._methods = [*self.asked, *extra]

    def work(self) -> dict[str, LayerWork]:
        """For each layer the sums and samples that its rows need."""
        return {name: self._layer_work(name) for name in self.plans}

    def _layer_work(self, name: str) -> LayerWork:
        plan, view = self.plans[name], self.collector.layers[name]
        base = layer_work(view, self._methods, plan.kind)
        own = [block_statistic(plan), self._gradient(), self._layerwise(view)]
        if plan.kind != "layerwise":
            own.append(_self_products(plan))
        keep = _KEPT_SAMPLES if plan.method != "gram" else plan.samples or 0
        return LayerWork(
            plan.kind,
            (*(s for s in own if s is not None), *base.statistics),
            base.bases,
            samples=plan.samples,
            keep=keep,
            keep_kinds=frozenset({plan.kind}),
        )

    def _gradient(self) -> Statistic | None:
        if not self.has_targets:
            return None
        return Statistic("gradient", moments.gradient_sum, "empirical")

    def _layerwise(self, view: LayerView) -> Statistic | None:
        """The blocks of the layer-wise Fisher, where a method aims at it and they fit."""
        wanted = any(method.layerwise for method in self.asked)
        needed = 8 * view.outputs * (3 * packed_size(view.inputs) + view.inputs**2)
        if not wanted or needed > self.memory // max(4, len(self.plans)):
            return None
        return Statistic("block-layerwise", moments.unit_blocks, "layerwise")

    def measure(self, gathered: Mapping[str, Gathered], about: About, progress: Progress) -> Comparison:
        """The records of all layers."""
        results: dict[str, LayerResult] = {}
        with bar(progress, "layers", len(self.plans)) as report:
            for place, name in enumerate(self.plans):
                results[name] = self._layer(name, gathered[name])
                report(place + 1)
        return Comparison(
            layers=self._covered(),
            results=results,
            coupling_matrix=_coupling(self.plans, gathered),
            about=about,
            device=str(self.collector.device),
            dtype=str(self.collector.dtype).removeprefix("torch."),
        )

    def _covered(self) -> Layers:
        found = self.collector.activations
        return self.collector.layers.with_activations(
            {n: a.name for n, a in found.items()},
            {n: f"activation: {a.reason}" for n, a in found.items() if a.reason},
        )

    def _layer(self, name: str, gathered: Gathered) -> LayerResult:
        plan, view = self.plans[name], self.collector.layers[name]
        everything = gathered.sums[0]
        exact = build_block(view, plan, everything, gathered.kept)
        halves = self._halves(view, plan, exact, gathered)
        gradient = None
        statistic = self._gradient()
        if statistic is not None:
            gradient = everything.mean(statistic)
        notes = [plan.note] if plan.note else []
        target = Target(plan.kind, exact, gradient, halves, notes)
        target.name = "monte-carlo" if plan.kind == "drawn" else plan.kind
        result = LayerResult(
            view=view,
            plan=plan,
            samples=everything.samples,
            positions=self.collector.shapes.positions[name],
            columns=everything.samples * self.collector.label_columns_of(plan.kind),
            target=target,
        )
        self._measure_all(result, gathered)
        return result

    def _measure_all(self, result: LayerResult, gathered: Gathered) -> None:
        target, view = result.target, result.view
        layerwise = self._layerwise_target(view, target, gathered)
        operators, seconds = self._operators(view, result.plan, target.exact, gathered)
        nearest = _shape_error(target.exact, operators["nearest-kronecker"][0])
        asked = {method.name: method for method in self.asked}
        for name, method in asked.items():
            own, *fits = operators[name]
            result.operators[name] = own
            measured = measure(target, own, fits or None, nearest, spectra=self.spectra)
            _finish(measured, seconds[name])
            result.measured[name, target.name] = measured
            if method.layerwise and layerwise is not None and layerwise is not target:
                measured = measure(layerwise, own, None, None, spectra=False)
                result.measured[name, layerwise.name] = measured
                _finish(measured, seconds[name])
        for name in _WATERFALL:
            result.waterfall[name] = _shape_error(target.exact, operators[name][0])
        if self.spectra:
            self._spectra(result)

    def _operators(
        self, view: LayerView, plan: Plan, exact: LinearOperator, gathered: Gathered
    ) -> tuple[dict[str, list[LinearOperator]], dict[str, float]]:
        """For each method its operator on all samples, then on the even and odd ones."""
        operators: dict[str, list[LinearOperator]] = {}
        seconds: dict[str, float] = {}
        for method in self._methods:
            started = time.perf_counter()
            kind = method.label_kind(plan.kind)
            if method.from_exact:
                blocks = [exact, *self._half_blocks(view, plan, gathered)]
                operators[method.name] = [method.from_block(block) for block in blocks]
            else:
                operators[method.name] = [method.build(view, s, kind) for s in gathered.sums]
            seconds[method.name] = time.perf_counter() - started
        return operators, seconds

    def _half_blocks(self, view: LayerView, plan: Plan, gathered: Gathered) -> list[LinearOperator]:
        kept = gathered.kept
        parts = [None, None] if kept is None else [kept.half(0), kept.half(1)]
        return [
            build_block(view, plan, sums, part)
            for sums, part in zip(gathered.sums[1:], parts, strict=True)
            if sums.samples
        ]

    def _halves(
        self, view: LayerView, plan: Plan, exact: LinearOperator, gathered: Gathered
    ) -> Halves | None:
        blocks = self._half_blocks(view, plan, gathered)
        if plan.kind == "layerwise" or len(blocks) < 2 or gathered.kept is None:
            return None
        kept = gathered.kept
        return Halves(
            exact=exact,
            halves=blocks,
            counts=[sums.samples for sums in gathered.sums[1:]],
            self_products=float(gathered.sums[0].sum(_self_products(plan))),
            kept=GramOperator(kept.a.double(), kept.g[plan.kind].double()),
        )

    def _layerwise_target(self, view: LayerView, target: Target, gathered: Gathered) -> Target | None:
        if target.name == "layerwise":
            return target
        statistic = self._layerwise(view)
        if statistic is None:
            return None
        block = layerwise_block(gathered.sums[0].mean(statistic), view)
        note = "population error is for the main target only"
        return Target("layerwise", block, target.gradient, None, [note])

    def _spectra(self, result: LayerResult) -> None:
        exact = _try(partial(spectrum, result.target.exact))
        if exact is None:
            return
        result.spectra["exact"] = exact.eigenvalues
        for name, operator in result.operators.items():
            values = _try(operator.eigenvalues)
            if values is not None:
                result.spectra[name] = values


def _self_products(plan: Plan) -> Statistic:
    return Statistic("self-product", self_product, plan.kind)


def _finish(measured: Measured, seconds: float) -> None:
    measured.values["seconds"] += seconds


def _refuse_empirical(methods: Sequence[Approximation]) -> None:
    names = ", ".join(method.name for method in methods if method.own_kind == "empirical")
    if names:
        raise InputError(f"{names} needs targets; give (inputs, targets) or leave it out")


def _try(compute: Callable[[], T]) -> T | None:
    try:
        return compute()
    except (FisherlabError, torch.linalg.LinAlgError):
        return None


def _shape_error(exact: LinearOperator, approximation: LinearOperator) -> float | None:
    found = _try(partial(scaled_error, exact, approximation))
    return None if found is None else found.error


def _coupling(plans: Mapping[str, Plan], gathered: Mapping[str, Gathered]) -> Tensor:
    """‖F_lk‖²/(‖F_l‖ ‖F_k‖) from the samples kept, [L, L]; NaN where two layers' labels differ.

    ‖F_lk‖² = ⟨K_l, K_k⟩, so this is the cosine between the two Gram matrices.
    """
    size = len(plans)
    matrix = torch.full((size, size), math.nan, dtype=torch.float64)
    grams: list[tuple[tuple[str, int], Tensor]] = []
    for name, plan in plans.items():
        kept = gathered[name].kept
        assert kept is not None
        g = kept.g[plan.kind]
        most = max(1, min(len(kept.a), _COUPLING_COLUMNS // len(g)))
        gram = GramOperator(kept.a[:most].double(), g[:, :most].double()).gram()
        grams.append(((plan.kind, most), gram))
    for i, (labels, K) in enumerate(grams):
        for j, (other_labels, other) in enumerate(grams[: i + 1]):
            if labels == other_labels:
                matrix[i, j] = matrix[j, i] = float((K * other).sum())
    scale = matrix.diagonal().clone().sqrt()
    return matrix / (scale[:, None] * scale[None, :])
