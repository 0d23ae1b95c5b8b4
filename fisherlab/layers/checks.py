"""Models that cannot be looked at as they are: compiled, without numbers, shared out; and a look at rest."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from fisherlab.errors import InputError

_WHOLE = (
    "a layer's weight must be whole in every process: use DistributedDataParallel; an analysis takes a plain "
    "model too, with the weights of get_model_state_dict under StateDictOptions(full_state_dict=True)"
)


def check_not_compiled(model: nn.Module) -> None:
    """Refuse a model with a compiled module, named in the error (`InputError`)."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            where = f"module {name!r}" if name else "the model"
            raise InputError(f"{where} is compiled, which hides its layers; give it without torch.compile")


def check_has_numbers(model: nn.Module) -> None:
    """Refuse a model with a parameter or buffer on the meta device, named in the error (`InputError`)."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise InputError(
                f"{name!r} is on the meta device, which holds no numbers; bring the model to a device with "
                "model.to_empty(device=...) and load its weights"
            )


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose parameters are shared out among processes (`InputError`).

    Parameters of `fully_shard` are plain tensors between its forward and backward pass, so modules are asked.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: nothing is sharded by it
    ways = {"fully_shard": fsdp.FSDPModule, "FSDP": fsdp.FullyShardedDataParallel} if fsdp else {}
    for module in model.modules():
        for way, kind in ways.items():
            if isinstance(module, kind):
                raise InputError(f"the model is sharded by {way}; {_WHOLE}")
    for what, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if hasattr(tensor, "full_tensor"):
                raise InputError(f"{what} {name!r} is a DTensor; {_WHOLE}")


@contextmanager
def parametrizations_at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for what computes weights: to read such a weight then changes nothing.

    Spectral norm goes on with its vectors whenever its weight is read in training mode.
    """
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    modes = [(module, module.training) for one in lists for module in one.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
