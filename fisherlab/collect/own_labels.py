"""Labels within a batch (`labels`, `label`): how the model that they are made for reads them.

By the convention of transformers a model that is given `labels` returns its own loss. A causal language
model's labels are its tokens, and the label of a position is the next token; others' are those of the
position itself; an encoder-decoder makes its decoder's inputs of them. The gradient of the loss tells which.
"""

from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from fisherlab.base.precision import reference
from fisherlab.collect.batches import Batches, called, converted, each
from fisherlab.collect.forms import IGNORED, OwnLabels, tokens_in
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
    first = reference(model)
    move = partial(converted, dtype=first.dtype, device=first.device)
    inputs, labels = each(inputs, move), move(labels)
    with unchanged(model):
        try:
            called(model, inputs)
            kept = False
        except InputError:  # an encoder-decoder makes its decoder's inputs of them
            kept = True
        try:
            returned = called(model, {**inputs, name: labels})
        except InputError:
            if kept:
                raise
            return OwnLabels()  # labels are no argument of it
        loss = (parts_of(returned) or {}).get(LOSS)
        if not isinstance(loss, Tensor) or not loss.requires_grad or loss.dim():
            return OwnLabels(kept=kept)
        tokens = tokens_in(inputs, labels.shape, decoder=outputs.of_decoder)
        known = OwnLabels(kept=kept, of_decoder=outputs.of_decoder)
        return _read_by(loss, outputs.of(returned), labels, tokens, likelihood, known)


def _read_by(
    loss: Tensor,
    outputs: Tensor,
    labels: Tensor,
    tokens: Tensor | None,
    likelihood: Likelihood,
    known: OwnLabels,
) -> OwnLabels:
    """How a model's own loss reads labels, by the gradient that it gives the outputs.

    Args:
        loss: the model's own.
        outputs: those that it was made of, with their graph.
        labels: of the batch.
        tokens: where they are no padding, if a mask says so; the loss may know of it or not.
        likelihood: what the outputs mean.
        known: of the labels already.

    Raises:
        InputError: where tokens are read in neither of the two ways.
    """
    if not isinstance(likelihood, TokenCategorical) or labels.dim() < 2 or not outputs.requires_grad:
        return known
    (own,) = torch.autograd.grad(loss, outputs, allow_unused=True)
    counted = [labels] if tokens is None else [labels, labels.masked_fill(~tokens, IGNORED)]
    for shifted, read in product((False, True), counted) if own is not None else ():
        found = replace(known, shifted=shifted)
        _, targets = found.split({"labels": read, "": None})
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
