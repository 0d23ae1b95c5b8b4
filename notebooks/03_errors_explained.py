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
# # The errors of an approximation explained
#
# One small layer, everything by hand: the exact block, KFAC, LNGD, and each number that a comparison shows.
# At every step the result is checked against fisherlab's.

# %%
# %matplotlib inline
import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

import fisherlab as fl
from fisherlab.runs.origin import Origin

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The network and its data
#
# Synthetic data, so that there are as many samples as we like: correlated inputs, labels drawn from a
# teacher. The network is 8-12-10-3 with ReLU and no bias; the layer in question is the one in the middle,
# with $d = 12$ inputs and $m = 10$ outputs.

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
    nn.ReLU(),
    nn.Linear(12, 10, bias=False),
    nn.ReLU(),
    nn.Linear(10, 3, bias=False),
)
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(400):
    x, y = sample(128)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
about = Origin("8-12-10-3", "synthetic (teacher)", "400 steps of Adam", seed=0)
print(f"loss {loss.item():.3f}; chance: {np.log(3):.3f}")

# %% [markdown]
# ## The exact block
#
# For the categorical likelihood with $p = \mathrm{softmax}(f)$, the Hessian of the loss in the output $f$ is
# $\sum_c u_c u_c^\top$ with $u_c = \sqrt{p_c}\,(e_c - p)$. Sent back through the last layer and the ReLU it
# gives $g_c = \varphi'(s) \circ W_3^\top u_c$ at the output $s$ of our layer, and $V_c = g_c a^\top$ for its
# weight.

# %%
x, y = sample(500)
N = len(x)
W1, W2, W3 = (network[i].weight.detach() for i in (0, 2, 4))
a = (x @ W1.T).relu()
s = a @ W2.T
slope = (s > 0).double()
p = torch.softmax(s.relu() @ W3.T, 1)

u = p.sqrt()[:, :, None] * (torch.eye(3) - p[:, None, :])  # [n, c, 3]
g = (u @ W3) * slope[:, None]  # [n, c, m]
V = g[:, :, :, None] * a[:, None, None, :]  # [n, c, m, d]

# %% [markdown]
# ## Two orders of vec
#
# Stacking the columns of $V$ makes a Kronecker block $A \otimes B$ (the paper's order), stacking its rows,
# as `weight.flatten()` does, makes it $B \otimes A$. They hold the same numbers in another order.

# %%
columns = V.mT.flatten(2).flatten(0, 1)  # [n·c, d·m]: column after column
rows = V.flatten(2).flatten(0, 1)  # [n·c, m·d]: row after row
F = columns.T @ columns / N
F_rows = rows.T @ rows / N

exact = fl.exact_fisher(network, (x, y), layers="2")["2"]
assert_close(exact.dense(vec="column"), F)
assert_close(exact.dense(vec="row"), F_rows)
print("‖F‖ in both orders:", F.norm().item(), F_rows.norm().item())
print("and yet, taken for one another, they differ by", ((F - F_rows).norm() / F.norm()).item())

# %% [markdown]
# ## KFAC, and what it assumes
#
# $A = E[a a^\top]$, $B = E[\sum_c g_c g_c^\top]$ and $\hat F = A \otimes B$. It is exact where $a a^\top$
# and $g g^\top$ are uncorrelated over the samples.

# %%
A = a.T @ a / N
B = torch.einsum("ncm,nck->mk", g, g) / N
kfac = torch.kron(A, B)
K = fl.approximate("kfac", network, (x, y), layers="2")["2"]
assert_close(K.dense(), kfac)


def relative_error(F, approximation):
    """‖F − F̂‖/‖F‖."""
    return ((F - approximation).norm() / F.norm()).item()


assert abs(relative_error(F, kfac) - fl.metrics.relative_error(exact, K)) < 1e-12
print("KFAC's relative error:", relative_error(F, kfac))

# %% [markdown]
# The assumption made true: give every sample's gradients the input of another sample, many times over. $A$
# and $B$ stay as they are, the correlation goes, and with it the error.

# %%
pieces = []
for _ in range(40):
    shuffled = g[:, :, :, None] * a[torch.randperm(N)][:, None, None, :]
    pieces.append(shuffled.mT.flatten(2).flatten(0, 1))
independent = sum(piece.T @ piece for piece in pieces) / (len(pieces) * N)
assert relative_error(independent, kfac) < 0.3 * relative_error(F, kfac)
print("KFAC's relative error without the correlation:", relative_error(independent, kfac))

# %% [markdown]
# ## Traces
#
# $\mathrm{tr}\,F = E[\sum_c \|g_c\|^2 \|a\|^2]$, but $\mathrm{tr}(A \otimes B) =
# E[\|a\|^2]\,E[\sum_c\|g_c\|^2]$: the trace ratio shows the correlation of the two norms. TKFAC takes the
# partial traces of $F$ as factors, so its trace is right by construction.

# %%
norms_a, norms_g = a.square().sum(1), g.square().sum((1, 2))
assert_close(F.trace(), (norms_a * norms_g).mean())
correlation = torch.corrcoef(torch.stack([norms_a, norms_g]))[0, 1].item()
print(f"tr KFAC / tr F = {(kfac.trace() / F.trace()).item():.3f}; correlation of the norms {correlation:.3f}")

delta = F.trace()
P = torch.einsum("ncji,ncjk->ik", V, V) / N / delta
Q = torch.einsum("ncij,nckj->ik", V, V) / N / delta
tkfac = delta * torch.kron(P, Q)
assert_close(fl.approximate("tkfac", network, (x, y), layers="2")["2"].dense(), tkfac)
print("TKFAC's relative error:", relative_error(F, tkfac))

# %% [markdown]
# ## LNGD
#
# LNGD draws a label at the layer's own output, $y = \varphi(s) + \varepsilon$, so that $g = -\varphi'(s)
# \circ \varepsilon$ needs no backward pass. The expectation over $\varepsilon$ is
#
# $$\Phi = E[\|\varphi'(s)\|^2 a a^\top], \qquad
# \Psi_{jj} = E[\|a\|^2 \varphi'(s_j)^2] / \mathrm{tr}\,\Phi .$$
#
# The loss does not enter, so $\Phi \otimes \Psi$ has no common scale with $F$: the relative error means
# nothing. The scaled error $\min_c \|F - c\,\hat F\| / \|F\|$ compares the shape.

# %%
Phi = (a * slope.square().sum(1, keepdim=True)).T @ a / N
Psi = (norms_a @ slope.square()) / N / Phi.trace()
lngd = torch.kron(Phi, torch.diag(Psi))
L = fl.approximate("lngd", network, (x, y), layers="2")["2"]
assert_close(L.dense(), lngd)

scale = ((F * lngd).sum() / lngd.square().sum()).item()
error, best = fl.metrics.scaled_error(exact, L)
assert_close(torch.tensor([scale, relative_error(F, scale * lngd)]), torch.tensor([best, error]))
print("trace ratio:", (lngd.trace() / F.trace()).item())
print("relative error:", relative_error(F, lngd))
print("scaled error:", error, "at c =", best)


# %%
@fl.plots.styled
def scales(caption):
    """The relative error of c F̂ against c."""
    figure = fl.plots.new_figure(fl.plots.PAGE_WIDTH, 2.2, caption=caption)
    axes = figure.add_subplot()
    factors = np.geomspace(1e-3, 3, 200)
    for name, matrix in {"kfac": kfac, "tkfac": tkfac, "lngd": lngd}.items():
        curve = [relative_error(F, c * matrix) for c in factors]
        axes.plot(factors, curve, color=fl.plots.color(name), label=fl.plots.label(name))
        axes.plot(factors[np.argmin(curve)], min(curve), "o", ms=3, color=fl.plots.color(name))
    axes.set(xscale="log", ylim=(0, 1.2), xlabel="scale c", ylabel="‖F − c F̂‖/‖F‖")
    axes.legend()
    return figure


comparison = fl.compare(network, (x, y), layers="2", about=about)
scales(comparison.caption)

# %% [markdown]
# Where LNGD's error comes from: `nearest A⊗B` is the best that any Kronecker product can do, LNGD-lr has a
# diagonal output factor and the real gradients, and the last step puts layer-wise sampling in their place.

# %%
fl.plots.waterfall(comparison.waterfall, caption=comparison.caption)

# %% [markdown]
# ## The direction
#
# An optimizer uses $\Delta = \hat F_\lambda^{-1} \nabla h$ with $\hat F_\lambda = \hat F + \lambda I$. Two
# numbers judge it, with $\hat F$ brought to the trace of $F$ and $\lambda = 0.1\,\mathrm{tr} F / (m d)$: its
# cosine with the exact $F_\lambda^{-1} \nabla h$, and its share of the best decrease of the damped quadratic
# model,
#
# $$\text{share} = \frac{(\Delta^\top \nabla h)^2}{\Delta^\top F_\lambda \Delta}
# \Big/ \nabla h^\top F_\lambda^{-1} \nabla h \in [0, 1].$$

# %%
residual = p - nn.functional.one_hot(y, 3)
gradient = ((residual @ W3) * slope).T @ a / N  # [m, d], with the data's labels
h = gradient.T.flatten()  # column order
identity = torch.eye(len(h))
damping = (0.1 * F.trace() / len(h)).item()
best_step = torch.linalg.solve(F + damping * identity, h)

records = comparison.records[comparison.records["target"] == "predictive"].set_index("approximation")
for name, matrix in {"kfac": kfac, "tkfac": tkfac, "lngd": lngd}.items():
    matched = matrix * F.trace() / matrix.trace()
    step = torch.linalg.solve(matched + damping * identity, h)
    cosine = torch.cosine_similarity(step, best_step, dim=0).item()
    gained = (step @ h) ** 2 / (step @ F @ step + damping * step @ step)
    share = (gained / (h @ best_step)).item()
    known = records.loc[name, ["direction_cosine", "decrease_share"]].to_numpy(float)
    np.testing.assert_allclose([cosine, share], known, rtol=1e-8)
    print(f"{name:5s} scaled error {records.scaled_error[name]:.3f}, cosine {cosine:.3f}, share {share:.3f}")

gained = (h @ h) ** 2 / (h @ F @ h + damping * h @ h)
print(f"the gradient itself: share {(gained / (h @ best_step)).item():.3f}")

# %% [markdown]
# More damping makes every direction the gradient, so all of them get better. Read a share at the damping
# that is used.

# %%
fl.plots.directions(comparison.directions, caption=comparison.caption)

# %% [markdown]
# ## In the sample or in the population?
#
# All errors above compare $\hat F$ with the $F$ of the same samples. With few samples both are noisy, and
# the in-sample error says little about the Fisher of the distribution. Here that one is known nearly
# exactly, from 100,000 fresh samples. `population_error` estimates the error against it from the few samples
# alone: $\hat F$ is fitted on one half and compared with the other, and no sample meets itself in $\|F\|^2$.

# %%
population = fl.exact_fisher(network, sample(100_000), layers="2")["2"]
counts = (25, 50, 100, 200, 400, 800)
in_sample, estimated, standard_errors, true = [], [], [], []
for n in counts:
    data = sample(n)
    row = fl.compare(network, data, "kfac", layers="2", spectra=False).records.iloc[0]
    fitted = fl.approximate("kfac", network, data, layers="2")["2"]
    in_sample.append(row.relative_error)
    estimated.append(row.population_error)
    standard_errors.append(row.population_error_se)
    true.append(fl.metrics.relative_error(population, fitted))


# %%
@fl.plots.styled
def sizes(caption):
    """KFAC's errors against the number of samples."""
    figure = fl.plots.new_figure(fl.plots.PAGE_WIDTH, 2.2, caption=caption)
    axes = figure.add_subplot()
    axes.plot(counts, in_sample, "o-", ms=3, label="in-sample error")
    axes.errorbar(counts, estimated, standard_errors, fmt="s-", ms=3, label="population error, estimated")
    axes.plot(counts, true, "k--", label="error against the Fisher of 100,000 samples")
    axes.set(xscale="log", ylim=(0, None), xlabel="samples N", ylabel="KFAC's error")
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.legend()
    return figure


sizes(f"{about.caption('cpu')}; layer 2, one draw of the samples for each N")
