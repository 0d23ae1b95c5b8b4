import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.plots import number
from fisherlab.records.columns import DIRECTION_COLUMNS, RECORD_COLUMNS
from fisherlab.records.definitions import METRICS, THEOREMS, best_rows, defined, name_of

VALUES = st.lists(st.floats(1e-6, 1e6) | st.just(math.nan), min_size=2, max_size=12)


@given(VALUES)
def test_best_is_the_lowest_or_the_highest_known_value(values):
    known = [value for value in values if not math.isnan(value)]
    for better, choose in (("lower", min), ("higher", max)):
        flags = best_rows(pd.Series(values), better)
        marked = {number(value) for value, flag in zip(values, flags, strict=True) if flag}
        assert marked == ({number(choose(known))} if len(known) > 1 else set())


def test_nearest_to_one_counts_both_sides_alike():
    assert best_rows(pd.Series([0.5, 1.9, 2.1]), "one") == [False, True, False]
    assert best_rows(pd.Series([0.6, 1.9, 0.0]), "one") == [True, False, False]


def test_ties_to_the_digits_shown_are_all_best():
    assert best_rows(pd.Series([0.30001, 0.29999, 0.31]), "lower") == [True, True, False]


def test_nothing_is_best_without_a_direction_or_without_a_rival():
    assert best_rows(pd.Series([1.0, 2.0]), "none") == [False, False]
    assert best_rows(pd.Series([1.0, np.nan, np.inf]), "lower") == [False] * 3


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_formulas_of_scaled_error_and_scale_agree(size, seed):
    """The scaled error as the table defines it: min over c = √(1 − cos²), at ⟨F, F̂⟩ / ‖F̂‖²."""
    rng = np.random.default_rng(seed)
    F, approximation = rng.random((2, size, size))
    inner = (F * approximation).sum()
    scale = inner / (approximation**2).sum()
    cosine = inner / np.linalg.norm(F) / np.linalg.norm(approximation)
    error = np.linalg.norm(F - scale * approximation) / np.linalg.norm(F)
    assert error == pytest.approx(math.sqrt(max(1 - cosine**2, 0)), abs=1e-7)


def test_every_metric_is_explained():
    assert len({metric.column for metric in METRICS}) == len(METRICS)
    assert all(metric.formula and metric.meaning.endswith(".") for metric in METRICS)
    assert all(metric.name for metric in METRICS)
    assert any("EKFAC ≤ KFAC" in theorem for theorem in THEOREMS)


RECORDS = """model,dataset,checkpoint,step,seed,dtype,layer,module,outputs,inputs,positions,groups,
approximation,kind,target,samples,columns,method,relative_error,scaled_error,best_scale,population_error,
population_error_se,gap_to_nearest,trace_exact,trace_approx,trace_ratio,diagonal_error,damping,direction_cosine,decrease_share,
preconditioned_condition,seconds,bytes,
logdet_divergence,logdet_divergence_scaled,von_neumann_divergence,calibration_top,calibration_middle,
calibration_tail,damped_step_share,directions_top,directions_middle,directions_tail,
root_direction_cosine,root_decrease_share,note"""


def test_the_registry_gives_the_columns_of_the_files_in_their_order():
    assert ",".join(RECORD_COLUMNS) == RECORDS.replace("\n", "")
    assert ",".join(DIRECTION_COLUMNS) == (
        "layer,approximation,damping,direction_cosine,decrease_share,root_direction_cosine,root_decrease_share"
    )


def test_one_entry_says_how_a_metric_is_called_and_written():
    (metric,) = (metric for metric in METRICS if metric.column == "population_error")
    assert metric.text(0.41234, 0.02134) == "0.412±0.021"
    assert metric.text(0.41234, math.nan) == metric.text(0.41234) == "0.412"
    assert metric.text(None, 0.1) == "–"
    assert defined("population_error") == [metric]
    assert name_of("population_error") == metric.name
    assert name_of("effective_rank") == "effective rank"
    assert name_of("no metric") == "no metric"
