"""Where the labels come from, and the columns that are sent backwards for them."""

import torch
from torch import Tensor

from fisherlab.errors import InputError, known_name
from fisherlab.likelihoods.base import Likelihood

KINDS = ("predictive", "monte-carlo", "empirical", "layerwise")
_ALIASES = {"type-2": "predictive", "mc": "monte-carlo"}


def check_kind(kind: str) -> str:
    """The full name of a kind of Fisher; `type-2` and `mc` are aliases."""
    full = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    return known_name("kind", full, KINDS)


def label_columns(
    likelihood: Likelihood,
    kind: str,
    outputs: Tensor,
    targets: Tensor | None,
    draws: int = 1,
    generator: torch.Generator | None = None,
    part: slice | None = None,
) -> Tensor:
    """The columns [c, n, …] whose backward passes give the g of a kind of Fisher.

    `predictive`: the root of the output Hessian. `monte-carlo`: residuals of `draws` labels drawn
    from the model, over √draws. `empirical`: the residual of the data's own label. Where targets are
    given, positions that their mask leaves out are zero in every kind.

    Args:
        likelihood: what the outputs mean.
        kind: `predictive`, `monte-carlo` or `empirical`.
        outputs: the network's outputs [n, …].
        targets: the data's labels; only `empirical` needs them.
        draws: labels a sample for `monte-carlo`.
        generator: source of the drawn labels.
        part: which of the columns to make (a slice without a step); None: all. Labels are drawn as for
            all: parts belong together where the generator starts from one state for each.

    Raises:
        InputError: for the empirical kind without targets.
    """
    part = slice(None) if part is None else part
    if kind == "empirical":
        if targets is None:
            raise InputError("the empirical kind needs targets; give (inputs, targets) or another kind")
        return likelihood.residual(outputs, targets).unsqueeze(0)[part]
    if kind == "predictive":
        start, stop, _ = part.indices(likelihood.count(outputs))
        columns = likelihood.columns_between(outputs, start, stop)
    else:
        labels = likelihood.draw(outputs, draws, generator)[part]
        columns = torch.stack([likelihood.drawn_residual(outputs, label) for label in labels]) / draws**0.5
    mask = None if targets is None else likelihood.mask(targets)
    return columns if mask is None else _masked(columns, mask)


def _masked(columns: Tensor, mask: Tensor) -> Tensor:
    """Columns [c, n, T, …] with zeros where the mask [n, T] is False."""
    missing = columns.dim() - 1 - mask.dim()
    return columns.masked_fill(~mask.reshape(*mask.shape, *[1] * missing), 0.0)
