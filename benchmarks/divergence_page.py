"""docs/results/divergences.md with its pictures, from the records of divergences.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import save_png
from divergence_findings import (
    MEASURES,
    RANKED,
    SHARE,
    TRAINING,
    count_gain_lines,
    count_lines,
    count_prediction_lines,
    gain_lines,
    loss_lines,
    network_prediction_lines,
    per_network,
    prediction,
    prediction_lines,
    rank_lines,
    ranked,
    step_lines,
    table,
    training_lines,
    winner_lines,
)

from fisherlab.plots import style
from fisherlab.records.labels import label

PAGE = Path(__file__).parent.parent / "docs" / "results" / "divergences.md"
TEXT = Path(__file__).parent / "divergences_text.md"


@style.styled
def rank_picture(rows: pd.DataFrame, *, caption: str) -> Any:
    """Mean ranks, approximations against measures, a panel a stage."""
    stages, columns = list(rows["stage"].unique()), (*RANKED, SHARE)
    tables = {
        stage: pd.DataFrame({c: per_network(own, f"rank_{c}").mean(axis=1) for c in columns})
        for stage, own in rows.groupby("stage", sort=False)
    }
    order = sum(one[SHARE] for one in tables.values()).sort_values().index
    figure = style.new_figure(
        style.PAGE_WIDTH, 3.4, caption=caption, title="Mean rank over layers and networks, 1 the best"
    )
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=True):
        numbers = tables[stage].loc[order].to_numpy()
        axes.imshow(numbers, cmap="viridis_r", vmin=1, vmax=len(order), aspect="auto")
        for (row, column), value in np.ndenumerate(numbers):
            dark = "white" if value > 0.55 * len(order) else "black"
            axes.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                color=dark,
                fontsize=style.SMALL_SIZE - 1,
            )
        axes.set_xticks(range(len(columns)), [*RANKED.values(), "decrease share"], rotation=60, ha="right")
        axes.set_title(stage)
    panels[0].set_yticks(range(len(order)), [label(name) for name in order])
    return figure


@style.styled
def prediction_picture(found: pd.DataFrame, *, caption: str) -> Any:
    """Rank correlations with the decrease share, with their intervals: of all methods, and of close ones."""
    figure = style.new_figure(
        style.PAGE_WIDTH, 2.6, caption=caption, title="Does a divergence predict the decrease share?"
    )
    panels = figure.subplots(1, 2, sharey=True)
    stages = [stage for stage in found["stage"].unique() if stage != "all"]
    for axes, (methods, words) in zip(
        panels, {"all": "all approximations", "close": "those close to F"}.items(), strict=True
    ):
        for place, stage in enumerate(stages):
            own = found[(found["methods"] == methods) & (found["stage"] == stage) & (found["share"] == SHARE)]
            y = np.arange(len(own)) + 0.22 * (place - 1)
            errors = np.abs(own[["low", "high"]].to_numpy().T - own["value"].to_numpy())
            axes.errorbar(own["value"], y, xerr=errors, fmt="o", markersize=3, label=stage)
        axes.axvline(0, color=style.MUTED, lw=0.6)
        axes.set_yticks(range(len(MEASURES)), list(MEASURES.values()))
        axes.set_xlim(-1, 1)
        axes.set_xlabel("Spearman's correlation over methods, mean [95 %]")
        axes.set_title(words)
    panels[0].invert_yaxis()
    panels[0].legend(loc="lower left")
    return figure


def network_lines(frame: pd.DataFrame, cases: Mapping[str, tuple[int, int | None]]) -> list[str]:
    """What was measured of each network."""
    lines = []
    for name, own in frame.groupby("model", sort=False):
        batch, draws = cases[str(name)]
        states = "; ".join(own["state"].unique())
        labels = "all, expected" if draws is None else f"{draws} drawn a sample"
        data, samples = own["dataset"].iloc[0], own["samples"].iloc[0]
        lines.append(
            [name, data, samples, labels, own["columns"].max(), own["layer"].nunique(), batch, states]
        )
    head = [
        "network",
        "data",
        "samples",
        "labels",
        "columns of F",
        "layers",
        "batch",
        "states (cross-entropy of 256)",
    ]
    return table(head, lines)


def write_page(
    frame: pd.DataFrame,
    counts: pd.DataFrame,
    cases: Mapping[str, tuple[int, int | None]],
    machine: str,
) -> None:
    """docs/results/divergences.md and its pictures."""
    rows, found = ranked(frame), prediction(frame)
    exact = frame[frame["kind"] == "predictive"]
    caption = (
        f"{frame['model'].nunique()} networks, seed 0, float64, {machine}; samples, steps: divergences.md"
    )
    save_png(rank_picture(rows, caption=caption), PAGE.with_name("divergences_ranks"))
    few = caption.replace(str(frame["model"].nunique()), str(exact["model"].nunique()), 1)
    save_png(prediction_picture(found, caption=few), PAGE.with_name("divergences_prediction"))
    ranks = [
        line
        for stage, own in rows.groupby("stage", sort=False)
        for line in (f"### {stage}", "", *rank_lines(own))
    ]
    trained = training_lines(frame) if TRAINING.exists() else []
    parts = {
        "NETWORKS": network_lines(frame, cases),
        "MACHINE": [machine],
        "RANKS": ranks,
        "WINNERS": winner_lines(rows),
        "STEPS": step_lines(exact),
        "ALL": prediction_lines(found, "all"),
        "CLOSE": prediction_lines(found, "close"),
        "TRAINING": trained,
        "WITHOUT": training_lines(frame, ("shampoo", "ngplus")) if TRAINING.exists() else [],
        "LOSSES": loss_lines() if TRAINING.exists() else [],
        "COUNTS": count_lines(counts),
        "EACH": network_prediction_lines(frame),
        "COUNT_PREDICTION": count_prediction_lines(counts),
        "COUNT_GAINS": count_gain_lines(counts),
        "GAINS": gain_lines(exact),
    }
    text = TEXT.read_text(encoding="utf-8")
    for key, lines in parts.items():
        text = text.replace(f"<{key}>", "\n".join(lines).rstrip())
    PAGE.write_text(text, encoding="utf-8")
