"""What a batch may be: a pair (inputs, targets) or inputs alone; and what is said of anything else."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import InputError, InputTypeError

ModelInputs = Tensor | tuple[Tensor, ...] | dict[str, Any]
"""What a model is called with: `model(x)`, `model(*x)` or `model(**x)`, with flags beside the tensors."""

Batch = tuple[ModelInputs, Tensor | None]

_ROWS = 256  # of a data set of the package datasets in a batch: a choice
_SHOWN = 4  # parts of a batch that an error names: a choice, what a line holds


_LABELS = ("labels", "label")
IGNORED = -100
"""The target of a position without a token; the default `ignore_index` of the token likelihood."""

_MASK, _MASK_OF_DECODER = "attention_mask", "decoder_attention_mask"
_OF_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", _MASK_OF_DECODER)


def tensors_of(inputs: ModelInputs) -> tuple[Tensor, ...]:
    """The tensors of the inputs."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return tuple(value for value in values if isinstance(value, Tensor))


def split(batch: Any, index: int) -> Batch:
    """A batch as (inputs, targets); of what it holds nothing is looked at.

    Raises:
        InputTypeError: where it is no pair of tensors, nor inputs alone; says what to do about it.
    """
    if isinstance(batch, Tensor) or (isinstance(batch, Mapping) and _are_inputs(batch)):
        return _plain(batch), None
    if is_pair(batch):
        return _plain(batch[0]), batch[1]
    if isinstance(batch, (tuple, list)) and len(batch) == 1 and _are_inputs(batch[0]):
        return _plain(batch[0]), None
    raise InputTypeError(
        f"batch {index} of the data is {described(batch)}; each must be a pair (inputs, targets) of "
        f"torch tensors{way_out(batch)}"
    )


def _strangers(inputs: Mapping[str, Any]) -> list[str]:
    """The names of inputs that are neither a tensor nor a flag."""
    known = Tensor, NoneType, bool, int, float, str
    return [name for name, value in inputs.items() if not isinstance(value, known)]


def in_batches(data: Any) -> Any:
    """A data set of the package datasets as its batches, which it gives itself; anything else as it is."""
    of_datasets = type(data).__module__.partition(".")[0] == "datasets" and hasattr(data, "iter")
    return _Rows(data) if of_datasets else data


class _Rows:
    """The batches of a `datasets.Dataset`; they can be read again."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        for batch in self._rows.iter(batch_size=_ROWS):
            if not all(isinstance(column, Tensor) for column in batch.values()):
                listed = next(name for name in batch if not isinstance(batch[name], Tensor))
                raise InputError(
                    f'column {listed!r} of the data set is no tensor: give dataset.with_format("torch") with '
                    "columns of numbers, padded to one shape"
                )
            yield batch


def is_pair(data: Any) -> bool:
    """Whether something is inputs with targets, which may be None."""
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and _are_inputs(data[0])
        and (data[1] is None or isinstance(data[1], Tensor))
    )


def _are_inputs(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(isinstance(one, Tensor) for one in value.values()) and not _strangers(value)
    return (
        isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(one, Tensor) for one in value)
    )


def is_no_batches(data: Any) -> bool:
    """Whether what can be iterated holds no batches: a text, an array, half a pair, a triple of tensors."""
    if not isinstance(data, (tuple, list)):
        return isinstance(data, (str, bytes, os.PathLike, nn.Module)) or _is_array(data)
    several = isinstance(data, tuple) and len(data) > 2 and all(isinstance(x, Tensor) for x in data)
    half = len(data) == 2 and any(isinstance(x, Tensor) for x in data) and not all(map(_are_inputs, data))
    return several or half or any(map(_is_array, data))


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Tensor)


def described(batch: Any) -> str:
    """What a batch is, with the types of its parts."""
    if batch is None:
        return "None"
    if not isinstance(batch, (tuple, list, Mapping)):
        return f"a {type(batch).__name__}"
    parts = (
        [f"{key}: {_type_name(batch[key])}" for key in batch]
        if isinstance(batch, Mapping)
        else map(_type_name, batch)
    )
    shown = list(islice(parts, _SHOWN))
    return f"a {type(batch).__name__} ({', '.join(shown)}{', …' if len(batch) > _SHOWN else ''})"


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def way_out(batch: Any) -> str:
    """What to do about a batch of another form, where that can be told."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    strange = _strangers(inputs) if isinstance(inputs, Mapping) else []
    if strange and any(isinstance(one, Tensor) for one in inputs.values()):
        kind = type(inputs[strange[0]]).__name__
        return f"; {strange[0]!r} among the inputs is a {kind}, neither a tensor nor a flag: take it out"
    parts = batch.values() if isinstance(batch, Mapping) else batch
    parts = list(parts) if isinstance(batch, (tuple, list, Mapping)) else [batch]
    if any(map(_is_array, parts)):
        return "; convert arrays with torch.from_numpy(x)"
    if isinstance(batch, (str, os.PathLike)):
        return "; load the file first"
    if len(parts) > 2 and all(isinstance(part, Tensor) for part in parts):
        return "; several inputs are given as ((x1, x2), targets), batches as a list, and weights not at all"
    return ""


def why_no_numbers(values: Tensor) -> str:
    """Why a tensor does not hold its numbers one after another, with the way out; or an empty text."""
    if values.is_nested:
        return "a nested tensor; pad it, with torch.nested.to_padded_tensor(x, 0.0)"
    if values.layout != torch.strided:
        return "a sparse tensor; give a dense one, x.to_dense()"
    if values.is_quantized:
        return "a quantized tensor; give x.dequantize()"
    if values.is_meta:
        return "on the meta device, which holds no numbers; give them on the CPU"
    return ""


def _plain(inputs: Any) -> ModelInputs:
    if isinstance(inputs, Tensor):
        return inputs
    return (
        {str(name): value for name, value in inputs.items()} if isinstance(inputs, Mapping) else tuple(inputs)
    )


@dataclass(frozen=True)
class OwnLabels:
    """How the labels within a batch are read.

    Attributes:
        shifted: whether the label of a position is that of the next one, and the last has none.
        kept: whether the model is called with them.
        of_decoder: whether they are those of a decoder, see `tokens_in`.
    """

    shifted: bool = False
    kept: bool = False
    of_decoder: bool = False

    def split(self, inputs: ModelInputs) -> tuple[ModelInputs, Tensor | None]:
        """The inputs of a model, and the targets that stand among them.

        A label at padding is none. Where labels move it is taken away before, while it still stands at
        padding: else the last token's label would be what the padding is filled with.
        """
        name = name_of(inputs)
        if name is None or not isinstance(inputs, dict):
            return inputs, None
        targets = inputs[name]
        if not self.kept:
            inputs = {key: value for key, value in inputs.items() if key != name}
        if self.shifted:
            tokens = tokens_in(inputs, targets.shape, decoder=self.of_decoder)
            if tokens is not None:
                targets = targets.masked_fill(~tokens.to(targets.device), IGNORED)
            targets = torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORED)], 1)
        return inputs, targets


def tokens_in(inputs: ModelInputs, shape: Sequence[int], *, decoder: bool = False) -> Tensor | None:
    """Which positions are tokens by the mask among the inputs, a bool [n, T]; None: no mask says so.

    Args:
        inputs: what the model is called with.
        shape: [n, T] of the positions; a mask of others is not theirs.
        decoder: whether the positions are those of a decoder, whatever the inputs have.
    """
    decoder = decoder or (isinstance(inputs, dict) and any(name in inputs for name in _OF_DECODER))
    mask = token_masks(inputs).get(_MASK_OF_DECODER if decoder else _MASK)
    return mask if mask is not None and mask.shape == torch.Size(shape) else None


def token_masks(inputs: ModelInputs) -> dict[str, Tensor]:
    """The masks [n, T] of ones and zeros by name, as bools; what is added to scores is of another form."""
    if not isinstance(inputs, dict):
        return {}
    given = {name: inputs.get(name) for name in (_MASK, _MASK_OF_DECODER)}
    return {
        name: mask.bool()
        for name, mask in given.items()
        if isinstance(mask, Tensor) and mask.dim() == 2 and _says_which(mask)
    }


def _says_which(mask: Tensor) -> bool:
    """Whether a mask is of ones and zeros: one of floats may be what is added to scores, 0 for a token."""
    return not mask.is_floating_point() or bool(((mask == 0) | (mask == 1)).all() and mask.any())


def name_of(inputs: Any) -> str | None:
    """Under which name labels stand in a batch; None: under none, or beside nothing."""
    if not isinstance(inputs, Mapping):
        return None
    found = [name for name in _LABELS if isinstance(inputs.get(name), Tensor)]
    return found[0] if found and len(inputs) > 1 else None
