"""Which tensor of what a model returns is the network's output: its logits, by name where they have one."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.collect.batches import called
from fisherlab.collect.forms import ModelInputs
from fisherlab.errors import InputError, InputTypeError

Output = str | int | Callable[[Any], Tensor] | None
"""A name or a place among what a model returns, a function of it, or None: see `Outputs`."""

LOGITS, LOSS = "logits", "loss"


class Outputs:
    """A model as a function from inputs to one tensor of outputs [n, …].

    A model may return a tensor, or several things by name (a mapping, a dataclass, a named tuple) or by place
    (a tuple). Of these `logits` are taken, or else the one tensor of real numbers that is no single number.

    Args:
        model: the network.
        output: the name or the place of what is taken, or a function of what the model returns; None: the
            logits.

    Attributes:
        taken: what was taken of the last call, as "logits of CausalLMOutput"; empty where the model returned
            a tensor.
        of_decoder: whether the outputs are those of a decoder, whose positions are not those of the inputs.
    """

    def __init__(self, model: nn.Module | Callable[..., Any], output: Output = None) -> None:
        self._model, self._output = model, output
        self.taken = ""
        config = getattr(model, "config", None)
        self.of_decoder = bool(getattr(config, "is_encoder_decoder", False))  # as transformers says it

    def __call__(self, inputs: ModelInputs) -> Tensor:
        """The outputs for some inputs.

        Raises:
            InputError: as `called`, and as `of`.
            InputTypeError: as `of`.
        """
        return self.of(called(self._model, inputs))

    def of(self, returned: Any) -> Tensor:
        """The outputs in what a call of the model returned.

        Raises:
            InputError: where several tensors could be meant, none of that name is there, or it is a single
                number.
            InputTypeError: where it is anything but a dense tensor of real numbers.
        """
        found, self.taken = self._picked(returned)
        what = f"{self.taken} is" if self.taken else "the model returns"
        if not isinstance(found, Tensor):
            raise InputTypeError(
                f"{what} {_described(found)}, without a tensor of outputs; name one with output=, or wrap it "
                "so that it gives one"
            )
        if not found.dim():
            raise InputError(f"{what} a single number; wrap it so that there are outputs a sample")
        if not found.is_floating_point() or found.layout != torch.strided:
            raise InputTypeError(
                f"{what} a {found.layout} tensor of {found.dtype}; wrap it so that it is a dense one of real "
                "numbers, such as logits"
            )
        return found

    def _picked(self, returned: Any) -> tuple[Any, str]:
        """What is taken, and the words for it."""
        if self._output is not None and not isinstance(self._output, (str, int)):
            name = getattr(self._output, "__name__", type(self._output).__name__)
            return self._output(returned), f"by {name}"
        parts = parts_of(returned)
        kind = type(returned).__name__
        if self._output is not None:
            if parts is None:
                raise InputError(
                    f"output={self._output!r} names nothing: the model returns {_described(returned)}"
                )
            name = self._named(parts, kind)
            return parts[name], f"{name} of {kind}"
        if parts is None:
            return returned, ""
        if LOGITS in parts:
            return parts[LOGITS], f"{LOGITS} of {kind}"
        able = [name for name, part in parts.items() if _may_be_outputs(part)]
        if len(able) > 1:
            which = ", ".join(f"{name} {list(parts[name].shape)}" for name in able)
            raise InputError(f"the model returns several tensors ({which}); say which with output=")
        return (parts[able[0]], f"{able[0]} of {kind}") if able else (returned, "")

    def _named(self, parts: Mapping[str, Any], kind: str) -> str:
        """The name of the part that was asked for, by name or by place."""
        names = list(parts)
        asked = str(self._output)
        if asked in parts:
            return asked
        if asked.removeprefix("-").isdigit() and -len(names) <= int(asked) < len(names):
            return names[int(asked)]
        raise InputError(f"output={self._output!r} is not in the model's {kind}; it has {', '.join(names)}")


def parts_of(returned: Any) -> Mapping[str, Any] | None:
    """What a model returned, by name or by place; None where it is one thing."""
    if isinstance(returned, Mapping):
        return {str(name): part for name, part in returned.items()}
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    if isinstance(returned, (tuple, list)):
        names = getattr(returned, "_fields", range(len(returned)))
        return {str(name): part for name, part in zip(names, returned, strict=True)}
    return None


def _may_be_outputs(part: Any) -> bool:
    """Whether a part could be outputs: real numbers a sample; a loss is a single number."""
    return isinstance(part, Tensor) and part.is_floating_point() and part.dim() > 0


def _described(value: Any) -> str:
    parts = parts_of(value)
    if parts is None:
        return "None" if value is None else f"a {type(value).__name__}"
    return f"a {type(value).__name__} ({', '.join(parts)})"
