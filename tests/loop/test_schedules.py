import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.errors import InputError
from fisherlab.loop.schedules import Schedule

FIRST = st.floats(1e-4, 3)


def test_constant():
    assert {Schedule("constant", 50, 5).rate(step, 0.3) for step in range(50)} == {0.3}


@given(FIRST)
def test_step_falls_tenfold_every_k_epochs(first):
    schedule = Schedule("step", 600, 5, step_every=40)
    assert [schedule.rate(step, first) for step in (0, 199, 200, 399, 400)] == pytest.approx(
        [first, first, first / 10, first / 10, first / 100]
    )


@given(st.floats(0.001, 3), st.integers(0, 79))
def test_cosine_is_that_of_the_paper(first, epoch):
    lr = 0.001 + 0.5 * (first - 0.001) * (1 + math.cos(2 * 0.47 * math.pi * epoch / 80))
    assert Schedule("cosine", 80 * 7, 7).rate(epoch * 7, first) == pytest.approx(lr)


@given(FIRST, st.integers(0, 49), st.floats(0.5, 6))
def test_polynomial(first, epoch, power):
    assert Schedule("polynomial", 50 * 3, 3, power=power).rate(epoch * 3, first) == pytest.approx(
        first * (1 - epoch / 50) ** power
    )


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "polynomial"])
def test_warm_up_is_linear_and_then_the_schedule_goes_on(name):
    plain, warm = Schedule(name, 100, 10, step_every=2), Schedule(name, 100, 10, 25, step_every=2)
    assert [warm.rate(step, 0.5) for step in range(25)] == pytest.approx(
        [0.5 * (s + 1) / 25 for s in range(25)]
    )
    assert [warm.rate(step, 0.5) for step in range(25, 100)] == [plain.rate(s, 0.5) for s in range(25, 100)]


@pytest.mark.parametrize("name", ["step", "cosine", "polynomial"])
@given(first=FIRST)
def test_rates_never_rise_without_warm_up(name, first):
    schedule = Schedule(name, 90, 3, step_every=4)
    rates = [schedule.rate(step, first) for step in range(90)]
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert 0 < rates[-1] < first or name == "cosine"


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(InputError, match="warm-up takes 11 steps"):
        Schedule("constant", 10, 5, 11)
