"""The gradients that optimizers see: √B times the mean gradient of disjoint batches of B samples."""

import torch
from torch import Tensor

from fisherlab.base import distributed
from fisherlab.base.memory import limit
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.errors import FisherlabError, InputError, MemoryLimitError, bytes_text
from fisherlab.gradients.inputs import Inputs, OneHot, sample_gradients
from fisherlab.likelihoods.labels import EMPIRICAL
from fisherlab.operators import GramOperator, LinearOperator, joined

_PART = 4  # of the memory limit, which the gradients of all batches may take: a choice


class BatchGradients:
    """Sums of ∇ℓ_n over samples kB to kB + B − 1 in the order of the data, for every k.

    A last batch of fewer samples is left out. With V = √B × the mean gradient of a batch, E[vec(V) vec(V)ᵀ]
    is the covariance of the samples' gradients plus B ḡḡᵀ, in expectation over draws of the data.

    Args:
        size: B.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._samples = 0
        self._parts: list[tuple[int, list[Tensor]]] = []  # the first k, and of every group [batches, m, d]
        self._wrong: FisherlabError | None = None
        self._block: LinearOperator | None = None

    def add(self, batch: LayerBatch) -> None:
        """Adds what a batch of the pass holds of the data's own labels."""
        if EMPIRICAL not in batch.g or self._wrong is not None:
            return
        self._samples += batch.samples
        held = sum(part.nbytes for _, parts in self._parts for part in parts)
        width = sum(part.a.shape[2] * part.g[EMPIRICAL].shape[3] for part in batch.parts)
        held += 8 * width * (batch.samples // self.size + 2)
        if held > limit() // _PART:
            self._parts.clear()
            self._wrong = MemoryLimitError(
                f"the gradients of batches of {self.size} samples need {bytes_text(held)} and more, above a "
                "quarter of the memory limit; take larger batches, fewer samples or a larger limit"
            )
            return
        stop, start = batch.start + batch.samples, batch.start
        while start < stop:
            within = start % self.size
            whole = 0 if within else (stop - start) // self.size
            taken = whole * self.size or min(self.size - within, stop - start)
            own = slice(start - batch.start, start - batch.start + taken)
            gradients = [_summed(part.a[own], part.g[EMPIRICAL][:, own], whole or 1) for part in batch.parts]
            self._parts.append((start // self.size, gradients))
            start += taken

    def block(self) -> LinearOperator:
        """E[vec(V) vec(V)ᵀ] over the whole batches, as a Gram operator; one a group.

        Raises:
            InputError: where there are fewer than B samples.
            MemoryLimitError: where the gradients do not fit.
        """
        if self._block is None:
            self._block = self._made()
        return self._block

    def over_processes(self) -> None:
        """What all processes added, in each of them."""
        if distributed.size() == 1:
            return
        everyone = distributed.gather_all((self._samples, self._parts, self._wrong))
        self._samples = sum(samples for samples, _, _ in everyone)
        self._parts = [part for _, parts, _ in everyone for part in parts]
        self._wrong = next((wrong for _, _, wrong in everyone if wrong is not None), None)

    def _made(self) -> LinearOperator:
        if self._wrong is not None:
            raise self._wrong
        check_size(self.size, self._samples)
        batches = self._samples // self.size
        blocks = []
        for group in range(len(self._parts[0][1])):
            first = self._parts[0][1][group]
            total = first.new_zeros(batches + 1, *first.shape[1:])  # the last is of a batch that is not whole
            for place, parts in self._parts:
                total[place : place + len(parts[group])] += parts[group]
            blocks.append(_as_gram(total[:batches] / self.size**0.5))
        self._parts.clear()
        return joined(blocks)


def check_size(size: int, samples: int) -> None:
    """Raises `InputError` where there is no whole batch of so many samples."""
    if size > samples:
        raise InputError(f"gradients='batch:{size}' needs at least {size} samples, and there are {samples}")


def _summed(a: Inputs, g: Tensor, batches: int) -> Tensor:
    """Σ V over the samples of so many batches of one size, [batches, m, d], in float64."""
    positions = len(g[0]) // batches * g.shape[2]
    if isinstance(a, OneHot):
        a = OneHot(a.indices.reshape(batches, positions), a.size, torch.float64)
    else:
        a = a.reshape(batches, positions, a.shape[2]).double()
    g = g.sum(0).reshape(1, batches, positions, g.shape[3]).double()
    return sample_gradients(a, g)[:, 0]


def _as_gram(V: Tensor) -> GramOperator:
    """The Gram operator of matrices V [k, m, d]: a row of V, or a column, for each position."""
    k, m, d = V.shape
    side = torch.eye(min(m, d), dtype=V.dtype, device=V.device).expand(k, -1, -1)
    return GramOperator(V, side[None]) if m <= d else GramOperator(side, V.mT[None])
