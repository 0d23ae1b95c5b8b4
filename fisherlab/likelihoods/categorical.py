"""Classes: one softmax a sample, or one a token."""

import torch
from torch import Tensor

from fisherlab.errors import InputError, whole_number
from fisherlab.likelihoods import softmax
from fisherlab.likelihoods.base import InParts, check_tensors
from fisherlab.likelihoods.draws import categorical


class Categorical(InParts):
    """Softmax cross-entropy over outputs [n, C]: p(y = k | f) = softmax(f)_k, H = diag(p) − p pᵀ.

    The columns are u_0, …, u_{C − 2} of `fisherlab.likelihoods.softmax`, where they are written out.
    """

    name = "categorical"

    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        k = torch.arange(start, stop, device=outputs.device)
        return softmax.root_columns(outputs.unsqueeze(1), torch.zeros_like(k), k)

    def count(self, outputs: Tensor) -> int:
        """C − 1: the rank of H."""
        self._check_outputs(outputs)
        return outputs.shape[-1] - 1

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """softmax(f) − e_y."""
        return softmax.gradient(outputs, targets)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Class indices [draws, n]."""
        return categorical(outputs, draws, generator)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = −u_k[y] / p_y, [C − 1, n]."""
        return softmax.root_coordinates(outputs, targets).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Integer class indices in [0, C), one a sample."""
        check_tensors(outputs, targets)
        self._check_outputs(outputs)
        softmax.check_labels(self.name, "sample", outputs, targets)

    @staticmethod
    def _check_outputs(outputs: Tensor) -> None:
        if outputs.dim() != 2:
            raise InputError(
                "a categorical likelihood needs outputs of shape [samples, K]; the model gave "
                f"{list(outputs.shape)}; for a sequence of tokens use 'token-categorical'"
            )
        if outputs.shape[-1] < 2:
            raise InputError(
                "a categorical likelihood needs at least 2 outputs; for one logit use 'bernoulli'"
            )


class TokenCategorical(InParts):
    """A softmax for each token: outputs [n, T, V], targets [n, T], ℓ the SUM over tokens that count.

    H is block-diagonal over tokens, each block that of `Categorical`, and zero for a token that does
    not count. There are T (V − 1) columns [n, T, V]: column i is u_{i mod (V − 1)} of token i div (V − 1),
    as if every token counted (`label_columns` leaves out those that do not). A class is never summed over
    tokens into one column, which would give another matrix. A sample of which no token counts has ℓ = 0
    and stays one of the N samples.

    Args:
        ignore_index: the target of tokens that do not count. It may be a class (a padding token): the
            model's own distribution keeps that class, and drawn labels may be it.
    """

    name = "token-categorical"

    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = whole_number("ignore_index", ignore_index, "a target that does not count")

    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        column = torch.arange(start, stop, device=outputs.device)
        each = outputs.shape[-1] - 1
        token, k = column // each, column % each
        columns = outputs.new_zeros(len(column), *outputs.shape)
        columns[column - start, :, token] = softmax.root_columns(outputs, token, k)
        return columns

    def count(self, outputs: Tensor) -> int:
        """T (V − 1)."""
        self._check_outputs(outputs)
        return outputs.shape[1] * (outputs.shape[2] - 1)

    def mask(self, targets: Tensor) -> Tensor | None:
        """True where the target is not `ignore_index`, [n, T]; None where that is everywhere."""
        ignored = self._ignored(targets)
        return ~ignored if bool(ignored.any()) else None

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """softmax(f_t) − e_{y_t} for each token that counts, [n, T, V]."""
        ignored = self._ignored(targets)
        residual = softmax.gradient(outputs, targets.masked_fill(ignored, 0))
        return residual.masked_fill_(ignored.unsqueeze(-1), 0.0)

    def drawn_residual(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """softmax(f_t) − e_{y_t} for each token: a drawn `ignore_index` is a class like others."""
        return softmax.gradient(outputs, labels)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Class indices [draws, n, T], one for each token; for their gradients see `drawn_residual`."""
        return categorical(outputs, draws, generator)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """For each token that counts the coordinates of `Categorical`, [T (V − 1), n]."""
        ignored = self._ignored(targets)
        weights = softmax.root_coordinates(outputs, targets.masked_fill(ignored, 0))
        return weights.masked_fill_(ignored.unsqueeze(-1), 0.0).flatten(1).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Integers [n, T], each a class in [0, V) or `ignore_index`."""
        check_tensors(outputs, targets)
        self._check_outputs(outputs)
        softmax.check_labels(self.name, "token", outputs, targets, self.ignore_index)

    def _ignored(self, targets: Tensor) -> Tensor:
        return targets.long() == self.ignore_index

    @staticmethod
    def _check_outputs(outputs: Tensor) -> None:
        if outputs.dim() != 3 or outputs.shape[1] < 1 or outputs.shape[2] < 2:
            raise InputError(
                "a token-categorical likelihood needs outputs of shape [samples, tokens, classes] with 2 "
                f"classes or more; the model gave {list(outputs.shape)}"
            )


def categorical_slope(outputs: Tensor) -> Tensor:
    """√(p(1 − p)) with p the softmax of the outputs: the slope that LNGD may take for the last layer."""
    log_p = torch.log_softmax(outputs, -1)
    return torch.exp(0.5 * log_p) * torch.sqrt(-torch.expm1(log_p))
