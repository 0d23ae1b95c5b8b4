"""The `data` argument of the public functions as batches of tensors, the same on every pass."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fisherlab.arguments import check
from fisherlab.collect.forms import (
    Batch,
    ModelInputs,
    OwnLabels,
    described,
    in_batches,
    is_no_batches,
    is_pair,
    name_of,
    split,
    tensors_of,
    way_out,
    why_no_numbers,
)
from fisherlab.datasets.dataset import Dataset, Inputs
from fisherlab.errors import FisherlabError, InputError, InputTypeError
from fisherlab.layers import Mask

Form = tuple[tuple[int, ...], ...]
"""The shapes of one sample's inputs."""

_FORMS = 64  # shapes of which samples are kept before a pass: a choice, of which each costs a look
_PAIR = 2  # samples of each: what a look needs


def called(model: Callable[..., Any], inputs: ModelInputs) -> Any:
    """The model's output for these inputs, which may not fit it.

    Raises:
        InputError: where the model raises any exception, but one of fisherlab or for want of memory.
    """
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    except (FisherlabError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        given = ", ".join(f"{name} {list(x.shape)} {x.dtype}".lstrip() for name, x in _named(inputs))
        why = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise InputError(
            f"the model fails on inputs {given} ({why}); check that the data, and a few samples "
            "of them alone, fit it"
        ) from error


def _named(inputs: ModelInputs) -> list[tuple[str, Tensor]]:
    """The tensors of the inputs, with their names where they have some."""
    if isinstance(inputs, dict):
        return [(name, value) for name, value in inputs.items() if isinstance(value, Tensor)]
    return [("", value) for value in tensors_of(inputs)]


def each(inputs: ModelInputs, change: Callable[[Tensor], Tensor]) -> Any:
    """The inputs with every tensor changed; what stands beside them is as before."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {n: change(value) if isinstance(value, Tensor) else value for n, value in inputs.items()}
    return tuple(change(value) for value in inputs)


def converted(values: Tensor, dtype: torch.dtype | None, device: str | torch.device) -> Tensor:
    """Values on the device, real ones in `dtype`."""
    return values.to(device=device, dtype=dtype if values.is_floating_point() else None)


class Batches:
    """`(inputs, targets)` tensors, or an iterable of such batches, repeatable and checked.

    Each pass over an iterable is compared with the first by a checksum of its batches, so that a loader
    that shuffles or augments is found out. Batches are cut where they are larger than the caller wants.

    Args:
        data: a pair `(inputs, targets)` (targets may be None), inputs alone, an iterable of either, or a
            `datasets.Dataset` with the format of torch; inputs are a tensor, or a tuple or dictionary of
            tensors for a model with several arguments, a dictionary also with flags. Where a dictionary has
            no targets beside it, its `labels` (or `label`) are the targets.
        samples_dim: the dimension of the inputs that counts samples.

    Attributes:
        labels: how labels within a dictionary are read; the model says so, see `OwnLabels`.
    """

    def __init__(self, data: Any, samples_dim: int = 0) -> None:
        check("batch_dim", samples_dim, int)
        self._dim = samples_dim
        self.labels = OwnLabels()
        data = in_batches(data)
        self._tensors = isinstance(data, (Tensor, Mapping)) or is_pair(data)
        if not self._tensors and (not isinstance(data, Iterable) or is_no_batches(data)):
            raise InputTypeError(
                "data must be a pair (inputs, targets) of tensors or an iterable of such batches (a "
                f"DataLoader), not {described(data)}{way_out(data)}"
            )
        self._data = data
        self._checksums: list[int] | None = None
        self._started = False
        self._head: tuple[Any, int] | None = None  # a loader with workers is slow to start
        self.samples: int | None = None
        self.forms: dict[Form, tuple[int, ModelInputs]] = {}
        if self._tensors:
            self.samples = self.size(self._checked(data, 0)[0])
            if not self.samples:
                raise _empty()

    def own_labels(self) -> str | None:
        """The name of the labels within the first batch; None: it has targets beside it, or no labels."""
        inputs, targets = split(*self._first_raw())
        return name_of(inputs) if targets is None else None

    def size(self, inputs: ModelInputs) -> int:
        """The number of samples."""
        return tensors_of(inputs)[0].shape[self._dim]

    def first(self, samples: int) -> Batch:
        """At most this many samples from the start, for a look before the work.

        Starting a `DataLoader` draws from torch's random state, which is put back.
        """
        return self._cut(self._checked(*self._first_raw()), 0, samples)

    def _first_raw(self) -> tuple[Any, int]:
        """The first batch that has samples, as it was given, and its index."""
        if self._tensors:
            return self._data, 0
        if self._head is None and isinstance(self._data, Iterator):
            # It can be read only once: keep what the look takes from it.
            taken: list[Any] = []

            def read() -> Iterator[Any]:
                for raw in self._data:
                    taken.append(raw)
                    yield raw

            self._head = self._with_samples(read())
            self._data = _Rest(taken, self._data)
        elif self._head is None:
            with torch.random.fork_rng([]):
                self._head = self._with_samples(self._data)
        return self._head

    def _with_samples(self, given: Iterable[Any]) -> tuple[Any, int]:
        for index, raw in enumerate(given):
            if self.size(self._checked(raw, index)[0]):
                return raw, index
        raise _empty()

    def batches(self, most: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """One pass over samples start, …, stop − 1, in batches of at most `most`; empty batches give none.

        Raises:
            InputError: where the data set is empty, its tensors do not belong together, values are
                not finite, or a second pass differs from the first.
        """
        if self._tensors:
            yield from self._cuts(self._split(self._data, 0), most, start, stop)
            return
        checksums: list[int] = []
        count = 0
        for index, batch in enumerate(self._raw()):
            checksums.append(_checksum(batch))
            known = self._checksums
            if known is not None and known[index : index + 1] != checksums[index:]:
                raise _differs(index)
            yield from self._cuts(batch, most, start - count, None if stop is None else stop - count)
            count += self.size(batch[0])
        if not count:
            raise _empty()
        if self._checksums is not None and len(checksums) != len(self._checksums):
            raise _differs(len(checksums))
        self._checksums, self.samples = checksums, count

    def count(self) -> int | None:
        """The number of samples, read through where the data can be; None for a generator.

        Of every shape that a sample's inputs have, `forms` then has the first batch and two samples of it.
        """
        if self.samples is None and not isinstance(self._data, _Rest):
            with torch.random.fork_rng([]):
                self.samples = 0
                for index, batch in enumerate(self._raw()):
                    size = self.size(batch[0])
                    self.samples += size
                    if size and len(self.forms) < _FORMS:
                        own = index, self._cut(batch, 0, _PAIR)[0]
                        self.forms.setdefault(self.form(batch[0]), own)
        return self.samples

    def form(self, inputs: ModelInputs) -> Form:
        """The shapes of one sample's inputs."""
        return tuple(tuple(x.narrow(self._dim, 0, 1).shape) for x in tensors_of(inputs))

    def fingerprint(self) -> str:
        """A hash of all values, in hexadecimal; empty for a generator that is not read to its end yet."""
        checksums = self._checksums
        if self._tensors:
            checksums = [_checksum(self._split(self._data, 0))]
        elif checksums is None and not isinstance(self._data, _Rest):
            with torch.random.fork_rng([]):
                checksums = [_checksum(batch) for batch in self._raw()]
        return "" if checksums is None else hashlib.sha256(repr(checksums).encode()).hexdigest()

    def _raw(self) -> Iterator[Batch]:
        if self._tensors:
            yield self._split(self._data, 0)
            return
        if isinstance(self._data, _Rest):
            if self._started:
                raise InputError(
                    "the data can be read only once and two passes are needed; give a list of "
                    "batches or a DataLoader instead of a generator"
                )
            self._started = True
        form = None
        for index, raw in enumerate(self._data):
            batch = self._checked(raw, index)
            if self.size(batch[0]):
                own = [(x.dim(), x.is_floating_point()) for x in tensors_of(batch[0])]
                form = own if form is None else form
                if own != form:
                    raise InputError(
                        f"the inputs of batch {index} have other dimensions or numbers than those before; "
                        "give every batch as a pair (inputs, targets), all of one form"
                    )
            yield batch

    def _split(self, batch: Any, index: int) -> Batch:
        """A batch as it was given, its own labels taken for targets where it has no others."""
        inputs, targets = split(batch, index)
        return self.labels.split(inputs) if targets is None else (inputs, targets)

    def _checked(self, batch: Any, index: int) -> Batch:
        """A batch as it was given, of tensors that belong together; it may be empty."""
        inputs, targets = self._split(batch, index)
        named = [(f"inputs {name!r}" if name else "inputs", values) for name, values in _named(inputs)]
        named += [] if targets is None else [("targets", targets)]
        for what, values in named:
            trouble = why_no_numbers(values)
            if trouble:
                raise InputTypeError(f"the {what} of batch {index} are {trouble}")
        samples = None
        for values in tensors_of(inputs):
            if not -values.dim() <= self._dim < values.dim():
                raise InputError(
                    f"the inputs of batch {index} have shape {list(values.shape)}, without a dimension "
                    f"{self._dim} that counts samples; give a batch of samples, or another batch_dim"
                )
            if samples not in (None, values.shape[self._dim]):
                raise InputError(
                    f"the inputs of batch {index} have {samples} and {values.shape[self._dim]} samples; "
                    "every tensor needs one entry a sample: what belongs to no sample, such as a graph's "
                    "edges, goes into the model"
                )
            samples = values.shape[self._dim]
        if targets is not None and (targets.dim() == 0 or len(targets) != samples):
            raise InputError(
                f"batch {index} of the data has {samples} inputs and "
                f"{len(targets) if targets.dim() else 'a scalar as'} targets; they must be as many"
            )
        for what, values in named:
            if samples and not values.numel():
                raise InputError(
                    f"the {what} of batch {index} have shape {list(values.shape)}, which holds no numbers; "
                    "every dimension must be at least 1"
                )
            if not is_finite(values):
                raise InputError(
                    f"the {what} of batch {index} hold values that are not finite (NaN or "
                    "infinite); clean the data first"
                )
        return inputs, targets

    def _cuts(self, batch: Batch, most: int, start: int, stop: int | None) -> Iterator[Batch]:
        samples = self.size(batch[0])
        end = samples if stop is None else min(samples, stop)
        for place in range(max(0, start), end, most):
            yield self._cut(batch, place, min(most, end - place))

    def _cut(self, batch: Batch, start: int, samples: int) -> Batch:
        inputs, targets = batch
        samples = min(samples, self.size(inputs) - start)
        part = each(inputs, lambda x: x.narrow(self._dim, start, samples))
        return part, None if targets is None else targets[start : start + samples]


class NamedPair(tuple[Inputs, Tensor]):
    """A pair (inputs, targets) that knows the data set it is from, so that results can say so.

    It also knows which positions of padded inputs are valid, by layer: `ModelSpec.masks`.
    """

    dataset: Dataset
    masks: Mapping[str, Mask]

    def __new__(
        cls, inputs: Inputs, targets: Tensor, dataset: Dataset, masks: Mapping[str, Mask]
    ) -> "NamedPair":
        """The pair, with its data set and masks."""
        pair = super().__new__(cls, (inputs, targets))
        pair.dataset = dataset
        pair.masks = masks
        return pair


def masks_of(data: Any) -> Mapping[str, Mask]:
    """The valid positions that data know of, by layer; of a plain pair or of batches none."""
    return data.masks if isinstance(data, NamedPair) else {}


class _Rest:
    """A generator whose first batches were taken from it already."""

    def __init__(self, taken: list[Any], rest: Iterator[Any]) -> None:
        self._taken, self._rest = taken, rest

    def __iter__(self) -> Iterator[Any]:
        yield from self._taken
        yield from self._rest


def is_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite: their sum in float64 is not, in one pass and without a mask.

    Raises:
        InputError: a tensor on the meta device has no entries; of data that was looked at before.
    """
    if values.is_meta:
        raise InputError(
            "the model has tensors on the meta device, which holds no numbers; bring it to a device with "
            "model.to_empty(device=...) and load its weights"
        )
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if not values.is_floating_point():
        return True
    return bool(torch.isfinite(values.sum(dtype=torch.float64)))


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors, with their names, dtypes and shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _checksum(batch: Batch) -> int:
    inputs, targets = batch
    flags = {n: v for n, v in inputs.items() if not isinstance(v, Tensor)} if isinstance(inputs, dict) else {}
    value = zlib.crc32(repr(flags).encode()) if flags else 0
    for tensor in (*tensors_of(inputs), *([] if targets is None else [targets])):
        value = zlib.crc32(_bytes(tensor), value)
    return value


def _bytes(tensor: Tensor) -> bytes:
    """All numbers of a tensor; of a sparse one those that are kept, with their places."""
    if tensor.layout != torch.strided:
        kept = tensor.detach().to_sparse_coo().coalesce()
        return _bytes(kept.indices()) + _bytes(kept.values())
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8).numpy().tobytes()


def _empty() -> InputError:
    return InputError("the data set is empty; give at least one sample")


def _differs(index: int) -> InputError:
    return InputError(
        f"the data differ between two passes (batch {index}); turn off shuffling and random "
        "augmentation, or give tensors"
    )
