"""An operator as one of scipy's, and the same operator in a wider dtype."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fisherlab.errors import InputTypeError
from fisherlab.gradients.inputs import OneHot

if TYPE_CHECKING:
    import scipy.sparse.linalg

    from fisherlab.operators.base import LinearOperator


def scipy_operator(F: LinearOperator) -> scipy.sparse.linalg.LinearOperator:
    """F on numpy arrays, in column-vec order."""
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    def product(v: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(v):
            raise InputTypeError("an operator multiplies real vectors; give real and imaginary part apart.")
        return (F @ torch.as_tensor(v, dtype=F.dtype, device=F.device)).cpu().numpy()

    dtype = torch.empty(0, dtype=F.dtype, device="cpu").numpy().dtype
    return ScipyOperator(shape=F.shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)


def worked_out(F: LinearOperator) -> set[str]:
    """The attributes of what F keeps once it is worked out."""
    made = {n for cls in type(F).__mro__ for n, v in vars(cls).items() if isinstance(v, cached_property)}
    return made & vars(F).keys()


def in_dtype(F: LinearOperator, dtype: torch.dtype) -> LinearOperator:
    """A copy of F with all of its parts in a wider dtype, and without what it has worked out so far."""
    made = worked_out(F)
    other = copy.copy(F)
    for name, value in list(vars(F).items()):
        if name in made:
            del other.__dict__[name]
        else:
            setattr(other, name, _part_in_dtype(value, dtype))
    other.dtype = dtype
    return other


def _part_in_dtype(part: Any, dtype: torch.dtype) -> Any:
    if hasattr(part, "widened"):  # an operator of which this one is made
        return part.widened(dtype)
    if isinstance(part, tuple):
        return tuple(_part_in_dtype(one, dtype) for one in part)
    return part.to(dtype) if isinstance(part, (Tensor, OneHot)) else part
