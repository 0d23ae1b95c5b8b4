# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper again
#
# Liu, Li, Gao and Wang, *A Layer-Wise Natural Gradient Optimizer for Training Deep Neural Networks*, NeurIPS
# 2024: its figures and tables, measured beside printed. `fisherlab figures` makes all of them; this notebook
# makes some, at the scale `smoke`, which checks that everything runs and says nothing about the methods. The
# scales `cpu`, `gpu` and `paper` are for numbers.

# %%
# %matplotlib inline
from pathlib import Path

import pandas as pd
from PIL import Image

import fisherlab as fl
from fisherlab.figures.catalogue import ENTRIES
from fisherlab.figures.config import FiguresConfig
from fisherlab.figures.printed import ERRATA, TABLES
from fisherlab.figures.run import make
from fisherlab.runs.origin import Origin

SCALE = "smoke"
pd.DataFrame([(entry.name, entry.title) for entry in ENTRIES], columns=["name", "shows"])

# %% [markdown]
# ## Figure 1: exact Fisher, LNGD, absolute error
#
# The network 196-20-20-20-10, trained with LNGD, and its layer with 20 inputs and 20 units: a block of 400 ×
# 400, with a cut-out of 40 × 40 in the red square. Where MNIST cannot be had, digits stand in, and the
# caption says so.

# %%
prepared = fl.models.prepare("mnist-mlp", seed=0, samples=1000)
comparison = fl.compare(
    prepared.model,
    prepared.data,
    approximations=("kfac", "lngd"),
    likelihood=prepared.likelihood,
    layers="2",
    spectra=False,
    about=Origin("mnist-mlp", prepared.dataset.label, prepared.checkpoint, prepared.step, prepared.seed),
)
comparison.heatmap("2", "lngd", trace_matched=True)

# %% [markdown]
# Here LNGD's block has the trace of $F$; the paper does not say how its picture is scaled. As computed, the
# two have no common scale, and the error would be LNGD's block itself:

# %%
rows = comparison.records[comparison.records["target"] == "predictive"].set_index("approximation")
assert rows.loc["kfac", "scaled_error"] < rows.loc["lngd", "scaled_error"]
rows[["relative_error", "scaled_error", "best_scale", "trace_ratio", "direction_cosine", "decrease_share"]]

# %% [markdown]
# Figure 5 puts KFAC above LNGD. In this layer KFAC's shape is the nearer one: it keeps the entries between
# different output units, which LNGD's diagonal output factor sets to zero.

# %%
comparison.heatmap("2", "kfac", trace_matched=True)

# %% [markdown]
# ## What the paper prints
#
# The printed values are kept as they are, with what is known to be wrong with them. In tables 1 and 6 the
# epochs times the seconds an epoch should be the seconds to the target. For some methods they are not:

# %%
printed = pd.DataFrame(TABLES[6].columns)
product = printed["epochs to target"] * printed["seconds an epoch"]
printed["epochs × seconds"] = product.round(2)
printed["off by, %"] = (100 * (product / printed["seconds to target"] - 1)).round(1)
print(ERRATA[19])
printed

# %% [markdown]
# ## Theorem 1, measured
#
# In the block-diagonal quadratic model of a step, the layer-wise rates of eq. 12 never reach less than the
# best single rate. `make` takes names of the catalogue; this is `fisherlab figures theorem-1 --scale smoke`.

# %%
out = Path("runs") / "paper-again"
summary = make(FiguresConfig(names=("theorem-1",), scale=SCALE, device="cpu"), out, force=True)
ratio = summary["made"]["theorem-1"]["largest_ratio"]
assert ratio <= 1 + 1e-9
print("decrease with the best single rate / with layer-wise rates: at most", ratio)
Image.open(out / "theorem-1.png")

# %% [markdown]
# The right panel is the other half of the truth: with the products of different layers in the model, nothing
# is proved. `theorem-1.csv` beside it holds the numbers.
#
# Everything, with training runs that can be continued:
#
#     fisherlab figures all --scale cpu --out runs/paper
