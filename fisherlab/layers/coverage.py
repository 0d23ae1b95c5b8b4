"""The layers of a model that have a Fisher block, and why its other parameters have none."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fisherlab.layers.view import LayerView, Mask

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Covered:
    """A parameter, the layer in whose block it is (or none), and a remark."""

    parameter: str
    layer: str
    reason: str


class Layers(Mapping[str, LayerView]):
    """The layers of a model that have a Fisher block, by name, in the order of the modules."""

    def __init__(
        self,
        views: Iterable[LayerView],
        parameters: Iterable[Covered],
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self._views = {view.name: view for view in views}
        self._parameters = tuple(parameters)
        self._left_out = dict(left_out or {})

    def __getitem__(self, name: str) -> LayerView:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        rows = [f"  {v.name}: {v.family} {v.outputs}×{v.inputs}" for v in self.values()]
        return "\n".join(["Layers(", *rows, ")"])

    def select(self, names: Iterable[str], reason: str = "not selected") -> "Layers":
        """The layers with these names only; coverage still speaks of every parameter, with this reason."""
        keep = set(names)
        parameters = [
            Covered(p.parameter, "", reason) if p.layer and p.layer not in keep else p
            for p in self._parameters
        ]
        return Layers((view for name, view in self.items() if name in keep), parameters, self._left_out)

    def with_activations(self, names: Mapping[str, str], reasons: Mapping[str, str]) -> "Layers":
        """The layers with their activations named, and a remark on each in the coverage."""
        views = [replace(v, activation=names[v.name]) if v.name in names else v for v in self.values()]
        parameters = [
            Covered(p.parameter, p.layer, p.reason or reasons.get(p.layer, "")) for p in self._parameters
        ]
        return Layers(views, parameters, self._left_out)

    def with_mask(self, names: Iterable[str], mask: Mask) -> "Layers":
        """The layers with a mask of the positions of those named."""
        masked = set(names)
        views = [replace(v, mask=mask) if v.name in masked else v for v in self.values()]
        return Layers(views, self._parameters, self._left_out)

    @property
    def left_out(self) -> Mapping[str, str]:
        """The layers that a pass over data could not measure, and why."""
        return self._left_out

    def without(self, reasons: Mapping[str, str]) -> "Layers":
        """The layers but these, which could not be measured for the reasons given."""
        parameters = [
            Covered(p.parameter, "", reasons[p.layer]) if p.layer in reasons else p for p in self._parameters
        ]
        views = (view for name, view in self.items() if name not in reasons)
        return Layers(views, parameters, {**self._left_out, **reasons})

    def read_as(self, views: Mapping[str, LayerView], remarks: Mapping[str, str]) -> "Layers":
        """The layers as these views, and a remark on each in the coverage."""

        def said(p: Covered) -> str:
            remark = remarks.get(p.layer, "")
            return remark if p.reason in remark else "; ".join(filter(None, (p.reason, remark)))

        parameters = [Covered(p.parameter, p.layer, said(p)) for p in self._parameters]
        return Layers((views[name] for name in self), parameters, self._left_out)

    def coverage(self) -> "pandas.DataFrame":
        """A row a parameter and layer: `parameter, layer, activation, covered, reason`.

        `reason` says why a parameter is in no block, or why a layer's activation is the identity.
        `activation` is empty until it is named or a forward pass has found it
        (`compare(...).layers.coverage()`).
        """
        import pandas

        rows = [
            (p.parameter, p.layer, self._activation(p.layer), p.layer in self._views, p.reason)
            for p in self._parameters
        ]
        return pandas.DataFrame(rows, columns=["parameter", "layer", "activation", "covered", "reason"])

    def _activation(self, layer: str) -> str:
        return (self._views[layer].activation or "") if layer in self._views else ""
