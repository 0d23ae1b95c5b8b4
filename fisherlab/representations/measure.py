"""Representation vectors of a model on data: the passes, put together."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from fisherlab.collect.batches import masks_of
from fisherlab.collect.collector import Collector
from fisherlab.errors import InputError
from fisherlab.exact.options import ReadingOptions, completed, takes
from fisherlab.layers import Layers, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood
from fisherlab.representations.gradients import DRAWS, OutputGradients
from fisherlab.representations.marginals import Marginals
from fisherlab.representations.result import Representations
from fisherlab.representations.tables import LayerFacts, tables
from fisherlab.runs.origin import Origin


@takes(ReadingOptions)
def represent(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    layers: "Layers | Iterable[str] | str | None" = None,
    *,
    about: Origin | None = None,
    on_start: Callable[[], None] | None = None,
    **options: Unpack[ReadingOptions],
) -> Representations:
    """How layers' representation vectors are distributed, and whether layer-wise sampling may take M for I.

    *Marginals* (figure 6 of Liu et al. 2024): for every layer the inputs a_{l−1}, the outputs s and, where an
    element-wise φ alone takes s, the activated outputs φ(s), over all samples and positions: moments of every
    coordinate and of the norms, their distance from a normal distribution, for norms also from a scaled chi
    distribution. They do not test the assumption.

    *The assumption* p(a_l ∣ a_{l−1}) = N(φ(s), I) (the same paper, section 3.1): layer-wise sampling puts I
    in the place of each sample's M = Σ_t Σ_c q qᵀ, where q is what comes back to φ(s) from a column of the
    output Hessian's root. `Isotropy` says how close M is to a multiple of I.

    The data are read three times: for moments; for histograms and the values that are tested; for gradients.
    Memory does not grow with them, save for at most 1,000 vectors of each kind that are kept for the tests.
    Where torch.distributed is up, every process takes a share of the samples, and all have the same result.

    Args:
        model: the network; in evaluation mode during the call, and unchanged by it.
        data: `(inputs, targets)` tensors, or an iterable of such batches that can be read several times.
        likelihood: what the outputs mean.
        layers: names, globs, or `find_layers(...)`; None: all. Norms and parameters by
            themselves are left out: they have no vector s.
        about: what the tables call the model, the data, the checkpoint and the seed.
        on_start: called before the work, when the arguments have been accepted.
        **options: of reading the data, see `ReadingOptions`.

    Returns:
        A `Representations`: `.moments`, `.histograms`, `.assumption`, `.layers`, `.table()`, `.save(folder)`.

    Raises:
        InputError: for an unknown name, data that do not fit the model or can be read only once, or no layer
            with a representation vector.
        NumericalError: where the model's output is not finite.
    """
    given = completed(ReadingOptions, options, "represent")
    chosen = select_layers(model, layers, given["exclude"], masks=masks_of(data))
    names = [name for name, view in chosen.items() if view.weight is not None and not view.vector]
    if not names:
        raise InputError(
            "the layers chosen are norms, biases or parameters by themselves, which have no representation "
            "vector"
        )
    collector = Collector(
        model,
        chosen.select(names),
        data,
        as_likelihood(likelihood),
        draws=DRAWS,
        output=given["output"],
        batch_dim=given["batch_dim"],
        generator=given["generator"],
        strict=given["strict"],
    )
    collector.leave_out(
        {
            name: f"it has no representation vectors; it is {collector.remarks[name]}"
            for name, view in collector.layers.items()
            if view.by_gradients
        }
    )
    collector.tell()
    names = list(collector.layers)
    samples = collector.batches.count()
    if samples is None:
        raise InputError("the data can be read only once; give tensors, a list of batches or a DataLoader")
    start, stop = collector.share()
    mine = range(start, samples if stop is None else stop)
    if on_start is not None:
        on_start()
    draws = collector.generators().ready("values", lambda n, generator: None)
    order = torch.randperm(samples, generator=draws, device="cpu")
    marginals = Marginals(collector, order, mine, draws, given["progress"])
    gradients = OutputGradients(collector, order, mine, given["progress"])
    about = replace(about or Origin.given(model, data), output=collector.outputs.taken)
    device, dtype = str(collector.device), str(collector.dtype).removeprefix("torch.")
    facts = [_facts(name, collector, samples, marginals, gradients) for name in names]
    return Representations(
        **tables(facts, about, device, dtype),
        about=about,
        device=device,
        samples=samples,
        left_out=collector.layers.left_out,
    )


def _facts(
    name: str, collector: Collector, samples: int, marginals: Marginals, gradients: OutputGradients
) -> LayerFacts:
    """What was measured of a layer."""
    view = collector.layers[name]
    return LayerFacts(
        name=name,
        module=view.family,
        activation=collector.activations[name].name,
        outputs=view.outputs,
        positions=collector.sizes.positions[name],
        samples=samples,
        vectors=marginals.of(name),
        isotropy=gradients.isotropies[name],
        columns=gradients.columns,
        labels=gradients.labels,
        note=gradients.why_none(name),
    )
