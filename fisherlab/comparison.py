"""The experiment: model × layers × approximations → tidy records."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fisherlab.approximations import (
    DEFAULT_APPROXIMATIONS,
    Approximation,
    NearestKronecker,
    columns_kind,
    create,
    create_all,
    layer_work,
    named_activations,
)
from fisherlab.collect import LAYERWISE_COLUMNS, Collector, LayerBatch
from fisherlab.errors import FisherlabError, InputError
from fisherlab.exact import DEFAULT_COLUMNS, DEFAULT_MEMORY, Plan, make_plans, parse_bytes
from fisherlab.layers import Layers, LayerView, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.measure import Target, measure
from fisherlab.metrics import scaled_error, spectrum
from fisherlab.models.loading import NamedPair
from fisherlab.operators import GramOperator, LinearOperator
from fisherlab.progress import Progress, bar
from fisherlab.result import About, Comparison, LayerResult
from fisherlab.statistics import Gathered, LayerWork, gather
from fisherlab.targets import (
    GRADIENT,
    layerwise_bytes,
    layerwise_statistics,
    layerwise_target,
    main_statistics,
    main_target,
)

T = TypeVar("T")

_LEAST_KEPT, _MOST_KEPT = 16, 1024
_KEPT_BYTES = 64 * 2**20
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
    about = about or _about(model, data)
    return experiment.measure(gathered, about, progress)


class _Fits(NamedTuple):
    """A method's operators (all samples, each half), and the seconds that they took."""

    operators: list[LinearOperator]
    seconds: float


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
        own = main_statistics(plan)
        own += [GRADIENT] if self.has_targets else []
        layerwise = self._aims_at_layerwise(view)
        own += layerwise_statistics() if layerwise else []
        return LayerWork(
            base.kind,
            (*own, *base.statistics),
            base.bases,
            samples=plan.samples,
            keep=self._kept(view, plan) if plan.method != "gram" else plan.samples or 0,
            keep_kinds=frozenset({plan.kind, *(["layerwise"] if layerwise else [])}),
        )

    def _kept(self, view: LayerView, plan: Plan) -> int:
        """How many samples are kept for standard errors and the coupling."""
        columns = self.collector.label_columns_of(columns_kind(plan.kind), view.name)
        if self._aims_at_layerwise(view):
            columns += self.collector.label_columns_of(LAYERWISE_COLUMNS, view.name)
        numbers = self.collector.shapes.positions[view.name] * (view.inputs + columns * view.outputs)
        return max(_LEAST_KEPT, min(_MOST_KEPT, _KEPT_BYTES // (8 * numbers)))

    def _aims_at_layerwise(self, view: LayerView) -> bool:
        """Whether a method is compared with the layer-wise Fisher too, and its blocks fit."""
        wanted = any(method.layerwise for method in self.asked)
        return wanted and layerwise_bytes(view) <= self.memory // max(4, len(self.plans))

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
            coupling_matrix=_coupling(self.plans, gathered, self.memory),
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
        target = main_target(view, plan, gathered, self.memory)
        samples = gathered.sums[0].samples
        result = LayerResult(
            view=view,
            plan=plan,
            samples=samples,
            positions=self.collector.shapes.positions[name],
            columns=samples * self.collector.label_columns_of(columns_kind(plan.kind), name),
            target=target,
        )
        targets = [target]
        if target.name != "layerwise" and self._aims_at_layerwise(view):
            targets.append(layerwise_target(view, gathered, self.memory))
        self._measure_all(result, targets, gathered)
        return result

    def _measure_all(self, result: LayerResult, targets: Sequence[Target], gathered: Gathered) -> None:
        main, exact = targets[0], targets[0].exact
        fits = {method.name: self._fits(result, method, gathered) for method in self._methods}
        result.waterfall = {name: _shape_error(exact, fits[name].operators[0]) for name in _WATERFALL}
        nearest = {target.name: _nearest_error(target.exact) for target in targets[1:]}
        nearest[main.name] = result.waterfall["nearest-kronecker"]
        for method in self.asked:
            own, *halves = fits[method.name].operators
            result.operators[method.name] = own
            for target in targets if method.layerwise else [main]:
                spectra = self.spectra and target is main
                measured = measure(target, own, halves or None, nearest[target.name], spectra=spectra)
                measured.values["seconds"] += fits[method.name].seconds
                result.measured[method.name, target.name] = measured
        if self.spectra:
            self._spectra(result)

    def _fits(self, result: LayerResult, method: Approximation, gathered: Gathered) -> "_Fits":
        """The method's operator on all samples; if it is asked for, also on the two halves."""
        started = time.perf_counter()
        kind, halves = method.label_kind(result.plan.kind), result.target.halves
        wanted = method in self.asked
        if method.from_exact:
            blocks = [result.target.exact, *(halves.halves if wanted and halves else [])]
            operators = [method.from_block(block) for block in blocks]
        else:
            sums = gathered.sums if wanted else gathered.sums[:1]
            operators = [method.build(result.view, one, kind) for one in sums]
        return _Fits(operators, time.perf_counter() - started)

    def _spectra(self, result: LayerResult) -> None:
        if not result.target.affordable:
            return
        exact = _try(partial(spectrum, result.target.exact))
        if exact is None:
            return
        result.spectra["exact"] = exact.eigenvalues
        for name, operator in result.operators.items():
            values = _try(operator.eigenvalues)
            if values is not None:
                result.spectra[name] = values


def _about(model: nn.Module, data: Any) -> About:
    """The names of a model and of built-in data, whose stand-in must not go unsaid."""
    name = type(model).__name__
    if not isinstance(data, NamedPair):
        return About(name)
    dataset = data.dataset
    return About(name, dataset.label, checksum=dataset.checksum, stand_in=dataset.stand_in)


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


def _nearest_error(exact: LinearOperator) -> float | None:
    return _shape_error(exact, NearestKronecker().from_block(exact))


def _coupling(plans: Mapping[str, Plan], gathered: Mapping[str, Gathered], memory: int) -> Tensor:
    """‖F_lk‖²/(‖F_l‖ ‖F_k‖) from the samples kept, [L, L]; NaN where two layers' labels differ.

    ‖F_lk‖² = ⟨K_l, K_k⟩, so this is the cosine between the two Gram matrices.
    """
    names = list(plans)
    matrix = torch.full((len(names), len(names)), math.nan, dtype=torch.float64)
    for kind in {plan.kind for plan in plans.values()}:
        places = [place for place, name in enumerate(names) if plans[name].kind == kind]
        grams = _grams([gathered[names[place]].kept for place in places], kind, memory)
        for place, K in zip(places, grams, strict=True):
            for other, K_other in zip(places, grams, strict=True):
                matrix[place, other] = float((K * K_other).sum())
    scale = matrix.diagonal().clone().sqrt()
    return matrix / (scale[:, None] * scale[None, :])


def _grams(kept: Sequence[LayerBatch | None], kind: str, memory: int) -> list[Tensor]:
    """The Gram matrices of several layers over the samples that all of them kept."""
    batches = [batch for batch in kept if batch is not None]
    columns = len(batches[0].g[kind])
    most = min(_COUPLING_COLUMNS, int((memory / (16 * len(batches))) ** 0.5))
    samples = max(1, min([most // columns, *(len(batch.a) for batch in batches)]))
    return [
        GramOperator(batch.a[:samples].double(), batch.g[kind][:, :samples].double()).gram()
        for batch in batches
    ]
