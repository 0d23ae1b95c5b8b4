"""One block of parameters as the matrix W of s = W a, and the one layout that fisherlab works in.

Whatever the module, its inputs become `a [n, t, G·d]` and its output gradients `g [c, n, t, G·m/G]`:
n samples, t positions, d inputs a group (a joint bias is the last of them, with input 1), m outputs,
c columns. Nothing outside this package knows module types.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.errors import InputError
from fisherlab.gradients.inputs import Inputs, OneHot, dense_inputs
from fisherlab.gradients.patches import Patches
from fisherlab.layers.adapter import Adapter
from fisherlab.layers.fused import Rows, of_rows
from fisherlab.layers.norm import NormAdapter

Mask = Callable[[Any], Tensor]
"""From the model's inputs to a bool [n, t]: which positions of a layer are valid."""


@dataclass(frozen=True)
class BlockShape:
    """The name and size of a block of parameters, with or without a module behind it.

    Attributes:
        name: the layer's name.
        outputs: m, of all groups.
        inputs: d of one group, a bias counted.
        groups: G; the block is block-diagonal over them, each of m/G outputs.
        vector: whether it is a vector (a norm's scale and shift), for which only the exact block and its
            diagonal are of interest.
        one_hot: whether its inputs are indices (an embedding).
        by_gradients: whether a and g are known by V alone, and are not those of one layer: made of the
            samples' gradients V (a position for each of the d inputs, with a unit vector as a and a column
            of V as g), or of several uses that are no one layer's (see `LayerView.uses`).
    """

    name: str
    outputs: int
    inputs: int
    groups: int = 1
    vector: bool = False
    one_hot: bool = False
    by_gradients: bool = False

    @property
    def size(self) -> int:
        """D = m·d."""
        return self.outputs * self.inputs

    @property
    def input_numbers(self) -> int:
        """How many numbers the inputs of one position take; an index is one."""
        return 1 if self.one_hot else self.groups * self.inputs

    @property
    def shape(self) -> "BlockShape":
        """The name and size alone."""
        return BlockShape(**{field.name: getattr(self, field.name) for field in fields(BlockShape)})

    @property
    def group(self) -> "BlockShape":
        """The shape of one of the G blocks."""
        return replace(self.shape, outputs=self.outputs // self.groups, groups=1)


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a forward pass.

    Attributes:
        input: its first argument, or what its adapter keeps of all (`Adapter.argument`), without its graph.
        output: what it gave, without its graph; it may be a stand-in of that shape without numbers.
        edge: the `GradientEdge` of the output, which keeps the graph alive; None: not kept.
        slope: φ'(s) of an activation that the user named; None: none was.
        valid: bool, shaped as the output without its last dimension, samples first: the rows that count;
            None: all.
        use: how its module sees the matrix, where modules of several kinds share it; None: as the layer.
    """

    input: Tensor
    output: Tensor
    edge: Any = None
    slope: Tensor | None = None
    valid: Tensor | None = None
    use: "LayerView | None" = None

    def without_graph(self) -> "LayerCall":
        """The input, the output and the rows that count alone."""
        return replace(self, edge=None, slope=None)

    def in_dtype(self, dtype: torch.dtype) -> "LayerCall":
        """The same for a and g of this type, whatever it was in; of the output only the shape is kept."""
        x = self.input.to(dtype) if self.input.is_floating_point() else self.input
        output = self.output.new_empty((), dtype=dtype).expand(self.output.shape)
        return replace(self, input=x, output=output)

    def lengthened(self, positions: int) -> "LayerCall":
        """The same with rows at its end that do not count, where it says which do: so many of a sample."""
        if self.valid is None or self.valid.dim() < 2:
            return self
        values = (longer(x, positions) for x in (self.input, self.output, self.valid))
        return LayerCall(next(values), next(values), self.edge, self.slope, next(values))

    def gradients(self, found: Tensor | None, columns: int = 1) -> Tensor:
        """What came back to the output, [columns, …]; zeros where no path led to it (None)."""
        return self.output.new_zeros(columns, *self.output.shape) if found is None else found


@dataclass(frozen=True, kw_only=True)
class LayerView(BlockShape):
    """A block of parameters [m, d] of one module, or of several that share them.

    Attributes:
        module_name: the name of the (first) module.
        modules: the modules; more than one where parameters are shared.
        adapter: how the modules are seen.
        weight: the full name of the weight parameter in the block, or None.
        bias: the full name of the bias parameter in the block, or None; it is the last column.
        rows: the rows of the weight that belong to the block, or the place of one of stacked matrices;
            None: all.
        bias_rows: the entries of the bias that belong to it, likewise; None: all.
        part: the name of the part of a fused module, such as `q` of an attention; None: the module itself.
        fused: the fused module that the block belongs to, whose projections its own forward does not call
            one by one.
        batch_dim: the dimension that counts samples; None: that of the model.
        activation: the name of the element-wise function that follows, where the user gave it;
            None: found from the graph of a forward pass.
        mask: gives the valid positions; None: all.
        why_by_gradients: why it is made of the samples' gradients whatever calls its modules have; empty:
            only where these do not tell.
        expanded: the dimension of size 1 of the module's input and output that is expanded over the samples,
            of a call that does not depend on them; −1: a new first one. None: calls are taken as they are.
        uses: where modules of several kinds share the parameter, how each of them sees it, under the layer's
            name; empty where they are not known.
        transposed: of such a use whether its own matrix is the transpose of the layer's; None: it is no use.
    """

    module_name: str
    modules: tuple[nn.Module, ...]
    adapter: Adapter
    weight: str | None = None
    bias: str | None = None
    rows: Rows = None
    bias_rows: Rows = None
    part: str | None = None
    fused: nn.Module | None = None
    batch_dim: int | None = None
    activation: str | None = None
    mask: Mask | None = None
    why_by_gradients: str = ""
    expanded: int | None = None
    uses: "tuple[LayerView, ...]" = ()
    transposed: bool | None = None

    @property
    def called(self) -> bool:
        """Whether a and g are those of calls, of its own or of its uses."""
        return not self.by_gradients or self.of_uses

    @property
    def of_uses(self) -> bool:
        """Whether a and g are those of its uses."""
        return bool(self.uses) and not self.why_by_gradients

    @property
    def family(self) -> str:
        """The module's type name, as shown in tables; with its package where torch.nn has one so named.

        `Parameter` of a parameter by itself.
        """
        cls = type(self.modules[0])
        other = getattr(nn, cls.__name__, cls) is not cls
        named = f"{cls.__module__.partition('.')[0]}.{cls.__name__}" if other else cls.__name__
        return self.adapter.family or named

    @property
    def parameters(self) -> tuple[str, ...]:
        """The full names of the parameters in the block."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def made_of_gradients(self) -> "LayerView":
        """The same block with a and g from the samples' gradients."""
        one_hot = self.groups == 1 and self.inputs > 1
        return replace(self, by_gradients=True, one_hot=one_hot, expanded=None, mask=None, uses=())

    def made_of_uses(self) -> "LayerView":
        """The same block with a and g from the calls of its uses."""
        return replace(self, by_gradients=True, one_hot=False, why_by_gradients="")

    def over_samples(self, x: Tensor, samples: int) -> Tensor:
        """A tensor of a call that does not depend on the samples, expanded over them, see `expanded`.

        Raises:
            InputError: where the dimension has another size than 1.
        """
        if self.expanded == -1:
            return x.unsqueeze(0).expand(samples, *x.shape)
        dim = self.expanded or 0
        if x.dim() <= dim or x.shape[dim] != 1:
            raise InputError(f"layer {self.name!r} sees a tensor of shape {list(x.shape)}, for all samples")
        return x.expand(*x.shape[:dim], samples, *x.shape[dim + 1 :])

    def unit_inputs(self, samples: int, dtype: torch.dtype, device: torch.device) -> Inputs:
        """The a [n, t, G·d] of a block made of gradients: t = d unit vectors, the same for each group."""
        d = self.inputs
        if self.one_hot:
            return OneHot(torch.arange(d, device=device).expand(samples, d), d, dtype)
        units = torch.eye(d, dtype=dtype, device=device).repeat(1, self.groups)
        return units.expand(samples, *units.shape)

    def sample_dim(self, batch_dim: int) -> int:
        """The dimension that counts samples in the layer's tensors; `batch_dim` is that of its model."""
        if self.adapter.sample_first:
            return 0
        return batch_dim if self.batch_dim is None else self.batch_dim

    def leading(self, call: LayerCall, samples: int, batch_dim: int = 0) -> int:
        """How many rows of a call's output one sample has in its first dimension; raises as `to_inputs`."""
        return self._rows_a_sample(self._rows_first(call.output, 0, batch_dim).shape, samples)

    def to_inputs(self, call: LayerCall, samples: int, batch_dim: int = 0) -> Inputs | Patches:
        """A call's input as a [n, t, G·d] or patches; a leading k·n is read as n × k positions.

        Raises:
            InputError: where the batch dimension is no multiple of the number of samples.
        """
        x, output = (self._rows_first(value, 0, batch_dim) for value in (call.input, call.output))
        rows = self._rows_a_sample(output.shape, samples)
        valid = self.valid_rows(call, samples, batch_dim)
        if self.weight is None:
            positions = self.adapter.outputs(self.modules[0], output.unsqueeze(0)).shape[2]
            ones = output.new_ones(samples, rows * positions, 1)
            return ones if valid is None else ones * valid.unsqueeze(-1)
        a = self.adapter.inputs(self.modules[0], x, output)
        if isinstance(a, Patches):
            patches = a if self.bias is None else a.with_ones()
            return patches if rows == 1 else patches.unfolded().reshape(samples, -1, patches.shape[2])
        if self.bias is not None and not self.vector:
            a = _with_ones(a, self.groups)
        if isinstance(a, OneHot):
            indices = a.indices.reshape(samples, -1)
            return OneHot(indices if valid is None else indices.masked_fill(~valid, -1), a.size, a.dtype)
        a = a.reshape(samples, -1, a.shape[-1])
        return a if valid is None else a * valid.unsqueeze(-1)

    def valid_rows(self, call: LayerCall, samples: int, batch_dim: int = 0) -> Tensor | None:
        """The rows of a call that count, a bool [n, t]; None: all. A vector's are summed already."""
        if call.valid is None or self.vector:
            return None
        return self._rows_first(call.valid.unsqueeze(-1), 0, batch_dim).reshape(samples, -1)

    def sample_rows(self, x: Tensor, samples: int, batch_dim: int = 0) -> Tensor:
        """A call's input as it is, the samples first: [n, …]; raises as `to_inputs`."""
        x = self._rows_first(x, 0, batch_dim)
        self._rows_a_sample(x.shape, samples)
        return x.reshape(samples, -1)

    def to_outputs(self, g: Tensor, call: LayerCall, samples: int, batch_dim: int = 0) -> Tensor:
        """C tensors shaped as the call's output, [c, …], as [c, n, t, m]."""
        g = self._rows_first(g, 1, batch_dim)
        self._rows_a_sample(g.shape[1:], samples)
        if isinstance(self.adapter, NormAdapter):
            x = self._rows_first(call.input, 0, batch_dim)
            shaped = self.adapter.gradients(self.modules[0], g, x if self.weight else None, bool(self.bias))
        else:
            shaped = self.adapter.outputs(self.modules[0], g)
        return shaped.reshape(g.shape[0], samples, -1, shaped.shape[-1])

    def to_roots(self, slope: Tensor, call: LayerCall, samples: int, batch_dim: int = 0) -> Tensor:
        """φ' of a call, [1, …] shaped as its output, as [r, n, t, m]: r = 1 but for a norm's scale and shift.

        Its squares, summed over r, are the variances under layer-wise sampling; see `NormAdapter.root`.
        """
        if not isinstance(self.adapter, NormAdapter):
            return self.to_outputs(slope, call, samples, batch_dim)
        x = self._rows_first(call.input, 0, batch_dim) if self.weight else None
        root = self.adapter.root(self.modules[0], self._rows_first(slope, 1, batch_dim), x, bool(self.bias))
        return root.reshape(len(root), samples, -1, root.shape[-1])

    def to_matrix(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Gradients by parameter name, with any leading dimensions, as one [..., m, d] matrix."""
        parts = []
        if self.weight is not None:
            weight = of_rows(gradients[self.weight], self.rows, 1)
            parts.append(self.adapter.matrix(self.modules[0], weight))
        if self.bias is not None:
            bias = gradients[self.bias]
            if self.vector:
                parts.append(self.adapter.matrix(self.modules[0], bias))
            else:
                parts.append(of_rows(bias, self.bias_rows, 0).unsqueeze(-1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2 if self.vector else -1)

    def to_parameters(self, matrix: Tensor) -> "list[tuple[str, Rows, Tensor]]":
        """A matrix [m, d] as (parameter, its rows or None for all, tensor of their shape), not of a norm."""
        parts = []
        if self.weight is not None:
            columns = matrix if self.bias is None else matrix[:, :-1]
            parts.append((self.weight, self.rows, self.adapter.weight(self.modules[0], columns)))
        if self.bias is not None:
            parts.append((self.bias, self.bias_rows, matrix[:, -1]))
        return parts

    def products(
        self, call: LayerCall, g: Tensor, matrix: Tensor, samples: int, batch_dim: int = 0
    ) -> Tensor:
        """⟨D, V_n⟩ = Σ_t ⟨g_t, D a_t⟩ of a call for every sample, [n]: one more forward of the layer.

        Args:
            call: the call; of its output only the shape is read.
            g: shaped as the call's output.
            matrix: D [m, d].
            samples: n.
            batch_dim: the dimension that counts samples.
        """
        g = g.to(matrix.dtype)
        outputs = self.to_outputs(g.unsqueeze(0), call, samples, batch_dim)[0]
        applied = None
        if self.weight is not None:
            shaped = {role: tensor for role, _, tensor in self.to_parameters(matrix)}
            x = self._rows_first(call.input, 0, batch_dim).to(matrix.dtype)
            applied = self.adapter.applied(self.modules[0], x, call.output, shaped[self.weight])
        if applied is not None:
            rows = applied, self._rows_first(g, 0, batch_dim)
            left, right = (value.reshape(samples, 1, -1) for value in rows)
            products = torch.bmm(left, right.mT).flatten()
            return products if self.bias is None else products + outputs.sum(1) @ shaped[self.bias]
        a = self.to_inputs(call, samples, batch_dim)
        a = dense_inputs(a.unfolded() if isinstance(a, Patches) else a).to(matrix.dtype)
        by_group = a.unflatten(-1, (self.groups, -1)), matrix.unflatten(0, (self.groups, -1))
        return (torch.einsum("ntgd,gmd->ntgm", *by_group).flatten(2) * outputs).sum((1, 2))

    def _rows_first(self, x: Tensor, leading: int, batch_dim: int) -> Tensor:
        """The dimension that counts samples moved to the place after the leading ones."""
        dim = self.sample_dim(batch_dim)
        if dim == 0 or x.dim() - leading <= abs(dim):
            return x
        return x.movedim(leading + dim if dim > 0 else dim, leading)

    def _rows_a_sample(self, shape: Sequence[int], samples: int) -> int:
        if len(shape) < 2 or shape[0] % samples:
            raise InputError(
                f"layer {self.name!r} sees a tensor of shape {list(shape)} for {samples} samples; "
                "name the dimension that counts samples with batch_dim"
            )
        return shape[0] // samples


def as_long(
    calls: Sequence[LayerCall], other: Sequence[LayerCall]
) -> tuple[list[LayerCall], list[LayerCall]]:
    """Calls of two passes with as many rows a sample, where they say which count; see `lengthened`."""
    if len(calls) != len(other):
        return list(calls), list(other)
    positions = [
        max(x.shape[1] for x in (one.output, two.output)) if one.valid is not None else 0
        for one, two in zip(calls, other, strict=True)
    ]
    found = [[call.lengthened(t) for call, t in zip(own, positions, strict=True)] for own in (calls, other)]
    return found[0], found[1]


def longer(x: Tensor, positions: int) -> Tensor:
    """A tensor [n, t, …] with zeros at the end of its second dimension, up to so many."""
    return functional.pad(x, (*(0, 0) * (x.dim() - 2), 0, max(0, positions - x.shape[1])))


def _with_ones(a: Inputs, groups: int) -> Tensor:
    """A last input 1 in every group."""
    assert isinstance(a, Tensor)
    if a.stride(-1) == 1:
        by_group = a.unflatten(-1, (groups, -1))
        return torch.cat([by_group, by_group.new_ones(*by_group.shape[:-1], 1)], dim=-1).flatten(-2)
    columns = a.mT.unflatten(-2, (groups, -1))
    ones = columns.new_ones(*columns.shape[:2], 1, columns.shape[-1])
    return torch.cat([columns, ones], dim=-2).flatten(-3, -2).mT
