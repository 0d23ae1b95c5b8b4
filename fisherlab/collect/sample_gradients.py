"""The samples' gradients of parameters by autograd alone: no hooks, no captured inputs."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fisherlab.base.memory import at_most
from fisherlab.base.precision import reference
from fisherlab.collect.agreement import close
from fisherlab.collect.batches import each, is_finite
from fisherlab.collect.forms import ModelInputs, tensors_of
from fisherlab.collect.outputs import Outputs
from fisherlab.errors import FisherlabError, NotSupportedError
from fisherlab.layers import LayerView, without_fast_path
from fisherlab.linalg.numerics import norm64, spans

_COMPARED = 2  # samples whose gradients by vmap are compared with a loop's, and columns: the fewest to mix
_COMPARED_BYTES = 2**28  # of these gradients: a choice, beyond which a loop takes no more time than vmap

NOT_THE_SUM = "the gradients of single samples do not add up to that of the batch"


def look_bytes(numbers: int, size: int) -> int:
    """What `SampleGradients.why_not` holds for blocks with so many numbers of this size.

    The batch's gradient, its sum over samples in float64, and of one sample the gradient, its parts as
    autograd adds them, and a copy.
    """
    return numbers * (torch.float64.itemsize + 4 * size)


class SampleGradients:
    """V_n of several blocks at once, by `torch.func`; sample by sample where vmap cannot, or errs.

    Args:
        model: the network, in evaluation mode.
        views: the blocks.
        batch_dim: the dimension of the model's inputs that counts samples.
        outputs: calls the model.
    """

    def __init__(
        self, model: nn.Module, views: Sequence[LayerView], batch_dim: int, outputs: Outputs
    ) -> None:
        self._model, self._views, self._batch_dim, self._outputs = model, views, batch_dim, outputs
        own = dict(model.named_parameters())
        names = dict.fromkeys(name for view in views for name in view.parameters)
        self._own = {name: own[name] for name in names}
        self._parameters = {name: p.detach() for name, p in own.items()}
        self._block = {name: self._parameters[name] for name in names}
        named = {id(p): name for name, p in own.items()}
        self._places = {
            f"{path}.{name}" if path else name: named[id(p)]
            for path, module in model.named_modules()
            for name, p in module._parameters.items()
            if p is not None
        }
        held = _COMPARED**2 * sum(view.size for view in views) * reference(model).element_size()
        self._loop = held > at_most(_COMPARED_BYTES, 16)
        self._right: set[tuple[torch.Size, ...]] = set()
        self._calls = 0

    def __call__(self, inputs: ModelInputs, u: Tensor) -> dict[str, Tensor]:
        """For each block V [n, c, m, d] for columns u [n, c, …].

        What vmap gives is compared with a loop for inputs of every shape, and in calls 0, 1, 2, 4, 8 and so
        on; where it gives something else the loop is taken.

        Raises:
            NotSupportedError: where it gave the same for other inputs of this shape before.
        """
        if not self._loop:
            try:
                found = self._together(inputs, u)
            except Exception:  # the model does what vmap cannot
                self._loop = True
            else:
                self._loop = not self._is_right(inputs, u, found)
        return self._one_by_one(inputs, u) if self._loop else found

    def _is_right(self, inputs: ModelInputs, u: Tensor, found: Mapping[str, Tensor]) -> bool:
        """Whether gradients by vmap may be taken, see `__call__`."""
        shapes, call = (*(x.shape for x in tensors_of(inputs)), u.shape), self._calls
        self._calls += 1
        known = shapes in self._right
        if not all(map(is_finite, found.values())):  # a loop tells whether that is vmap's doing
            return False
        if known and call & (call - 1):
            return True
        if self._as_by_loop(inputs, u, found):
            self._right.add(shapes)
            return True
        if known:
            raise NotSupportedError(
                "vmap gives other gradients than a loop over the samples, and not for all inputs of a shape: "
                "the samples' gradients cannot be trusted; give the data as batches of one sample"
            )
        return False

    def pieces(self, inputs: ModelInputs, u: Tensor, most: int) -> dict[str, Tensor]:
        """The same for at most so many samples at a time."""
        found = [
            self(self._samples_between(inputs, *span), u[slice(*span)]) for span in spans(len(u), 1, most)
        ]
        return found[0] if len(found) == 1 else {n: torch.cat([one[n] for one in found]) for n in found[0]}

    def why_not(self, inputs: ModelInputs, u: Tensor) -> dict[str, str]:
        """For each block why its samples' gradients are not to be trusted, or an empty text.

        Single samples' gradients must add up to that of the batch; where vmap gives others it is not used.

        Args:
            inputs: of a few samples.
            u: a column [n, …] at their outputs.
        """
        outputs = self._outputs(inputs)
        expected, rounding = self._gradients(outputs, u), _rounding(self._model, outputs, u)
        totals: dict[str, Tensor] = {}
        squares = dict.fromkeys((view.name for view in self._views), 0.0)
        try:
            for V in self._rows(inputs, u.unsqueeze(1)):
                for name, (own,) in V.items():
                    totals[name] = totals[name].add_(own) if name in totals else own.double()
                    squares[name] += _norm(own) ** 2
        except Exception as error:
            why = str(error) if isinstance(error, FisherlabError) else f"{type(error).__name__}: {error}"
            reason = f"the model cannot be called with one sample alone ({why})"
            return {view.name: reason for view in self._views}
        self._loop = self._loop or not self._same_by_vmap(inputs, u)
        return {
            view.name: ""
            if close(
                totals[view.name], view.to_matrix(expected), max(math.sqrt(squares[view.name]), rounding)
            )
            else NOT_THE_SUM
            for view in self._views
        }

    def _same_by_vmap(self, inputs: ModelInputs, u: Tensor) -> bool:
        """Whether vmap gives these gradients of the last samples, and those of a second column with it."""
        start = max(0, len(u) - _COMPARED)
        part, first = self._samples_between(inputs, start, len(u)), u[start:]
        columns = torch.stack([first, first.flip(-1) + first.square()], 1)
        try:
            found = self._together(part, columns)
        except Exception:  # the model does what vmap cannot
            return False
        return self._as_by_loop(part, columns, found)

    def _as_by_loop(self, inputs: ModelInputs, u: Tensor, found: Mapping[str, Tensor]) -> bool:
        """Whether a loop gives these gradients of the first and the last sample and column."""
        columns = sorted({0, u.shape[1] - 1})
        for n in sorted({0, len(u) - 1}):
            own = self._samples_between(inputs, n, n + 1)
            (expected,) = self._rows(own, u[n : n + 1, columns])
            rounding = _rounding(self._model, self._outputs(own), u[n : n + 1, 0])
            for name, V in expected.items():
                for one, other in zip(V, found[name][n, columns], strict=True):
                    if not close(other.double(), one, max(_norm(one), rounding)):
                        return False
        return True

    def _samples_between(self, inputs: ModelInputs, start: int, stop: int) -> ModelInputs:
        return each(inputs, lambda x: x.narrow(self._batch_dim, start, stop - start))

    def _one_by_one(self, inputs: ModelInputs, u: Tensor) -> dict[str, Tensor]:
        rows = list(self._rows(inputs, u))
        return {view.name: torch.stack([one[view.name] for one in rows]) for view in self._views}

    def _rows(self, inputs: ModelInputs, u: Tensor) -> Iterator[dict[str, Tensor]]:
        """For each sample V [c, m, d] of every block, by plain autograd."""
        for n, columns in enumerate(u):
            outputs = self._outputs(self._samples_between(inputs, n, n + 1))
            pulled = [self._gradients(outputs, column.unsqueeze(0)) for column in columns]
            gradients = {name: torch.stack([one[name] for one in pulled]) for name in self._own}
            yield {view.name: view.to_matrix(gradients) for view in self._views}

    def _gradients(self, outputs: Tensor, u: Tensor) -> dict[str, Tensor]:
        """What a column gives each parameter; zero without a path."""
        found: Sequence[Tensor | None] = [None] * len(self._own)
        if outputs.requires_grad:
            parameters = list(self._own.values())
            found = torch.autograd.grad(outputs, parameters, u, retain_graph=True, allow_unused=True)
        pairs = zip(self._own.items(), found, strict=True)
        return {name: _filled(g, parameter) for (name, parameter), g in pairs}

    def _together(self, inputs: ModelInputs, u: Tensor) -> dict[str, Tensor]:
        """The same by vmap over the tensors of the inputs: what stands beside them is no sample's."""

        def of_sample(tensors: tuple[Tensor, ...], u: Tensor) -> dict[str, Tensor]:
            own = iter(tensors)
            return self._sample(each(inputs, lambda _: next(own)), u)

        with without_fast_path(), warnings.catch_warnings():
            # of functions that vmap has no rule for, which torch takes one by one
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return vmap(of_sample, in_dims=(self._batch_dim, 0))(tensors_of(inputs), u)

    def _sample(self, x: ModelInputs, u: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda block: self._output(block, x), self._block)[1]
        (gradients,) = vmap(pull)(u)
        return {view.name: view.to_matrix(gradients) for view in self._views}

    def _output(self, block: Mapping[str, Tensor], x: ModelInputs) -> Tensor:
        x = each(x, lambda value: value.unsqueeze(self._batch_dim))
        arguments, keywords = ((), x) if isinstance(x, dict) else (tensors_of(x), {})
        given = {**self._parameters, **block}
        # each place once: torch puts something else back where a module with a tied weight has two names
        placed = {place: given[name] for place, name in self._places.items()}
        returned = functional_call(self._model, placed, arguments, keywords, tie_weights=False)
        return self._outputs.of(returned).squeeze(0)


def _filled(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(parameter).detach()
    return gradient.to_dense() if gradient.is_sparse else gradient


def _rounding(model: nn.Module, outputs: Tensor, u: Tensor) -> float:
    """A scale for gradients that are zero but for rounding, such as those of an attention's key biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not outputs.requires_grad:
        return 0.0
    found = torch.autograd.grad(outputs, parameters, u, retain_graph=True, allow_unused=True)
    largest = max((_norm(_filled(g, g)) for g in found if g is not None), default=0.0)
    # as in `Looker.goes_together`: what is zero but for rounding is a sum of many terms of another's size
    return 100 * math.sqrt(torch.finfo(outputs.dtype).eps) * largest


def _norm(V: Tensor) -> float:
    return float(norm64(torch.view_as_real(V.resolve_conj()) if V.is_complex() else V))
