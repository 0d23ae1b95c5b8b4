"""The two orders of vec, and the shapes of inputs and gradients."""

from torch import Tensor

from fisherlab.errors import InputError, known_name
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.linalg.arguments import real_tensor

VEC_ORDERS = ("column", "row")


def check_vec(vec: str) -> None:
    """Raises InputError (or InputTypeError) unless vec is "column" or "row"."""
    known_name("vec", vec, VEC_ORDERS)


def matrix_to_vector(X: Tensor, vec: str = "column") -> Tensor:
    """vec(X) of matrices X [..., m, d]: [..., D], columns (or rows) of X one after another."""
    check_vec(vec)
    return (X.mT if vec == "column" else X).flatten(-2)


def vector_to_matrix(v: Tensor, outputs: int, inputs: int) -> Tensor:
    """The matrices [..., m, d] with column-vec v [..., D]."""
    return v.unflatten(-1, (inputs, outputs)).mT


def row_order(matrix: Tensor, outputs: int, inputs: int) -> Tensor:
    """A column-vec matrix [D, D] with its rows and columns put in row-vec order."""
    by_entry = matrix.reshape(inputs, outputs, inputs, outputs)
    return by_entry.permute(1, 0, 3, 2).reshape(matrix.shape)


def column_order(matrix: Tensor, outputs: int, inputs: int) -> Tensor:
    """A row-vec matrix [D, D] with its rows and columns put in column-vec order."""
    return row_order(matrix, inputs, outputs)


def check_sample_shapes(a: Inputs, g: Tensor) -> None:
    """Checks a [n, t, d] against g [c, n, t, m].

    Raises:
        InputError: another number of dimensions, or n or t differ.
        InputTypeError: one is no real tensor.
    """
    for what, part in (("the inputs", a), ("the gradients", g)):
        if not isinstance(part, OneHot):
            real_tensor(what, part)
    if a.ndim != 3 or g.ndim != 4 or a.shape[:2] != g.shape[1:3]:
        raise InputError(
            "the inputs must be a [n, t, d] and the gradients g [c, n, t, m] with the same n and "
            f"t, not {tuple(a.shape)} and {tuple(g.shape)}."
        )
