"""The experiment: model × layers × approximations → tidy records."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from fisherlab.approximations import (
    DEFAULT_APPROXIMATIONS,
    Approximation,
    Statistics,
    check_batches,
    check_statistics,
    create_all,
    layers_for,
)
from fisherlab.base.memory import limited
from fisherlab.base.precision import reference
from fisherlab.collect.collector import Collector
from fisherlab.comparison.measure import Target
from fisherlab.comparison.passes import Experiment
from fisherlab.comparison.precision import half_precision, widened
from fisherlab.comparison.result import Comparison, LayerResult
from fisherlab.errors import InputError, MemoryLimitError, NumericalError
from fisherlab.exact.fisher import no_layerwise
from fisherlab.exact.options import AnalysisOptions, completed, of_pass, parse_bytes, takes
from fisherlab.exact.plans import BlockPlan, make_plans
from fisherlab.layers import Layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.likelihoods.labels import EMPIRICAL, LAYERWISE, LabelKind
from fisherlab.runs.origin import Origin

# Derived from 10¹¹ operations a second, about what a CPU of today does: two minutes for the backward passes,
# and half a second for a contraction, of which the nearest product alone makes up to hundreds.
_MOST_OPERATIONS = 1e13
_MOST_CONTRACTION = 4e10


@takes(AnalysisOptions)
def compare(
    model: nn.Module,
    data: Any,
    approximations: Iterable[str | Approximation] | str | Approximation = DEFAULT_APPROXIMATIONS,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    *,
    spectra: bool = True,
    statistics: Statistics | None = None,
    about: Origin | None = None,
    on_plan: Callable[[BlockPlan], None] | None = None,
    on_target: Callable[[str, Target], None] | None = None,
    **options: Unpack[AnalysisOptions],
) -> Comparison:
    """The exact Fisher of every layer beside its approximations, layers together as far as memory allows.

    Args:
        model: the network; in evaluation mode during the call, and unchanged by it.
        data: as of `exact_fisher`; an iterable of batches must be one that can be read twice.
        approximations: names or instances.
        likelihood: as for `exact_fisher`.
        kind: the labels of the target; the LNGD family is compared with `layerwise` as well.
        layers: names, globs, or `find_layers(...)`; None: all.
        spectra: whether to compute eigenvalues (the slowest part for large blocks).
        statistics: sums that the approximations are built from, of these or of more samples; None: those of
            the samples given, which alone give a population error.
        about: what the records call the model, the data, the checkpoint and the seed.
        on_plan: called with each layer's plan before the work.
        on_target: called with each layer's name and its `Target` (F, and ∇h where there are targets) once the
            layer is measured; to take numbers of blocks that are too large to be kept.
        **options: of every analysis, see `AnalysisOptions`.

    Returns:
        A `Comparison`: `.records`, `.directions`, `.coupling`, `.table()`, `.heatmap(layer, name)`,
        `.spectrum(layer)`, `.save(directory)`.

    Raises:
        InputError: for an unknown name, or data that do not fit the model.
        MemoryLimitError: where not even the Gram form of a block fits the limit.
    """
    given = completed(AnalysisOptions, options, "compare")
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    methods = create_all(approximations)
    limit = parse_bytes(given["memory"])
    with limited(limit):
        chosen = layers_for(methods, model, layers, data, given)
        analysed, chosen, in_float32 = _not_half(model, chosen)
        generator = given["generator"]
        again = None if generator is None else generator.clone_state()  # for the same draws
        collector = Collector(analysed, chosen, data, likelihood, **of_pass(given))
        if kind == LAYERWISE:
            collector.leave_out(no_layerwise(collector))
        if statistics is not None:
            check_statistics(statistics)
            collector.leave_out({n: why for n, why in statistics.left_out.items() if n in collector.layers})
            statistics = statistics.fitting(model, collector.layers, kind)
            for method in methods:
                if not method.from_exact and not statistics.can_build(method):
                    raise InputError(
                        f"the statistics do not hold what {method.name} needs; collect them with it"
                    )
        check_batches(methods, collector)
        plans = _plans(
            collector, kind, limit, given["max_columns"], dict.fromkeys(collector.layers, in_float32)
        )
        for plan in plans.values():
            if on_plan is not None:
                on_plan(plan)
        has_targets = collector.batches.first(1)[1] is not None
        if not has_targets:
            _refuse_empirical(methods)
        experiment = Experiment(
            collector, plans, methods, has_targets, limit, spectra, given["progress"], statistics, on_target
        )
        results = _measured(experiment, data, chosen, kind, {**given, "generator": again})
        experiment.join(results)
        collector.tell()
        return Comparison(
            results=results,
            layers=_covered(collector),
            coupling_matrix=experiment.coupling(),
            about=replace(about or Origin.given(model, data), output=collector.outputs.taken),
            device=str(collector.device),
            dtype=str(reference(model).dtype).removeprefix("torch."),
        )


def _plans(
    collector: Collector, kind: LabelKind, limit: int, max_columns: int, remarks: Mapping[str, str]
) -> dict[str, BlockPlan]:
    """How each exact block is computed, with a remark for each layer."""
    plans = make_plans(
        collector,
        kind,
        "auto",
        limit // 2,
        max_columns,
        copies=3,
        together=False,
        most_operations=_MOST_OPERATIONS,
        most_contraction=_MOST_CONTRACTION,
    )
    return {
        name: replace(plan, remark="; ".join(filter(None, (plan.remark, remarks[name]))))
        for name, plan in plans.items()
    }


def _not_half(model: nn.Module, layers: Layers) -> tuple[nn.Module, Layers, str]:
    """The model, or a copy of it in float32 where it is in a type of three digits; layers; and a remark."""
    reason = half_precision(reference(model).dtype)
    copied = widened(model, layers, torch.float32) if reason else None
    return (model, layers, "") if copied is None else (*copied, reason)


def _measured(
    experiment: Experiment, data: Any, chosen: Layers, kind: LabelKind, given: AnalysisOptions
) -> dict[str, LayerResult]:
    """The numbers of every layer; of those that are rounding in the model's type from a copy in float64.

    Where there is no such copy, or they are rounding in float64 too, their rows hold nothing but a note.
    Layers that cannot be measured are left out.
    """
    narrow, copied = experiment.collector, None
    try:
        results = experiment.results()
    except NumericalError:  # beyond the largest number of a narrow type, or of any
        copied = None if narrow.dtype == torch.float64 else widened(narrow.model, chosen, torch.float64)
        if copied is None:
            raise
        results, reason = {}, f"numbers are beyond the largest of {str(narrow.dtype).removeprefix('torch.')}"
        experiment.noise = dict.fromkeys(experiment.plans, reason)
    reasons = experiment.noise
    if reasons and narrow.dtype != torch.float64:
        copied = copied or widened(narrow.model, chosen, torch.float64)
    if copied is not None:
        try:
            wide = Collector(copied[0], copied[1].select(reasons), data, narrow.likelihood, **of_pass(given))
            if kind == LAYERWISE:
                wide.leave_out(no_layerwise(wide))
            remarks = {name: f"computed in float64: {reason}" for name, reason in reasons.items()}
            plans = _plans(wide, kind, experiment.memory, given["max_columns"], remarks)
            again = experiment.again(wide, plans)
            results |= again.results()
            experiment.failed |= again.failed
        except (InputError, MemoryLimitError) as error:
            reasons = {name: f"{reason}; in float64: {error}" for name, reason in reasons.items()}
        else:
            experiment.adopt(again)
            reasons |= again.noise
    narrow.leave_out(experiment.failed)
    experiment.plans = {name: plan for name, plan in experiment.plans.items() if name in narrow.layers}
    empty = {name: why for name, why in reasons.items() if name in narrow.layers and name not in results}
    results |= {name: experiment.empty(name, why) for name, why in empty.items()}
    return {name: results[name] for name in experiment.plans}


def _covered(collector: Collector) -> Layers:
    """The layers with the activations that were found."""
    found = collector.activations
    return collector.layers.with_activations(
        {n: a.name for n, a in found.items()},
        {n: f"activation: {a.reason}" for n, a in found.items() if a.reason},
    )


def _refuse_empirical(methods: Sequence[Approximation]) -> None:
    names = ", ".join(method.name for method in methods if method.batch or method.own_kind == EMPIRICAL)
    if names:
        raise InputError(f"{names} needs targets; give (inputs, targets) or leave it out")
