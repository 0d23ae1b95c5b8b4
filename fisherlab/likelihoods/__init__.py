"""What the network's output means: p(y | f), its draws, and a root of its output Hessian.

A sample's negative log-likelihood is ℓ(f, y). Its Hessian in f is H = Σ_c u_c u_cᵀ; the columns u_c,
sent backwards through the network, give the gradients g_{n,c} of which the Fisher is made. No mean over a
batch or over tokens is taken anywhere: per-sample log-likelihoods define the Fisher.

Kinds say where the label comes from: `predictive` uses the columns u_c (the expectation over the
network's own distribution, exactly), `monte-carlo` draws labels from it, `empirical` takes the data's.
`layerwise` needs no likelihood at all: it draws each layer's own output.
"""

from fisherlab.likelihoods.base import Likelihood
from fisherlab.likelihoods.categorical import Categorical, TokenCategorical, categorical_slope
from fisherlab.likelihoods.entrywise import Bernoulli, Gaussian
from fisherlab.likelihoods.labels import KINDS, check_kind, label_columns
from fisherlab.likelihoods.names import as_likelihood

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
