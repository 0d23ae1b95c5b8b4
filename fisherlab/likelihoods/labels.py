"""Where the labels come from, and the columns that are sent backwards for them."""

from typing import Self

import torch
from torch import Tensor

from fisherlab.arguments import Count, checked
from fisherlab.errors import InputError, InputTypeError, known_name
from fisherlab.likelihoods.base import Likelihood, check_outputs


class LabelKind(str):
    """Whose labels the g of a layer are from; equal to its text, which keys of sums and records have.

    `predictive`, `monte-carlo` and `empirical` as in `fisherlab.likelihoods`; `drawn` is `monte-carlo` with
    one label a sample. Of layer-wise sampling `layerwise` is the slope φ'(s) itself, one column whose square
    is the expectation of g∘g; `layerwise:k` is k draws −φ'(s)∘ε/√k. With `layerwise+categorical` the
    network's last layer has √(p(1 − p)) in the place of its slope. `layerwise-columns` is φ'(s_tj) e_tj, one
    column for each unit and position, whose outer products sum to the expectation over ε.

    Attributes:
        layerwise: whether it is of layer-wise sampling, which needs no label.
        categorical: whether it has √(p(1 − p)) at the network's output.
        draws: how many draws of ε a sample; 0: the slope itself.
    """

    layerwise: bool
    categorical: bool
    draws: int

    def __new__(cls, text: str) -> Self:
        """Reads a kind's text; any other text is of a kind of one's own, which is not layer-wise.

        Raises:
            InputTypeError: for what is no text.
            InputError: for draws of layer-wise sampling that are no number.
        """
        if not isinstance(text, str):
            raise InputTypeError(f"a kind of labels is a string, not {type(text).__name__}")
        self = super().__new__(cls, text)
        name, _, draws = text.partition(":")
        self.layerwise = name.startswith("layerwise")
        self.categorical = name == "layerwise+categorical"
        if self.layerwise and draws and not draws.isdecimal():
            raise InputError(f"{text!r} is no kind of labels; layerwise:k has a whole number k of draws")
        self.draws = int(draws) if self.layerwise and draws else 0
        return self

    @classmethod
    def sampled(cls, draws: int = 0, *, categorical: bool = False) -> Self:
        """Layer-wise sampling with so many draws of ε; 0: the closed form."""
        return cls("layerwise" + "+categorical" * categorical + (f":{draws}" if draws else ""))

    @property
    def with_columns(self) -> "LabelKind":
        """The kind whose columns have this Fisher as the sum of their outer products."""
        return LAYERWISE_COLUMNS if self == LAYERWISE else self

    @property
    def target(self) -> "LabelKind":
        """The kind of Fisher that these labels make; drawing one a sample stands for the expectation."""
        if self == LAYERWISE_COLUMNS:
            return LAYERWISE
        return MONTE_CARLO if self == DRAWN else self


PREDICTIVE, MONTE_CARLO = LabelKind("predictive"), LabelKind("monte-carlo")
DRAWN, EMPIRICAL = LabelKind("drawn"), LabelKind("empirical")
LAYERWISE, LAYERWISE_COLUMNS = LabelKind.sampled(), LabelKind("layerwise-columns")

KINDS = (PREDICTIVE, MONTE_CARLO, EMPIRICAL, LAYERWISE)
_ALIASES = {"type-2": PREDICTIVE, "mc": MONTE_CARLO}


def check_kind(kind: str) -> LabelKind:
    """A kind of Fisher by its name; `type-2` and `mc` are aliases."""
    full = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    return LabelKind(known_name("kind", full, KINDS))


@checked
def label_columns(
    likelihood: Likelihood,
    kind: str,
    outputs: Tensor,
    targets: Tensor | None,
    draws: Count = 1,
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
        InputError: for the empirical kind without targets, and for outputs or targets that do not fit.
        InputTypeError: for outputs or targets that are no tensors of numbers.
    """
    known_name("kind", kind, (PREDICTIVE, MONTE_CARLO, DRAWN, EMPIRICAL))
    check_outputs(outputs)
    likelihood.count(outputs)  # which refuses outputs of another shape
    if targets is not None:
        likelihood.check(outputs, targets)
    part = slice(None) if part is None else part
    if kind == EMPIRICAL:
        if targets is None:
            raise InputError("the empirical kind needs targets; give (inputs, targets) or another kind")
        return likelihood.residual(outputs, targets).unsqueeze(0)[part]
    if kind == PREDICTIVE:
        start, stop, _ = part.indices(likelihood.count(outputs))
        columns = likelihood.columns_between(outputs, start, stop)
    else:
        labels = likelihood.draw(outputs, draws, generator)[part]
        columns = torch.stack([likelihood.drawn_residual(outputs, label) for label in labels]) / draws**0.5
    mask = None if targets is None else likelihood.mask(targets)
    return columns if mask is None else masked_columns(columns, mask)


def masked_columns(columns: Tensor, mask: Tensor) -> Tensor:
    """Columns [c, n, T, …] with zeros where the mask [n, T] is False."""
    missing = columns.dim() - 1 - mask.dim()
    return columns.masked_fill(~mask.reshape(*mask.shape, *[1] * missing), 0.0)
