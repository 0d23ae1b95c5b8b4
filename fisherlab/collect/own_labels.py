"""Labels within a batch (`labels`, `label`): how the model that they are made for reads them.

By the convention of transformers a model that is given `labels` returns its own loss. A causal language
model's labels are its tokens, and the label of a position is the next token; others' are those of the
position itself; an encoder-decoder makes its decoder's inputs of them. The gradient of the loss tells which.
"""

import torch
from torch import Tensor, nn

from fisherlab.collect.batches import Batches, called, each
from fisherlab.collect.forms import OwnLabels
from fisherlab.collect.hooks import unchanged
from fisherlab.collect.outputs import LOSS, Outputs, parts_of
from fisherlab.errors import InputError
from fisherlab.likelihoods import Likelihood, TokenCategorical

_LOOKED_AT = 8  # samples: a choice, of which one has a label


def own_labels(batches: Batches, model: nn.Module, outputs: Outputs, likelihood: Likelihood) -> OwnLabels:
    """How labels within the batches are to be read.

    Args:
        batches: the data.
        model: the network.
        outputs: calls it.
        likelihood: what the outputs mean.

    Raises:
        InputError: where the model takes the inputs neither without their labels nor with them, or its own
            loss reads tokens in another way than the two that there are.
    """
    name = batches.own_labels()
    if name is None:
        return OwnLabels()
    inputs, labels = batches.first(_LOOKED_AT)
    assert isinstance(inputs, dict)
    assert labels is not None
    first = next(model.parameters())

    def moved(x: Tensor) -> Tensor:
        return x.to(device=first.device, dtype=first.dtype if x.is_floating_point() else None)

    inputs, labels = each(inputs, moved), moved(labels)
    with unchanged(model):
        try:
            called(model, inputs)
            kept = False
        except InputError:  # an encoder-decoder makes its decoder's inputs of them
            called(model, {**inputs, name: labels})
            kept = True
        try:
            returned = called(model, {**inputs, name: labels})
        except InputError:  # labels are no argument of it
            return OwnLabels()
        loss = (parts_of(returned) or {}).get(LOSS)
        if not isinstance(loss, Tensor) or not loss.requires_grad or loss.dim():
            return OwnLabels(kept=kept)
        return _read_by(loss, outputs.of(returned), labels, likelihood, kept=kept)


def _read_by(
    loss: Tensor, outputs: Tensor, labels: Tensor, likelihood: Likelihood, *, kept: bool
) -> OwnLabels:
    """How a model's own loss reads labels, by the gradient that it gives the outputs.

    Args:
        loss: the model's own.
        outputs: those that it was made of, with their graph.
        labels: of the batch.
        likelihood: what the outputs mean.
        kept: whether the model is called with them.

    Raises:
        InputError: where tokens are read in neither of the two ways.
    """
    if not isinstance(likelihood, TokenCategorical) or labels.dim() < 2 or not outputs.requires_grad:
        return OwnLabels(kept=kept)
    (own,) = torch.autograd.grad(loss, outputs, allow_unused=True)
    for shifted in (False, True) if own is not None else ():
        found = OwnLabels(shifted, kept)
        _, targets = found.split({"labels": labels, "": None})
        assert targets is not None
        likelihood.check(outputs.detach(), targets)
        if _is_multiple(own, likelihood.residual(outputs.detach(), targets)):
            return found
    raise InputError(
        "the model's own loss reads its labels neither as those of the positions nor as those of the next "
        "ones; give targets of the outputs' positions, as a pair (inputs, targets)"
    )


def _is_multiple(own: Tensor, residual: Tensor) -> bool:
    """Whether a gradient is a positive multiple of another, but for rounding."""
    own, residual = own.double().flatten(), residual.double().flatten()
    norms = torch.linalg.vector_norm(own) * torch.linalg.vector_norm(residual)
    return bool(own.isfinite().all() and norms > 0 and 1 - own @ residual / norms < 1e-4)
