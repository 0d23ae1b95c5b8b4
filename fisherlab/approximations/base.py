"""What an approximation is: the statistics it needs, and the operator they make."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from fisherlab.arguments import checked
from fisherlab.errors import InputError, InputTypeError, unknown
from fisherlab.layers import BlockShape
from fisherlab.likelihoods.labels import LabelKind
from fisherlab.operators import LinearOperator, blocks_of, joined
from fisherlab.statistics import Basis, LayerSums, Statistic


class Approximation(ABC):
    """A structured stand-in F̂ for a layer's Fisher block F.

    A method gives `statistics` and `build`, and `basis` if it rotates by eigenvectors: then a second pass
    over the data sums Σ (U_Bᵀ V U_A)∘² in that basis. Options are keyword arguments of the constructor.

    Attributes:
        name: the registered name, in lower case.
        label: as its paper writes it, for tables, pages and pictures; its name where a class gives none.
        colour: its colour in pictures, hexadecimal; None: one by its place among those that have none.
        own_scale: it has no common scale with the Fisher of the loss, so that only its scaled error compares.
        formula: F̂ as text.
        source: paper and equation.
        own_kind: the labels the method always uses; None: those of the Fisher it approximates.
        layerwise: it approximates the layer-wise Fisher and is compared with that too.
        from_exact: it is made from a block by `from_block`, not from statistics: from the exact one, or from
            that of batches.
        batch: B where it is made from the block of the mean gradients of disjoint batches of B samples, see
            `fisherlab.statistics.BatchGradients`; None: from the exact block, or from statistics.
        matrix: whether there is an F̂; a direction without one has `step` alone.
        for_vectors: it is also meant for norm layers, whose block is that of a vector.
        of_gradients: it is made of the samples' gradients V alone, so that it can be built for layers whose a
            and g are not known; what is made from the exact block is.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    colour: ClassVar[str | None] = None
    own_scale: ClassVar[bool] = False
    formula: ClassVar[str]
    source: ClassVar[str]
    own_kind: ClassVar[str | None] = None
    layerwise: ClassVar[bool] = False
    from_exact: bool = False
    batch: int | None = None
    matrix: ClassVar[bool] = True
    for_vectors: ClassVar[bool] = False
    of_gradients: bool = False

    @abstractmethod
    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The sums over samples that `build` reads, with labels of this kind."""

    def basis(self, layer: BlockShape, sums: LayerSums, kind: str) -> Basis | None:
        """Eigenvectors (U_A [d, d], U_B [m, m]) for the second pass; None: one pass is enough.

        One of the two may be None, the identity.
        """
        return None

    @abstractmethod
    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> LinearOperator:
        """F̂ from the sums; the rotated second moments are `sums.rotated(self.name, kind)`."""

    def from_block(self, exact: LinearOperator) -> LinearOperator:
        """F̂ from the exact block, for methods with `from_exact`."""
        raise NotImplementedError(f"{self.name} is made from statistics")

    def step(self, gradient: Tensor, rounding: float) -> Tensor:
        """Δ [..., m, d] for ∇h [..., m, d], for directions without a matrix.

        `rounding` is the ε of the numbers that ∇h is a sum of, which may be coarser than those it is kept in.
        """
        raise NotImplementedError(f"{self.name} is a matrix: its step is F̂_λ⁻¹∇h")

    def label_kind(self, kind: str) -> str:
        """The labels this method uses beside a Fisher of this kind (see `LabelKind`)."""
        return self.own_kind or LabelKind(kind).with_columns

    def fits(self, layer: BlockShape) -> bool:
        """Whether the method is meant for such a layer."""
        return (self.for_vectors or not layer.vector) and not why_not_built(self, layer)

    @property
    def two_pass(self) -> bool:
        """Whether the method overrides `basis`."""
        return type(self).basis is not Approximation.basis


def why_not_built(method: Approximation, layer: BlockShape) -> str:
    """Why a method cannot be built for a layer that is made of the samples' gradients, or an empty text."""
    if not layer.by_gradients or method.of_gradients or method.from_exact:
        return ""
    return f"{method.name} needs a layer's inputs and output gradients"


def build_operator(method: Approximation, layer: BlockShape, sums: LayerSums, kind: str) -> LinearOperator:
    """F̂ of a layer from its sums; of a grouped layer one product a group."""
    if layer.groups == 1:
        return _build(method, layer, sums, kind)
    return joined([_build(method, layer.group, sums.group(g), kind) for g in range(layer.groups)])


def _build(method: Approximation, layer: BlockShape, sums: LayerSums, kind: str) -> LinearOperator:
    if method.two_pass and method.name not in sums.bases:
        basis = method.basis(layer, sums, kind)  # raises again what kept the pass from a second round
        assert basis is not None
        sums.bases[method.name] = basis
    return method.build(layer, sums, kind)


def build_from_block(method: Approximation, exact: LinearOperator) -> LinearOperator:
    """F̂ from the exact block, for methods with `from_exact`; of a grouped layer one a group.

    Raises:
        InputError: for a direction without a matrix.
    """
    if not method.matrix:
        raise InputError(without_matrix(method))
    return joined([method.from_block(block) for block in blocks_of(exact)])


def without_matrix(method: Approximation) -> str:
    """That a direction has no F̂, and where it is measured."""
    return f"{method.name} is a direction without a matrix F̂: `compare` measures its step"


_REGISTRY: dict[str, type[Approximation]] = {}
_COLOUR = re.compile("#[0-9a-fA-F]{6}")


@checked
def register_approximation(cls: type[Approximation]) -> type[Approximation]:
    """Adds a class to the registry, so that `compare`, `approximate` and the plots know its name.

    Usable as a decorator.

    Raises:
        InputTypeError: for anything but a concrete subclass of `Approximation`.
        InputError: for a name that is missing, not lower case, or taken by another class, or a colour that is
            no colour.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Approximation)) or inspect.isabstract(cls):
        raise InputTypeError(
            "register_approximation takes a class that derives from Approximation and defines "
            "statistics and build"
        )
    for attribute in ("name", "formula", "source"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise InputError(f"{cls.__name__} needs a class attribute {attribute!r} (a string)")
    if cls.name != cls.name.lower() or not cls.name or "," in cls.name:
        raise InputError(f"the name {cls.name!r} must be in lower case and without commas")
    _settle_looks(cls)
    if cls.colour is not None and not _COLOUR.fullmatch(str(cls.colour)):
        raise InputError(f"{cls.__name__}.colour is {cls.colour!r}; give one such as '#0072b2'")
    known = _REGISTRY.get(cls.name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise InputError(f"the name {cls.name!r} is taken by {known.__name__}; choose another")
    _REGISTRY[cls.name] = cls
    return cls


def _settle_looks(cls: type[Approximation]) -> None:
    """Label and colour belong to the class that gives the name: one that derives from it has them with it."""
    giver = next(place for place, one in enumerate(cls.__mro__) if "name" in vars(one))
    own = {key: value for one in reversed(cls.__mro__[: giver + 1]) for key, value in vars(one).items()}
    cls.label, cls.colour = own.get("label", cls.name), own.get("colour")
    if not isinstance(cls.label, str):
        raise InputError(f"{cls.__name__}.label is {cls.label!r}; give a string, as tables are to show it")


def registered() -> dict[str, type[Approximation]]:
    """All registered approximations by name."""
    return dict(_REGISTRY)


@checked
def create(approximation: str | Approximation, **options: Any) -> Approximation:
    """An approximation by name and options, or the instance itself.

    Raises:
        InputError: for an unknown name or option.
    """
    if isinstance(approximation, Approximation):
        return approximation
    if not isinstance(approximation, str):
        raise InputTypeError(
            f"an approximation is given by name or as an instance, not as {type(approximation).__name__}"
        )
    if approximation not in _REGISTRY:
        raise unknown("approximation", approximation, _REGISTRY)
    cls = _REGISTRY[approximation]
    known = [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InputError(f"{approximation} has no option {option!r}; {takes}")
    return cls(**options)


@checked
def create_all(
    approximations: Iterable[str | Approximation] | str | Approximation,
) -> list[Approximation]:
    """A list of approximations, each name once.

    Raises:
        InputError: for an unknown name, one that is there twice, or none at all.
        InputTypeError: for anything but names and instances.
    """
    if isinstance(approximations, (str, Approximation)):
        approximations = (approximations,)
    if not isinstance(approximations, Iterable):
        raise InputTypeError(
            "approximations are given by names or as instances, such as ('kfac', 'ekfac'), not as "
            f"{type(approximations).__name__}"
        )
    made = [create(a) for a in approximations]
    names = [a.name for a in made]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"the approximation {name!r} is asked for more than once")
    if not made:
        raise InputError(f"name at least one approximation; known: {', '.join(sorted(_REGISTRY))}")
    return made
