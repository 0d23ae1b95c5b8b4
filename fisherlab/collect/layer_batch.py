"""What one batch gave one layer: which positions count, and which half of the data its samples are in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from fisherlab.collect.forms import ModelInputs
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import Inputs, OneHot, dense_inputs
from fisherlab.gradients.patches import Patches
from fisherlab.layers import LayerView

_COINS = 4096  # a generator's, kept together: a choice; another number gives other halves


class LayerBatch:
    """What one batch gave one layer.

    Args:
        start: the index of the first sample in the data.
        a: inputs [n, t, G·d], patches of images, or a function that makes either when they are asked for.
        g: for each kind of label the output gradients [c, n, t, m].
        groups: G.
        valid: bool [n, t], the positions that count; None: all. a and g are zero at the others.
        fresh: whether the samples are seen for the first time; a batch whose label columns come in parts
            is fresh in its first part.
        apart: whether its inputs belong to its own columns, not to those of other parts (`collect.uses`).
    """

    def __init__(
        self,
        start: int,
        a: "Inputs | Patches | Callable[[], Inputs | Patches]",
        g: Mapping[str, Tensor] | None = None,
        groups: int = 1,
        valid: Tensor | None = None,
        fresh: bool = True,
        apart: bool = False,
    ) -> None:
        self.start, self.g, self.groups = start, dict(g or {}), groups
        self.valid, self.fresh, self.apart = valid, fresh, apart
        self._a = a

    @property
    def inputs(self) -> Inputs | Patches:
        """The inputs as the layer gives them, without unfolding an image."""
        if callable(self._a):
            self._a = self._a()
        return self._a

    @property
    def a(self) -> Inputs:
        """Inputs [n, t, G·d]."""
        if isinstance(self.inputs, Patches):
            self._a = self.inputs.unfolded()
        return cast(Inputs, self.inputs)

    @property
    def samples(self) -> int:
        """N."""
        known = next(iter(self.g.values()), None)
        return self.inputs.shape[0] if known is None else known.shape[1]

    @property
    def positions(self) -> int:
        """How many positions count."""
        samples, positions = self.inputs.shape[:2]
        return samples * positions if self.valid is None else int(self.valid.sum())

    def part(self, g: Mapping[str, Tensor], fresh: bool) -> "LayerBatch":
        """The same inputs with some columns of g."""
        return LayerBatch(self.start, self._a, g, self.groups, self.valid, fresh)

    def group(self, place: int) -> "LayerBatch":
        """One of the G blocks."""
        if self.groups == 1:
            return self
        assert isinstance(self.a, Tensor)
        d = self.a.shape[-1] // self.groups
        g = {}
        for kind, values in self.g.items():
            m = values.shape[-1] // self.groups
            g[kind] = values[..., place * m : (place + 1) * m]
        return LayerBatch(self.start, self.a[..., place * d : (place + 1) * d], g, 1, self.valid, self.fresh)

    @property
    def parts(self) -> "list[LayerBatch]":
        """The G blocks."""
        return [self.group(place) for place in range(self.groups)]

    def half(self, half: int) -> "LayerBatch":
        """The samples in one half (0 or 1) of the data, see `half_of`."""
        chosen = (half_of(self.start, self.samples) == half).nonzero().squeeze(1)
        return self._select(chosen.to(self.a.device))

    def head(self, samples: int) -> "LayerBatch":
        """The samples with an index in the data below `samples`."""
        if self.start + self.samples <= samples:
            return self
        return self._select(slice(0, max(0, samples - self.start)))

    def at(self, places: Tensor) -> "LayerBatch":
        """The samples at these places of the batch."""
        return self._select(places.to(self.a.device))

    def copied(self, kinds: Iterable[str]) -> "LayerBatch":
        """A copy of its own, with these kinds of g."""
        g = {kind: self.g[kind].clone(memory_format=torch.contiguous_format) for kind in kinds}
        return LayerBatch(self.start, self.a.clone(), g, self.groups, self.valid)

    def double(self) -> "LayerBatch":
        """In float64."""
        g = {kind: values.double() for kind, values in self.g.items()}
        return LayerBatch(self.start, self.a.double(), g, self.groups, self.valid)

    def _select(self, part: slice | Tensor) -> "LayerBatch":
        return LayerBatch(
            self.start,
            self.a[part],
            {kind: g[:, part] for kind, g in self.g.items()},
            self.groups,
            None if self.valid is None else self.valid[part],
            self.fresh,
        )


def whole(parts: list[dict[str, LayerBatch]]) -> dict[str, LayerBatch]:
    """A batch with all its columns from its parts, the fresh one first."""
    joined = {}
    for name, fresh in parts[0].items():
        own = [part.pop(name) for part in parts[1:] if name in part]
        if any(part.apart for part in own):
            joined[name] = _stacked(fresh, own)
            continue
        columns: dict[str, list[Tensor]] = {}
        for part in own:
            for kind, piece in part.g.items():
                columns.setdefault(kind, []).append(piece)
        in_one = {kind: _in_one(one) for kind, one in columns.items()}
        joined[name] = fresh.part({**fresh.g, **in_one}, True)
    return joined


def _stacked(fresh: LayerBatch, parts: Sequence[LayerBatch]) -> LayerBatch:
    """Parts of columns with inputs of their own as one batch: the positions of one after those of another.

    The g of a column are zero at the positions of other columns' parts.

    Args:
        fresh: the batch without columns.
        parts: each with some columns [c, n, t, m] of one kind.
    """
    a = torch.cat([dense_inputs(part.a) for part in parts], 1)
    columns: dict[str, list[Tensor]] = {}
    start = 0
    for part in parts:
        stop = start + part.a.shape[1]
        for kind, g in part.g.items():
            longer = g.new_zeros(*g.shape[:2], a.shape[1], g.shape[3])
            longer[:, :, start:stop] = g
            columns.setdefault(kind, []).append(longer)
        start = stop
    together = {kind: torch.cat(own) for kind, own in columns.items()}
    return LayerBatch(fresh.start, a, together, fresh.groups)


def _in_one(columns: list[Tensor]) -> Tensor:
    """Columns [c', n, t, m] as one [c, n, t, m]; of images as [n, c, m, t] in memory: V needs no copy."""
    if len(columns) == 1:
        return columns[0]
    if columns[0].stride(2) != 1 or columns[0].shape[3] == 1:
        return torch.cat(columns)
    return torch.cat([one.permute(1, 0, 3, 2) for one in columns], 1).permute(1, 0, 3, 2)


def half_of(start: int, count: int) -> Tensor:
    """Which half of the data (0 or 1) samples start, …, start + count − 1 are in.

    Of each pair of neighbours one goes to either half, by a fixed coin: the halves are as large as each
    other and alike, also where the order of the data has a period (MNIST's training set alternates
    between two groups of writers).
    """
    indices = torch.arange(start, start + count, device="cpu")
    pairs = indices // 2
    blocks = [_coins(block) for block in range(start // (2 * _COINS), (start + count) // (2 * _COINS) + 1)]
    coins = torch.cat(blocks)[pairs - start // (2 * _COINS) * _COINS]
    return (indices + coins) % 2


@lru_cache(maxsize=64)
def _coins(block: int) -> Tensor:
    return torch.randint(2, (_COINS,), generator=torch.Generator().manual_seed(block), device="cpu")


def valid_positions(
    view: LayerView, inputs: ModelInputs, a: Inputs | Patches, rows: Tensor | None
) -> Tensor | None:
    """The positions of a layer that count: those of its own mask, and indices that are no padding.

    Args:
        view: the layer.
        inputs: of the model.
        a: of the layer.
        rows: those that its calls say count, a bool [n, t]; None: all.
    """
    valid = rows
    if view.mask is not None and not view.vector:  # a norm's sums have no positions left
        own = mask_of(view, inputs)
        if own.shape != a.shape[:2]:
            raise InputError(
                f"the mask of layer {view.name!r} has shape {list(own.shape)}; it must be a bool for each "
                f"sample and position, {list(a.shape[:2])}"
            )
        valid = own if rows is None else own & rows
    if isinstance(a, OneHot) and a.masked:
        return a.indices >= 0 if valid is None else valid & (a.indices >= 0)
    return valid


def masked_slopes(view: LayerView, inputs: ModelInputs, slopes: Sequence[Tensor]) -> list[Tensor]:
    """The slopes [1, n, t, …] at the outputs of a norm's calls, with zeros where its mask says so.

    Raises:
        InputError: for a mask that is not one of these positions.
    """
    if view.mask is None or not view.vector:
        return list(slopes)
    own = mask_of(view, inputs)
    lengths = [slope.shape[2] if slope.dim() > 3 else 1 for slope in slopes]
    if own.shape != (slopes[0].shape[1], sum(lengths)):
        raise InputError(
            f"the mask of layer {view.name!r} has shape {list(own.shape)}; it must be a bool for each "
            f"sample and position, {[slopes[0].shape[1], sum(lengths)]}"
        )
    found = []
    for slope, valid in zip(slopes, own.split(lengths, 1), strict=True):
        places = valid if slope.dim() > 3 else valid.squeeze(1)
        found.append(slope * places.view(1, *places.shape, *[1] * (slope.dim() - 1 - places.dim())))
    return found


def mask_of(view: LayerView, inputs: ModelInputs) -> Tensor:
    """What a layer's mask gives for these inputs, a bool tensor.

    Raises:
        InputError: where it raises any exception, or gives anything else.
    """
    assert view.mask is not None
    try:
        valid = view.mask(inputs)
    except Exception as error:
        raise InputError(
            f"the mask of layer {view.name!r} fails on the model's inputs ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        given = f"a tensor of {valid.dtype}" if isinstance(valid, Tensor) else type(valid).__name__
        raise InputError(
            f"the mask of layer {view.name!r} gives {given}; it must be a bool for each sample and position, "
            "a tensor [n, t]"
        )
    return valid


def masked(a: Inputs | Patches, valid: Tensor | None) -> Inputs | Patches:
    """The inputs with zeros where positions do not count."""
    if valid is None:
        return a
    if isinstance(a, Patches):
        a = a.unfolded()
    if isinstance(a, OneHot):
        return OneHot(a.indices.masked_fill(~valid, -1), a.size, a.dtype)
    return a * valid.unsqueeze(-1)
