"""The experiment: model × layers × approximations → tidy records, tables, pictures and a page."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.comparison.config import CompareConfig as CompareConfig
    from fisherlab.comparison.result import Comparison as Comparison
    from fisherlab.comparison.run import compare as compare

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CompareConfig": "fisherlab.comparison.config",
        "Comparison": "fisherlab.comparison.result",
        "compare": "fisherlab.comparison.run",
    },
)
