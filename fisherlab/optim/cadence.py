"""What is due when, and whether all processes agree on it."""

from collections.abc import Iterable, Mapping, Sequence

from fisherlab.base import distributed
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.errors import InputError
from fisherlab.likelihoods.labels import DRAWN, EMPIRICAL, LabelKind
from fisherlab.optim.preconditioner import LayerPreconditioner, Observation
from fisherlab.optim.settings import Options


class Cadence:
    """Counts steps, and says what the next one needs.

    Args:
        options: see `Options`.
        blocks: by layer.
        kind: the labels of the statistics.

    Attributes:
        count: the steps so far.
        checks: whether the next step is looked at as a first one is.
    """

    def __init__(self, options: Options, blocks: Mapping[str, LayerPreconditioner], kind: LabelKind) -> None:
        self.count, self.checks = 0, True
        self._options, self._blocks, self._kind = options, blocks, kind
        two_pass = any(block.method.two_pass for block in blocks.values())
        self._meets = two_pass or kind == DRAWN or kind.draws > 0  # with others in a pass

    @property
    def statistics(self) -> bool:
        """Whether the statistics of all layers are due."""
        return self.count % self._options.statistics_every == 0

    @property
    def inverses(self) -> bool:
        """Whether new inverses are due."""
        return self.count % self._options.inverse_every == 0

    @property
    def looks_closely(self) -> bool:
        """Whether gradients are compared with samples' parts: in first steps, and for statistics of them."""
        return self.checks or (self._kind == EMPIRICAL and self.statistics)

    def listens(self, refresh: bool) -> bool:
        """Whether gradients of outputs are wanted of a pass, which is one that gives statistics or not."""
        return self._options.layerwise or (refresh and self._kind == EMPIRICAL)

    def refreshes(self, names: Iterable[str]) -> bool:
        """Whether a forward pass with these layers is to give statistics."""
        wanting = {name for name, block in self._blocks.items() if self._wants(block)}
        if wanting and self._meets and distributed.size() > 1:  # as in all processes, before they wait
            require_alike(list(names))
        return not wanting.isdisjoint(names)

    def observe(self, name: str, batch: LayerBatch, waiting: Iterable[Observation]) -> Observation:
        """What a batch says of a layer's statistics, of those that are due; see `LayerPreconditioner`."""
        block = self._blocks[name]
        sums, basis = self.sums_due(block), self.inverses or not block.bases
        return block.observe(batch, self._options.decay, sums=sums, basis=basis, waiting=waiting)

    def sums_due(self, block: LayerPreconditioner) -> bool:
        """Whether the sums of a layer are due."""
        return self.statistics or not block.known

    def inverse_due(self, block: LayerPreconditioner) -> bool:
        """Whether this step has an inverse of its own of a layer."""
        return block.known and (self.inverses or block.inverse is None or block.rescaled)

    def _wants(self, block: LayerPreconditioner) -> bool:
        """Whether statistics of a layer, or second moments in a new eigenbasis, are due."""
        return self.sums_due(block) or (self.inverses and block.wants_basis)


def require_alike(*layers: Sequence[str], own: int = 0) -> list[int]:
    """All processes' numbers; raises `InputError` in all where a layer took part in some of them only."""
    *every, numbers = zip(*distributed.gather_all((*layers, own)), strict=True)
    for found in every:
        some = set().union(*found).difference(set(found[0]).intersection(*found))
        if some:
            raise InputError(
                f"layer {min(some)!r} took part in this step in some processes only; use it in all of "
                "them, or leave it out with exclude="
            )
    return list(numbers)
