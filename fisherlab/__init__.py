"""fisherlab: the exact Fisher of every layer beside its approximations, for PyTorch."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fisherlab import approximations as approximations
    from fisherlab import damping as damping
    from fisherlab import datasets as datasets
    from fisherlab import likelihoods as likelihoods
    from fisherlab import metrics as metrics
    from fisherlab import models as models
    from fisherlab import operators as operators
    from fisherlab import optim as optim
    from fisherlab import plots as plots
    from fisherlab import report as report
    from fisherlab import representations as representations
    from fisherlab import statistics as statistics
    from fisherlab import traces as traces
    from fisherlab import train as train
    from fisherlab.approximations import Approximation as Approximation
    from fisherlab.approximations import Statistics as Statistics
    from fisherlab.approximations import approximate as approximate
    from fisherlab.approximations import collect_statistics as collect_statistics
    from fisherlab.approximations import load_statistics as load_statistics
    from fisherlab.approximations import register_approximation as register_approximation
    from fisherlab.comparison.result import Comparison as Comparison
    from fisherlab.comparison.run import compare as compare
    from fisherlab.errors import FisherlabError as FisherlabError
    from fisherlab.exact.fisher import exact_fisher as exact_fisher
    from fisherlab.layers import Adapter as Adapter
    from fisherlab.layers import FusedAdapter as FusedAdapter
    from fisherlab.layers import Part as Part
    from fisherlab.layers import find_layers as find_layers
    from fisherlab.layers import register_layer as register_layer
    from fisherlab.representations import represent as represent
    from fisherlab.statistics import Statistic as Statistic

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Adapter": "fisherlab.layers",
        "Approximation": "fisherlab.approximations",
        "Comparison": "fisherlab.comparison.result",
        "FisherlabError": "fisherlab.errors",
        "FusedAdapter": "fisherlab.layers",
        "Part": "fisherlab.layers",
        "Statistic": "fisherlab.statistics",
        "Statistics": "fisherlab.approximations",
        "approximate": "fisherlab.approximations",
        "collect_statistics": "fisherlab.approximations",
        "compare": "fisherlab.comparison.run",
        "exact_fisher": "fisherlab.exact.fisher",
        "find_layers": "fisherlab.layers",
        "load_statistics": "fisherlab.approximations",
        "register_approximation": "fisherlab.approximations",
        "register_layer": "fisherlab.layers",
        "represent": "fisherlab.representations",
    },
    modules=(
        "approximations",
        "damping",
        "datasets",
        "likelihoods",
        "metrics",
        "models",
        "operators",
        "optim",
        "plots",
        "report",
        "representations",
        "statistics",
        "traces",
        "train",
    ),
)
