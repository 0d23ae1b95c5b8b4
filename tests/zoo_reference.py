"""Fishers and their approximations for any kind of layer, from autograd of the whole network and plain loops.

Nothing of fisherlab's reading of a layer is used. A layer's output is linear in its weight, s_t = W a_t, so
entry i of a_t is what the layer gives for a weight that is 1 at input i of one unit and 0 elsewhere; g_t is
autograd's derivative with respect to s_t, and V the derivative with respect to the parameter itself.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from reference import NLL
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional

import fisherlab as fl
from fisherlab.operators import LinearOperator

NLL = {**NLL, "token-categorical": lambda f, y: functional.cross_entropy(f, y, reduction="sum")}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FACTORED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Embedding)


@dataclass(frozen=True)
class Case:
    """A network, its data, and what follows each of its layers.

    Attributes:
        model: the network.
        inputs: its arguments, the samples first.
        targets: one a sample.
        likelihood: a name.
        activations: the element-wise function directly after a layer, where there is one.
        plain: the same function with every attention made of `nn.Linear` modules `q, k, v, out_proj`.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    targets: Tensor
    likelihood: str = "categorical"
    activations: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    plain: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", without_attention(self.model))

    @property
    def data(self) -> tuple:
        return (self.inputs[0] if len(self.inputs) == 1 else self.inputs), self.targets

    def take(self, samples: slice) -> "Case":
        return replace(self, inputs=tuple(x[samples] for x in self.inputs), targets=self.targets[samples])

    def cut(self, size: int) -> list[tuple]:
        return [self.take(slice(i, i + size)).data for i in range(0, len(self.targets), size)]

    def exact(self, **options) -> dict[str, LinearOperator]:
        return fl.exact_fisher(self.model, self.data, self.likelihood, **options)

    def approximate(self, name: str, **options) -> dict[str, LinearOperator]:
        return fl.approximate(name, self.model, self.data, self.likelihood, **options)

    def several(self, *names: str, data: object = None, **options) -> dict[str, dict[str, LinearOperator]]:
        """Several approximations from one pass over the data, or over other data."""
        data = self.data if data is None else data
        found = fl.collect_statistics(self.model, data, self.likelihood, approximations=names, **options)
        return {name: found.build(name) for name in names}


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; a norm below 1e-7 is zero (the bias of keys has no gradient)."""
    norm = max(float(torch.linalg.norm(expected)), 1e-7)
    return float(torch.linalg.norm(found - expected)) / norm


# --- attention made of Linear modules -----------------------------------------------------------------


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` from its formula."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = source.num_heads, source.batch_first
        dim = source.embed_dim
        if source.in_proj_weight is None:
            weights = [source.q_proj_weight, source.k_proj_weight, source.v_proj_weight]
        else:
            weights = list(source.in_proj_weight.split(dim))
        biases = [None] * 3 if source.in_proj_bias is None else source.in_proj_bias.split(dim)
        self.q, self.k, self.v = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.extra, self.add_zero = (source.bias_k, source.bias_v), source.add_zero_attn
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q(query), self.with_extra(self.k(key), 0), self.with_extra(self.v(value), 1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        keys = scores[..., : key.shape[1]]  # a view
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            keys.masked_fill_(attn_mask, -torch.inf)
        elif attn_mask is not None:
            keys.add_(attn_mask.reshape(-1, self.heads, *attn_mask.shape[-2:]))
        if key_padding_mask is not None:
            keys.masked_fill_(key_padding_mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights.mean(1)

    def with_extra(self, x: Tensor, which: int) -> Tensor:
        if self.extra[which] is not None:
            x = torch.cat([x, self.extra[which].detach().expand(len(x), 1, -1)], 1)
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1) if self.add_zero else x


def without_attention(model: nn.Module) -> nn.Module:
    """A copy with every attention made of `nn.Linear` modules."""
    plain = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, PlainAttention(module))
    for module in plain.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.training = True  # no fast path
    return plain


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


# --- blocks -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One matrix [m, d] of parameters and the modules that use it; `weight` or `bias` may be left out."""

    name: str
    modules: tuple[str, ...]
    weight: bool
    bias: bool


def blocks_of(case: Case, bias: str = "joint") -> list[Block]:
    """Every block of the network, the modules that share a weight in one."""
    uses: dict[int, list[str]] = {}
    for name, module in case.plain.named_modules():
        if getattr(module, "weight", None) is not None:
            uses.setdefault(id(module.weight), []).append(name)
    found = []
    for names in uses.values():
        modules = [case.plain.get_submodule(name) for name in names]
        offsets = {id(b) for b in (getattr(m, "bias", None) for m in modules) if b is not None}
        joint = bias == "joint" and len(offsets) == 1
        found.append(Block(names[0], tuple(names), weight=True, bias=joint))
        if len(offsets) == 1 and bias == "separate":
            found.append(Block(f"{names[0]}.bias", tuple(names), weight=False, bias=True))
        if len(offsets) > 1 and bias != "ignore":
            found += [Block(f"{name}.bias", (name,), weight=False, bias=True) for name in names]
    return found


def is_norm(case: Case, block: Block) -> bool:
    return not isinstance(case.plain.get_submodule(block.modules[0]), FACTORED)


def factored(case: Case, bias: str = "joint") -> list[Block]:
    """The blocks of the form W of s = W a."""
    return [block for block in blocks_of(case, bias) if not is_norm(case, block)]


def groups_of(case: Case, block: Block) -> int:
    return getattr(case.plain.get_submodule(block.modules[0]), "groups", 1) if block.weight else 1


# --- one sample ---------------------------------------------------------------------------------------


@dataclass
class Use:
    """One call of a module for one sample: a [G, T, d], s [T, m], g [C, T, m], and φ'(s) [T, m]."""

    a: Tensor
    s: Tensor
    g: Tensor
    slope: Tensor


@dataclass
class Sample:
    """For every parameter its gradient by label column [C, …], and the uses of every module."""

    gradients: dict[str, Tensor]
    uses: dict[str, list[Use]]


def samples_of(case: Case, kind: str = "predictive") -> list[Sample]:
    """Every sample by itself, with the label columns of `predictive` or `empirical`."""
    return [_sample(case.take(slice(n, n + 1)), kind) for n in range(len(case.targets))]


def _sample(case: Case, kind: str) -> Sample:
    model, calls = case.plain, []
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, FACTORED)]
    handles = [m.register_forward_hook(_keeper(name, calls)) for name, m in modules]
    f = model(*case.inputs)
    for handle in handles:
        handle.remove()
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = [*parameters, *(s for _, _, s in calls)]
    rows = [
        torch.autograd.grad(f.flatten(), wanted, u, retain_graph=True, materialize_grads=True)
        for u in _label_columns(case, f.detach()[0], kind)
    ]
    found = [torch.stack(column) for column in zip(*rows, strict=True)]
    uses: dict[str, list[Use]] = {name: [] for name, _ in modules}
    for (name, x, s), g in zip(calls, found[len(names) :], strict=True):
        uses[name].append(_use(model.get_submodule(name), x, s.detach(), g, case.activations.get(name)))
    return Sample(dict(zip(names, found, strict=False)), uses)


def _keeper(name: str, calls: list) -> Callable:
    def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        calls.append((name, args[0].detach(), output))
        return output.clone()  # what follows may be in place

    return keep


def _label_columns(case: Case, f: Tensor, kind: str) -> Iterator[Tensor]:
    """Σ_c u_c u_cᵀ is the Hessian of −log p(y | f), or the square of its gradient."""

    def loss(flat: Tensor) -> Tensor:
        return NLL[case.likelihood](flat.view_as(f), case.targets[0])

    if kind == "empirical":
        return iter([torch.func.grad(loss)(f.flatten())])
    values, vectors = torch.linalg.eigh(hessian(loss)(f.flatten()))
    return iter((vectors * values.clamp(min=0).sqrt()).T)


def _use(module: nn.Module, x: Tensor, s: Tensor, g: Tensor, activation: Callable | None) -> Use:
    a, s, g = _inputs(module, x), _positions(module, s), torch.stack([_positions(module, c) for c in g])
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        valid = x.flatten() != module.padding_idx
        a, s, g = a[:, valid], s[valid], g[:, valid]
    slope = torch.ones_like(s)
    if activation is not None:
        z = s.clone().requires_grad_()
        (slope,) = torch.autograd.grad(activation(z).sum(), z)
    return Use(a, s, g, slope)


def _inputs(module: nn.Module, x: Tensor) -> Tensor:
    """What multiplies row 0 of W in each group, by weights that are 1 at one entry."""
    places = as_matrix(module, torch.arange(module.weight.numel()).view_as(module.weight))
    groups = getattr(module, "groups", 1)
    m, d = places.shape
    rows = range(0, m, m // groups)
    columns = []
    for row in rows:
        for i in range(d):
            unit = torch.zeros(module.weight.numel(), dtype=module.weight.dtype)
            unit[places[row, i]] = 1
            values = {"weight": unit.view_as(module.weight)}
            if getattr(module, "bias", None) is not None:
                values["bias"] = torch.zeros_like(module.bias)
            with torch.no_grad():
                columns.append(_positions(module, functional_call(module, values, (x,)))[:, row])
    return torch.stack(columns, -1).unflatten(-1, (groups, d)).movedim(1, 0)


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """[m, d] of a weight, d the inputs of one group."""
    if isinstance(module, nn.Embedding):
        return weight.T
    if isinstance(module, TRANSPOSED):
        by_group = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
        return by_group.flatten(0, 1).flatten(1)
    return weight.flatten(1)


def _positions(module: nn.Module, s: Tensor) -> Tensor:
    """All of one sample's outputs as [T, m]."""
    channel = 1 if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) else -1
    return s.movedim(channel, -1).flatten(0, -2)


# --- one block ----------------------------------------------------------------------------------------


@dataclass
class Rows:
    """One group of a block, seen by every sample: V [C, m, d], a [T, d], g [C, T, m], φ' [T, m]."""

    V: list[Tensor]
    a: list[Tensor]
    g: list[Tensor]
    slope: list[Tensor]


def gradient_matrices(case: Case, block: Block, samples: list[Sample]) -> list[Tensor]:
    """V [C, m, d] of every sample; a bias is the last column, a norm has one column."""
    name = block.modules[0]
    module = case.plain.get_submodule(name)
    found = []
    for sample in samples:
        parts = []
        if block.weight:
            weight = sample.gradients[f"{name}.weight".lstrip(".")]
            norm = is_norm(case, block)
            parts.append(
                weight.flatten(1).unsqueeze(-1)
                if norm
                else torch.stack([as_matrix(module, one) for one in weight])
            )
        if block.bias:
            parts.append(sample.gradients[f"{name}.bias".lstrip(".")].flatten(1).unsqueeze(-1))
        found.append(torch.cat(parts, 1 if is_norm(case, block) else 2))
    return found


def rows_of(case: Case, block: Block, samples: list[Sample]) -> list[Rows]:
    """For each group what the approximations are made of; the uses of a weight are further positions."""
    groups = groups_of(case, block)
    found = [Rows([], [], [], []) for _ in range(groups)]
    for V, sample in zip(gradient_matrices(case, block, samples), samples, strict=True):
        uses = [use for name in block.modules for use in sample.uses[name]]
        g, slope = torch.cat([u.g for u in uses], 1), torch.cat([u.slope for u in uses])
        a = torch.cat([u.a for u in uses], 1) if block.weight else g.new_zeros(1, g.shape[1], 0)
        if block.bias:
            a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], -1)
        for group, rows in enumerate(found):
            mine = slice(group * g.shape[-1] // groups, (group + 1) * g.shape[-1] // groups)
            rows.V.append(V[:, mine])
            rows.a.append(a[group])
            rows.g.append(g[..., mine])
            rows.slope.append(slope[:, mine])
    return found


def direct_sum(parts: list[Tensor], outputs: int) -> Tensor:
    """The groups' matrices at their places in the column-vec order of [m, d/G]."""
    own = outputs // len(parts)
    inputs = len(parts[0]) // own
    places = torch.arange(outputs * inputs).view(inputs, outputs)
    F = parts[0].new_zeros(outputs * inputs, outputs * inputs)
    for group, part in enumerate(parts):
        mine = places[:, group * own : (group + 1) * own].flatten()
        F[mine[:, None], mine] = part
    return F


def exact_block(V: list[Tensor], groups: int = 1) -> Tensor:
    """(1/N) Σ_n Σ_c vec(V) vec(V)ᵀ in column-vec order, zero between groups."""
    parts = []
    for group in range(groups):
        F = 0
        for one in V:
            own = one.shape[1] // groups
            for column in one[:, group * own : (group + 1) * own]:
                v = column.T.flatten()
                F = F + torch.outer(v, v) / len(V)
        parts.append(F)
    return direct_sum(parts, V[0].shape[1])
