"""One layer of a comparison: what it is compared by, and every number of it once its samples are read."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import torch

from fisherlab.approximations import (
    Approximation,
    Diagonal,
    NearestKronecker,
    Statistics,
    basis_of,
    build_from_block,
    build_operator,
    layer_work,
    why_not_built,
)
from fisherlab.comparison.measure import (
    NO_DIVERGENCES,
    Row,
    Target,
    dense_bytes,
    measure,
    measure_direction,
)
from fisherlab.comparison.population import PopulationEstimate, Refit, SampleGroup
from fisherlab.comparison.result import LayerResult
from fisherlab.comparison.targets import (
    layerwise_bytes,
    layerwise_operations,
    layerwise_target,
    left_out,
)
from fisherlab.errors import FisherlabError, MemoryLimitError, bytes_text
from fisherlab.exact.plans import BlockPlan
from fisherlab.layers import LayerView
from fisherlab.likelihoods.labels import LAYERWISE
from fisherlab.metrics import spectrum
from fisherlab.operators import LinearOperator
from fisherlab.statistics import LayerSums, SplitSums

T = TypeVar("T")

_LARGEST_DRAWN = 4096  # size of a block that pictures are drawn of, as large as spectra are made of
_LARGEST_REFITTED = 1024  # size of a block of which what is made from it is made again and again: a choice
_LAYERWISE_OPERATIONS = 2e12  # derived: twenty seconds a layer at 10¹¹ operations a second
# Measured for the diagonal of a block with 38.6 million entries: beside each operator, tensors of so many
# numbers in sums, errors, and what is fitted without some of the samples.
_ENTRY_COPIES = 5
_SMALL = 2**26  # 64 MiB, which a process may always take: a third of what it takes beside its limit
WATERFALL = ("nearest-kronecker", "kfac", "lngd-lr", "lngd")
"""The steps from the nearest Kronecker product to LNGD, measured whatever was asked for."""


class Fitted(NamedTuple):
    """A method's operators and the seconds that they took.

    Attributes:
        all: fitted on all samples.
        halves: fitted on each half, for the population error; none where it is not computed, or cannot be.
        refit: fits it on a half without some of its samples; None where that would take too long.
        seconds: for all of them.
        note: why there are none of the halves, where they were to be fitted.
    """

    all: LinearOperator
    halves: Sequence[LinearOperator]
    refit: Refit | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class LayerTask:
    """What is measured of one layer.

    Attributes:
        view: the layer.
        plan: how its exact block is computed.
        positions: T.
        identity: whether its activation is the identity, of which the layer-wise Fisher is A ⊗ I.
        asked: the methods of its records.
        extra: further ones, of the waterfall alone.
        memory: the limit in bytes.
        spectra: whether to compute eigenvalues.
        statistics: where the approximations come from; None: from the samples of the exact block.
    """

    view: LayerView
    plan: BlockPlan
    positions: int
    identity: bool
    asked: Sequence[Approximation]
    extra: Sequence[Approximation]
    memory: int
    spectra: bool
    statistics: Statistics | None

    @property
    def methods(self) -> list[Approximation]:
        """The methods of the records and the waterfall."""
        return [*self.asked, *self.extra]

    @property
    def aims_at_layerwise(self) -> bool:
        """Whether a method is compared with the layer-wise Fisher too."""
        return any(method.layerwise and method.fits(self.view) for method in self.asked)

    @property
    def room(self) -> int:
        """Bytes for dense matrices, beside the block itself."""
        return self.memory - self.plan.bytes

    def bytes_beside(self, kept: int) -> int:
        """What its measurement takes beside what its pass gathered: `kept` bytes of samples, and sums."""
        found = layerwise_bytes(self.view, self.identity) if self.aims_at_layerwise else 0
        found = 0 if self.why_no_layerwise else found
        if self.plan.method == "gram":
            return found + max(0, self.plan.bytes - kept)
        dense = dense_bytes(self.view.groups * self.view.group.size**2)
        return found + (dense if dense <= self.room and self.plan.kind != LAYERWISE else 0)

    @property
    def drawn(self) -> bool:
        """Whether pictures are drawn of its blocks, for which their operators are kept."""
        return self.view.size <= _LARGEST_DRAWN

    @cached_property
    def why_no_layerwise(self) -> str:
        """Why the layer-wise Fisher is out of reach, or an empty text."""
        needed = layerwise_bytes(self.view, self.identity)
        if needed > self.memory // 4:
            return (
                f"the layer-wise Fisher would need {bytes_text(needed)}, above a quarter of the memory limit"
            )
        positions = (self.plan.samples or 0) * self.positions
        operations = 0.0 if self.identity else layerwise_operations(self.view, positions)
        if operations > _LAYERWISE_OPERATIONS:
            return f"the layer-wise Fisher would take {operations:.1g} operations"
        return ""

    def measure(
        self, result: LayerResult, main: Target, gathered: SplitSums, report: Callable[[int], None]
    ) -> None:
        """All rows, spectra and steps of the waterfall, written into the result; `report` is told of each."""
        view = self.view
        layerwise = {target.name: target for target in self._layerwise_targets(main, gathered)}
        nearest = {name: _nearest_error(target) for name, target in layerwise.items()}
        methods = self.methods
        if not view.vector:
            result.waterfall = dict.fromkeys(WATERFALL)
        if self.spectra:  # first of all: it is the one eigendecomposition of F that all else takes
            result.curvature = _try(lambda: main.curvature.scale)
        exact = _try(partial(spectrum, main.exact)) if self.spectra and main.affordable else None
        if exact is not None:
            result.spectra["exact"] = exact.eigenvalues
        if self.drawn:
            result.operators["exact"] = main.exact
        yardstick_first = sorted(methods, key=lambda method: method.name != NearestKronecker.name)
        for done, method in enumerate(yardstick_first):
            report(done)
            if not method.matrix:
                row = measure_direction(main, method, view.groups, result.dtype)
                result.measured[method.name, main.name] = row
                continue
            if reason := why_not_built(method, view):
                if method in self.asked:
                    note = "; ".join((reason, *main.notes))
                    result.measured[method.name, main.name] = Row({"note": note})
                continue
            try:
                fitted = self._fitted(main, method, gathered)
                if method.name == NearestKronecker.name:
                    nearest[main.name] = _shape_error(main, fitted.all)
                if method in self.asked:
                    self._measure(result, main, layerwise, method, fitted, nearest)
            except (FisherlabError, torch.linalg.LinAlgError) as error:
                if method in self.asked:
                    note = "; ".join((f"not measured: {error}", *main.notes))
                    result.measured[method.name, main.name] = Row({"note": note})
                continue
            if method in self.asked:
                if exact is not None:
                    _add_spectrum(result, method.name, fitted.all)
                if self.drawn:
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
                target,
                fitted.all,
                fitted.halves or None,
                fitted.refit,
                nearest.get(target.name),
                spectra=spectra,
            )
            measured.values["seconds"] += fitted.seconds
            if target is not main:
                measured.add_note("divergences and joint step: against the main target alone")
            elif not self.spectra:
                measured.add_note(NO_DIVERGENCES)
            if self.statistics is not None and not (method.from_exact or self.view.vector):
                measured.add_note(f"approximation from saved statistics of {self.statistics.samples} samples")
            if method.batch:
                measured.add_note("no population error of what is made of whole batches")
            measured.add_note(fitted.note)
            measured.add_note(fitted.all.remark)
            result.measured[method.name, target.name] = measured
        aims = method.layerwise and main.name != LAYERWISE
        if aims and (reason := self.why_no_layerwise):
            result.measured[method.name, str(LAYERWISE)] = Row({"note": reason})

    def _layerwise_targets(self, main: Target, gathered: SplitSums) -> Iterator[Target]:
        wanted = self.aims_at_layerwise and main.name != LAYERWISE
        if wanted and not self.why_no_layerwise:
            target = layerwise_target(self.view, gathered, self.room, self.identity)
            yield replace(target, notes=[self.plan.remark] if self.plan.remark else [])

    def _fitted(self, main: Target, method: Approximation, gathered: SplitSums) -> Fitted:
        """The method's operator on all samples; if it is asked for, also on the two halves."""
        started, view = time.perf_counter(), self.view
        kind, halves = method.label_kind(self.plan.kind), main.halves
        wanted = method in self.asked
        refit: Refit | None = None
        makers: list[Callable[[], LinearOperator]]
        self._require_room(method, 1 + (len(halves.halves) if wanted and halves else 0))
        small = view.size <= _LARGEST_REFITTED
        if self.statistics is not None and not view.vector and not method.from_exact:
            makers = [partial(self.statistics.build_layer, method, view.name)]
        elif method.batch:
            makers = [partial(build_from_block, method, gathered.batches[method.batch].block())]
        elif method.from_exact:
            blocks = [main.exact, *(halves.halves if wanted and halves else [])]
            makers = [partial(build_from_block, method, block) for block in blocks]
            if halves and small:
                refit = partial(_from_block_without, method, halves)
        else:
            sums = gathered.each if wanted else (gathered.all,)
            makers = [partial(build_operator, method, view, one, kind) for one in sums]
            refit = partial(_refitted, method, view, gathered.halves, kind)
            if method.two_pass and halves and kind == self.plan.kind and view.groups == 1 and small:
                refit = partial(_rotated_again, method, view, gathered.halves, kind, halves)
        whole, note = makers[0](), ""
        try:
            fits = [make() for make in makers[1:]]
        except (FisherlabError, torch.linalg.LinAlgError) as error:
            fits, note = [], f"no population error: of half the samples {error}"
        return Fitted(whole, fits, refit, time.perf_counter() - started, note)

    def _require_room(self, method: Approximation, operators: int) -> None:
        """Raises `MemoryLimitError` where what a method is made of does not fit.

        One that is made from the exact block holds a matrix of each side at the least.
        """
        view = self.view
        numbers = view.groups * (view.inputs**2 + view.group.outputs**2)
        if not method.from_exact:
            numbers = layer_work(view, [method], self.plan.kind).numbers(view)
        needed = 8 * operators * (numbers + _ENTRY_COPIES * min(numbers, view.size))
        if needed > max(self.memory, _SMALL):
            raise MemoryLimitError(
                f"{method.name} would need {bytes_text(needed)}, more than the memory limit of "
                f"{bytes_text(self.memory)}"
            )

    def _scaled_error(
        self, result: LayerResult, main: Target, method: Approximation, fitted: Fitted
    ) -> float | None:
        measured = result.measured.get((method.name, main.name))
        if measured is not None:
            return measured.values.get("scaled_error")
        return _shape_error(main, fitted.all)


def of_vector(asked: Sequence[Approximation]) -> list[Approximation]:
    """The methods of a norm: those meant for vectors, and its block's diagonal whatever was asked for."""
    own = [method for method in asked if method.for_vectors and method.name != Diagonal.name]
    return [Diagonal(), *own]


def _refitted(
    method: Approximation, view: LayerView, halves: Sequence[LayerSums], kind: str, out: Sequence[SampleGroup]
) -> LinearOperator:
    """A method fitted on a half without groups of it."""
    return build_operator(method, view, left_out(halves, out), kind)


def _rotated_again(
    method: Approximation,
    view: LayerView,
    sums: Sequence[LayerSums],
    kind: str,
    halves: PopulationEstimate,
    out: Sequence[SampleGroup],
) -> LinearOperator:
    """The same of one with second moments: in the basis of the rest, from the exact block of the half."""
    rest, half = left_out(sums, out), out[0].half
    rest.bases = {method.name: basis_of(method, view, kind, rest)}
    rotated = rest.rotated(method.name, kind)
    total = halves.halves[half].diagonal_in_basis(*rest.bases[method.name]) * halves.counts[half]
    rest.values[rotated.key] = total - sum(rotated(group.sums.batch) for group in out)
    return build_operator(method, view, rest, kind)


def _from_block_without(
    method: Approximation, halves: PopulationEstimate, out: Sequence[SampleGroup]
) -> LinearOperator:
    """The same for one that is made from the exact block."""
    return build_from_block(method, halves.without(out))


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
