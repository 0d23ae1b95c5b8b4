"""What the network's output means: p(y | f), its draws, and a root of its output Hessian.

A sample's negative log-likelihood is ℓ(f, y). Its Hessian in f is H = Σ_c u_c u_cᵀ; the columns u_c,
sent backwards through the network, give the gradients g_{n,c} of which the Fisher is made. No mean over a
batch or over tokens is taken anywhere: per-sample log-likelihoods define the Fisher.

Kinds say where the label comes from: `predictive` uses the columns u_c (the expectation over the
network's own distribution, exactly), `monte-carlo` draws labels from it, `empirical` takes the data's.
`layerwise` needs no likelihood at all: it draws each layer's own output.
"""

from fisherlab.errors import InputTypeError, known_name
from fisherlab.likelihoods.base import Likelihood
from fisherlab.likelihoods.categorical import Categorical, TokenCategorical, categorical_slope
from fisherlab.likelihoods.entrywise import Bernoulli, Gaussian
from fisherlab.likelihoods.labels import KINDS, check_kind, label_columns

__all__ = [
    "KINDS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "TokenCategorical",
    "as_likelihood",
    "categorical_slope",
    "check_kind",
    "label_columns",
]

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
