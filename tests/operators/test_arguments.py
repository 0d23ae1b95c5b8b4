"""What operators are given: numbers of another dtype are brought to theirs, anything else is refused."""

import numpy as np
import pytest
import torch
from operator_cases import BUILDERS, Case
from torch import Tensor, nn

import fisherlab as fl
from fisherlab import metrics
from fisherlab.errors import InputError, InputTypeError
from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    EigenKroneckerOperator,
    GramOperator,
    GroupedOperator,
    KroneckerOperator,
    LinearOperator,
    OneHot,
    PackedOperator,
    UnitBlockOperator,
    smat,
    svec,
    svec_gram,
    svec_outer,
)

M, D = 3, 4
DAMPING = 0.3


@pytest.fixture(params=sorted(BUILDERS))
def case(request) -> Case:
    return BUILDERS[request.param](np.random.default_rng(0), M, D, torch.float64)


def single(name: str) -> LinearOperator:
    return BUILDERS[name](np.random.default_rng(0), M, D, torch.float32).operator


class Halved(LinearOperator):
    """An operator that somebody else wrote, without any check."""

    def __init__(self) -> None:
        super().__init__(M, D, torch.float64, torch.device("cpu"))

    def apply(self, X):
        assert X.dtype == torch.float64
        return X / 2

    def scaled(self, factor):
        raise NotImplementedError

    def diagonal_matrix(self):
        return torch.full((M, D), 0.5, dtype=torch.float64)


USES = {
    "apply": lambda op, X: op.apply(X),
    "solve": lambda op, X: op.solve(X, DAMPING),
    "solve by name": lambda op, X: op.solve(M=X, damping=DAMPING),
    "solves": lambda op, X: torch.stack(list(op.solves(X, [DAMPING, 1.0]))),
    "quadratic": lambda op, X: op.quadratic(X),
    "product": lambda op, X: op @ X.mT.flatten(),
    "products": lambda op, X: op @ X.mT.reshape(-1, 1),
    "inverse": lambda op, X: op.inverse(DAMPING).apply(X),
    "output": lambda op, X: op.contract_output(X @ X.mT),
    "input": lambda op, X: op.contract_input(X.mT @ X),
    "kronecker": lambda op, X: op.inner_kronecker(X.mT @ X, X @ X.mT),
    "basis": lambda op, X: op.diagonal_in_basis(X.mT @ X, X @ X.mT),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrices_of_another_dtype_are_converted(case, use, dtype):
    X = torch.tensor(np.random.default_rng(1).integers(-4, 5, (M, D)) / 4.0)
    expected = USES[use](case.operator, X)
    found = USES[use](case.operator, X.to(dtype))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_gradient_of_float64_for_an_operator_of_float32(name):
    X = torch.ones(M, D, dtype=torch.float64)
    assert single(name).apply(X).dtype == single(name).solve(X, DAMPING).dtype == torch.float32


@pytest.mark.parametrize("name", ["kfac", "ekfac", "lngd", "tkfac", "foof", "diagonal", "nearest-kronecker"])
def test_a_gradient_of_the_model_is_taken_by_every_approximation(name):
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 3))
    data = torch.randn(9, 4), torch.arange(9) % 3
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    gradient = model[0].weight.grad
    for operator in (
        fl.approximate(name, model, data)["0"],
        fl.exact_fisher(model, data, method="gram")["0"],
    ):
        solved = operator.solve(gradient, 1e-2)
        torch.testing.assert_close(solved, operator.solve(gradient.to(operator.dtype), 1e-2))
        assert solved.dtype == operator.dtype


def test_an_operator_of_somebody_else_is_guarded_too():
    op = Halved()
    assert torch.equal(op @ torch.ones(M * D), torch.full((M * D,), 0.5, dtype=torch.float64))
    with pytest.raises(InputTypeError, match=r"must hold real floating-point numbers, not torch\.int64"):
        op.apply(torch.ones(M, D, dtype=torch.long))
    with pytest.raises(InputError, match="acts on matrices"):
        op.apply(torch.ones(D, M))


NO_TENSORS = {
    "integers": (torch.ones(M, D, dtype=torch.long), r"numbers, not torch\.int64; .*x\.double\(\)"),
    "bools": (torch.ones(M, D) > 0, r"numbers, not torch\.bool"),
    "complex": (torch.ones(M, D, dtype=torch.complex64), r"numbers, not torch\.complex64"),
    "sparse": (torch.ones(M, D).to_sparse(), r"dense tensor, not torch\.sparse_coo; .*to_dense\(\)"),
    "meta": (torch.ones(M, D, device="meta"), "is on meta and the operator on cpu"),
    "array": (np.ones((M, D)), r"a torch tensor, not ndarray; .*torch\.from_numpy\(x\)"),
    "list": ([[1.0] * D] * M, "a torch tensor, not list"),
    "number": (2.0, "a torch tensor, not float"),
    "none": (None, "a torch tensor, not NoneType"),
    "operator": (DiagonalOperator(torch.ones(M, D)), "a torch tensor, not DiagonalOperator"),
}


@pytest.mark.parametrize("given", NO_TENSORS)
def test_what_is_no_real_matrix_is_refused(case, given):
    X, message = NO_TENSORS[given]
    error = InputError if given == "meta" else InputTypeError
    for use in (case.operator.apply, case.operator.solve, case.operator.quadratic):
        with pytest.raises(error, match=message):
            use(X)
    with pytest.raises(error, match=message):
        case.operator @ (X.flatten() if given in ("integers", "complex", "meta") else X)
    if X is not None:
        for use in (case.operator.contract_output, case.operator.contract_input):
            with pytest.raises(error, match=message):
                use(X)


@pytest.mark.parametrize("shape", [(M + 1, M + 1), (M, M + 1), (), (1, M, M)])
def test_factors_of_another_shape_are_refused(case, shape):
    with pytest.raises(InputError, match="the output factor is"):
        case.operator.contract_output(torch.ones(shape))
    with pytest.raises(InputError, match="the output basis has columns of size 3"):
        case.operator.diagonal_in_basis(None, torch.ones((*shape, 2) if shape[:1] == (M,) else shape))


@pytest.mark.parametrize("other", sorted(BUILDERS))
def test_operators_of_two_dtypes_are_compared_in_the_wider(case, other):
    G = single(other)
    wide = DenseOperator(torch.as_tensor(G.dense()).double(), M, D)
    for function in (metrics.relative_error, metrics.cosine, metrics.trace_ratio, metrics.diagonal_error):
        assert function(case.operator, G) == pytest.approx(function(case.operator, wide), rel=1e-5, abs=1e-6)
    for first, second in ((case.operator, G), (G, case.operator)):
        product = first.inner(second)
        assert product.dtype == torch.float64
        assert float(product) == pytest.approx(float(case.operator.inner(wide)), rel=1e-5)
    assert G.dtype == torch.float32  # it is left as it was
    assert G.apply(torch.ones(M, D)).dtype == torch.float32


@pytest.mark.parametrize("name", ["kronecker", "dense", "gram-1", "gram-3", "grouped-dense"])
def test_a_wider_operator_is_the_same_one(name):
    G = single(name)
    G.eigenvalues()
    assert G.widened(torch.float32) is G.widened(torch.bfloat16) is G
    wide = G.widened(torch.float64)
    assert wide.dtype == wide.dense().dtype == wide.eigenvalues().dtype == torch.float64
    torch.testing.assert_close(wide.dense().float(), G.dense(), rtol=1e-5, atol=1e-6)


def test_metrics_of_directions_and_spectra_in_two_dtypes():
    F = BUILDERS["gram-1"](np.random.default_rng(0), M, D, torch.float64).operator
    G = single("kronecker")
    X = torch.ones(M, D)
    wide = G.widened(torch.float64)
    assert metrics.direction(F, G, X, 0.1) == pytest.approx(metrics.direction(F, wide, X.double(), 0.1))
    torch.testing.assert_close(
        metrics.preconditioned_spectrum(F, G, 0.1), metrics.preconditioned_spectrum(F, wide, 0.1)
    )
    narrow = metrics.preconditioned_condition(F, G, 0.1)
    assert narrow == pytest.approx(metrics.preconditioned_condition(F, wide, 0.1), rel=1e-5)


@pytest.mark.parametrize("other", [torch.eye(M * D), np.eye(M * D), None, {"0": 1}, 2.0])
def test_what_is_no_operator_is_not_compared(case, other):
    for function in (case.operator.inner, case.operator.difference_norm):
        with pytest.raises(InputTypeError, match="compared with another operator, not with a"):
            function(other)
    for function in (metrics.relative_error, metrics.scaled_error, metrics.cosine, metrics.trace_ratio):
        with pytest.raises(InputTypeError, match="Operator"):
            function(case.operator, other)
        with pytest.raises(InputTypeError, match="F must be a LinearOperator"):
            function(other, case.operator)
    with pytest.raises(InputTypeError, match="F must be a LinearOperator"):
        metrics.spectrum(other)


@pytest.mark.parametrize("function", [metrics.trace_ratio, metrics.diagonal_error, metrics.scaled_error])
def test_blocks_of_two_layers_have_no_metric(case, function):
    with pytest.raises(InputError, match="one layer"):
        function(case.operator, DiagonalOperator(torch.ones(D, M)))


def test_the_diagonal_of_another_block_is_refused(case):
    with pytest.raises(InputError, match=r"has shape \[12\], not \[11\]"):
        metrics.diagonal_error(torch.ones(11), case.operator)


@pytest.mark.parametrize("factor", ["2", b"2", None, [2.0], torch.ones(2), 1j, {}])
def test_factors_that_are_no_numbers_are_refused(case, factor):
    for multiply in (lambda: case.operator * factor, lambda: case.operator.scaled(factor)):
        with pytest.raises(InputTypeError, match="the factor of an operator is a number"):
            multiply()


@pytest.mark.parametrize(
    ("p", "error"),
    [("2", InputTypeError), (None, InputTypeError), (1j, InputTypeError), (np.nan, InputError)],
)
def test_powers_that_are_no_numbers_are_refused(case, p, error):
    with pytest.raises(error, match="the power of an operator"):
        case.operator.power(p, DAMPING)


@pytest.mark.parametrize("damping", ["0.1", None, [0.1], np.nan])
def test_dampings_of_metrics_that_are_no_numbers_are_refused(case, damping):
    with pytest.raises((InputError, InputTypeError), match="damping"):
        metrics.direction(case.operator, case.operator, torch.ones(M, D), damping)
    with pytest.raises((InputError, InputTypeError), match="damping"):
        metrics.spectrum(case.operator, damping)


CONSTRUCTORS = {
    "dense": lambda x: DenseOperator(x(6, 6), 2, 3),
    "diagonal": lambda x: DiagonalOperator(x(2, 3)),
    "input factor": lambda x: KroneckerOperator(x(3, 3), torch.eye(2)),
    "output factor": lambda x: KroneckerOperator(torch.eye(3), x(2, 2)),
    "basis": lambda x: EigenKroneckerOperator(x(3, 3), None, torch.ones(2, 3)),
    "eigenvalues": lambda x: EigenKroneckerOperator(None, None, x(2, 3)),
    "packed": lambda x: PackedOperator(x(6, 3), 2, 3),
    "unit blocks": lambda x: UnitBlockOperator(x(2, 3, 3)),
    "inputs": lambda x: GramOperator(x(4, 1, 3), torch.ones(1, 4, 1, 2)),
    "gradients": lambda x: GramOperator(torch.ones(4, 1, 3), x(1, 4, 1, 2)),
}
MADE_OF = {
    "integers": lambda *shape: torch.ones(shape, dtype=torch.long),
    "complex": lambda *shape: torch.ones(shape, dtype=torch.complex64),
    "array": lambda *shape: np.ones(shape),
    "sparse": lambda *shape: torch.ones(shape).to_sparse(),
}


@pytest.mark.parametrize("made_of", MADE_OF)
@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_operators_are_made_of_real_tensors(constructor, made_of):
    with pytest.raises(InputTypeError, match=r"must (be a torch tensor|hold real|be a dense)"):
        CONSTRUCTORS[constructor](MADE_OF[made_of])


def _eye(k: int, dtype: torch.dtype) -> Tensor:
    return torch.eye(k, dtype=dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: KroneckerOperator(_eye(4, a), _eye(3, b)),
        lambda a, b: EigenKroneckerOperator(_eye(4, a), _eye(3, b), torch.ones(3, 4, dtype=a)),
        lambda a, b: GramOperator(torch.ones(5, 2, 4, dtype=a), torch.ones(1, 5, 2, 3, dtype=b)),
    ],
    ids=["kronecker", "eigenkronecker", "gram"],
)
def test_parts_of_two_dtypes_are_one_operator(make):
    for dtypes in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        operator = make(*dtypes)
        assert (
            operator.dtype
            == operator.apply(torch.ones(M, D)).dtype
            == operator.dense().dtype
            == torch.float64
        )


def test_a_complex_vector_of_scipy_is_refused(case):
    with pytest.raises(InputTypeError, match="real vectors; give real and imaginary part apart"):
        case.operator.to_scipy() @ np.ones(M * D, dtype=complex)


@pytest.mark.parametrize("dampings", [0.1, None, [], [0.1, 0.0], [-1.0], ["0.1"], [np.nan]])
def test_dampings_of_several_solutions(case, dampings):
    with pytest.raises((InputError, InputTypeError), match="damping"):
        case.operator.solves(torch.ones(M, D), dampings)


@pytest.mark.parametrize("blocks", [[torch.eye(2)], [None], ["0"]])
def test_groups_are_operators(blocks):
    with pytest.raises(InputTypeError, match="a group's block is an operator, not a"):
        GroupedOperator(blocks)


def test_groups_of_two_dtypes_are_one_operator():
    blocks = [DiagonalOperator(torch.ones(2, 3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    operator = GroupedOperator(blocks)
    assert operator.dtype == operator.dense().dtype == torch.float64
    assert torch.equal(operator.apply(torch.ones(4, 3)), torch.ones(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("a", [np.ones((5, 1, D)), None, torch.ones(5, 1, D, dtype=torch.long)])
def test_gradients_by_their_parts_are_real_tensors(case, a):
    with pytest.raises(InputTypeError, match="the inputs must"):
        case.operator.quadratics(a, torch.ones(2, 5, 1, M, dtype=torch.float64))


@pytest.mark.parametrize("positions", [1, 3])
def test_gradients_by_their_parts_are_brought_to_the_dtype_of_the_operator(case, positions):
    a, g = torch.randn(5, positions, D).double(), torch.randn(2, 5, positions, M).double()
    expected = case.operator.quadratics(a, g)
    V = torch.einsum("cntm,ntd->ncmd", g, a)
    for parts in ((a.float(), g), (a, g.float()), (a.float(), g.float()), (a, g, V.float())):
        found = case.operator.quadratics(*parts)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_by_their_parts_that_do_not_fit_are_refused(case):
    a, g = torch.ones(5, 1, D).double(), torch.ones(2, 5, 1, M).double()
    with pytest.raises(InputError, match=f"inputs .*not .*{[5, 1, D + 1]}".replace("[", r"\[")):
        case.operator.quadratics(torch.ones(5, 1, D + 1).double(), g)
    with pytest.raises(InputError, match=rf"takes gradients \[c, n, t, {M}\], not \[2, 5, 1, {M + 1}\]"):
        case.operator.quadratics(a, torch.ones(2, 5, 1, M + 1).double())
    with pytest.raises(InputTypeError, match="must be a torch tensor, not int"):
        case.operator.quadratics(a, g, 3)


@pytest.mark.parametrize("samples", ["5", None.__class__, 0, -3, np.nan])
def test_the_number_of_samples_of_a_gram_operator(samples):
    with pytest.raises((InputError, InputTypeError), match="sample"):
        GramOperator(torch.ones(5, 1, D), torch.ones(2, 5, 1, M), samples)


def test_vectors_from_the_left(case):
    v, rows = torch.arange(M * D, dtype=torch.float32), torch.ones(2, M * D)
    torch.testing.assert_close(v @ case.operator, case.operator @ v)
    torch.testing.assert_close(rows @ case.operator, (case.operator @ rows.T).T)
    with pytest.raises(InputTypeError, match="must be a torch tensor, not ndarray"):
        np.ones(M * D) @ case.operator
    with pytest.raises(InputError, match="multiplies"):
        torch.ones(M * D + 1) @ case.operator


@pytest.mark.parametrize(("size", "error"), [("2", InputTypeError), (2.0, InputTypeError), (0, InputError)])
def test_sizes_are_whole_numbers(size, error):
    for make in (
        lambda: DenseOperator(torch.eye(6), size, 3),
        lambda: PackedOperator(torch.ones(6, 3), 2, size),
        lambda: OneHot(torch.zeros(2, 1, dtype=torch.long), size, torch.float32),
    ):
        with pytest.raises(error, match=r"whole numbers?|at least 1|size 0"):
            make()


def test_operators_without_numbers_are_refused():
    for make in (
        lambda: DenseOperator(torch.ones(0, 0), 0, 0),
        lambda: DiagonalOperator(torch.ones(0, 3)),
        lambda: KroneckerOperator(torch.ones(0, 0), torch.eye(2)),
        lambda: UnitBlockOperator(torch.ones(2, 0, 0)),
    ):
        with pytest.raises(InputError, match="at least 1 of each"):
            make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operators_of_sixteen_bits_work_in_float32(dtype):
    for operator in (
        DenseOperator(torch.eye(6, dtype=dtype), 2, 3),
        KroneckerOperator(torch.eye(3, dtype=dtype), torch.eye(2, dtype=dtype)),
        GramOperator(torch.ones(4, 1, 3, dtype=dtype), torch.ones(1, 4, 1, 2, dtype=dtype)),
    ):
        assert operator.dtype == operator.eigenvalues().dtype == torch.float32
        assert operator.solve(torch.ones(2, 3, dtype=dtype), DAMPING).dtype == torch.float32


@pytest.mark.parametrize(
    ("indices", "dtype"), [([[1]], torch.float32), (torch.zeros(2, 1).long(), "float32")]
)
def test_one_hot_inputs_of_other_things(indices, dtype):
    with pytest.raises(InputTypeError, match="one-hot inputs have a"):
        OneHot(indices, 3, dtype)


@pytest.mark.parametrize("function", [svec, svec_outer, svec_gram, lambda x: smat(x, 3)])
@pytest.mark.parametrize("value", [np.ones((3, 3)), None, torch.ones(3, 3, dtype=torch.long)])
def test_packing_takes_real_tensors(function, value):
    with pytest.raises(InputTypeError, match=r"must (be a torch tensor|hold real)"):
        function(value)


@pytest.mark.parametrize("function", [svec, svec_outer, svec_gram])
def test_packing_of_other_shapes(function):
    with pytest.raises(InputError, match="svec"):
        function(torch.ones(3))
