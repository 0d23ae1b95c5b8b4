"""What a method's V is: the gradient of each sample, or √B times the mean gradient of a batch of B."""

import re

from fisherlab.errors import InputError, InputTypeError

_BATCH = re.compile(r"batch:([0-9]+)")


def batch_size(gradients: str) -> int | None:
    """B of the option `gradients="batch:B"`; None for `sample`.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(gradients, str):
        raise InputTypeError(f"gradients is 'sample' or 'batch:B', such as 'batch:128', not {gradients!r}")
    if gradients == "sample":
        return None
    found = _BATCH.fullmatch(gradients)
    if found is None or int(found[1]) < 1:
        raise InputError(f"gradients is {gradients!r}; give 'sample', or 'batch:B' such as 'batch:128'")
    return int(found[1])


def remark_of(batch: int | None) -> str:
    """Which gradients an F̂ is made of, for the note of its row."""
    if batch is None:
        return "V: gradients of samples"
    return f"V: √{batch} × the mean gradient of batches of {batch} samples, with the data's labels"
