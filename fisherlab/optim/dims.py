"""Which dimension of the inputs of each layer counts samples: declared, or found by looking at a few."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fisherlab.errors import InputError
from fisherlab.layers import LayerCall, Layers, match_names
from fisherlab.optim.rows import ACT_ON_EACH_OTHER, Look, look_at, sample_dim, tensors_in

_MANY = 3  # layers, of which one reason is enough
_LOOKS = 3  # at other samples each, before a layer that none of them reached is refused


class SampleDims:
    """Looks at layers until it is sure of them.

    Args:
        layers: the layers with a block.
        parameters: of the model by name.
        batch_dim: the dimension that counts samples, of the model's inputs and of layers'; or by layer (names
            and globs), which is taken as it is, the model's own under the empty name.

    Attributes:
        by_layer: the dimension of each layer's inputs.
    """

    def __init__(
        self, layers: Layers, parameters: Mapping[str, nn.Parameter], batch_dim: int | Mapping[str, int]
    ) -> None:
        self._layers, self._parameters = layers, parameters
        self._root, self.by_layer, self._declared = _dims_of(layers, batch_dim)
        self._unsure = dict.fromkeys(layers, 0)
        self._reached: set[str] = set()
        self._alone: set[str] = set()

    def count(self, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> int | None:
        """N: how many samples these arguments have; None where no tensor says so.

        Arguments may be of other lengths (a time, a mask, a table): the outputs decide between them, or the
        number of those that agree does.
        """
        lengths = [t.shape[self._root] for t in given if t.dim() > self._root]
        if len(set(lengths)) > 1:
            known = [t.shape[dim] for t in outputs for dim in (self._root, 0) if t.dim() > dim]
            agreed = [length for length in lengths if length in known]
            several = [length for length in lengths if length > 1]
            lengths = agreed or sorted(several, key=several.count, reverse=True)
        return lengths[0] if lengths else None

    def look(
        self, module: nn.Module, names: Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Look | None:
        """A look at a few samples before the pass, whose traces are the last; None: nothing is unsure."""
        unsure = [name for name in names if self._unsure.get(name, _LOOKS) < _LOOKS]
        samples = self.count(tensors_in((args, kwargs)), ())
        if not unsure or samples is None or samples < 2:
            return None
        return self._look_at(module, args, kwargs, samples, unsure)

    def _look_at(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        samples: int,
        names: Sequence[str],
    ) -> Look:
        start = max(self._unsure[name] for name in names)
        layers = self._layers.select(names)
        return look_at(module, args, kwargs, samples, start, self._root, layers, self._parameters)

    def settle(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        samples: int,
        taken: Mapping[str, list[LayerCall]],
        look: Look | None,
    ) -> None:
        """Which dimension of each layer counts samples, from the look; layers of which it says nothing wait.

        A layer stays unsure where its rows are not simply the samples and the model moves rows by what is in
        them: another batch may have other ones.
        """
        for name, calls in taken.items():
            alone = all(self._is_alone(name, call, samples) for call in calls)
            if name in self._alone and not alone:  # another layout than before
                self._unsure.setdefault(name, 0)
            self._alone.update({name} if alone else ())
        unsure = [name for name in taken if name in self._unsure]
        if not unsure or samples < 2:
            return
        if look is None or look.samples != samples:
            look = self._look_at(module, args, kwargs, samples, unsure)
        if look.error and not self._declared.issuperset(unsure):
            raise InputError(
                "which rows of the layers belong to one sample could not be found: called with "
                f"{look.few} of {samples} samples, the model raises {look.error}; "
                f"batch_dim={{'*': 0}} takes the first dimension of every layer as it is, a "
                "layer's name in the place of * that of one"
            )
        judged = {
            name: look.judge(
                self._layers[name],
                self.by_layer[name],
                [call.output.shape for call in taken[name]],
                trusted=name in self._declared,
            )
            for name in unsure
        }
        _refuse({name: found.reason for name, found in judged.items() if found is not None and found.reason})
        for name, found in judged.items():
            self._unsure[name] += 1
            if name in self._declared:
                del self._unsure[name]
                continue
            if found is None and self._unsure[name] >= _LOOKS and name not in self._reached:
                raise InputError(
                    f"layer {name!r} is reached by some samples only, so that it cannot be said which rows "
                    f"are of which sample; leave it out with exclude=({name!r},)"
                )
            if found is None:
                continue
            self._reached.add(name)
            self.by_layer[name] = found.dim
            risky = look.moves and not all(self._is_alone(name, call, samples) for call in taken[name])
            if risky:
                self._unsure[name] = 0
            elif found.sure:
                del self._unsure[name]

    def _is_alone(self, name: str, call: LayerCall, samples: int) -> bool:
        """Whether the dimension of samples is as long as there are samples."""
        dim = sample_dim(self._layers[name], self.by_layer[name])
        return call.output.dim() > dim and call.output.shape[dim] == samples


def _refuse(reasons: Mapping[str, str]) -> None:
    """Raises `InputError` that names all layers which are not as they are taken to be, and the way out."""
    if not reasons:
        return
    said = "; ".join(
        f"layer {name!r}: {reason}" if len(reasons) < _MANY else f"layer {name!r}"
        for name, reason in reasons.items()
    )
    if len(reasons) >= _MANY:
        said = f"{said}: {next(iter(reasons.values()))}"
    way_out = f"exclude={tuple(reasons)!r} leaves them to the step of other parameters"
    if ACT_ON_EACH_OTHER in reasons.values():
        way_out += (
            ", and batch_dim={'*': 0} takes the first dimension of every layer for that of samples, "
            "untested, where samples act on each other by design"
        )
    raise InputError(f"{said}; {way_out}")


def _dims_of(layers: Layers, batch_dim: int | Mapping[str, int]) -> tuple[int, dict[str, int], set[str]]:
    """The dimension that counts samples of the model and of each layer, and the layers that were declared."""
    if not isinstance(batch_dim, Mapping):
        return batch_dim, dict.fromkeys(layers, batch_dim), set()
    root = batch_dim.get("", 0)
    dims = dict.fromkeys(layers, root)
    given = {name: dim for glob, dim in batch_dim.items() if glob for name in match_names(layers, [glob])}
    return root, dims | given, set(given)
