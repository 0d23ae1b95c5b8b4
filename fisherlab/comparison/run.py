"""The experiment: model × layers × approximations → tidy records."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

from torch import nn

from fisherlab.approximations import (
    DEFAULT_APPROXIMATIONS,
    Approximation,
    Statistics,
    check_statistics,
    create_all,
    named_activations,
)
from fisherlab.base.memory import limited
from fisherlab.collect.batches import masks_of
from fisherlab.collect.collector import Collector
from fisherlab.comparison.measure import Target
from fisherlab.comparison.passes import Experiment
from fisherlab.comparison.result import Comparison
from fisherlab.errors import InputError
from fisherlab.exact.fisher import no_layerwise
from fisherlab.exact.options import AnalysisOptions, completed, of_pass, parse_bytes, takes
from fisherlab.exact.plans import BlockPlan, make_plans
from fisherlab.layers import Layers, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.likelihoods.labels import EMPIRICAL, LAYERWISE
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
        data: `(inputs, targets)` tensors, or an iterable of such batches that can be read twice.
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
        chosen = select_layers(
            model, layers, bias=given["bias"], activations=named_activations(methods), masks=masks_of(data)
        )
        collector = Collector(model, chosen, data, likelihood, **of_pass(given))
        if kind == LAYERWISE:
            collector.leave_out(no_layerwise(collector))
        if statistics is not None:
            check_statistics(statistics)
            statistics = statistics.fitting(model, collector.layers, kind)
            for method in methods:
                if not method.from_exact and not statistics.can_build(method):
                    raise InputError(
                        f"the statistics do not hold what {method.name} needs; collect them with it"
                    )
        plans = make_plans(
            collector,
            kind,
            "auto",
            limit // 2,
            given["max_columns"],
            copies=3,
            together=False,
            most_operations=_MOST_OPERATIONS,
            most_contraction=_MOST_CONTRACTION,
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
        return Comparison(
            results=experiment.results(),
            layers=_covered(collector),
            coupling_matrix=experiment.coupling(),
            about=about or Origin.given(model, data),
            device=str(collector.device),
            dtype=str(collector.dtype).removeprefix("torch."),
        )


def _covered(collector: Collector) -> Layers:
    """The layers with the activations that were found."""
    found = collector.activations
    return collector.layers.with_activations(
        {n: a.name for n, a in found.items()},
        {n: f"activation: {a.reason}" for n, a in found.items() if a.reason},
    )


def _refuse_empirical(methods: Sequence[Approximation]) -> None:
    names = ", ".join(method.name for method in methods if method.own_kind == EMPIRICAL)
    if names:
        raise InputError(f"{names} needs targets; give (inputs, targets) or leave it out")
