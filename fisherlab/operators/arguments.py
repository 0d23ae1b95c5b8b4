"""What the methods of an operator are given: checked, and brought to its dtype, before they see it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fisherlab.damping import Constant, DampingLike, as_damping
from fisherlab.errors import InputError, InputTypeError, NotSupportedError
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.linalg.arguments import finite, fitting, number

if TYPE_CHECKING:
    from fisherlab.operators.base import LinearOperator


def constant_damping(F: LinearOperator, damping: DampingLike) -> float:
    """The λ of a constant damping.

    Raises:
        NotSupportedError: the damping is factored.
    """
    checked = as_damping(damping)
    if isinstance(checked, Constant):
        return checked.value
    raise NotSupportedError(
        f"{type(checked).__name__} damps the two factors of a Kronecker product, which "
        f"{type(F).__name__} does not have; give a number."
    )


def put_checks(cls: type) -> None:
    """Puts the checks of their arguments before the methods that a class gives."""
    for name, checks in _CHECKS.items():
        if inspect.isfunction(vars(cls).get(name)):
            setattr(cls, name, _checked(vars(cls)[name], checks))


def _checked(method: Callable[..., Any], checks: Sequence[Callable[[Any, Any], Any]]) -> Callable[..., Any]:
    """A method whose first arguments have gone through checks, `check(self, value)`."""
    names = list(inspect.signature(method).parameters)[1:]

    @wraps(method)
    def with_checks(self: Any, *args: Any, **keywords: Any) -> Any:
        values = list(args)
        for place, check in enumerate(checks):
            if place < len(values):
                values[place] = check(self, values[place])
            elif names[place] in keywords:
                keywords[names[place]] = check(self, keywords[names[place]])
        return method(self, *values, **keywords)

    return with_checks


def _matrix(F: LinearOperator, X: Tensor) -> Tensor:
    X = fitting("the matrix that an operator acts on", X, F)
    if X.shape[-2:] != (F.outputs, F.inputs):
        raise InputError(
            f"the operator acts on matrices [..., {F.outputs}, {F.inputs}], not {list(X.shape)}."
        )
    return X


def _vectors(F: LinearOperator, V: Tensor | None) -> Tensor | None:
    return None if V is None else _matrix(F, V)


def _scale(F: LinearOperator, factor: float) -> float:
    return number("the factor of an operator", factor)


def _exponent(F: LinearOperator, p: float) -> float:
    return finite("the power of an operator", p)


def _positive_dampings(F: LinearOperator, dampings: Sequence[float]) -> list[float]:
    if not isinstance(dampings, Iterable):
        raise InputTypeError(f"solves takes several dampings, not a {type(dampings).__name__}; use solve.")
    values = [finite("a damping", damping) for damping in dampings]
    if not values or min(values) <= 0:
        raise InputError(f"solves takes one damping or more, all above zero, not {values}.")
    return values


def _input_factor(F: LinearOperator, A: Tensor) -> Tensor:
    return _factor(F, "the input factor", A, F.inputs)


def _output_factor(F: LinearOperator, B: Tensor) -> Tensor:
    return _factor(F, "the output factor", B, F.outputs)


def _factor(F: LinearOperator, what: str, factor: Tensor, size: int) -> Tensor:
    factor = fitting(what, factor, F)
    if factor.shape not in ((size,), (size, size)):
        raise InputError(f"{what} is [{size}, {size}] or [{size}], not {list(factor.shape)}.")
    return factor


def _sample_inputs(F: LinearOperator, a: Inputs) -> Inputs:
    a = _sample_part(F, "the inputs", a)
    F._check_inputs(a)
    return a


def _sample_outputs(F: LinearOperator, g: Tensor) -> Tensor:
    g = _sample_part(F, "the gradients", g)
    if g.ndim == 4 and g.shape[3] != F.outputs:
        raise InputError(f"the operator takes gradients [c, n, t, {F.outputs}], not {list(g.shape)}.")
    return g


def _sample_part(F: LinearOperator, what: str, part: Any) -> Any:
    if not isinstance(part, OneHot):
        return fitting(what, part, F)
    return part if part.dtype == F.dtype else part.to(F.dtype)


def _input_basis(F: LinearOperator, U: Tensor | None) -> Tensor | None:
    return _basis(F, "the input basis", U, F.inputs)


def _output_basis(F: LinearOperator, U: Tensor | None) -> Tensor | None:
    return _basis(F, "the output basis", U, F.outputs)


def _basis(F: LinearOperator, what: str, U: Tensor | None, size: int) -> Tensor | None:
    if U is None:
        return None
    U = fitting(what, U, F)
    if U.ndim != 2 or len(U) != size:
        raise InputError(f"{what} has columns of size {size}, not the shape {list(U.shape)}.")
    return U


_CHECKS: dict[str, tuple[Callable[[Any, Any], Any], ...]] = {
    **dict.fromkeys(("apply", "solve", "quadratic", "rows"), (_matrix,)),
    "solves": (_matrix, _positive_dampings),
    "quadratics": (_sample_inputs, _sample_outputs, _vectors),
    "scaled": (_scale,),
    "power": (_exponent,),
    "contract_output": (_output_factor,),
    "contract_input": (_input_factor,),
    "inner_kronecker": (_input_factor, _output_factor),
    "diagonal_in_basis": (_input_basis, _output_basis),
}
