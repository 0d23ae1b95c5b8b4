"""From logs to targets, times and rows."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from fisherlab.figures import printed, trainings
from fisherlab.figures.catalogue import chosen
from fisherlab.figures.method_runs import MethodRun
from fisherlab.figures.printed import TABLES
from fisherlab.figures.quantities import common_target, quantity
from fisherlab.figures.workshop import TABLE_COLUMNS, _as_printed, _cell
from fisherlab.plots import label
from fisherlab.runs.finished import FinishedRun


class Logged(MethodRun):
    """A run whose log is given: accuracies at epochs 0, 1, …, two seconds and ten steps an epoch."""

    evaluations = ()

    def __init__(
        self, method: str, values: list[float], metric: str = "accuracy", outcome: str = "finished"
    ) -> None:
        summary = {"metric": metric, "outcome": outcome, "reason": None, "dataset": "d"}
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "finished", FinishedRun(None, "train", summary, {}, {"seed": 0}))
        lines = [
            {"step": 10 * k, "epoch": float(k), "seconds": 2.0 * k, metric: value}
            for k, value in enumerate(values)
        ]
        object.__setattr__(self, "evaluations", lines)


def test_the_target_is_what_every_seed_of_the_reference_reaches_in_whole_percent() -> None:
    runs = [Logged("sgd", [0.1, 0.62]), Logged("sgd", [0.1, 0.587])]
    assert common_target(runs, None) == 58.0
    assert common_target(runs, 50.0) == 50.0


def test_for_a_perplexity_it_is_rounded_up() -> None:
    runs = [Logged("sgd", [90.0, 33.2], "perplexity"), Logged("sgd", [90.0, 35.1], "perplexity")]
    assert common_target(runs, None) == 36.0


def test_a_reference_that_diverged_gives_no_target() -> None:
    assert common_target([Logged("sgd", [0.1], outcome="diverged")], 91.0) is None


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (printed.EPOCHS, 2.0),
        (printed.SECONDS, 4.0),
        (printed.HOURS, 4.0 / 3600),
        (printed.STEPS, 0.02),
        (printed.PER_EPOCH, 2.0),
        (printed.PER_THOUSAND, 200.0),
        (printed.ACCURACY, 70.0),
        (printed.BLEU, None),
    ],
)
def test_quantities_are_of_the_first_evaluation_at_the_target(column: str, expected: float | None) -> None:
    found = quantity(Logged("lngd", [0.1, 0.5, 0.6, 0.7, 0.65]), column, 60.0)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_target_that_is_not_reached_has_no_time() -> None:
    assert quantity(Logged("lngd", [0.1, 0.5]), printed.EPOCHS, 60.0) is None


def test_a_run_that_diverged_has_no_best_value() -> None:
    assert quantity(Logged("lngd", [0.1], outcome="diverged"), printed.ACCURACY, 60.0) is None


def test_time_saved_is_one_minus_the_ratio() -> None:
    """Reading 21: of the printed values 189.69 s and 268.67 s, 29.4 %."""
    rows = {row[0]: row for row in trainings._rows(None, TABLES[1])}
    saved = rows["SGD: time that LNGD saves, 1 − t_LNGD/t"]
    assert saved[1] is None
    assert saved[2] == pytest.approx(0.294, abs=5e-4)


def test_a_printed_total_that_contradicts_its_factors_is_flagged() -> None:
    """Reading 19: each flagged total is off by more than rounding, and no other one is."""
    for number in (1, 6):
        table = TABLES[number]
        notes = {row[0]: row[3] for row in trainings._rows(None, table)}
        for method in table.methods:
            total = table.columns[printed.SECONDS][method]
            product = table.columns[printed.EPOCHS][method] * table.columns[printed.PER_EPOCH][method]
            note = notes[f"{label(method)}: {printed.SECONDS}"]
            assert ("reading 19" in note) == (abs(total - product) > 0.01 * total)


@pytest.mark.parametrize(
    ("value", "text"), [(79.0, "79"), (3.4, "3.40"), (239.2, "239.20"), (0.29396658, "0.294"), (None, "–")]
)
def test_printed_values_stand_as_in_the_paper(value, text) -> None:
    assert _cell(value, _as_printed) == text


def test_the_table_and_the_figure_share_their_runs(work, work_in, tmp_path) -> None:
    """Columns, captions and the stand-in; the figure finds the runs that the table made."""
    (figure,), (table,) = chosen(["figure-2"]), chosen(["table-1"])
    numbers = table.make(work)
    frame = pd.read_csv(work.folder / "table-1.csv")
    assert tuple(frame.columns) == TABLE_COLUMNS
    assert math.isclose(frame.set_index("quantity")["printed"]["LNGD: best accuracy, %"], 93.61)
    assert frame["measured"].notna().any()
    before = sorted((work.folder / "runs").iterdir())
    assert len(before) == 8  # four methods, two seeds
    figure.make(work_in(tmp_path / "other", work.scale, work.folder / "runs"))
    assert not (tmp_path / "other" / "runs").exists()
    caption = (tmp_path / "other" / "figure-2.txt").read_text()
    for words in (
        "scale smoke",
        "a stand-in for ResNet-18 on CIFAR-10",
        "stand-in: digits",
        "seeds 0, 1",
        "cpu",
    ):
        assert words in caption
    assert numbers["data"] == ["mnist (stand-in: digits)"]
    assert {p.suffix for p in (tmp_path / "other").glob("figure-2.*")} == {".png", ".pdf", ".csv", ".txt"}


def test_the_ablation_without_imagenet_says_what_it_stands_for(tiny) -> None:
    assert tiny.ablation.stands_for == "ResNet-50 on ImageNet"
    assert replace(tiny, imagenet=tiny.images).ablation is tiny.images
