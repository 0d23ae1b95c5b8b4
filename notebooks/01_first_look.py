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
# # A first look
#
# The exact Fisher of every layer of a small network, beside its approximations KFAC, EKFAC, TKFAC and LNGD.
#
# For a layer with weight $W$ of shape $m \times d$, the Fisher block is
#
# $$F = \frac1N \sum_n \sum_c \mathrm{vec}(V_{n,c})\,\mathrm{vec}(V_{n,c})^\top, \qquad
# V_{n,c} = g_{n,c}\,a_n^\top,$$
#
# with $a_n$ the layer's input, $g_{n,c}$ the gradient at its output, and the expectation over the model's
# own labels taken exactly (the columns $c$). It has $(m d)^2$ entries; the approximations keep far fewer.

# %%
# %matplotlib inline
import rich

import fisherlab as fl
from fisherlab.runs.origin import Origin

# %% [markdown]
# ## A trained network and its data
#
# `prepare` trains `mnist-mlp` (196-20-20-20-10, ReLU, no bias) the first time and keeps the weights in the
# cache. It looks for MNIST in `$FISHERLAB_DATA` and the cache, then tries a download. Where there is none,
# scikit-learn's digits stand in, and the label says so.

# %%
prepared = fl.models.prepare("mnist-mlp", seed=0, samples=1000)
about = Origin("mnist-mlp", prepared.dataset.label, prepared.checkpoint, prepared.step, prepared.seed)
print(about.caption("cpu"))
fl.find_layers(prepared.model)

# %% [markdown]
# ## Compare
#
# One pass over the 1,000 samples gives everything. The first layer's block is 3920 × 3920; it is left out
# here because its eigenvalues take half a minute.

# %%
comparison = fl.compare(
    prepared.model,
    prepared.data,
    approximations=("kfac", "ekfac", "tkfac", "lngd"),
    likelihood=prepared.likelihood,
    layers=["2", "4", "6"],
    about=about,
)
rich.print(comparison.table())

# %% [markdown]
# How to read it:
#
# - *rel. error* is $\|F - \hat F\| / \|F\|$; *scaled error* allows $\hat F$ its best scale first. LNGD has
#   no common scale with the Fisher of the loss (see *trace ratio*), so only its scaled error compares.
# - *popul. error* estimates the error against the Fisher of the data's distribution, not of these samples.
# - *dir. cosine* and *decr. share* judge what an optimizer uses: the damped direction.
# - The row with target `layer.` compares LNGD with the layer-wise Fisher that it is derived from.
#
# Every number is in `records`, a pandas table with the columns of `records.csv`.

# %%
records = comparison.records
own_target = records[records["target"] == "predictive"]
own_target.pivot(index="approximation", columns="layer", values=["scaled_error", "decrease_share"]).round(3)

# %% [markdown]
# Two orders are theorems on the samples at hand: EKFAC's error is never above KFAC's, and the traces of
# EKFAC and TKFAC are that of $F$.

# %%
errors = own_target.pivot(index="layer", columns="approximation", values="relative_error")
traces = own_target.pivot(index="layer", columns="approximation", values="trace_ratio")
assert (errors["ekfac"] <= errors["kfac"]).all()
assert (traces[["ekfac", "tkfac"]] - 1).abs().max(axis=None) < 1e-4
traces.round(4)

# %% [markdown]
# ## Pictures
#
# $F$, the approximations at the trace of $F$, and the absolute errors. A block of 20 × 20 pixels belongs to
# a pair of inputs, an entry in it to a pair of output units. The red square is enlarged.

# %%
comparison.heatmap("2", ("kfac", "lngd"), trace_matched=True)

# %% [markdown]
# LNGD's output factor is diagonal, so its blocks keep only their diagonals. The spectra, and what is left of
# $F$ after preconditioning by $\hat F$ (a perfect preconditioner leaves ones):

# %%
comparison.spectrum("2")

# %% [markdown]
# Where LNGD's error comes from, step by step: the best that any Kronecker product can do, KFAC, then a
# diagonal output factor with real gradients, then layer-wise sampling in their place.

# %%
fl.plots.waterfall(comparison.waterfall, caption=comparison.caption)

# %% [markdown]
# The block-diagonal assumption itself: $\|F_{lk}\|^2 / (\|F_l\|\,\|F_k\|)$ would be zero off the diagonal if
# the layers did not interact. All methods here ignore what this picture shows.

# %%
fl.plots.coupling(comparison.coupling_matrix.numpy(), list(comparison.results), caption=comparison.caption)

# %% [markdown]
# `comparison.save("runs/mine")` writes all of it: tables, pictures, and a page `report.html`. On the command
# line, `fisherlab compare --model mnist-mlp` does the same with all samples and all layers.
