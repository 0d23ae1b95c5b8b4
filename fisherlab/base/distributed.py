"""torch.distributed as the passes use it: every process takes a share of the samples, sums are added up."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fisherlab.errors import FisherlabError

T = TypeVar("T")


def rank() -> int:
    """The number of this process; 0 without a process group."""
    return dist.get_rank() if _up() else 0


def size() -> int:
    """How many processes there are; 1 without a process group."""
    return dist.get_world_size() if _up() else 1


def share(samples: int) -> tuple[int, int]:
    """The samples [start, stop) of this process, of so many in all."""
    return samples * rank() // size(), samples * (rank() + 1) // size()


def add_up(values: list[Tensor]) -> None:
    """Each tensor becomes the sum of all processes' tensors, in place."""
    if size() > 1:
        for value in values:
            dist.all_reduce(value)


def stacked(value: Tensor) -> Tensor:
    """All processes' tensors of one shape, [processes, …]."""
    found = value.new_empty(size(), *value.shape)
    if size() == 1:
        return found.copy_(value)
    dist.all_gather(list(found), value)
    return found


def gather_all(value: T) -> list[T]:
    """All processes' values, in the order of the processes."""
    if size() == 1:
        return [value]
    found: list[T | None] = [None] * size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them.

    Raises:
        FisherlabError: that of the first process, in all.
    """
    made: list[tuple[T | None, FisherlabError | None]] = [(None, None)]
    if rank() == 0:
        try:
            made = [(make(), None)]
        except FisherlabError as error:
            made = [(None, error)]
    if size() > 1:
        dist.broadcast_object_list(made)
    value, failure = made[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


@contextmanager
def launched() -> Iterator[None]:
    """Joins the processes that torchrun started, if it did, for the time of the block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _up():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _up() -> bool:
    return dist.is_available() and dist.is_initialized()
