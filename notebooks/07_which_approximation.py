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
# # Which approximation, in which sense?
#
# KFAC, TKFAC, Shampoo, SOAP, KL-Shampoo: each is the best of its kind in some sense. Here the senses are
# three divergences between the exact block $F$ and $\hat F$, and the question after them is whether any of it
# tells which step is good. One small layer, so that all can be done by hand.

# %%
# %matplotlib inline
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.testing import assert_close

import fisherlab as fl
from fisherlab.runs.origin import Origin

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The network and its data
#
# Synthetic data, so that there are as many samples as we like: labels drawn from a teacher. The network is
# 8-12-10-3 with tanh and no bias; the layer in question is the one in the middle, with $d = 12$ inputs and
# $m = 10$ outputs, so that $D = 120$.

# %%
torch.manual_seed(0)
mixing = torch.randn(8, 8) / 8**0.5
teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).requires_grad_(False)


def sample(n):
    """Inputs x [n, 8] and labels [n]."""
    x = torch.randn(n, 8) @ mixing
    return x, torch.distributions.Categorical(logits=6 * teacher(x)).sample()


network = nn.Sequential(
    nn.Linear(8, 12, bias=False),
    nn.Tanh(),
    nn.Linear(12, 10, bias=False),
    nn.Tanh(),
    nn.Linear(10, 3, bias=False),
)
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(300):
    x, y = sample(128)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
about = Origin("8-12-10-3", "synthetic (teacher)", "300 steps of Adam", seed=0)
data = sample(2000)
exact = fl.exact_fisher(network, data, layers="2")["2"]
F = exact.dense()
D = len(F)

# %% [markdown]
# ## Three ways to be near
#
# $$\|F - \hat F\|_F^2, \qquad
# \mathrm{tr}(F \log F - F \log \hat F - F + \hat F), \qquad
# \mathrm{tr}(F \hat F^{-1}) - \log\det(F \hat F^{-1}) - D .$$
#
# The first counts absolute errors, so that large eigenvalues decide. The last is the Kullback–Leibler
# divergence of normal distributions (twice it) and counts relative errors: every direction weighs the same,
# the tail as much as the top. Von Neumann's stands between the two. The log-det divergence needs full rank,
# so $F$ has a millionth of its mean eigenvalue added there.


# %%
def logarithm(X):
    """Log of a symmetric matrix; of its kernel, where tr F log F̂ has nothing, a very small number's."""
    values, vectors = torch.linalg.eigh(X)
    return (vectors * values.clamp(min=1e-300).log()) @ vectors.mT


def frobenius(Y):
    """‖F − Y‖/‖F‖."""
    return ((F - Y).norm() / F.norm()).item()


def von_neumann(Y):
    """By tr F."""
    return ((F * (logarithm(F) - logarithm(Y))).sum() / F.trace() - 1 + Y.trace() / F.trace()).item()


X = F + 1e-6 * F.trace() / D * torch.eye(D)


def log_det(Y):
    """By 2D: in nats a dimension."""
    Z = torch.linalg.solve(Y, X)
    return ((Z.trace() - Z.slogdet().logabsdet - D) / (2 * D)).item()


divergences = {"Frobenius": frobenius, "von Neumann": von_neumann, "log-det": log_det}

# %% [markdown]
# ## Three projections, three theorems
#
# Which Kronecker product $A \otimes B$ is nearest to $F$ depends on the divergence:
#
# - in Frobenius norm it is the nearest product, a leading singular pair of the rearranged $F$;
# - in von Neumann's it is TKFAC, the product of $F$'s partial traces, which is Shampoo with its step squared
#   (`power="1/2"`);
# - in the log-det divergence it is the fixed point of $A = E[V^\top B^{-1} V]/m$, $B = E[V A^{-1}
#   V^\top]/d$, which KL-Shampoo follows.
#
# KFAC is none of them.

# %%
products = {}
for name in ("nearest-kronecker", "tkfac", "kl-kronecker", "kfac"):
    products[name] = fl.approximate(name, network, data, layers="2")["2"].dense()
squared_shampoo = fl.approximations.create("shampoo", power="1/2")
assert_close(fl.approximate(squared_shampoo, network, data, layers="2")["2"].dense(), products["tkfac"])

table = pd.DataFrame(
    {words: {name: distance(Y) for name, Y in products.items()} for words, distance in divergences.items()}
)
best = {"Frobenius": "nearest-kronecker", "von Neumann": "tkfac", "log-det": "kl-kronecker"}
assert table.idxmin().to_dict() == best
table.round(4)

# %% [markdown]
# A walk over Kronecker products, from the nearest one through TKFAC and KL-Kronecker to KFAC, with straight
# lines between them in the logarithm. Each curve is a divergence over its least value: each has its
# minimum at its own station, to which the theorems hold it.

# %%
stations = ("nearest-kronecker", "tkfac", "kl-kronecker", "kfac")
logarithms = [logarithm(products[name]) for name in stations]
places = np.linspace(0, 3, 61)
walk = {words: [] for words in divergences}
for place in places:
    start = min(int(place), 2)
    mixed = torch.lerp(logarithms[start], logarithms[start + 1], place - start)  # a Kronecker sum too
    Y = torch.linalg.matrix_exp(mixed)
    for words, distance in divergences.items():
        walk[words].append(distance(Y))
for words, name in best.items():
    assert abs(places[np.argmin(walk[words])] - stations.index(name)) < 1e-9, words


@fl.plots.styled
def along_the_walk(caption):
    """Every divergence over its least, against the place."""
    figure = fl.plots.new_figure(fl.plots.PAGE_WIDTH, 2.2, caption=caption)
    axes = figure.add_subplot()
    for words, values in walk.items():
        axes.plot(places, np.array(values) / min(values), label=words)
        axes.plot(places[np.argmin(values)], 1, "ko", ms=3)
    axes.set_xticks(range(4), [fl.plots.label(name) for name in stations])
    axes.set(ylabel="divergence / its least")
    axes.legend()
    return figure


along_the_walk(f"{about.caption('cpu')}; layer 2, 2,000 samples")

# %% [markdown]
# ## In a fixed basis there is nothing to argue about
#
# Given an orthogonal basis $U$, the best diagonal is $\mathrm{diag}(U^\top F U)$ in all three divergences.
# That is what EKFAC does in KFAC's eigenbasis and SOAP in Shampoo's. No other diagonal wins:

# %%
soap = fl.approximate("soap", network, data, layers="2")["2"].dense()
scales, basis = torch.linalg.eigh(soap)
own = {words: distance(soap) for words, distance in divergences.items()}
for _ in range(50):
    other = (basis * (scales * (0.1 * torch.randn(D)).exp())) @ basis.mT
    assert all(distance(other) > own[words] for words, distance in divergences.items())
pd.DataFrame({"SOAP": own, "TKFAC, with the same basis": table.loc["tkfac"]}).round(4)

# %% [markdown]
# ## Where in the spectrum?
#
# A divergence is one number. What an approximation does along the eigenvectors $u_i$ of $F$ is
# $q_i = u_i^\top \hat F u_i / \ell_i$: below 1 it does not see the curvature that is there and steps too far,
# above 1 it steps too short. `compare` has the geometric mean of $q$ over the directions that carry the first
# 50 %, the next 40 % and the next 9.9 % of $\mathrm{tr} F$.

# %%
methods = ("nearest-kronecker", "kfac", "ekfac", "tkfac", "kl-kronecker", "shampoo", "soap", "adam", "lngd")
comparison = fl.compare(network, data, methods, layers="2", about=about)
records = comparison.records[comparison.records["target"] == "predictive"].set_index("approximation")
bands = ["calibration_top", "calibration_middle", "calibration_tail"]

leading = torch.linalg.eigh(F)
u, ell = leading.eigenvectors[:, -1], leading.eigenvalues[-1]
matched = products["kfac"] * F.trace() / products["kfac"].trace()
assert_close(comparison.calibrations("2")["kfac"].ratios[0].item(), (u @ matched @ u / ell).item())
records[bands].round(3)

# %%
comparison.curvature("2")

# %% [markdown]
# The diagonal (Adam) hardly sees the top: few of the leading eigenvectors are near to a weight. Shampoo's
# root flattens the spectrum, so it sees too little at the top and too much in the tail; its published step
# takes another root of it. All approximations see too much in the tail: $F$ has small eigenvalues that no
# Kronecker product with its large ones has.

# %% [markdown]
# ## Does it matter for the step?
#
# The decrease share judges the damped step $\hat F_\lambda^{-1} \nabla h$ in the quadratic model with the
# exact $F_\lambda$. The root step $\hat F_\lambda^{-1/2} \nabla h$ is what Adam, Shampoo and SOAP take.

# %%
columns = ["scaled_error", "von_neumann_divergence", "logdet_divergence_scaled"]
shares = ["decrease_share", "root_decrease_share"]
ranks = records[columns].rank()
correlation = {
    share: {column: -np.corrcoef(ranks[column], records[share].rank())[0, 1] for column in columns}
    for share in shares
}
records[columns + shares].sort_values("decrease_share", ascending=False).round(3)

# %%
pd.DataFrame(correlation).round(2)

# %% [markdown]
# Rank correlations over nine methods on one layer are an anecdote; `docs/results/divergences.md` has them
# over networks and stages of training, with intervals.
#
# ## In the sample or in the population?
#
# The theorems hold for the $F$ of the samples that $\hat F$ was made of. Against the Fisher of fresh samples
# none of them does: with few samples what fits most closely fits the sampling too. Log-det divergence,
# damped as the steps are, of $\hat F$ made of $N$ samples:

# %%
fresh = fl.exact_fisher(network, sample(50_000), layers="2")["2"]
damping = 0.1 * fl.metrics.mean_eigenvalue(fresh)
counts, closest = (20, 60, 200, 1000), ("nearest-kronecker", "tkfac", "kfac", "ekfac", "soap")
rows = {}
for n in counts:
    few = sample(n)
    block = fl.exact_fisher(network, few, layers="2")["2"]
    fits = {name: fl.approximate(name, network, few, layers="2")["2"] for name in closest}
    for words, target in (("same samples", block), ("fresh samples", fresh)):
        rows[words, n] = {
            name: fl.metrics.logdet_divergence_scaled(target, fit, damping) for name, fit in fits.items()
        }
for n in counts:
    assert all(rows["same samples", n]["soap"] <= 1.1 * value for value in rows["same samples", n].values())
few_samples = pd.DataFrame(rows)
few_samples.round(4)

# %% [markdown]
# ## What to take away
#
# - Say the sense. "The best Kronecker product" is three different ones.
# - For a damped step $\hat F_\lambda^{-1} \nabla h$ look at the log-det divergence at that damping: it weighs
#   every direction alike, as the inverse does. Frobenius norm is decided by a few directions at the top, in
#   which good approximations hardly differ.
# - A rotated diagonal (EKFAC, SOAP) is never worse than the product whose basis it takes, in any of the
#   three.
# - Look at the curvature's picture before a single number: it shows at which end of the spectrum a method
#   errs.
# - With few samples judge against fresh ones.
