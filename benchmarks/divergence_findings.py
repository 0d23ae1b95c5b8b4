"""What the records of divergences.py say: ranks, what predicts a good step, and what predicts training."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
from common import RESULTS

from fisherlab.records.labels import label

TRAINING = RESULTS / "divergences_training.csv"
CIFAR = RESULTS / "cifar_training.csv"
MEASURES = {
    "scaled_error": "Frobenius, scaled",
    "logdet_divergence_scaled": "log-det, scaled",
    "von_neumann_divergence": "von Neumann",
    "von_neumann_damped": "von Neumann of F_λ",
    "top": "top",
    "middle": "middle",
    "tail": "tail",
}
"""Lower is better in all of them; the bands' are |log q|."""

RANKED = {column: words for column, words in MEASURES.items() if column != "von_neumann_damped"}

SHARE = "decrease_share"
CLOSE = ("nearest-kronecker", "kfac", "ekfac", "tkfac", "kl-kronecker", "soap", "kl-soap")
STEPS = {
    "sgd": ("sgd", ""),
    "adam": ("adam", "root_"),
    "muon": ("muon", ""),
    "soap": ("soap", "root_"),
    "shampoo": ("shampoo", "root_"),
    "kfac": ("kfac", ""),
    "ekfac": ("ekfac", ""),
    "tkfac": ("tkfac", ""),
    "ngplus": ("ngplus", ""),
    "lngd": ("lngd", ""),
    "lngd-lr": ("lngd-lr", ""),
}
"""Optimizers of training.py: the approximation that each has, and whether it takes the root step."""

DRAWS = 4000
Interval = tuple[float, float, float]


def prepared(frame: pd.DataFrame) -> pd.DataFrame:
    """With |log q| for the bands, and infinite von Neumann divergences as such."""
    frame = frame.copy()
    for band in ("top", "middle", "tail"):
        frame[band] = np.log(frame[f"calibration_{band}"].clip(lower=1e-12)).abs()
    matrix = frame["scaled_error"].notna()
    frame.loc[matrix & frame["von_neumann_divergence"].isna(), "von_neumann_divergence"] = math.inf
    return frame


def interval(values: Mapping[str, float] | pd.Series) -> Interval:
    """Mean over networks with the 95 % interval of its bootstrap."""
    kept = np.array([value for value in dict(values).values() if math.isfinite(value)])
    if not len(kept):
        return math.nan, math.nan, math.nan
    chosen = np.random.default_rng(0).integers(len(kept), size=(DRAWS, len(kept)))
    low, high = np.quantile(kept[chosen].mean(1), [0.025, 0.975])
    return float(kept.mean()), float(low), float(high)


def spearman(x: pd.Series, y: pd.Series) -> float:
    """Rank correlation; NaN where one of them is constant or unknown."""
    known = x.notna() & y.notna()
    ranks = x[known].rank(), y[known].rank()
    if known.sum() < 3 or min(one.std() for one in ranks) == 0:
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


# --- a: who is best --------------------------------------------------------------------------------


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Ranks of the matrices within each (network, stage, layer), 1 the best, and who won."""
    rows = prepared(frame)[frame["scaled_error"].notna()].copy()
    rows.loc[rows["kind"] != "predictive", SHARE] = math.nan  # most of ∇h is outside of such an F
    keys = [rows["model"], rows["stage"], rows["layer"]]
    for column in (*RANKED, SHARE):
        rows[f"rank_{column}"] = rows[column].groupby(keys).rank(ascending=column != SHARE)
        rows[f"won_{column}"] = (rows[f"rank_{column}"] < 1.75).astype(float)
        tied = rows.groupby(["model", "stage", "layer"])[f"won_{column}"].transform("sum")
        rows[f"won_{column}"] = (rows[f"won_{column}"] / tied).where(rows[column].notna())
    return rows


def per_network(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over layers: an approximation a row, a network a column."""
    return rows.pivot_table(index="approximation", columns="model", values=column, aggfunc="mean")


def rank_lines(rows: pd.DataFrame) -> list[str]:
    """Mean ranks of one stage."""
    tables = {column: per_network(rows, f"rank_{column}") for column in (*RANKED, SHARE)}
    order = tables[SHARE].mean(axis=1).sort_values().index
    head = ["F̂", *RANKED.values(), "decrease share"]
    return table(
        head,
        [[label(name), *(shown(interval(one.loc[name]), 1) for one in tables.values())] for name in order],
    )


def winner_lines(rows: pd.DataFrame) -> list[str]:
    """Who wins how many of the layers, those with a tenth or more."""
    lines = []
    for column, words in {**RANKED, SHARE: "decrease share"}.items():
        cells = []
        for _, own in rows.groupby("stage", sort=False):
            shares = per_network(own, f"won_{column}").mean(axis=1).sort_values(ascending=False)
            cells.append(", ".join(f"{label(n)} {100 * v:.0f} %" for n, v in shares.items() if v >= 0.1))
        lines.append([words, *cells])
    return table(["", *rows["stage"].unique()], lines)


def step_lines(frame: pd.DataFrame) -> list[str]:
    """Mean decrease shares of all steps: of each layer, and of all layers together."""
    lines = []
    means = frame.groupby(["stage", "approximation", "model"], sort=False).mean(numeric_only=True)
    columns = [
        (stage, f"{root}{c}")
        for stage in frame["stage"].unique()
        for c in (SHARE, "joint_share")
        for root in ("", "root_")
    ]
    for name in frame["approximation"].unique():
        lines.append(
            [label(name), *(number(means.loc[stage, name][column].mean()) for stage, column in columns)]
        )
    words = {
        SHARE: "layer",
        f"root_{SHARE}": "layer, root",
        "joint_share": "joint",
        "root_joint_share": "joint, root",
    }
    return table(["step", *(f"{stage}: {words[column]}" for stage, column in columns)], lines)


def gain_lines(frame: pd.DataFrame) -> list[str]:
    """Where in the spectrum the best step gains, and how many directions are there."""
    layers = frame.drop_duplicates(["model", "stage", "layer"])
    bands, lines = ("top", "middle", "tail", "rest"), []
    for stage, own in layers.groupby("stage", sort=False):
        means = own.groupby("model")[[f"gain_{band}" for band in bands]].mean()
        counts = own[[f"directions_{band}" for band in bands[:3]]].median()
        cells = [shown(interval(means[f"gain_{band}"]), 2) for band in bands]
        lines.append([stage, *cells, ", ".join(f"{count:.0f}" for count in counts)])
    return table(["", *bands, "directions, median: top, middle, tail"], lines)


# --- b: does a divergence predict a good step -------------------------------------------------------


def correlations(frame: pd.DataFrame, measure: str, share: str) -> pd.Series:
    """By network the mean over layers of Spearman's correlation over methods; positive: it predicts well."""
    layers = frame.groupby(["model", "stage", "layer"], sort=False)
    found = {key: spearman(-own[measure], own[share]) for key, own in layers}
    series = pd.Series(found, dtype=float)
    return series.groupby(level=0).mean()


def expected(frame: pd.DataFrame) -> pd.DataFrame:
    """The matrices of networks whose labels are not drawn."""
    return prepared(frame)[frame["scaled_error"].notna() & (frame["kind"] == "predictive")]


def network_prediction_lines(frame: pd.DataFrame) -> list[str]:
    """Among the close ones, over all stages: each network by itself."""
    rows = prepared(frame)[frame["approximation"].isin(CLOSE)]
    found = pd.DataFrame({words: correlations(rows, column, SHARE) for column, words in MEASURES.items()})
    names = list(frame["model"].unique())
    rest = frame.drop_duplicates(["model", "stage", "layer"]).groupby("model")["gain_rest"].mean()
    lines = [[words, *(number(found.loc[name, words]) for name in names)] for words in MEASURES.values()]
    lines.append(["share of the gain in the rest", *(number(rest[name]) for name in names)])
    return table(["", *names], lines)


def prediction(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a (methods, stage, measure, share): the correlation with its interval."""
    rows = expected(frame)
    sets = {"all": rows, "close": rows[rows["approximation"].isin(CLOSE)]}
    found = []
    for methods, own in sets.items():
        for stage in ("all", *rows["stage"].unique()):
            part = own if stage == "all" else own[own["stage"] == stage]
            for measure in MEASURES:
                for share in (SHARE, f"root_{SHARE}"):
                    value, low, high = interval(correlations(part, measure, share))
                    found.append((methods, stage, measure, share, value, low, high))
    return pd.DataFrame(found, columns=["methods", "stage", "measure", "share", "value", "low", "high"])


def prediction_lines(found: pd.DataFrame, methods: str) -> list[str]:
    own = found[found["methods"] == methods].set_index(["stage", "measure", "share"])
    stages = ["all", *[stage for stage in found["stage"].unique() if stage != "all"]]
    head = [
        "",
        *(f"{stage} {'stages' if stage == 'all' else ''}".strip() for stage in stages),
        "all stages, root step",
    ]
    lines = []
    for measure, words in MEASURES.items():
        cells = [own.loc[(stage, measure, SHARE)] for stage in stages] + [
            own.loc[("all", measure, f"root_{SHARE}")]
        ]
        lines.append([words, *(shown((cell["value"], cell["low"], cell["high"]), 2) for cell in cells)])
    return table(head, lines)


# --- c: does it predict training --------------------------------------------------------------------


def write_training(cache: Path) -> None:
    """The training results, from the cache of training.py and the table of cifar_training.py."""
    runs: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for key, run in json.loads(cache.read_text(encoding="utf-8")).items():
        found = re.fullmatch(r"(\S+) (.+) lr=(\S+) seed=(\d+) (\S+) \(.*\)", key)
        assert found is not None, key
        runs.setdefault((found[1], found[2]), {}).setdefault(found[3], {})[found[4]] = run["loss"]
    rows = []
    for (task, method), by_lr in runs.items():
        tried = {lr: own["0"] for lr, own in by_lr.items() if "0" in own}
        best = min(tried, key=lambda lr: tried[lr])
        losses = list(by_lr[best].values())
        rows.append((task, method, best, *spread(losses)))
    known = pd.read_csv(CIFAR)
    last = known[known["epoch"] == known["epoch"].max()]
    for method, own in last.groupby("method", sort=False):
        rows.append(("cifar-resnet8", method, "", *spread(list(own["loss"]))))
    names = ["model", "method", "lr", "loss", "sd", "seeds"]
    pd.DataFrame(rows, columns=names).to_csv(TRAINING, index=False, float_format="%.5g")


def spread(losses: list[float]) -> tuple[float, float, int]:
    """Mean, standard deviation and number."""
    return mean(losses), stdev(losses) if len(losses) > 1 else math.nan, len(losses)


def joined(frame: pd.DataFrame, stage: str) -> pd.DataFrame:
    """A row a (network, optimizer): its training loss, and means over layers at a stage."""
    training = pd.read_csv(TRAINING)
    rows = prepared(frame[frame["stage"] == stage]).replace(math.inf, math.nan)
    columns = [*MEASURES, SHARE, f"root_{SHARE}", "joint_share", "root_joint_share"]
    means = rows.groupby(["model", "approximation"])[columns].mean()
    found = []
    for row in training.itertuples():
        approximation, root = STEPS.get(row.method, ("", ""))
        if (row.model, approximation) not in means.index:
            continue
        own = means.loc[(row.model, approximation)]
        taken = {"own": own[f"{root}{SHARE}"], "joint": own[f"{root}joint_share"], "full": own[SHARE]}
        found.append(
            {"model": row.model, "method": row.method, "loss": row.loss, **own[list(MEASURES)], **taken}
        )
    rows = pd.DataFrame(found)
    return rows[rows.groupby("model")["loss"].transform("count") >= 3]


SHARES = {
    "own": "share of its own step",
    "joint": "joint share of its own step",
    "full": "share of the full step",
}


def training_lines(frame: pd.DataFrame, without: Iterable[str] = ()) -> list[str]:
    """For each predictor the correlation with the training loss, by network, and a permutation test."""
    lines, head = {words: [words] for words in {**MEASURES, **SHARES}.values()}, [""]
    for stage in ("init", "middle"):
        rows = joined(frame, stage)
        rows = rows[~rows["method"].isin(without)]
        names = list(rows["model"].unique())
        head += [f"{stage}: {', '.join(names)}", "mean [95 %]", "p"]
        for column, words in {**MEASURES, **SHARES}.items():
            signed = rows[column] if column in SHARES else -rows[column]
            pairs = [(signed[rows["model"] == name], -rows["loss"][rows["model"] == name]) for name in names]
            each = {name: spearman(*pair) for name, pair in zip(names, pairs, strict=True)}
            by_network = ", ".join(number(value) for value in each.values())
            lines[words] += [by_network, shown(interval(each), 2), number(chance(pairs), 3)]
    return table(head, list(lines.values()))


def chance(pairs: Iterable[tuple[pd.Series, pd.Series]]) -> float:
    """How often training results shuffled among the methods of each network correlate as much, either way."""
    generator, ranks = np.random.default_rng(0), []
    for x, y in pairs:
        known = x.notna() & y.notna()
        if known.sum() >= 3:
            a, b = (one[known].rank().to_numpy() for one in (x, y))
            ranks.append(((a - a.mean()) / a.std(), (b - b.mean()) / b.std()))
    own = mean(float((a * b).mean()) for a, b in ranks)
    drawn = [mean(float((a * generator.permutation(b)).mean()) for a, b in ranks) for _ in range(DRAWS)]
    return float(np.mean(np.abs(drawn) >= abs(own) - 1e-12))


def loss_lines() -> list[str]:
    """The training results themselves."""
    training = pd.read_csv(TRAINING)
    training = training[training["method"].isin(STEPS)]
    text = [f"{row.loss:.4g} ± {row.sd:.2g}" for row in training.itertuples()]
    wide = training.assign(text=text).pivot(index="method", columns="model", values="text").fillna("–")
    wide = wide.reindex([name for name in STEPS if name in wide.index])[list(training["model"].unique())]
    return table(
        ["optimizer", *wide.columns],
        [[name, *cells] for name, cells in zip(wide.index, wide.to_numpy(), strict=True)],
    )


# --- what the number of samples does --------------------------------------------------------------


def count_lines(counts: pd.DataFrame) -> list[str]:
    """Mean ranks over layers, of the samples themselves and of fresh ones."""
    rows = counts.assign(model="", kind="predictive", stage=counts["against"] + counts["samples"].astype(str))
    rows = ranked(rows.assign(layer=rows["layer"].astype(str)))
    columns = ("scaled_error", "logdet_divergence_scaled", "von_neumann_divergence", SHARE)
    words = ("Frobenius", "log-det", "von Neumann", "decrease share")
    lines = []
    for name in rows["approximation"].unique():
        own = rows[rows["approximation"] == name].groupby(["against", "samples"]).mean(numeric_only=True)
        cells = [
            " ".join(number(own.loc[(a, n), f"rank_{c}"], 0) for n in sorted(set(rows["samples"])))
            for c in columns
            for a in ("same", "fresh")
        ]
        lines.append([label(name), *cells])
    return table(["F̂", *(f"{word}, {a}" for word in words for a in ("same", "fresh"))], lines)


def count_prediction_lines(counts: pd.DataFrame) -> list[str]:
    """Among the close ones: correlations with the decrease share, mean over the layers."""
    rows, lines = counts[counts["approximation"].isin(CLOSE)].copy(), []
    rows["von_neumann_divergence"] = rows["von_neumann_divergence"].fillna(math.inf)
    sizes = sorted(set(rows["samples"]))
    for column in ("scaled_error", "logdet_divergence_scaled", "von_neumann_divergence"):
        cells = []
        for against in ("same", "fresh"):
            for count in sizes:
                own = rows[(rows["against"] == against) & (rows["samples"] == count)]
                each = [spearman(-layer[column], layer[SHARE]) for _, layer in own.groupby("layer")]
                cells.append(number(float(np.nanmean(each))))
        lines.append([MEASURES[column], *cells])
    return table(["", *(f"{a}, N = {n:,}" for a in ("same", "fresh") for n in sizes)], lines)


def count_gain_lines(counts: pd.DataFrame) -> list[str]:
    """Where the best step gains, by the number of samples of F and ∇h."""
    bands, lines = [f"gain_{band}" for band in ("top", "middle", "tail", "rest")], []
    own = counts[counts["against"] == "same"].groupby("samples")[bands].mean()
    for samples, row in own.iterrows():
        lines.append([f"{samples:,}", *(number(value) for value in row)])
    fresh = counts[counts["against"] == "fresh"][bands].mean()
    lines.append(["8,192", *(number(value) for value in fresh)])
    return table(["samples", "top", "middle", "tail", "rest"], lines)


# --- text -----------------------------------------------------------------------------------------


def number(value: float, digits: int = 2) -> str:
    return "–" if not math.isfinite(value) else f"{value:.{digits}f}"


def shown(found: Interval, digits: int) -> str:
    value, low, high = (number(one, digits) for one in found)
    return f"{value} [{low}, {high}]"


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]
