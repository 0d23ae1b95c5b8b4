"""Stacked experts [E, m, d] of the transformers package, written out: a block an expert and projection.

Its mixtures of experts (Mixtral, Qwen2-MoE, GPT-OSS and some sixty more) share one interface: attributes say
how the stacks are laid out, and the forward of each class only chooses among implementations that give the
same. A class is known by that forward.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.layers.adapter import recognise_by
from fisherlab.layers.fused import FusedAdapter, Part, Record
from fisherlab.layers.linear import LINEAR, TRANSPOSED

_INTERFACE = "transformers.integrations.moe"
_LAYOUT = ("has_gate", "has_bias", "is_transposed", "down_proj")


class ExpertsAdapter(FusedAdapter):
    """The blocks `<module>.<projection>.<expert>`, for which only the tokens routed to an expert count.

    An expert computes its own tokens, as in the model. What is kept of a call has a row for every token, so
    that it stays known of which sample each is: with the inputs of the first projection in common, E times
    the outputs of both and the inputs of the second. The block of an expert without a token is zero.
    """

    modules: ClassVar[tuple[type[nn.Module], ...]] = ()

    def parts(self, module: nn.Module) -> Sequence[Part]:
        """All experts of the first projection, then all of the second."""
        adapter = TRANSPOSED if module.is_transposed else LINEAR
        found = []
        for weight in (_first(module), "down_proj"):
            bias = f"{weight}_bias" if module.has_bias else None
            for place in range(len(module.get_parameter(weight))):
                own = None if bias is None else place
                found.append(Part(f"{weight}.{place}", weight, bias, place, own, adapter))
        return found

    def refusal(self, module: nn.Module) -> str:
        """Experts of which this process has some."""
        shared_out = getattr(module, "_is_expert_parallel", False)
        return "its experts are shared out among processes" if shared_out else ""

    def batch_dim(self, module: Any) -> int:
        """Tokens come first, one sample's after another's."""
        return 0

    def forward(
        self, module: Any, record: Record, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """Σ over the experts of a token of their outputs, times its weights."""
        result = torch.zeros_like(hidden_states)
        for place in range(len(module.down_proj)):
            chosen = top_k_index == place
            own = _Routed(module, record, place, chosen.any(-1))
            inner = own.projected(_first(module), own.of(hidden_states), hidden_states)
            inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
            outer = own.projected("down_proj", inner, own.among_all(inner.detach()))
            if getattr(module, "has_post_expert_norm", False):
                outer = module.post_expert_norm(outer)
            weighted = outer * own.of((top_k_weights * chosen).sum(-1, keepdim=True))
            result = result.index_add(0, own.places, weighted.to(result.dtype))
        return result


class _Routed:
    """The tokens that are routed to one expert, among all."""

    def __init__(self, module: Any, record: Record, expert: int, valid: Tensor) -> None:
        self._module, self._record, self._expert, self._valid = module, record, expert, valid
        self.places = valid.nonzero().squeeze(1)

    def of(self, x: Tensor) -> Tensor:
        """Their rows of a tensor."""
        return x[self.places]

    def projected(self, weight: str, x: Tensor, among_all: Tensor) -> Tensor:
        """The expert's projection of their rows x, which stand so among those of all tokens."""
        module = self._module
        W = getattr(module, weight)[self._expert]
        bias = getattr(module, f"{weight}_bias")[self._expert] if module.has_bias else None
        output = self.among_all(functional.linear(x, W.mT if module.is_transposed else W, bias))
        self._record(f"{weight}.{self._expert}", among_all, output, valid=self._valid)
        return self.of(output)

    def among_all(self, rows: Tensor) -> Tensor:
        """Rows of all tokens, zero but for these."""
        return rows.new_zeros(len(self._valid), rows.shape[-1]).index_copy(0, self.places, rows)


def _first(module: nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


_EXPERTS = ExpertsAdapter()


def _experts_of(module: nn.Module) -> ExpertsAdapter | None:
    forward = getattr(type(module), "forward", None)
    own = getattr(forward, "__globals__", {}).get("__name__") == _INTERFACE
    return _EXPERTS if own and all(hasattr(module, name) for name in _LAYOUT) else None


recognise_by(_experts_of)
