"""The same samples through a network at several checkpoints: a comparison at each of them."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from fisherlab import metrics
from fisherlab.approximations import DEFAULT_APPROXIMATIONS, Approximation
from fisherlab.arguments import Seed
from fisherlab.collect.batches import Batches
from fisherlab.comparison.measure import NO_DIVERGENCES, Target
from fisherlab.comparison.result import Comparison
from fisherlab.comparison.run import compare
from fisherlab.errors import FisherlabError, InputError
from fisherlab.exact.options import TraceOptions, completed, takes
from fisherlab.exact.plans import BlockPlan
from fisherlab.layers import Layers
from fisherlab.layers.checks import check_has_numbers, check_whole
from fisherlab.likelihoods import Likelihood
from fisherlab.models.checkpoints import Weights, check_weights, put_weights, read_weights
from fisherlab.models.loading import batch_norms, settle_norms
from fisherlab.models.seeding import seeded
from fisherlab.runs.origin import Origin
from fisherlab.traces.result import Traces

log = logging.getLogger("fisherlab")

_SETTLING = 512  # a choice: moments to some 4 %, 1/√512, in one forward pass
SETTLED = f"the batch norms had seen no data: they were given the moments of (at most {_SETTLING}) samples"


@dataclass(frozen=True)
class Checkpoint:
    """Weights at one moment of a training.

    Attributes:
        name: what tables and pictures call it.
        weights: a file (see `fisherlab.models.checkpoints`), or a state dict.
        step: the training step; None: unknown.
        sha256: of the file, where it is known; another one is refused.
    """

    name: str
    weights: str | Path | Mapping[str, Tensor]
    step: int | None = None
    sha256: str | None = None


@takes(TraceOptions)
def trace(
    model: nn.Module,
    data: Any,
    checkpoints: Iterable[Checkpoint] = (),
    approximations: Iterable[str | Approximation] | str | Approximation = DEFAULT_APPROXIMATIONS,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    *,
    seed: Seed = 0,
    spectra: bool = True,
    about: Origin | None = None,
    on_plan: Callable[[BlockPlan], None] | None = None,
    **options: Unpack[TraceOptions],
) -> Traces:
    """Tr F = (1/N) Σ_n Σ_c ‖V_{n,c}‖² and tr F̂ of every layer and approximation, at every checkpoint.

    The samples and the drawn labels are the same at each. A network whose batch norms have seen no data (an
    untrained one) gets their moments from the samples first: in evaluation mode it would be another network
    than the one that training starts from. Weights and buffers are those from before afterwards.

    Example:
        ``found = trace(model, (x, y), [Checkpoint("init", "init.safetensors", 0), …]); found.traces``

    Args:
        model: the network.
        data: `(inputs, targets)`, or an iterable of such batches that can be read again.
        checkpoints: in the order of the training; none: the model as it is.
        approximations: names or instances.
        likelihood: as for `compare`.
        kind: the labels of F.
        layers: names, globs, or `find_layers(...)`; None: all.
        seed: of the drawn labels.
        spectra: whether to compute F's eigenvalues, for its effective rank and condition number.
        about: names of model and data; checkpoint and step are filled in.
        on_plan: called with each layer's plan before the work at the first checkpoint.
        **options: of the comparisons, see `TraceOptions`.

    Returns:
        A `Traces`: `.traces`, `.diagnostics`, `.stages`, `.save(directory)`.

    Raises:
        InputError: for an unknown name, data or weights that do not fit the model, or two checkpoints of one
            name.
        MemoryLimitError: where not even the Gram form of a block fits the limit.
    """
    given = completed(TraceOptions, options, "trace")
    found = list(checkpoints)
    _check_names(found)
    check_whole(model)

    spectrum: dict[str, _Summary] = {}  # of each layer's F at the checkpoint at hand

    def add_spectrum(layer: str, target: Target) -> None:
        spectrum[layer] = _spectrum(target)

    def compared(first: bool) -> Comparison:
        return compare(
            model,
            data,
            approximations,
            likelihood,
            kind,
            layers,
            spectra=False,
            about=about,
            on_plan=on_plan if first else None,
            on_target=add_spectrum if spectra else None,
            generator=torch.Generator().manual_seed(seed),
            **given,
        )

    parts: list[pd.DataFrame] = []
    left_out: dict[str, str] = {}
    with _kept(model):
        if not found:
            settled = _settled(model, data, seed)
            last = compared(first=True)
            left_out |= last.layers.left_out
            parts.append(_records(last, spectrum, SETTLED if settled else ""))
        for place, checkpoint in enumerate(found):
            log.info("checkpoint %d of %d: %s", place + 1, len(found), checkpoint.name)
            weights_hash = _load(model, checkpoint)
            settled = _settled(model, data, seed)
            last = compared(first=not place)
            left_out |= last.layers.left_out
            last.about = replace(
                last.about, checkpoint=checkpoint.name, step=checkpoint.step, checkpoint_hash=weights_hash
            )
            parts.append(_records(last, spectrum, SETTLED if settled else ""))
    return Traces(
        records=pd.concat(parts, ignore_index=True),
        about=last.about,
        device=last.device,
        best=last.summary()["layers"],
        left_out=left_out,
    )


def _check_names(checkpoints: Sequence[Checkpoint]) -> None:
    names = [checkpoint.name for checkpoint in checkpoints]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"more than one checkpoint is called {twice[0]!r}; give each a name of its own")


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Puts weights, buffers and modes back."""
    before = copy.deepcopy(model.state_dict())
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        model.load_state_dict(before)
        for module, training in modes.items():
            module.training = training


def _load(model: nn.Module, checkpoint: Checkpoint) -> str | None:
    """Puts the weights into the model; returns the sha256 of their file."""
    if isinstance(checkpoint.weights, Mapping):
        check_weights(model, checkpoint.weights, checkpoint.name)
        model.load_state_dict(checkpoint.weights)
        return None
    weights = read_file(checkpoint.weights, checkpoint.sha256)
    put_weights(model, weights, checkpoint.weights)
    return weights.sha256


def read_file(path: str | Path, sha256: str | None) -> Weights:
    """Weights from a file that has this sum, where one is known.

    Raises:
        InputError: where the file is missing or damaged.
    """
    weights = read_weights(path)
    if sha256 not in (None, weights.sha256):
        raise InputError(f"the checkpoint {str(path)!r} is damaged: its sha256 is not the one in the index")
    return weights


def _settled(model: nn.Module, data: Any, seed: int) -> bool:
    """Gives batch norms that have seen no data the moments of the first samples; whether there are such."""
    check_has_numbers(model)
    counts = [norm.num_batches_tracked for norm in batch_norms(model)]
    seen = [count for count in counts if count is not None]
    if not seen or any(int(count) for count in seen):
        return False
    inputs, _ = Batches(data).first(_SETTLING)
    return seeded(lambda: settle_norms(model, inputs), seed)


def _records(comparison: Comparison, spectrum: Mapping[str, "_Summary"], note: str) -> pd.DataFrame:
    """The comparison's records, with the summaries of F's spectrum and whether the target is the main one.

    A trace has no divergences at all; its table and page say so, not every row.
    """
    table = comparison.records
    main = {name: one.kind for name, one in comparison.results.items()}
    found = {name: spectrum.get(name, _Summary()) for name in main}
    table = table.assign(
        main=table["target"] == table["layer"].map(main),
        effective_rank=table["layer"].map({name: one.rank for name, one in found.items()}),
        condition=table["layer"].map({name: one.condition for name, one in found.items()}),
    )
    extra = table["layer"].map({name: _joined(note, one.note) for name, one in found.items()})
    own = (
        table["note"].fillna("").str.split("; ").map(lambda parts: [p for p in parts if p != NO_DIVERGENCES])
    )
    return table.assign(note=[_joined(*parts, more) for parts, more in zip(own, extra, strict=True)])


class _Summary(NamedTuple):
    """Effective rank and condition number of F at the damping of the rows, or why they are not known."""

    rank: float = math.nan
    condition: float = math.nan
    note: str = ""


def _spectrum(target: Target) -> _Summary:
    try:
        target.check_memory()
        found = metrics.spectrum(target.exact, target.damping)
    except (FisherlabError, torch.linalg.LinAlgError) as error:
        return _Summary(note=f"no spectrum: {error}")
    return _Summary(found.effective_rank, found.condition)


def _joined(*notes: Any) -> str:
    return "; ".join(note for note in notes if isinstance(note, str) and note)
