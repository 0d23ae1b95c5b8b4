"""Classes: one softmax a sample, or one a token.

With p = softmax(f) each has H = diag(p) − p pᵀ, and a root of C − 1 columns.
With the tail sums T_k = Σ_{j ≥ k} p_j the columns are (Tanabe and Sagae 1992, the Cholesky factor of a
multinomial covariance)

    u_k = √(p_k T_{k+1} / T_k) e_k − Σ_{j > k} p_j √(p_k / (T_k T_{k+1})) e_j,    k = 0, …, C − 2.

Tails are summed from the last class on, by logarithms, so nothing is subtracted and no root sees a negative
number, in float32 as in float64, however sure the network is.
"""

import torch
from torch import Tensor

from fisherlab.arguments import checked
from fisherlab.errors import InputError
from fisherlab.likelihoods.base import InParts, check_tensors
from fisherlab.likelihoods.draws import categorical


class Categorical(InParts):
    """Softmax cross-entropy over outputs [n, C]: p(y = k | f) = softmax(f)_k, H = diag(p) − p pᵀ.

    The columns are u_0, …, u_{C − 2} that are written out above.
    """

    name = "categorical"

    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        k = torch.arange(start, stop, device=outputs.device)
        return _root_columns(outputs.unsqueeze(1), torch.zeros_like(k), k)

    def count(self, outputs: Tensor) -> int:
        """C − 1: the rank of H."""
        self._check_outputs(outputs)
        return outputs.shape[-1] - 1

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """softmax(f) − e_y."""
        return _softmax_residual(outputs, targets)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Class indices [draws, n]."""
        return categorical(outputs, draws, generator)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = −u_k[y] / p_y, [C − 1, n]."""
        return _root_coordinates(outputs, targets).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Integer class indices in [0, C), one a sample."""
        check_tensors(outputs, targets)
        self._check_outputs(outputs)
        _check_labels(self.name, "sample", outputs, targets)

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

    @checked
    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        column = torch.arange(start, stop, device=outputs.device)
        each = outputs.shape[-1] - 1
        token, k = column // each, column % each
        columns = outputs.new_zeros(len(column), *outputs.shape)
        columns[column - start, :, token] = _root_columns(outputs, token, k)
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
        residual = _softmax_residual(outputs, targets.masked_fill(ignored, 0))
        return residual.masked_fill_(ignored.unsqueeze(-1), 0.0)

    def drawn_residual(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """softmax(f_t) − e_{y_t} for each token: a drawn `ignore_index` is a class like others."""
        return _softmax_residual(outputs, labels)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Class indices [draws, n, T], one for each token; for their gradients see `drawn_residual`."""
        return categorical(outputs, draws, generator)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """For each token that counts the coordinates of `Categorical`, [T (V − 1), n]."""
        ignored = self._ignored(targets)
        weights = _root_coordinates(outputs, targets.masked_fill(ignored, 0))
        return weights.masked_fill_(ignored.unsqueeze(-1), 0.0).flatten(1).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Integers [n, T], each a class in [0, V) or `ignore_index`."""
        check_tensors(outputs, targets)
        self._check_outputs(outputs)
        _check_labels(self.name, "token", outputs, targets, self.ignore_index)

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


def _root_columns(outputs: Tensor, token: Tensor, k: Tensor) -> Tensor:
    """Column u_{k[i]} of the softmax at position token[i], for every i.

    Args:
        outputs: f [n, T, C].
        token: positions [c].
        k: columns [c], each in 0, …, C − 2.

    Returns:
        [c, n, C].
    """
    log_p = torch.log_softmax(outputs, -1)
    log_tail = torch.logcumsumexp(log_p.flip(-1), -1).flip(-1)
    places = (log_p[:, token, k], log_tail[:, token, k], log_tail[:, token, k + 1])
    log_own, log_here, log_after = (values.T.unsqueeze(-1) for values in places)
    # by logarithms: of the smallest p that the type holds the root is far above its smallest number
    root = torch.exp(0.5 * (log_own + log_after - log_here))
    after = log_after.exp().clamp_(min=torch.finfo(log_p.dtype).tiny)
    k = k.reshape(-1, 1, 1)
    rows = log_p.exp().transpose(0, 1)
    columns = -(root / after) * (rows if len(rows) == 1 else rows[token])
    columns *= (torch.arange(log_p.shape[-1], device=k.device) > k).to(log_p.dtype)
    return columns.scatter_(-1, k.expand_as(root), root)


def _root_coordinates(outputs: Tensor, labels: Tensor) -> Tensor:
    """Weights w_k = −u_k[y] / p_y with Σ_k w_k u_k = p − e_y.

    diag(1/p) is a generalised inverse of H, and 1ᵀu_k = 0.

    Args:
        outputs: f [n, …, C].
        labels: y [n, …].

    Returns:
        [n, …, C − 1].
    """
    log_p = torch.log_softmax(outputs, -1)
    log_tail = torch.logcumsumexp(log_p.flip(-1), -1).flip(-1)
    log_p, here, after = log_p[..., :-1], log_tail[..., :-1], log_tail[..., 1:]
    own = -torch.exp(0.5 * (after - log_p - here))
    earlier = torch.exp(0.5 * (log_p - here - after))
    k = torch.arange(log_p.shape[-1], device=outputs.device)
    y = labels.unsqueeze(-1)
    return torch.where(k == y, own, torch.where(k < y, earlier, 0.0))


def _softmax_residual(outputs: Tensor, labels: Tensor) -> Tensor:
    """The gradient p − e_y [n, …, C] for labels y [n, …]; no one-hot tensor is made.

    Its entry at y is −Σ p_j over the others: p_y − 1 would be rounding where the network is sure.
    """
    p = torch.softmax(outputs, -1)
    y = labels.long().unsqueeze(-1)
    p.scatter_(-1, y, 0.0)
    return p.scatter_(-1, y, -p.sum(-1, keepdim=True))


def _check_labels(
    name: str, unit: str, outputs: Tensor, targets: Tensor, ignore_index: int | None = None
) -> None:
    """Raises `InputError` unless targets [n, …] are classes of outputs [n, …, C], or `ignore_index`.

    The message names the likelihood, and the unit (a sample, a token) that has one label.
    """
    integer = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not integer or targets.shape != outputs.shape[:-1]:
        raise InputError(
            f"a {name} likelihood needs one integer label a {unit}, shape {list(outputs.shape[:-1])} (the "
            f"outputs have classes last); got {targets.dtype} of shape {list(targets.shape)}"
        )
    classes, labels = outputs.shape[-1], targets.long()
    if ignore_index is not None:
        labels = labels.masked_fill(labels == ignore_index, 0)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        otherwise = "" if ignore_index is None else f", or {ignore_index} for a {unit} that does not count"
        raise InputError(
            f"label {wrong} is out of range: the model has {classes} outputs, so labels are "
            f"0 to {classes - 1}{otherwise}"
        )
