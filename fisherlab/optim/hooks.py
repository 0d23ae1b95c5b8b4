"""Hooks on a user's model that end with the optimizer, and stay behind when the model is copied."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hook:
    """Calls a method for as long as its object lives; a copy, or one that was pickled, does nothing.

    Args:
        method: bound; its object is not kept alive.
        *first: arguments before those of the call.
    """

    def __init__(self, method: Callable[..., Any] | None = None, *first: Any) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)
        self._first = first

    @property
    def dead(self) -> bool:
        """Whether nothing is called any more."""
        return self._method is None or self._method() is None

    def __call__(self, *args: Any) -> None:
        """What torch calls."""
        method = None if self._method is None else self._method()
        if method is not None:
            method(*self._first, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, ()


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls a bound method without keeping its object alive.

    What an optimizer is made of calls back by these, so that it ends with its last reference and not when the
    garbage collector comes.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **keywords: Any) -> Any:
        alive = reference()
        assert alive is not None, "called after its object has ended"
        return alive(*args, **keywords)

    return call


def removed_with(owner: Any, handles: Iterable[RemovableHandle]) -> None:
    """Removes hooks from the model when their owner ends."""
    weakref.finalize(owner, _remove, list(handles)).atexit = False


def sweep(model: nn.Module) -> None:
    """Removes the dead hooks that a copy of a model brought along."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Hook) and hook.dead]:
                del hooks[key]
                for kept in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    kept.pop(key, None)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
