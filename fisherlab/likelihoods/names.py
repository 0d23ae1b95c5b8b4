"""The built-in likelihoods by name."""

from fisherlab.errors import InputTypeError, known_name
from fisherlab.likelihoods.base import Likelihood
from fisherlab.likelihoods.categorical import Categorical, TokenCategorical
from fisherlab.likelihoods.entrywise import Bernoulli, Gaussian

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
