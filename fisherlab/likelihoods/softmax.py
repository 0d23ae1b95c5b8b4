"""The softmax p = softmax(f) and H = diag(p) − p pᵀ: a root of C − 1 columns and what goes with it.

With the tail sums T_k = Σ_{j ≥ k} p_j the columns are (Tanabe and Sagae 1992, the Cholesky factor of a
multinomial covariance)

    u_k = √(p_k T_{k+1} / T_k) e_k − Σ_{j > k} p_j √(p_k / (T_k T_{k+1})) e_j,    k = 0, …, C − 2.

Tails are summed from the last class on, so nothing is subtracted and no root sees a negative number, in
float32 as in float64, however sure the network is.
"""

import torch
from torch import Tensor

from fisherlab.errors import InputError


def root_columns(outputs: Tensor, token: Tensor, k: Tensor) -> Tensor:
    """Column u_{k[i]} of the softmax at position token[i], for every i.

    Args:
        outputs: f [n, T, C].
        token: positions [c].
        k: columns [c], each in 0, …, C − 2.

    Returns:
        [c, n, C].
    """
    p = torch.softmax(outputs, -1)
    tail = p.flip(-1).cumsum(-1).flip(-1).clamp_(min=torch.finfo(p.dtype).tiny)
    own, here, after = (
        values.T.unsqueeze(-1) for values in (p[:, token, k], tail[:, token, k], tail[:, token, k + 1])
    )
    k = k.reshape(-1, 1, 1)
    rows = p.transpose(0, 1)
    columns = -torch.sqrt(own / here / after) * (rows if len(rows) == 1 else rows[token])
    columns *= (torch.arange(p.shape[-1], device=k.device) > k).to(p.dtype)
    return columns.scatter_(-1, k.expand_as(own), torch.sqrt(own * (after / here)))


def root_coordinates(outputs: Tensor, labels: Tensor) -> Tensor:
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


def gradient(outputs: Tensor, labels: Tensor) -> Tensor:
    """The gradient p − e_y [n, …, C] for labels y [n, …]; no one-hot tensor is made."""
    p = torch.softmax(outputs, -1)
    y = labels.long().unsqueeze(-1)
    return p.scatter_add_(-1, y, p.new_full((), -1.0).expand(y.shape))


def check_labels(
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
