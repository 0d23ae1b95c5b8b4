"""What came for one step, and what was made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fisherlab.errors import InputError


@dataclass
class Step:
    """What a layer's part in the next step is made of.

    Attributes:
        direction: D [m, d].
        gradient: ⟨D, ∇h⟩, 0-d.
        length: ⟨D, F̂ D⟩ with the damped F̂, 0-d: ⟨D, what D was made of⟩.
        squares: (1/N) Σ_n ⟨D, ∇ℓ_n⟩², 0-d; None for a fixed rate.
        driven: what D was made of, where momentum is on the gradient.
        norms: ‖D‖ and ‖∇h‖.
    """

    direction: Tensor
    gradient: Tensor
    length: Tensor
    squares: Tensor | None = None
    driven: Tensor | None = None
    norms: Sequence[Tensor] = ()


@dataclass
class Turn:
    """All that belongs to one step; it is forgotten as a whole.

    Attributes:
        number: tells it from others.
        samples: N: how many samples came back.
        total: N in all processes, once they have met.
        scale: by which the `GradScaler` multiplied the loss.
        fresh: whether gradients came.
        came: the parameters whose gradients came.
        versions: how often each of those had been written then.
        arrived: by layer the parameters whose gradients came, until they are complete.
        before: by layer the gradient that was there before.
        backwards: the backward passes through passes that count.
        groups: of samples that count: their number, N and layers.
        groups_of: by layer those whose gradient came to it.
        counts: by layer N when its gradient was complete; see `StepMaker`.
        through: by layer the samples that came through it.
        prepared: the layers with an inverse of this step.
        ready: by layer the step that was made as its gradient came.
        gaps: by layer Σ_n ⟨D, ∇ℓ_n⟩/N, what it should be, what enters it, and how far it may be from it.
        loss: of the first pass that tells it, by what the loss's gradient at the outputs is a multiple of one
            sample's, the samples, and the entries of the outputs that have labels.
        refusal: what `step()` is to raise.
    """

    number: int
    samples: int = 0
    total: int | None = None
    scale: float = 1.0
    fresh: bool = False
    came: set[str] = field(default_factory=set)
    versions: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, set[str]] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    backwards: set[int] = field(default_factory=set)
    groups: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)
    groups_of: dict[str, set[int]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    through: dict[str, int] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    ready: dict[str, Step] = field(default_factory=dict)
    gaps: dict[str, tuple[tuple[Tensor, Tensor, Tensor], float]] = field(default_factory=dict)
    loss: tuple[float, int, int] | None = None
    refusal: InputError | None = None

    def leave_out(self, name: str) -> None:
        """Forgets what was made for a layer."""
        by_layer: tuple[dict[str, Any], ...] = (
            *(self.arrived, self.before, self.groups_of, self.counts, self.through),
            *(self.ready, self.gaps),
        )
        for kept in by_layer:
            kept.pop(name, None)
        self.prepared.discard(name)
