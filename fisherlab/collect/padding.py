"""Padding: positions where a batch's `attention_mask` is 0 have no label, and are not counted."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.collect.agreement import random_column
from fisherlab.collect.batches import each
from fisherlab.collect.forms import ModelInputs, token_masks, tokens_in
from fisherlab.collect.hooks import capture, outputs_of
from fisherlab.collect.outputs import Outputs
from fisherlab.layers import Layers, LayerView

_FEW = 2  # samples that tell what padding does: those with most; some models cannot be called with one


@dataclass(frozen=True)
class Padding:
    """Which positions of a layer are tokens, a `Mask`.

    Attributes:
        key: the mask's name among the inputs.
        calls: how often the layer is called, each time with every position.
    """

    key: str
    calls: int

    def __call__(self, inputs: ModelInputs) -> Tensor:
        """Bool [n, calls·T], True where the mask is not 0."""
        assert isinstance(inputs, dict)
        return inputs[self.key].bool().repeat(1, self.calls)


def tokens_of(inputs: ModelInputs, outputs: Tensor, *, decoder: bool = False) -> Tensor | None:
    """Which positions of outputs [n, T, …] are tokens, a bool [n, T]; None: no mask says so.

    Args:
        inputs: what the model was called with.
        outputs: what it gave; a mask of other positions is not theirs.
        decoder: whether the outputs are those of a decoder, whatever the inputs have.
    """
    return tokens_in(inputs, outputs.shape[:2], decoder=decoder) if outputs.dim() > 2 else None


def padded_layers(layers: Layers, inputs: ModelInputs, outputs: Outputs, batch_dim: int) -> Layers:
    """The layers with a `Padding` where their positions are those of a mask, and the loss needs none of it.

    A layer whose outputs at padding reach the loss (a mean over all positions) keeps all of its positions.

    Args:
        layers: read as they must be.
        inputs: of the first samples.
        outputs: calls the model.
        batch_dim: the dimension that counts samples.
    """
    masks = token_masks(inputs)
    if not masks or batch_dim != 0:
        return layers
    padding = sum((~mask).sum(1) for mask in masks.values())
    assert isinstance(padding, Tensor)
    chosen = padding.argsort(descending=True)[:_FEW]
    few = each(inputs, lambda x: x.index_select(batch_dim, chosen.to(x.device)))
    calls = {name: view for name, view in layers.items() if not view.by_gradients}
    samples = len(chosen)
    with capture(calls, samples=samples) as seen:
        found = outputs(few)
    column = random_column(found, torch.zeros(samples, dtype=torch.bool))
    tokens = tokens_of(few, found, decoder=outputs.of_decoder)
    if tokens is not None:
        column = column.masked_fill(~tokens.reshape(*tokens.shape, *[1] * (found.dim() - 2)), 0.0)
    edges = [call.edge for own in seen.values() for call in own]
    if not edges:
        return layers
    gradients = iter(torch.autograd.grad(found, edges, column, allow_unused=True))
    small = token_masks(few)
    for name, view in calls.items():
        found_g = [(call, next(gradients)) for call in seen[name]]
        pairs = [(call, call.gradients(None if g is None else g.unsqueeze(0))) for call, g in found_g]
        if pairs and view.mask is None:
            if view.vector:  # whose own g have no positions left
                rows = [g[0].reshape(*g.shape[1:3], -1) for _, g in pairs if g.dim() > 3]
                g = torch.cat(rows or [column.new_zeros(0, 0, 0)], 1)
            else:
                g = outputs_of(view, pairs, samples, batch_dim)[0]
            key = _fitting(view, g, small, len(pairs))
            if key is not None:
                layers = layers.with_mask([name], Padding(key, len(pairs)))
    return layers


def _fitting(view: LayerView, g: Tensor, masks: Mapping[str, Tensor], calls: int) -> str | None:
    """The mask of a layer's positions that hides none that the loss depends on, by g [n, t, m]."""
    for key, mask in masks.items():
        hidden = ~mask.repeat(1, calls)
        if hidden.shape == g.shape[:2] and not bool(g[hidden].any()):
            return key
    return None
