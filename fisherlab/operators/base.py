"""The base class of the structured matrices: what each of them can do."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fisherlab.damping import Constant, DampingLike, as_damping
from fisherlab.errors import InputError, InputTypeError, NotSupportedError
from fisherlab.gradients.inputs import Inputs, OneHot, dense_inputs
from fisherlab.linalg.arguments import check_sizes, checked, finite, fitting, number
from fisherlab.linalg.factors import factor_inner
from fisherlab.linalg.numerics import dot64, norm64, require_positive, spans
from fisherlab.linalg.packing import packed_size, unpack
from fisherlab.operators.layout import (
    check_sample_shapes,
    check_vec,
    matrix_to_vector,
    row_order,
    sample_vectors,
    vector_to_matrix,
)

if TYPE_CHECKING:
    import scipy.sparse.linalg

    from fisherlab.operators.dense import DenseOperator
    from fisherlab.operators.gram import GramOperator

_DENSE_DIFFERENCE = 2048  # largest D whose difference is taken between dense matrices
_PACKED_DIFFERENCE = 2**30  # most packed entries that are made for a difference


class LinearOperator(ABC):
    """A symmetric (positive semi-definite) D×D matrix F, D = m·d, that acts on matrices X [m, d].

    F vec(X) is the vector of the matrix `apply(X)`. `vec` stacks columns ("column", the default:
    a Kronecker block is A ⊗ B) or rows ("row", PyTorch's `weight.flatten()`: B ⊗ A).
    Numbers (trace, norms, products) are 0-d float64 tensors, accumulated in float64.

    A subclass gives `apply`, `scaled` and `diagonal_matrix`; everything else follows from them by
    way of the dense matrix, and is overridden where the structure offers a cheaper identity.

    Matrices, vectors and factors that a method is given are real floating-point tensors on the operator's
    device; they are brought to its dtype (float32 or float64), so that the result has it too. Anything else
    is refused, in a subclass as well: it sees what fits.

    Attributes:
        structure: rank in `inner`; of two operators the one with the lower rank computes.
        pair_symmetric: F[(i,j),(k,l)] (inputs i, k; outputs j, l) is unchanged when i and k alone
            change places, so that `packed` exists.
        outputs: m.
        inputs: d.
        dtype: of the entries.
        device: where the entries are.
    """

    structure: ClassVar[int] = 100
    __array_ufunc__ = None  # so that numpy scalars multiply from the left through __rmul__

    def __init_subclass__(cls, **options: Any) -> None:
        """Puts the checks of the arguments before the methods that the class gives."""
        super().__init_subclass__(**options)
        _put_checks(cls)

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device):
        check_sizes(outputs, inputs)
        self.outputs = outputs
        self.inputs = inputs
        self.dtype = dtype
        self.device = device

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        size = self.outputs * self.inputs
        return size, size

    @property
    def pair_symmetric(self) -> bool:
        """Whether `packed` exists; see the class."""
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(outputs={self.outputs}, inputs={self.inputs})"

    # --- products -------------------------------------------------------------------------------

    @abstractmethod
    def apply(self, X: Tensor) -> Tensor:
        """The matrices [..., m, d] with vector F vec(X), for X [..., m, d].

        Raises:
            InputError: X does not end in [m, d].
        """

    @abstractmethod
    def scaled(self, factor: float) -> LinearOperator:
        """c·F, an operator of the same class."""

    @abstractmethod
    def diagonal_matrix(self) -> Tensor:
        """The diagonal of F as a matrix [m, d]: entry (j, i) belongs to weight W[j, i]."""

    def __mul__(self, factor: float) -> LinearOperator:
        return self.scaled(factor)

    __rmul__ = __mul__

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v for v [D] or [D, k], in column-vec order and in the operator's dtype.

        Raises:
            InputError: v has another shape, or is on another device.
            InputTypeError: v is no dense tensor of real floating-point numbers.
        """
        v = fitting("what an operator multiplies", v, self)
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[0]:
            raise InputError(
                f"an operator of size {self.shape[0]} multiplies [{self.shape[0]}] or "
                f"[{self.shape[0]}, k], not {list(v.shape)}."
            )
        columns = vector_to_matrix(v.T if v.ndim == 2 else v, self.outputs, self.inputs)
        result = matrix_to_vector(self.apply(columns))
        return result.T if v.ndim == 2 else result

    def __rmatmul__(self, v: Tensor) -> Tensor:
        """The product v F for v [D] or [k, D]: F is symmetric."""
        v = fitting("what an operator multiplies", v, self)
        return (self @ v.T).T if v.ndim == 2 else self @ v

    def check_matrix(self, X: Tensor) -> Tensor:
        """X [..., m, d] in the operator's dtype.

        Raises:
            InputError: X does not end in [m, d], or is on another device.
            InputTypeError: X is no dense tensor of real floating-point numbers.
        """
        X = fitting("the matrix that an operator acts on", X, self)
        if X.shape[-2:] != (self.outputs, self.inputs):
            raise InputError(
                f"the operator acts on matrices [..., {self.outputs}, {self.inputs}], not {list(X.shape)}."
            )
        return X

    # --- dense forms ----------------------------------------------------------------------------

    def dense(self, vec: str = "column") -> Tensor:
        """F as a tensor [D, D], in column-vec ("column") or row-vec ("row") order.

        Raises:
            InputError: another `vec`.
        """
        check_vec(vec)
        if vec == "row" and self.pair_symmetric:
            return unpack(self.packed().T.contiguous(), self.inputs, self.outputs)
        matrix = self._dense_columns()
        return matrix if vec == "column" else row_order(matrix, self.outputs, self.inputs)

    def diagonal(self, vec: str = "column") -> Tensor:
        """The diagonal of F, [D], in column-vec or row-vec order."""
        return matrix_to_vector(self.diagonal_matrix(), vec)

    def packed(self) -> Tensor:
        """M [d(d+1)/2, m(m+1)/2], an isometric image of a pair-symmetric F.

        M = Σ svec(a aᵀ) svec(g gᵀ)ᵀ for F = Σ (a aᵀ) ⊗ (g gᵀ), so ‖M‖ = ‖F‖ and inner products
        are kept.

        Raises:
            NotSupportedError: F is not pair-symmetric.
        """
        return self.packed_rows(0, packed_size(self.inputs))

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of `packed`: [stop - start, m(m+1)/2]."""
        raise NotSupportedError(
            f"{type(self).__name__} has no packed form: it is not symmetric in each pair of "
            "indices; use dense()."
        )

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """F as a scipy LinearOperator on numpy arrays, in column-vec order."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def product(v: np.ndarray) -> np.ndarray:
            if np.iscomplexobj(v):
                raise InputTypeError(
                    "an operator multiplies real vectors; give real and imaginary part apart."
                )
            right = torch.as_tensor(v, dtype=self.dtype, device=self.device)
            return (self @ right).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype, device="cpu").numpy().dtype
        return ScipyOperator(shape=self.shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)

    def _dense_columns(self) -> Tensor:
        if self.pair_symmetric:
            return unpack(self.packed(), self.outputs, self.inputs)
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def widened(self, dtype: torch.dtype) -> LinearOperator:
        """The operator itself, or where `dtype` is wider than its own the same one in `dtype`."""
        wider = torch.promote_types(self.dtype, dtype)
        if wider == self.dtype:
            return self
        made = {
            n for cls in type(self).__mro__ for n, v in vars(cls).items() if isinstance(v, cached_property)
        }
        other = copy.copy(self)
        for name, value in list(vars(self).items()):
            if name in made:
                del other.__dict__[name]
            else:
                setattr(other, name, _widened(value, wider))
        other.dtype = wider
        return other

    @cached_property
    def _dense_form(self) -> DenseOperator:
        from fisherlab.operators.dense import DenseOperator

        return DenseOperator(self.dense(), self.outputs, self.inputs)

    # --- numbers --------------------------------------------------------------------------------

    def trace(self) -> Tensor:
        """The trace of F, 0-d float64."""
        return self.diagonal_matrix().double().sum()

    def frobenius_norm(self) -> Tensor:
        """‖F‖_F, 0-d float64."""
        return self.inner(self).clamp(min=0).sqrt()

    def inner(self, other: LinearOperator) -> Tensor:
        """<F, G> = tr(F G), 0-d float64; no dense matrix is made where one of them has structure.

        Raises:
            InputError: the operators have different outputs or inputs, or are on different devices.
            InputTypeError: `other` is no operator.
        """
        self.check_same_size(other)
        pair = self.widened(other.dtype), other.widened(self.dtype)
        first, second = pair if self.structure <= other.structure else pair[::-1]
        return first._inner_with(second)

    def difference_norm(self, other: LinearOperator) -> Tensor:
        """‖F − G‖_F, 0-d float64.

        Taken entry by entry (no cancellation) between packed forms, where both exist and are
        affordable, or between dense matrices for D ≤ 2048. Otherwise
        √(‖F‖² − 2<F, G> + ‖G‖²), whose error is about √ε·‖F‖ when F and G are nearly equal.

        Raises:
            InputError: the operators have different outputs or inputs.
        """
        self.check_same_size(other)
        pairs, width = packed_size(self.inputs), packed_size(self.outputs)
        if self.pair_symmetric and other.pair_symmetric and pairs * width <= _PACKED_DIFFERENCE:
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for start, stop in spans(pairs, width * self.dtype.itemsize):
                difference = self.packed_rows(start, stop) - other.packed_rows(start, stop)
                total += dot64(difference, difference)
            return total.sqrt()
        if self.shape[0] <= _DENSE_DIFFERENCE:
            return norm64(self.dense() - other.dense())
        own, others = self.frobenius_norm().square(), other.frobenius_norm().square()
        return (own - 2 * self.inner(other) + others).clamp(min=0).sqrt()

    def logdet(self, damping: DampingLike = 0.0) -> Tensor:
        """The log-determinant of F + λI, 0-d float64.

        Raises:
            NumericalError: F + λI is singular or indefinite.
        """
        damped = self.eigenvalues().double() + self._uniform(damping)
        require_positive(damped)
        return damped.log().sum()

    def eigenvalues(self) -> Tensor:
        """All eigenvalues, ascending, [D]; those within rounding of zero are exactly zero."""
        return self._dense_form.eigenvalues()

    # --- functions of F -------------------------------------------------------------------------

    def inverse(self, damping: DampingLike = 0.0) -> LinearOperator:
        """(F + λI)⁻¹.

        Raises:
            NumericalError: F + λI is singular or not finite.
            NotSupportedError: the damping is factored and F is not a Kronecker product.
        """
        return self.power(-1.0, damping)

    def power(self, p: float, damping: DampingLike = 0.0) -> LinearOperator:
        """(F + λI)^p.

        Raises:
            NumericalError: an eigenvalue of F + λI does not admit the power.
            NotSupportedError: the damping is factored and F is not a Kronecker product.
        """
        return self._dense_form.power(p, damping)

    def solve(self, M: Tensor, damping: DampingLike = 0.0) -> Tensor:
        """(F + λI)⁻¹ applied to gradient matrices M [..., m, d]: [..., m, d].

        Raises:
            InputError: M does not end in [m, d].
            NumericalError: F + λI is singular or not finite.
        """
        return self.inverse(damping).apply(M)

    def solves(self, M: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """`solve` at one damping λ > 0 after another; what does not depend on λ is done once."""
        return (self.solve(M, damping) for damping in dampings)

    # --- contractions: what the inner products of all pairs are made of ---------------------------

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """The diagonal of (U_A ⊗ U_B)ᵀ F (U_A ⊗ U_B) as a matrix [m, d].

        Entry (j, i) is (u_i ⊗ v_j)ᵀ F (u_i ⊗ v_j), u_i a column of U_A [d, d], v_j of U_B [m, m]; None is
        the identity.
        """
        return self._dense_form.diagonal_in_basis(U_A, U_B)

    def contract_output(self, B: Tensor) -> Tensor:
        """Σ Vᵀ B V [d, d], for F = Σ vec(V) vec(V)ᵀ; <F, A ⊗ B> = <this, A>.

        Args:
            B: [m, m], or [m]: the diagonal of a diagonal matrix.
        """
        return self._dense_form.contract_output(B)

    def contract_input(self, A: Tensor) -> Tensor:
        """Σ V A Vᵀ [m, m], for F = Σ vec(V) vec(V)ᵀ; <F, A ⊗ B> = <this, B>.

        Args:
            A: [d, d], or [d]: the diagonal of a diagonal matrix.
        """
        return self._dense_form.contract_input(A)

    def unit_blocks(self) -> Tensor:
        """The d×d block of each output unit with itself, [m, d, d]."""
        return self._dense_form.unit_blocks()

    def quadratic(self, V: Tensor) -> Tensor:
        """vec(V)ᵀ F vec(V) for V [..., m, d]: [...], in the operator's dtype."""
        return (V * self.apply(V)).sum((-2, -1))

    def quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        """Σ_c vec(V_{n,c})ᵀ F vec(V_{n,c}) for each sample, V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ.

        Args:
            a: layer inputs [n, t, d].
            g: output gradients [c, n, t, m].
            held: all V [n, c, m, d] where they are known; None: made where they are needed.

        Returns:
            [n], float64.

        Raises:
            InputError: the shapes do not fit each other.
        """
        check_sample_shapes(a, g)
        if a.shape[1] == 1:
            return self._outer_quadratics(dense_inputs(a)[:, 0], g[:, :, 0]).double()
        return self._vector_quadratics(a, g, held)

    def gram_products(self, other: GramOperator) -> Tensor:
        """J F Jᵀ/N for the J of a Gram operator: products of all pairs of its columns in this F.

        Args:
            other: makes the columns.

        Returns:
            [C·n, C·n], index c·n_samples + n.
        """
        images = (self.apply(V) for V in other.chunks())
        return torch.cat([other.rows(image).flatten(1) for image in images]) * other.weight

    def _outer_quadratics(self, a: Tensor, g: Tensor) -> Tensor:
        """`quadratics` for one position: a [n, d], g [c, n, m]."""
        return self._vector_quadratics(a[:, None], g[:, :, None])

    def _vector_quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        if held is not None:
            return self.quadratic(held).double().sum(1)
        classes, samples = g.shape[:2]
        pieces = [
            self.quadratic(sample_vectors(a, g, start, stop))
            for start, stop in spans(classes * samples, self.shape[0] * g.element_size())
        ]
        return torch.cat(pieces).view(classes, samples).double().sum(0)

    def inner_kronecker(self, A: Tensor, B: Tensor) -> Tensor:
        """<F, A ⊗ B>, 0-d float64.

        Args:
            A: [d, d], or [d]: the diagonal of a diagonal matrix.
            B: [m, m] or [m].
        """
        return factor_inner(self.contract_output(B), A)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        """<F, G> by the structure of F (the more structured of the two)."""
        return dot64(self.dense(), other.dense())

    def check_same_size(self, other: LinearOperator) -> None:
        """Checks that another operator can be compared with this one.

        Raises:
            InputError: it has different outputs or inputs, or is on another device.
            InputTypeError: it is no operator.
        """
        if not isinstance(other, LinearOperator):
            raise InputTypeError(
                f"an operator is compared with another operator, not with a {type(other).__name__}; make a "
                "DenseOperator of a matrix."
            )
        if self.device != other.device:
            raise InputError(f"the operators are on {self.device} and {other.device}; compare on one device.")
        if (self.outputs, self.inputs) != (other.outputs, other.inputs):
            raise InputError(
                f"the operators act on matrices of different shapes, [{self.outputs}, "
                f"{self.inputs}] and [{other.outputs}, {other.inputs}]; compare blocks of one "
                "layer."
            )

    def _uniform(self, damping: DampingLike) -> float:
        """The λ of a constant damping.

        Raises:
            NotSupportedError: the damping is factored.
        """
        checked = as_damping(damping)
        if isinstance(checked, Constant):
            return checked.value
        raise NotSupportedError(
            f"{type(checked).__name__} damps the two factors of a Kronecker product, which "
            f"{type(self).__name__} does not have; give a number."
        )

    def _scale(self, factor: float) -> float:
        return number("the factor of an operator", factor)

    def _exponent(self, p: float) -> float:
        return finite("the power of an operator", p)

    def _positive_dampings(self, dampings: Sequence[float]) -> list[float]:
        if not isinstance(dampings, Iterable):
            raise InputTypeError(
                f"solves takes several dampings, not a {type(dampings).__name__}; use solve."
            )
        values = [finite("a damping", damping) for damping in dampings]
        if not values or min(values) <= 0:
            raise InputError(f"solves takes one damping or more, all above zero, not {values}.")
        return values

    def _input_factor(self, A: Tensor) -> Tensor:
        return self._fitting_factor("the input factor", A, self.inputs)

    def _output_factor(self, B: Tensor) -> Tensor:
        return self._fitting_factor("the output factor", B, self.outputs)

    def _fitting_factor(self, what: str, factor: Tensor, size: int) -> Tensor:
        factor = fitting(what, factor, self)
        if factor.shape not in ((size,), (size, size)):
            raise InputError(f"{what} is [{size}, {size}] or [{size}], not {list(factor.shape)}.")
        return factor

    def _sample_inputs(self, a: Inputs) -> Inputs:
        a = self._sample_part("the inputs", a)
        self._check_inputs(a)
        return a

    def _check_inputs(self, a: Inputs) -> None:
        if a.ndim == 3 and a.shape[2] != self.inputs:
            raise InputError(f"the operator takes inputs [n, t, {self.inputs}], not {list(a.shape)}.")

    def _sample_outputs(self, g: Tensor) -> Tensor:
        g = self._sample_part("the gradients", g)
        if g.ndim == 4 and g.shape[3] != self.outputs:
            raise InputError(f"the operator takes gradients [c, n, t, {self.outputs}], not {list(g.shape)}.")
        return g

    def _vectors(self, V: Tensor | None) -> Tensor | None:
        return None if V is None else self.check_matrix(V)

    def _sample_part(self, what: str, part: Any) -> Any:
        if not isinstance(part, OneHot):
            return fitting(what, part, self)
        return part if part.dtype == self.dtype else part.to(self.dtype)

    def _input_basis(self, U: Tensor | None) -> Tensor | None:
        return self._basis("the input basis", U, self.inputs)

    def _output_basis(self, U: Tensor | None) -> Tensor | None:
        return self._basis("the output basis", U, self.outputs)

    def _basis(self, what: str, U: Tensor | None, size: int) -> Tensor | None:
        if U is None:
            return None
        U = fitting(what, U, self)
        if U.ndim != 2 or len(U) != size:
            raise InputError(f"{what} has columns of size {size}, not the shape {list(U.shape)}.")
        return U


_MATRIX = (LinearOperator.check_matrix,)
_CHECKS: dict[str, tuple[Callable[[Any, Any], Any], ...]] = {
    **dict.fromkeys(("apply", "solve", "quadratic", "rows"), _MATRIX),
    "solves": (*_MATRIX, LinearOperator._positive_dampings),
    "quadratics": (LinearOperator._sample_inputs, LinearOperator._sample_outputs, LinearOperator._vectors),
    "scaled": (LinearOperator._scale,),
    "power": (LinearOperator._exponent,),
    "contract_output": (LinearOperator._output_factor,),
    "contract_input": (LinearOperator._input_factor,),
    "inner_kronecker": (LinearOperator._input_factor, LinearOperator._output_factor),
    "diagonal_in_basis": (LinearOperator._input_basis, LinearOperator._output_basis),
}


def _put_checks(cls: type) -> None:
    for name, checks in _CHECKS.items():
        if inspect.isfunction(vars(cls).get(name)):
            setattr(cls, name, checked(vars(cls)[name], checks))


_put_checks(LinearOperator)


def _widened(value: Any, dtype: torch.dtype) -> Any:
    """A part of an operator in a wider dtype."""
    if isinstance(value, LinearOperator):
        return value.widened(dtype)
    if isinstance(value, tuple):
        return tuple(_widened(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, (Tensor, OneHot)) else value
