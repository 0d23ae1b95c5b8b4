"""One layer of an optimizer: moving averages of its statistics, and the inverse made of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fisherlab.approximations import Approximation, basis_of, build_operator
from fisherlab.base import distributed
from fisherlab.collect.batches import is_finite
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.damping import Constant, Damping, FactoredDamping
from fisherlab.errors import NotSupportedError, NumericalError
from fisherlab.layers import LayerView
from fisherlab.linalg.factors import factor_diagonal
from fisherlab.operators import KroneckerOperator, LinearOperator, blocks_of
from fisherlab.operators.stored import Tensors, condition_of, operator_of, tensors_of
from fisherlab.optim.cautions import lost
from fisherlab.statistics import Basis, LayerSums, Statistic

NUMBERS = ("trace_input", "trace_output", "damping_input", "damping_output")


@dataclass
class Observation:
    """What one forward pass says of a layer's statistics; it waits until the pass counts.

    Attributes:
        samples: N; 0 where no sums were due.
        positions: how many positions counted.
        sums: by key of the statistic.
        bases: the eigenbasis of `rotated`.
        fresh: whether the basis was made for this step.
        rotated: second moments in the eigenbasis.
        rotated_samples: N of those.
    """

    samples: int = 0
    positions: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    bases: dict[str, Basis] = field(default_factory=dict)
    fresh: bool = False
    rotated: dict[str, Tensor] = field(default_factory=dict)
    rotated_samples: int = 0


@dataclass
class LayerPreconditioner:
    """A layer's statistics and preconditioner.

    Attributes:
        view: the layer.
        method: the approximation.
        kind: the labels of its statistics.
        root: 1: D = F̂_λ⁻¹∇h; 2: D = F̂_λ^{-1/2}∇h.
        average: moving averages of the sums a sample, by key of the statistic.
        positions: the moving average of T.
        bases: the eigenvectors of a method with two passes.
        inverse: the damped inverse, or its root, in use.
        numbers: `NUMBERS` of the F̂ that it is of, 0-d.
        lost: whether it was made here, and has no correct digits.
    """

    view: LayerView
    method: Approximation
    kind: str
    root: int = 1
    average: dict[str, Tensor] = field(default_factory=dict)
    positions: float = 0.0
    bases: dict[str, Basis] = field(default_factory=dict)
    inverse: LinearOperator | None = None
    numbers: dict[str, Tensor] = field(default_factory=dict)
    lost: bool = False
    _new: dict[str, Tensor] = field(init=False, repr=False)
    _new_rotated: dict[str, Tensor] = field(init=False, repr=False)
    _samples: int = field(init=False, repr=False)
    _positions: int = field(init=False, repr=False)
    _fresh_basis: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Starts anew."""
        self._clear()
        self.average, self.positions, self.bases = {}, 0.0, {}
        self.inverse, self.numbers = None, {}
        self._stale = True

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The sums that the method reads; those in an eigenbasis apart."""
        return self.method.statistics(self.view.group, self.kind)

    @property
    def wants_basis(self) -> bool:
        """Whether the averages have changed since the eigenbasis was made."""
        return self.method.two_pass and self._stale

    @property
    def rescaled(self) -> bool:
        """Whether second moments in the eigenbasis came, which need no new inverse of the factors."""
        return self._rotated_samples > 0

    @property
    def observed(self) -> bool:
        """Whether there is something to be averaged in."""
        return bool(self._samples or self._rotated_samples)

    @property
    def known(self) -> bool:
        """Whether there are statistics."""
        return bool(self.average or self._new)

    # --- statistics -------------------------------------------------------------------------------

    def observe(
        self, batch: LayerBatch, decay: float, *, sums: bool, basis: bool, waiting: Iterable[Observation] = ()
    ) -> Observation:
        """What a batch says of the statistics; nothing changes before it is counted.

        Args:
            batch: the layer's inputs and g.
            decay: the weight of the old average.
            sums: whether the statistics are due.
            basis: whether a new eigenbasis is due.
            waiting: the observations that may still count in this step; their eigenbasis is shared.
        """
        found = Observation()
        if sums:
            found.samples, found.positions = batch.samples, batch.positions
            for statistic in self.statistics:
                _add(found.sums, statistic.key, statistic(batch))
        if not self.method.two_pass:
            return found
        shared = next((one.bases for one in waiting if one.fresh), None)
        if shared is not None and not self._fresh_basis:
            found.bases, found.fresh = shared, True
        elif basis and (self._stale or sums) and not self._fresh_basis:
            found.bases = self._basis_with(found, decay)
            found.fresh = bool(found.bases)
        found.bases = found.bases or self.bases
        if found.bases:
            found.rotated_samples = batch.samples
            rotated = LayerSums(bases=found.bases).rotated(self.method.name, self.kind)
            _add(found.rotated, rotated.key, rotated(batch))
        return found

    def count(self, found: Observation, *, keep: bool = False) -> None:
        """Adds an observation to what is to be averaged in this step.

        Second moments in another eigenbasis than the one in use are left out, with their samples.

        Args:
            found: of a forward pass that counts.
            keep: whether it may be counted again, in the place of this time.
        """
        if found.samples:
            self._samples += found.samples
            self._positions += found.positions
            for key, value in found.sums.items():
                _add(self._new, key, value.clone() if keep else value)
            self._stale = True
        if found.bases and found.bases is not self.bases and not self._fresh_basis:
            self._last_bases, self.bases = self.bases, found.bases
            self._fresh_basis, self._stale = True, False
            self._new_rotated.clear()
            self._rotated_samples = 0
        if found.rotated_samples and found.bases is self.bases:
            self._rotated_samples += found.rotated_samples
            for key, value in found.rotated.items():
                _add(self._new_rotated, key, value.clone() if keep else value)

    def average_in(self, decay: float, total: int) -> None:
        """Moves the averages by what was observed since the last time, if anything was.

        Args:
            decay: the weight of the old average.
            total: the samples of the step, of which only some may have come through the layer.
        """
        if not self.observed:
            return
        sums = self._sums(decay, total)
        self.average, self.positions = sums.values, float(sums.positions)
        self._clear()

    @staticmethod
    def add_up(blocks: "Iterable[LayerPreconditioner]") -> None:
        """What all processes observed in these layers, in each of them."""
        blocks = [block for block in blocks if block.observed]
        if not blocks:
            return
        own = [(block._samples, block._positions, block._rotated_samples) for block in blocks]
        for block, *counts in zip(blocks, *distributed.gather_all(own), strict=True):
            totals = [sum(count) for count in zip(*counts, strict=True)]
            block._samples, block._positions, block._rotated_samples = totals
        for block in blocks:
            for sums in (block._new, block._new_rotated):
                distributed.add_up([sums[key] for key in sorted(sums)])

    def invert(self, damping: Damping, decay: float, total: int) -> None:
        """The damped inverse, with what was observed in this step counted in; arguments as of `average_in`.

        Raises:
            NumericalError: where the statistics are not finite, or cannot be inverted; names the layer.
            NotSupportedError: where F̂ cannot be damped so, or its inverse is of an unknown structure.
        """
        sums = self._sums(decay, total)
        if not _all_finite(sums):
            raise NumericalError(
                f"the statistics of layer {self.view.name!r} are not finite; lower the learning rate or "
                "check the data"
            )
        try:
            operator = build_operator(self.method, self.view, sums, self.kind)
            inverse = operator.inverse(damping) if self.root == 1 else operator.power(-0.5, damping)
            tensors_of(inverse)  # refuses one that no state could keep
            self.inverse, self.numbers, self.lost = (
                inverse,
                _numbers(operator, damping),
                lost(operator, inverse),
            )
        except (NotSupportedError, NumericalError) as error:
            raise type(error)(f"layer {self.view.name!r}: {error}") from error

    def _basis_with(self, found: Observation, decay: float) -> dict[str, Basis]:
        """The eigenbasis of the averages with an observation of all processes; none if not finite."""
        new = dict(found.sums)
        for key, value in self._new.items():
            new[key] = value + new[key] if key in new else value
        samples, positions = self._samples + found.samples, self._positions + found.positions
        if distributed.size() > 1:
            new = {key: value.clone() for key, value in new.items()}
            counts = zip(*distributed.gather_all((samples, positions)), strict=True)
            samples, positions = (sum(count) for count in counts)
            distributed.add_up([new[key] for key in sorted(new)])
        moved = self._moved_by(new, samples, positions, decay)
        sums = LayerSums(1, moved[1], moved[0], self.bases)  # type: ignore[arg-type]
        return (
            {self.method.name: basis_of(self.method, self.view, self.kind, sums)} if _all_finite(sums) else {}
        )

    def _sums(self, decay: float, total: int) -> LayerSums:
        """The averages with this step's observations, as the sums of one sample."""
        samples = total if self._samples else 0
        values, positions = self._moved_by(self._new, samples, self._positions, decay)
        if self._rotated_samples:
            weight = 0.0 if self._fresh_basis else decay
            seen = max(self._samples, self._rotated_samples)
            count = self._rotated_samples * total / seen
            for key, value in self._new_rotated.items():
                values[key] = _moved(self.average.get(key), value / count, weight)
        return LayerSums(1, positions, values, self.bases)  # type: ignore[arg-type]

    def _moved_by(
        self, new: Mapping[str, Tensor], samples: int, positions: int, decay: float
    ) -> tuple[dict[str, Tensor], float]:
        """The averages of the sums and of T, moved by sums over so many samples."""
        values = dict(self.average)
        if not samples:
            return values, self.positions
        values |= {key: _moved(self.average.get(key), value / samples, decay) for key, value in new.items()}
        return values, _moved(self.positions or None, positions / samples, decay)

    def rescale(self, factor: float) -> None:
        """As if g had been a multiple of what was observed since the last step."""
        keys = [statistic.key for statistic in self.statistics if statistic.kind is not None]
        for sums in ({key: self._new[key] for key in keys if key in self._new}, self._new_rotated):
            for value in sums.values():
                value.mul_(factor**2)

    def drop(self) -> None:
        """Forgets what was observed since the last step."""
        if self._fresh_basis:
            self.bases, self._stale = self._last_bases, True
        if not self.average:
            self.inverse, self.numbers = None, {}
        self._clear()

    def _clear(self) -> None:
        self._new, self._new_rotated = {}, {}
        self._samples = self._positions = self._rotated_samples = 0
        self._fresh_basis, self._last_bases = False, {}

    # --- state ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What goes into a state_dict, as plain numbers and tensors."""
        return {
            "average": dict(self.average),
            "positions": self.positions,
            "basis": _encoded(self.bases.get(self.method.name, ())),
            "inverse": [_encoded(block) for block in self.inverse_tensors()],
            "numbers": torch.stack([self.numbers[key] for key in NUMBERS]) if self.numbers else _NOTHING,
            "stale": self._stale,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave; what was observed since the last step is forgotten."""
        self._clear()
        self.average, self.positions = dict(state.get("average", {})), state["positions"]
        basis = _decoded(state.get("basis", ()))
        self.bases = {self.method.name: (basis[0], basis[1])} if basis else {}
        numbers = state.get("numbers", _NOTHING)
        named = numbers if isinstance(numbers, Mapping) else dict(zip(NUMBERS, numbers, strict=False))
        self.load_inverse([_decoded(block) for block in state.get("inverse", ())], named)
        self._stale = state["stale"]

    def why_not(self, state: Mapping[str, Any]) -> str:
        """Why a state cannot be one of this layer, or an empty text."""
        if not isinstance(state.get("positions"), (int, float)) or not isinstance(state.get("stale"), bool):
            return "the counts are missing"
        known = {statistic.key: statistic.numbers(self.view) for statistic in self.statistics}
        average = state.get("average", {})
        if not isinstance(average, Mapping) or not all(isinstance(v, Tensor) for v in average.values()):
            return "the statistics are missing"
        if state.get("inverse") and not average:
            return "the statistics are missing"
        if average and not known.keys() <= average.keys():
            return "the statistics are those of another method"
        wrong = [key for key, count in known.items() if average and average[key].numel() != count]
        return f"the statistic {wrong[0]!r} has another size" if wrong else ""

    def inverse_tensors(self) -> Tensors:
        """The tensors of the inverse, a list a group; none without an inverse."""
        return [] if self.inverse is None else tensors_of(self.inverse)

    def load_inverse(
        self, tensors: Tensors, numbers: Mapping[str, Tensor], device: torch.device | None = None
    ) -> None:
        """The inverse from its tensors, with its numbers."""
        self.numbers = {key: value.to(device) for key, value in numbers.items()}
        self.inverse = operator_of(tensors, device) if tensors else None

    def on_cpu(self) -> tuple[Tensors, dict[str, Tensor]]:
        """What `load_inverse` takes, on the CPU: other processes have other devices."""
        tensors = [[None if t is None else t.cpu() for t in block] for block in self.inverse_tensors()]
        return tensors, {key: value.cpu() for key, value in self.numbers.items()}

    @property
    def condition(self) -> float:
        """The condition number of the damped F̂ that the inverse is of: the mean over groups."""
        return math.nan if self.inverse is None else condition_of(self.inverse) ** self.root


_NOTHING = torch.empty(0)  # what is not there, in a state that keeps tensors alone


def _encoded(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [_NOTHING if tensor is None else tensor for tensor in tensors]


def _decoded(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None or tensor.shape == (0,) else tensor for tensor in tensors]


def _all_finite(sums: LayerSums) -> bool:
    return all(map(is_finite, sums.values.values()))


def _numbers(operator: LinearOperator, damping: Damping) -> dict[str, Tensor]:
    """Traces of the factors and their damping, 0-d: means over groups."""
    parts = [_numbers_of(block, damping) for block in blocks_of(operator)]
    return dict(zip(NUMBERS, torch.stack(parts).mean(0), strict=True))


def _numbers_of(operator: LinearOperator, damping: Damping) -> Tensor:
    """`NUMBERS` of one group; those of the output are NaN where F̂ is not damped factor by factor."""
    if isinstance(operator, KroneckerOperator) and isinstance(damping, FactoredDamping):
        A, B = (factor_diagonal(factor).sum() for factor in (operator.A, operator.B))
        return torch.stack([A, B, *damping.factors(A, operator.inputs, B, operator.outputs)])
    assert isinstance(damping, Constant)
    trace = operator.trace().to(operator.dtype)
    none = torch.full_like(trace, math.nan)
    return torch.stack([trace, none, torch.full_like(trace, damping.value), none])


def _add(sums: dict[str, Tensor], key: str, term: Tensor) -> None:
    known = sums.get(key)
    sums[key] = term if known is None else known.add_(term)


def _moved(old: Any, new: Any, decay: float) -> Any:
    """The average decay · old + (1 − decay) · new; the first value as it is."""
    return new if old is None else decay * old + (1 - decay) * new
