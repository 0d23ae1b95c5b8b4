"""The exact Fisher of every layer, by the way that costs least."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.exact.fisher import exact_fisher as exact_fisher

__getattr__, __dir__, __all__ = lazy(__name__, {"exact_fisher": "fisherlab.exact.fisher"})
