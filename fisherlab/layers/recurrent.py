"""Recurrent networks and their cells written out: an input-to-hidden and a hidden-to-hidden block a layer.

A block's a and g are those of all steps at once. The input's projection is one product. The hidden state's is
one a step, and its gradients are taken where the steps are still together, so that a pass has one place for
them: W_ih x and W_hh h are added, and both have the gradient of their sum; of a GRU, whose new state is made
of r∘(W_hn h + b_hn), zeros are added to the hidden projections, and have their gradient.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from fisherlab.layers.adapter import adapter_of, register_layer
from fisherlab.layers.fused import FusedAdapter, Part, Record

State = tuple[Tensor, ...]
"""h, and of an LSTM c too."""


class RecurrentAdapter(FusedAdapter):
    """`ih_l0`, `hh_l0`, with a projection `hr_l0`, then `ih_l0_reverse`, …, as torch names the weights."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.RNN, nn.GRU, nn.LSTM)

    def parts(self, module: Any) -> list[Part]:
        """Two or three a layer and direction."""
        kinds = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
        return [_part(module, kind + suffix) for suffix in _suffixes(module) for kind in kinds]

    def batch_dim(self, module: Any) -> int:
        """The first, whatever the module's arguments have."""
        return 0

    def forward(self, module: Any, record: Record, input: Any, hx: Any = None) -> Any:
        """The arguments and the result of the module's forward; one sequence alone is not seen."""
        packed = _Packed.of(input) if isinstance(input, PackedSequence) else None
        if packed is None and (input.dim() != 3 or not input.numel()):
            return type(module).forward(module, input, hx)
        x = packed.padded(input.data) if packed else input.transpose(0, 1) if module.batch_first else input
        start = _start(module, x, hx)
        ends: list[State] = []
        for layer in range(module.num_layers):
            if layer and module.training:
                x = _dropped(x, module.dropout, packed)
            directions = []
            for suffix in _suffixes(module, layer):
                state = tuple(part[len(ends)] for part in start)
                y, end = _run(module, record, x, state, suffix, None if packed is None else packed.valid)
                directions.append(y)
                ends.append(end)
            x = directions[0] if len(directions) == 1 else torch.cat(directions, -1)
        last = tuple(torch.stack(part) for part in zip(*ends, strict=True))
        hidden = last if module.mode == "LSTM" else last[0]
        if packed:
            return input._replace(data=packed.flat(x)), hidden
        return (x.transpose(0, 1) if module.batch_first else x), hidden


class CellAdapter(FusedAdapter):
    """`ih` and `hh`."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)

    def parts(self, module: Any) -> list[Part]:
        """Two."""
        return [_part(module, "ih"), _part(module, "hh")]

    def batch_dim(self, module: Any) -> int:
        """The first."""
        return 0

    def forward(self, module: Any, record: Record, input: Tensor, hx: Any = None) -> Any:
        """The arguments and the result of the module's forward; one sample alone is not seen."""
        if input.dim() != 2:
            return type(module).forward(module, input, hx)
        several = isinstance(module, nn.LSTMCell)
        zeros = input.new_zeros(len(input), module.hidden_size)
        state = (zeros, zeros) if hx is None else hx if several else (hx,)
        _, end = _run(module, record, input.unsqueeze(0), tuple(state), "", None)
        return end if several else end[0]


def evaluated_with_gradients(model: nn.Module) -> None:
    """Takes recurrent networks on a GPU out of evaluation mode, and dropout: cuDNN gives no gradients there.

    What a hook or a model makes of that mode of theirs is then that of training; elsewhere they keep theirs.
    """
    networks: list[Any] = [one for one in model.modules() if isinstance(one, RecurrentAdapter.modules)]
    for module in networks:
        if not isinstance(adapter_of(module), RecurrentAdapter):
            continue
        if any(p.device.type == "cuda" for p in module.parameters()):
            module.training, module.dropout = True, 0.0


class _Packed(NamedTuple):
    """Where the rows of a packed sequence are among samples, in their own order, and steps."""

    samples: Tensor
    steps: Tensor
    valid: Tensor  # [n, t]

    @classmethod
    def of(cls, packed: PackedSequence) -> "_Packed":
        sizes, device = packed.batch_sizes, packed.data.device  # the sizes are on the CPU
        steps = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
        places = torch.arange(len(steps), device="cpu") - (sizes.cumsum(0) - sizes)[steps]
        steps, places = steps.to(device), places.to(device)
        order = packed.sorted_indices
        samples = places if order is None else order[places]
        valid = torch.zeros(int(sizes[0]), len(sizes), dtype=torch.bool, device=device)
        valid[samples, steps] = True
        return cls(samples, steps, valid)

    def padded(self, rows: Tensor) -> Tensor:
        """[t, n, …], zero where a sequence has ended."""
        zeros = rows.new_zeros(*self.valid.mT.shape, *rows.shape[1:])
        return zeros.index_put((self.steps, self.samples), rows)

    def flat(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x[self.steps, self.samples]


def _part(module: nn.Module, name: str) -> Part:
    bias = f"bias_{name}" if module.bias and not name.startswith("hr") else None
    return Part(name, f"weight_{name}", bias)


def _suffixes(module: Any, layer: int | None = None) -> list[str]:
    """What the names of weights end with, of one layer or of all."""
    layers = range(module.num_layers) if layer is None else (layer,)
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{one}{way}" for one in layers for way in ways]


def _start(module: Any, x: Tensor, hx: Any) -> State:
    """The first h of all layers and directions, [layers, n, h], and of an LSTM c; checked as torch does."""
    lstm, layers, n = module.mode == "LSTM", len(_suffixes(module)), x.shape[1]
    if hx is None:
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)
        hx = [x.new_zeros(layers, n, size) for size in sizes] if lstm else x.new_zeros(layers, n, sizes[0])
    module.check_forward_args(x.transpose(0, 1) if module.batch_first else x, hx, None)
    return tuple(hx) if lstm else (hx,)


def _dropped(x: Tensor, share: float, packed: _Packed | None) -> Tensor:
    """What one layer gives the next in training, with the numbers that torch draws."""
    if packed is None:
        return functional.dropout(x, share)
    return packed.padded(functional.dropout(packed.flat(x), share))


def _run(
    module: Any, record: Record, x: Tensor, state: State, suffix: str, valid: Tensor | None
) -> tuple[Tensor, State]:
    """One layer in one direction.

    Args:
        module: with the weights.
        record: told of its projections, with the samples first.
        x: [t, n, d].
        state: before the first step.
        suffix: of the names of its weights.
        valid: bool [n, t]: which steps a sample has; None: all.

    Returns:
        h of every step, [t, n, h], and the last state.
    """
    names = [one + suffix for one in ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr")]
    weights: list[Any] = [getattr(module, name, None) for name in names]
    # nodes older than those of `at`, which therefore have their gradients before the parameters have theirs
    weights[2:] = [None if one is None else one.view_as(one) for one in weights[2:]]
    W_i, b_i, W_h, b_h, W_r = weights
    sums = functional.linear(x, W_i, b_i).transpose(0, 1)
    record("ih" + suffix, x.transpose(0, 1), sums, valid=valid)
    step, added = _step_of(module), None
    if step is _gru:
        at = _zeros(sums, sums.shape[-1])
        added = at.unbind(1)
    else:
        at = sums = sums.view_as(sums) if sums.requires_grad else sums + _zeros(sums, 1)
    at_r = None if W_r is None else _zeros(sums, len(W_r))
    inputs, times = sums.unbind(1), range(len(x))
    before, hidden, cells, projected, outputs = ([x] * len(x) for _ in range(5))
    for t in reversed(times) if suffix.endswith("_reverse") else times:
        before[t] = state[0]
        hidden[t] = functional.linear(state[0], W_h, b_h)
        new = step(module, inputs[t], hidden[t] if added is None else hidden[t] + added[t], state)
        if at_r is not None:
            cells[t] = new[0]
            projected[t] = functional.linear(new[0], W_r)
            new = projected[t] + at_r[:, t], *new[1:]
        if valid is not None:  # a sequence that has ended, or not begun, keeps its state
            new = tuple(torch.where(valid[:, t, None], *pair) for pair in zip(new, state, strict=True))
        state = new
        outputs[t] = state[0]
    record("hh" + suffix, _joined(before), _joined(hidden), at=at, valid=valid)
    if at_r is not None:
        record("hr" + suffix, _joined(cells), _joined(projected), at=at_r, valid=valid)
    return torch.stack(outputs), state


def _zeros(like: Tensor, width: int) -> Tensor:
    """Zeros [n, t, width] that gradients come to; they take no memory."""
    return like.new_zeros((), requires_grad=True).expand(*like.shape[:2], width)


@torch.no_grad()
def _joined(steps: list[Tensor]) -> Tensor:
    """The numbers of all steps, [n, t, …]."""
    return torch.stack(steps, 1)


def _step_of(module: Any) -> "Callable[[Any, Tensor, Tensor, State], State]":
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return _lstm
    return _gru if isinstance(module, (nn.GRU, nn.GRUCell)) else _rnn


def _rnn(module: Any, i: Tensor, s: Tensor, state: State) -> State:
    """H' = φ(i + s)."""
    return ((i + s).relu() if module.nonlinearity == "relu" else (i + s).tanh(),)


def _lstm(module: Any, i: Tensor, s: Tensor, state: State) -> State:
    """C' = σ(f)∘c + σ(i)∘tanh(g), h' = σ(o)∘tanh(c')."""
    enter, forget, new, leave = (i + s).chunk(4, -1)
    c = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


def _gru(module: Any, i: Tensor, s: Tensor, state: State) -> State:
    """H' = (1 − σ(z))∘n + σ(z)∘h, n = tanh(i_n + σ(r)∘s_n)."""
    i_r, i_z, i_n = i.chunk(3, -1)
    s_r, s_z, s_n = s.chunk(3, -1)
    n = (i_n + (i_r + s_r).sigmoid() * s_n).tanh()
    return (n + (i_z + s_z).sigmoid() * (state[0] - n),)


for _adapter in (RecurrentAdapter(), CellAdapter()):
    register_layer(_adapter)
