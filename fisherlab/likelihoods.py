"""What the network's output means: p(y | f), its draws, and a root of its output Hessian.

A sample's negative log-likelihood is ℓ(f, y). Its Hessian in f is H = Σ_c u_c u_cᵀ; the columns u_c,
sent backwards through the network, give the gradients g_{n,c} of which the Fisher is made. No mean over a
batch is taken anywhere: per-sample log-likelihoods define the Fisher.

Kinds say where the label comes from: `predictive` uses the columns u_c (the expectation over the
network's own distribution, exactly), `monte-carlo` draws labels from it, `empirical` takes the data's.
`layerwise` needs no likelihood at all: it draws each layer's own output.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from fisherlab.draws import categorical, normal, uniform
from fisherlab.errors import InputError, InputTypeError, unknown

KINDS = ("predictive", "monte-carlo", "empirical", "layerwise")
_ALIASES = {"type-2": "predictive", "mc": "monte-carlo"}


def check_kind(kind: str) -> str:
    """The full name of a kind of Fisher; `type-2` and `mc` are aliases."""
    kind = _ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return kind


class Likelihood(ABC):
    """A distribution p(y | f) of a target y given a network output f of shape [n, K].

    A likelihood of one's own gives the five methods below; `coordinates` has a default.
    """

    name: str

    @abstractmethod
    def columns(self, outputs: Tensor) -> Tensor:
        """Columns u [c, n, K] with Σ_c u_c u_cᵀ = H, the Hessian of −log p(y | f) in f."""

    @abstractmethod
    def count(self, outputs: Tensor) -> int:
        """How many columns `columns` gives for these outputs."""

    @abstractmethod
    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient [n, K] of −log p(y | f) in f."""

    @abstractmethod
    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Targets [draws, n, …] from p(y | f)."""

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises `InputError` where the targets are not values of y, or do not fit the outputs."""

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weights w [c, n] with Σ_c w_c u_c = residual(f, y): the gradient in terms of the columns."""
        columns = self.columns(outputs).permute(1, 2, 0).double()
        residual = self.residual(outputs, targets).double().unsqueeze(-1)
        return (torch.linalg.pinv(columns) @ residual).squeeze(-1).T.to(outputs.dtype)


class Categorical(Likelihood):
    """Softmax cross-entropy: p(y = k | f) = softmax(f)_k, H = diag(p) − p pᵀ.

    With the tail sums T_k = Σ_{j ≥ k} p_j, the C − 1 columns are (Tanabe and Sagae 1992, the
    Cholesky factor of a multinomial covariance)

        u_k = √(p_k T_{k+1} / T_k) e_k − Σ_{j > k} p_j √(p_k / (T_k T_{k+1})) e_j.

    Tails are summed from the last class on, so nothing is subtracted and no root sees a negative
    number, in float32 as in float64, however sure the network is.
    """

    name = "categorical"

    def columns(self, outputs: Tensor) -> Tensor:
        """The C − 1 columns of the class docstring, [C − 1, n, C]."""
        p = torch.softmax(outputs, -1)
        tail = p.flip(-1).cumsum(-1).flip(-1).clamp_(min=torch.finfo(p.dtype).tiny)
        here, after = tail[:, :-1], tail[:, 1:]
        below = torch.sqrt(p[:, :-1] / here / after).T
        columns = below.unsqueeze(-1) * p
        classes = p.shape[-1]
        columns *= -torch.ones(classes - 1, classes, dtype=p.dtype, device=p.device).triu(1).unsqueeze(1)
        columns.diagonal(dim1=0, dim2=2).copy_(torch.sqrt(p[:, :-1] * (after / here)))
        return columns

    def count(self, outputs: Tensor) -> int:
        """C − 1: the rank of H."""
        _check_vectors(self.name, outputs)
        return outputs.shape[-1] - 1

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """softmax(f) − e_y."""
        return torch.softmax(outputs, -1) - functional.one_hot(targets, outputs.shape[-1])

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Class indices [draws, n]."""
        return categorical(torch.log_softmax(outputs, -1), draws, generator)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = −u_k[y] / p_y: diag(1/p) is a generalised inverse of H, and 1ᵀu_k = 0."""
        log_p, log_tail = _log_tails(outputs)
        own = -torch.exp(0.5 * (log_tail[:, 1:] - log_p[:, :-1] - log_tail[:, :-1]))
        earlier = torch.exp(0.5 * (log_p[:, :-1] - log_tail[:, :-1] - log_tail[:, 1:]))
        k = torch.arange(outputs.shape[-1] - 1, device=outputs.device)
        y = targets.unsqueeze(-1)
        return torch.where(k == y, own, torch.where(k < y, earlier, 0.0)).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Integer class indices in [0, C), one a sample."""
        _check_vectors(self.name, outputs)
        classes = outputs.shape[-1]
        if classes < 2:
            raise InputError(
                "a categorical likelihood needs at least 2 outputs; for one logit use 'bernoulli'"
            )
        if targets.is_floating_point() or targets.shape != outputs.shape[:1]:
            raise InputError(
                "a categorical likelihood needs one integer label a sample, shape "
                f"[{len(outputs)}]; got {targets.dtype} of shape {list(targets.shape)}"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise InputError(
                f"label {wrong} is out of range: the model has {classes} outputs, so labels are "
                f"0 to {classes - 1}"
            )


class Bernoulli(Likelihood):
    """Binary cross-entropy with logits over K independent outputs: H = diag(p(1 − p))."""

    name = "bernoulli"

    def columns(self, outputs: Tensor) -> Tensor:
        """√(p_k (1 − p_k)) e_k, [K, n, K]."""
        return _diagonal_columns(self._root(outputs))

    def count(self, outputs: Tensor) -> int:
        """K."""
        _check_vectors(self.name, outputs)
        return outputs.shape[-1]

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """σ(f) − y."""
        return torch.sigmoid(outputs) - targets.to(outputs.dtype)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Zeros and ones [draws, n, K]."""
        numbers = uniform(outputs, draws, tuple(outputs.shape[1:]), generator)
        return (numbers < torch.sigmoid(outputs.double())).to(outputs.dtype)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = (p_k − y_k) / √(p_k (1 − p_k))."""
        return (self.residual(outputs, targets) / self._root(outputs)).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Values in [0, 1], shaped as the outputs."""
        _check_vectors(self.name, outputs)
        _check_shape(self.name, outputs, targets)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise InputError("a Bernoulli likelihood needs targets between 0 and 1")

    @staticmethod
    def _root(outputs: Tensor) -> Tensor:
        half = 0.5 * (functional.logsigmoid(outputs) + functional.logsigmoid(-outputs))
        return torch.exp(half)


class Gaussian(Likelihood):
    """Unit variance, ℓ = ½‖y − f‖²: H = I. `nn.MSELoss()` over K outputs is 2/K times this."""

    name = "gaussian"

    def columns(self, outputs: Tensor) -> Tensor:
        """e_k, [K, n, K]."""
        return _diagonal_columns(torch.ones_like(outputs))

    def count(self, outputs: Tensor) -> int:
        """K."""
        _check_vectors(self.name, outputs)
        return outputs.shape[-1]

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """F − y."""
        return outputs - targets.to(outputs.dtype)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """F + ε, [draws, n, K]."""
        return outputs + normal(outputs, draws, tuple(outputs.shape[1:]), generator)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = f_k − y_k."""
        return self.residual(outputs, targets).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Numbers shaped as the outputs."""
        _check_vectors(self.name, outputs)
        _check_shape(self.name, outputs, targets)


_BUILT_IN: dict[str, type[Likelihood]] = {kind.name: kind for kind in (Categorical, Bernoulli, Gaussian)}


def as_likelihood(likelihood: "str | Likelihood") -> Likelihood:
    """A likelihood by its name, or the instance itself.

    Raises:
        InputError: for an unknown name.
        InputTypeError: for anything that is neither.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise InputTypeError(
            f"likelihood must be a name or a fisherlab Likelihood, not {type(likelihood).__name__}"
        )
    if likelihood not in _BUILT_IN:
        raise unknown("likelihood", likelihood, _BUILT_IN)
    return _BUILT_IN[likelihood]()


def label_columns(
    likelihood: Likelihood,
    kind: str,
    outputs: Tensor,
    targets: Tensor | None,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The columns [c, n, K] whose backward passes give the g of a kind of Fisher.

    `predictive`: the root of the output Hessian. `monte-carlo`: residuals of `draws` labels drawn
    from the model, over √draws. `empirical`: the residual of the data's own label.
    """
    if kind == "predictive":
        return likelihood.columns(outputs)
    if kind == "monte-carlo":
        labels = likelihood.draw(outputs, draws, generator)
        residuals = [likelihood.residual(outputs, label) for label in labels]
        return torch.stack(residuals) / draws**0.5
    if targets is None:
        raise InputError("the empirical kind needs targets; give (inputs, targets) or another kind")
    return likelihood.residual(outputs, targets).unsqueeze(0)


def _log_tails(outputs: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(outputs, -1)
    return log_p, torch.logcumsumexp(log_p.flip(-1), -1).flip(-1)


def _diagonal_columns(values: Tensor) -> Tensor:
    return torch.diag_embed(values).transpose(0, 1).contiguous()


def _check_vectors(name: str, outputs: Tensor) -> None:
    if outputs.dim() != 2:
        raise InputError(
            f"a {name} likelihood needs outputs of shape [samples, K]; the model gave {list(outputs.shape)}"
        )


def _check_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if targets.shape != outputs.shape:
        raise InputError(
            f"a {name} likelihood needs targets of the outputs' shape {list(outputs.shape)}; got "
            f"{list(targets.shape)}"
        )
