"""The base class of the structured matrices: what each of them can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError, InputTypeError, NotSupportedError
from fisherlab.gradients.contractions import vector_pieces
from fisherlab.gradients.inputs import Inputs, dense_inputs
from fisherlab.linalg.arguments import check_sizes, fitting
from fisherlab.linalg.factors import factor_inner
from fisherlab.linalg.numerics import damped_log, dot64, norm64, require_positive, spans
from fisherlab.linalg.packing import packed_size, unpack
from fisherlab.operators.arguments import constant_damping, put_checks
from fisherlab.operators.conversion import in_dtype, scipy_operator, worked_out
from fisherlab.operators.eigenbasis import Eigenbasis
from fisherlab.operators.layout import (
    check_sample_shapes,
    check_vec,
    matrix_to_vector,
    row_order,
    vector_to_matrix,
)

if TYPE_CHECKING:
    import scipy.sparse.linalg

    from fisherlab.operators.dense import DenseOperator
    from fisherlab.operators.gram import GramOperator

_DENSE_DIFFERENCE = 2048  # largest D of a difference of dense matrices: a choice, two of 32 MiB in float64
_PACKED_DIFFERENCE = 2**30  # most packed entries that a difference makes: a choice, some seconds of writing


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
        remark: how it was made, where that is to be said beside its numbers.
        rounding: the ε of the sums that its entries are, made in a coarser type than `dtype`.
    """

    structure: ClassVar[int] = 100
    remark: str = ""
    rounding: float = 0.0
    __array_ufunc__ = None  # so that numpy scalars multiply from the left through __rmul__

    def __init_subclass__(cls, **options: Any) -> None:
        """Puts the checks of the arguments before the methods that the class gives."""
        super().__init_subclass__(**options)
        put_checks(cls)

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
        return scipy_operator(self)

    def _dense_columns(self) -> Tensor:
        if self.pair_symmetric:
            return unpack(self.packed(), self.outputs, self.inputs)
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def widened(self, dtype: torch.dtype) -> LinearOperator:
        """The operator itself, or where `dtype` is wider than its own the same one in `dtype`."""
        wider = torch.promote_types(self.dtype, dtype)
        return self if wider == self.dtype else in_dtype(self, wider)

    def forget(self) -> None:
        """Lets go of what was worked out and kept: eigenvectors, the dense form."""
        for name in worked_out(self):
            del self.__dict__[name]

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
        damped = self.eigenvalues().double() + constant_damping(self, damping)
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

    def log(self, damping: DampingLike = 0.0) -> LinearOperator:
        """The logarithm of F + λI, zero on its kernel: where `eigenvalues` and λ are zero.

        Raises:
            NumericalError: F + λI has negative eigenvalues.
            NotSupportedError: the damping is factored and F is not a Kronecker product.
        """
        value = constant_damping(self, damping)
        return self.function(lambda values: damped_log(values, value))

    def function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        """f(F) = Σ f(v) u uᵀ over the eigenpairs (v, u) of F; f is given tensors of eigenvalues."""
        return self._dense_form.function(f)

    def eigenbasis(self) -> Eigenbasis:
        """The eigenvectors with their eigenvalues."""
        return self._dense_form.eigenbasis()

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
        if not len(a):  # one of two halves of a single sample
            return g.new_zeros(0, dtype=torch.float64)
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
        return torch.cat([self.quadratic(V).double().sum(1) for _, V in vector_pieces(a, g, held)])

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
                f"the operators act on matrices of different shapes, [{self.outputs}, {self.inputs}] and "
                f"[{other.outputs}, {other.inputs}]; compare blocks of one layer."
            )

    def _check_inputs(self, a: Inputs) -> None:
        """Raises `InputError` unless the inputs have d numbers; of a grouped operator those of all groups."""
        if a.ndim == 3 and a.shape[2] != self.inputs:
            raise InputError(f"the operator takes inputs [n, t, {self.inputs}], not {list(a.shape)}.")


put_checks(LinearOperator)
