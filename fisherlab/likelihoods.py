"""What the network's output means: p(y | f), its draws, and a root of its output Hessian.

A sample's negative log-likelihood is ℓ(f, y). Its Hessian in f is H = Σ_c u_c u_cᵀ; the columns u_c,
sent backwards through the network, give the gradients g_{n,c} of which the Fisher is made. No mean over a
batch or over tokens is taken anywhere: per-sample log-likelihoods define the Fisher.

Kinds say where the label comes from: `predictive` uses the columns u_c (the expectation over the
network's own distribution, exactly), `monte-carlo` draws labels from it, `empirical` takes the data's.
`layerwise` needs no likelihood at all: it draws each layer's own output.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from fisherlab import softmax
from fisherlab.draws import categorical, normal, uniform
from fisherlab.errors import InputError, InputTypeError, known_name, whole_number

KINDS = ("predictive", "monte-carlo", "empirical", "layerwise")
_ALIASES = {"type-2": "predictive", "mc": "monte-carlo"}


def check_kind(kind: str) -> str:
    """The full name of a kind of Fisher; `type-2` and `mc` are aliases."""
    full = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    return known_name("kind", full, KINDS)


class Likelihood(ABC):
    """A distribution p(y | f) of a target y given a network output f of shape [n, …].

    A likelihood of one's own gives the five abstract methods; all others have a default. Draws that are
    made sample after sample do not depend on how the data are cut into batches::

        class Poisson(Likelihood):  # y ~ Poisson(exp f): ℓ = exp f − y f + log y!, H = diag(exp f)
            name = "poisson"

            def columns(self, outputs):
                return torch.diag_embed(torch.exp(outputs / 2)).transpose(0, 1)

            def count(self, outputs):
                return outputs.shape[1]

            def residual(self, outputs, targets):
                return torch.exp(outputs) - targets

            def draw(self, outputs, draws, generator):
                rates = torch.exp(outputs).cpu().unsqueeze(1).repeat(1, draws, 1)
                return torch.poisson(rates, generator).transpose(0, 1).to(outputs.device)

            def check(self, outputs, targets):
                if targets.shape != outputs.shape or bool((targets < 0).any()):
                    raise InputError("a Poisson likelihood needs counts, shaped as the outputs")
    """

    name: str

    @abstractmethod
    def columns(self, outputs: Tensor) -> Tensor:
        """Columns u [c, n, …] with Σ_c u_c u_cᵀ = H, the Hessian of −log p(y | f) in f."""

    @abstractmethod
    def count(self, outputs: Tensor) -> int:
        """How many columns `columns` gives for these outputs."""

    @abstractmethod
    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient [n, …] of −log p(y | f) in f; zero where the mask of the targets is False."""

    @abstractmethod
    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Targets [draws, n, …] from p(y | f), for every position."""

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises `InputError` where the targets are not values of y, or do not fit the outputs."""

    def mask(self, targets: Tensor) -> Tensor | None:
        """Which positions count: a bool [n, T] for outputs [n, T, …]; None: all.

        Positions must be independent given f, and one that does not count has no part in ℓ: its rows and
        columns of H are zero. `label_columns` sees to that for the columns and for draws.
        """
        return None

    def columns_between(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """`columns(outputs)[start:stop]`; a likelihood of many columns makes no others."""
        return self.columns(outputs)[start:stop]

    def drawn_residual(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """`residual` for labels [n, …] that `draw` gave: every position counts."""
        return self.residual(outputs, labels)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weights w [c, n] with Σ_c w_c u_c = residual(f, y): the gradient in terms of the columns."""
        columns = self.columns(outputs).flatten(2).permute(1, 2, 0).double()
        residual = self.residual(outputs, targets).flatten(1).double().unsqueeze(-1)
        return (torch.linalg.pinv(columns) @ residual).squeeze(-1).T.to(outputs.dtype)


class _InParts(Likelihood):
    """A likelihood that makes any of its columns without the others."""

    @abstractmethod
    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """Columns start, …, stop − 1."""

    def columns(self, outputs: Tensor) -> Tensor:
        """All columns of the class docstring, [c, n, …]."""
        return self._make(outputs, 0, self.count(outputs))

    def columns_between(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """Columns start, …, stop − 1 alone; a subclass with `columns` of its own has those cut."""
        if type(self).columns is _InParts.columns:
            return self._make(outputs, start, stop)
        return super().columns_between(outputs, start, stop)


class Categorical(_InParts):
    """Softmax cross-entropy over outputs [n, C]: p(y = k | f) = softmax(f)_k, H = diag(p) − p pᵀ.

    The columns are u_0, …, u_{C − 2} of `fisherlab.softmax`, where they are written out.
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
        _check_tensors(outputs, targets)
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


class TokenCategorical(_InParts):
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
        _check_tensors(outputs, targets)
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


class _Independent(_InParts):
    """Independent entries, K in all, in outputs [n, …]: H is diagonal, the columns √H_kk e_k."""

    @abstractmethod
    def _root(self, outputs: Tensor) -> Tensor:
        """√H_kk for every entry, shaped as the outputs."""

    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        roots = self._root(outputs).flatten(1)
        columns = roots.new_zeros(stop - start, *roots.shape)
        columns[:, :, start:stop].diagonal(dim1=0, dim2=2).copy_(roots[:, start:stop])
        return columns.unflatten(-1, outputs.shape[1:])

    def count(self, outputs: Tensor) -> int:
        """K, the entries of a sample."""
        self._check_outputs(outputs)
        return outputs[0].numel()

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = residual_k / √H_kk."""
        return (self.residual(outputs, targets) / self._root(outputs)).flatten(1).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Numbers shaped as the outputs."""
        _check_tensors(outputs, targets)
        self._check_outputs(outputs)
        if targets.shape != outputs.shape:
            raise InputError(
                f"a {self.name} likelihood needs targets of the outputs' shape {list(outputs.shape)}; got "
                f"{list(targets.shape)}"
            )
        if targets.is_complex():
            raise InputError(f"a {self.name} likelihood needs real targets; got {targets.dtype}")

    def _check_outputs(self, outputs: Tensor) -> None:
        if outputs.dim() < 2:
            raise InputError(
                f"a {self.name} likelihood needs outputs of shape [samples, K], or with more dimensions; "
                f"the model gave {list(outputs.shape)}"
            )


class Bernoulli(_Independent):
    """Binary cross-entropy with logits, every entry of [n, …] on its own: H = diag(p(1 − p))."""

    name = "bernoulli"

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """σ(f) − y."""
        return torch.sigmoid(outputs) - targets.to(outputs.dtype)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Zeros and ones [draws, n, …]."""
        numbers = uniform(outputs, draws, tuple(outputs.shape[1:]), generator)
        return (numbers < torch.sigmoid(outputs.double())).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Values in [0, 1], shaped as the outputs."""
        super().check(outputs, targets)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise InputError("a Bernoulli likelihood needs targets between 0 and 1")

    def _root(self, outputs: Tensor) -> Tensor:
        half = 0.5 * (functional.logsigmoid(outputs) + functional.logsigmoid(-outputs))
        return torch.exp(half)


class Gaussian(_Independent):
    """Unit variance, ℓ = ½‖y − f‖² over all entries of [n, …]: H = I.

    `nn.MSELoss()` over K outputs is 2/K times this.
    """

    name = "gaussian"

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The difference f − y."""
        return outputs - targets.to(outputs.dtype)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """The outputs with noise, f + ε, [draws, n, …]."""
        return outputs + normal(outputs, draws, tuple(outputs.shape[1:]), generator)

    def _root(self, outputs: Tensor) -> Tensor:
        return torch.ones_like(outputs)


_BUILT_IN: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (Categorical, TokenCategorical, Bernoulli, Gaussian)
}


def as_likelihood(likelihood: "str | Likelihood") -> Likelihood:
    """A likelihood by its name, or the instance itself.

    Raises:
        InputError: for an unknown name.
        InputTypeError: for anything that is neither.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, type) and issubclass(likelihood, Likelihood):
        raise InputTypeError(
            f"likelihood is the class {likelihood.__name__}; give an instance, {likelihood.__name__}()"
        )
    if not isinstance(likelihood, str):
        raise InputTypeError(
            f"likelihood must be a name or a fisherlab Likelihood, not {type(likelihood).__name__}"
        )
    return _BUILT_IN[known_name("likelihood", likelihood, _BUILT_IN)]()


def categorical_slope(outputs: Tensor) -> Tensor:
    """√(p(1 − p)) with p the softmax of the outputs: the slope that LNGD may take for the last layer."""
    log_p = torch.log_softmax(outputs, -1)
    return torch.exp(0.5 * log_p) * torch.sqrt(-torch.expm1(log_p))


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


def _check_tensors(outputs: Tensor, targets: Tensor) -> None:
    for what, values in (("outputs", outputs), ("targets", targets)):
        if not isinstance(values, Tensor):
            raise InputTypeError(f"the {what} must be a torch tensor, not {type(values).__name__}")


def _masked(columns: Tensor, mask: Tensor) -> Tensor:
    """Columns [c, n, T, …] with zeros where the mask [n, T] is False."""
    missing = columns.dim() - 1 - mask.dim()
    return columns.masked_fill(~mask.reshape(*mask.shape, *[1] * missing), 0.0)
