"""Structured symmetric matrices that act on the gradient matrices of a layer.

Everything here is linear algebra: no model and no data. See `LinearOperator` for the operations
and the order of the entries.
"""

from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.linalg.packing import packed_size, smat, svec, svec_gram, svec_outer
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.dense import DenseOperator
from fisherlab.operators.diagonal import DiagonalOperator
from fisherlab.operators.eigenkronecker import EigenKroneckerOperator
from fisherlab.operators.gram import GramOperator
from fisherlab.operators.grouped import GroupedOperator, blocks_of, joined
from fisherlab.operators.kronecker import KroneckerOperator
from fisherlab.operators.packed import PackedOperator
from fisherlab.operators.unitblock import UnitBlockOperator

__all__ = [
    "DenseOperator",
    "DiagonalOperator",
    "EigenKroneckerOperator",
    "GramOperator",
    "GroupedOperator",
    "Inputs",
    "KroneckerOperator",
    "LinearOperator",
    "OneHot",
    "PackedOperator",
    "UnitBlockOperator",
    "blocks_of",
    "joined",
    "packed_size",
    "smat",
    "svec",
    "svec_gram",
    "svec_outer",
]
