import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.damping import Clip, Constant, Pi, as_damping
from fisherlab.errors import InputError, InputTypeError

positive = st.floats(1e-3, 1e3)


def scalar(x):
    return torch.tensor(x, dtype=torch.float64)


@given(trace_A=positive, trace_B=positive, damping=positive)
def test_pi_splits_the_damping(trace_A, trace_B, damping):
    shift_A, shift_B = Pi(damping).factors(scalar(trace_A), 3, scalar(trace_B), 5)
    assert float(shift_A * shift_B) == pytest.approx(damping)
    assert float(shift_A / shift_B) == pytest.approx((trace_A / 3) / (trace_B / 5))


@given(trace_A=positive, trace_B=positive, c=positive)
def test_pi_follows_a_change_of_scale_between_the_factors(trace_A, trace_B, c):
    before = Pi(0.1).factors(scalar(trace_A), 3, scalar(trace_B), 5)
    after = Pi(0.1).factors(scalar(c * trace_A), 3, scalar(trace_B / c), 5)
    assert float(after[0]) == pytest.approx(c * float(before[0]))
    assert float(after[1]) == pytest.approx(float(before[1]) / c)


@pytest.mark.parametrize(("trace_A", "trace_B", "pi"), [(0.0, 1.0, 1e-2), (1.0, 0.0, 1e2), (0.0, 0.0, 1.0)])
def test_pi_with_a_zero_trace_stays_within_bounds(trace_A, trace_B, pi):
    shift_A, shift_B = Pi(0.25).factors(scalar(trace_A), 2, scalar(trace_B), 2)
    assert float(shift_A) == pytest.approx(0.5 * pi)
    assert float(shift_B) == pytest.approx(0.5 / pi)


def test_clip_is_the_mean_eigenvalue_within_its_bounds():
    damping = Clip(1e-5, 1e-2)
    for trace, expected in [(1e-9, 1e-5), (4e-3, 1e-3), (10.0, 1e-2)]:
        shift_A, shift_B = damping.factors(scalar(trace), 4, scalar(trace), 4)
        assert float(shift_A) == float(shift_B) == pytest.approx(expected)


def test_clip_with_bounds_of_its_own_for_the_output_factor():
    damping = Clip(1e-5, 1e-2, output=(0.5, 2.0))
    shift_A, shift_B = damping.factors(scalar(8.0), 4, scalar(6.0), 4)
    assert (float(shift_A), float(shift_B)) == pytest.approx((1e-2, 1.5))


def test_the_defaults_are_the_published_bounds():
    assert (Clip().low, Clip().high, Clip().output) == (1e-5, 1e-2, None)


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf])
def test_impossible_values_are_refused(bad):
    for make in (Constant, Pi, lambda x: Clip(low=x), lambda x: Clip(output=(0.0, x)), as_damping):
        with pytest.raises(InputError, match="zero or larger"):
            make(bad)


@pytest.mark.parametrize("bounds", [{"low": 2.0, "high": 1.0}, {"output": (2.0, 1.0)}])
def test_reversed_bounds_are_refused(bounds):
    with pytest.raises(InputError, match="reversed"):
        Clip(**bounds)


def test_numbers_and_objects_become_damping():
    assert as_damping(0.5) == as_damping(Constant(0.5)) == Constant(0.5)
    assert as_damping(1) == Constant(1.0)
    assert as_damping(Pi(0.5)) == Pi(0.5)
    for bad in ("0.1", None, True):
        with pytest.raises(InputTypeError, match="damping"):
            as_damping(bad)
