"""Where the work is done."""

from fisherlab.errors import InputError


def resolve_device(device: str) -> str:
    """`cpu`, or `cuda:<index>` of a GPU that is there; `auto` takes the GPU if there is one.

    Raises:
        InputError: for another name, or a GPU that this machine does not have.
    """
    import torch

    kind, _, index = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise InputError(f"unknown device {device!r}; give auto, cpu, cuda or cuda:<index>")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return "cpu"
    if int(index or 0) >= count:
        found = f"it has {count} CUDA GPU{'s' * (count != 1)}" if count else "it has no usable CUDA GPU"
        raise InputError(f"the device {device!r} is not on this machine: {found}; give --device cpu")
    return f"cuda:{int(index or 0)}"
