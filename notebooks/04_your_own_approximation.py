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
# # Write your own approximation
#
# An approximation is one short class: which sums over the samples it needs, and which operator they make.
# Once registered, it appears in `compare` and in every picture, and can drive an optimizer.
#
# The example is a question with some history. Shampoo (Gupta, Koren and Singer 2018, arXiv 1802.09568) keeps
# $R = E[V^\top V]$ and $L = E[V V^\top]$ and uses $R^{1/2} \otimes L^{1/2}$. Morwani et al. 2024 (arXiv
# 2406.17748) found that $R \otimes L / \mathrm{tr} R$, without the roots, is the better approximation of
# $F$: it is one step of the power iteration for the nearest Kronecker product. We write both, as one class
# with the power as an option.

# %%
# %matplotlib inline
import torch
from sklearn.datasets import load_digits
from torch import nn

import fisherlab as fl
from fisherlab.operators import KroneckerOperator
from fisherlab.runs.origin import Origin

# %% [markdown]
# ## The class
#
# A statistic is a function of the layer's inputs `a [n, t, d]` and of the output gradients `g [c, n, t, m]`
# (c label columns, n samples, t positions) that gives a sum over the samples. fisherlab does the rest:
# batches, label kinds, groups, moving averages, merging, saving.


# %%
def samples_gradients(a, g):
    """V = Σ_t g_t a_tᵀ [c, n, m, d]."""
    return torch.einsum("cntm,ntd->cnmd", g, a)


def right(a, g):
    """Σ VᵀV [d, d]."""
    V = samples_gradients(a, g)
    return torch.einsum("cnmi,cnmj->ij", V, V)


def left(a, g):
    """Σ V Vᵀ [m, m]."""
    V = samples_gradients(a, g)
    return torch.einsum("cnid,cnjd->ij", V, V)


def power(matrix, exponent):
    """A power of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0) ** exponent) @ vectors.mT


@fl.register_approximation
class Shampoo(fl.Approximation):
    """R^p ⊗ L^p, over tr R where p = 1."""

    name = "shampoo"
    formula = "R^p ⊗ L^p (p = 1: / tr R), R = E[VᵀV], L = E[V Vᵀ]"
    source = "Gupta et al. 2018, arXiv 1802.09568; p = 1: Morwani et al. 2024, arXiv 2406.17748"

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def statistics(self, layer, kind):
        """R and L, with labels of this kind."""
        return fl.Statistic("shampoo-right", right, kind), fl.Statistic("shampoo-left", left, kind)

    def build(self, layer, sums, kind):
        """The two means and their powers."""
        R, L = (sums.mean(statistic) for statistic in self.statistics(layer, kind))
        scale = 1 / R.trace() if self.p == 1 else 1.0
        return KroneckerOperator(scale * power(R, self.p), power(L, self.p))


@fl.register_approximation
class SquaredShampoo(Shampoo):
    """Shampoo without the roots."""

    name = "shampoo-2"

    def __init__(self) -> None:
        super().__init__(p=1)


# %% [markdown]
# ## A test before anything else
#
# Where all samples have one input and one gradient up to a factor, $F = a a^\top \otimes g g^\top$ and any
# sensible approximation is exact. Here: one sample, two classes, in float64. And `shampoo-2` must be TKFAC,
# whose factors are the same partial traces.

# %%
torch.manual_seed(0)
tiny = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
one = (torch.randn(1, 4, dtype=torch.float64), torch.tensor([1]))
F = fl.exact_fisher(tiny, one, layers="0")["0"]
for name in ("shampoo", "shampoo-2"):
    error = fl.metrics.relative_error(F, fl.approximate(name, tiny, one, layers="0")["0"])
    assert error < 1e-6, error

many = (torch.randn(50, 4, dtype=torch.float64), torch.randint(2, (50,)))
squared = fl.approximate("shampoo-2", tiny, many, layers="0")["0"]
tkfac = fl.approximate("tkfac", tiny, many, layers="0")["0"]
torch.testing.assert_close(squared.dense(), tkfac.dense())

# %% [markdown]
# ## The answer to the question
#
# A network trained on scikit-learn's digits, and the new names beside the old ones.

# %%
digits = load_digits()
x, y = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Linear(64, 16, bias=False),
    nn.ReLU(),
    nn.Linear(16, 16, bias=False),
    nn.ReLU(),
    nn.Linear(16, 10, bias=False),
)
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(200):
    chosen = torch.randint(len(x), (128,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(x[chosen]), y[chosen])
    loss.backward()
    optimizer.step()

about = Origin("64-16-16-10, no bias", "scikit-learn digits 8×8", "200 steps of Adam", seed=0)
comparison = fl.compare(
    network,
    (x, y),
    approximations=("nearest-kronecker", "kfac", "shampoo", "shampoo-2", "lngd"),
    layers=["2", "4"],
    about=about,
)
own_target = comparison.records[comparison.records["target"] == "predictive"]
columns = ["scaled_error", "trace_ratio", "direction_cosine", "decrease_share", "preconditioned_condition"]
own_target.set_index(["layer", "approximation"])[columns].round(3)

# %%
scaled = own_target.pivot(index="layer", columns="approximation", values="scaled_error")
assert (scaled["nearest-kronecker"] <= scaled.min(axis=1) + 1e-6).all()  # a theorem
assert (scaled["shampoo-2"] < scaled["shampoo"]).all()  # the finding of Morwani et al., on these layers
fl.plots.errors(comparison.records, caption=comparison.caption)

# %%
comparison.heatmap("2", ("shampoo", "shampoo-2"), trace_matched=True)

# %% [markdown]
# ## As an optimizer
#
# A step is $D = \hat F_\lambda^{-1} \nabla h$. Deriving from `fl.optim.KFAC` and naming the approximation
# gives an optimizer with its damping, moving averages, momentum and state. The operator must be a Kronecker
# product, or one in an eigenbasis as EKFAC's; that is what its inverse and its `state_dict` know. (This is a
# natural-gradient step with Shampoo's $\hat F$. The optimizer called Shampoo uses $\hat F^{-1/2}$.)


# %%
class ShampooStep(fl.optim.KFAC):
    """D = F̂_λ⁻¹ ∇h with Shampoo's F̂ without the roots."""

    approximation = "shampoo-2"


def train(make):
    """The mean loss of the last ten of 100 steps, from one start, in float64."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer, losses = make(model.double()), []
    for _ in range(100):
        chosen = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[chosen].double()), y[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10, optimizer


tkfac_loss, _ = train(fl.optim.TKFAC)
shampoo_loss, optimizer = train(ShampooStep)
assert abs(tkfac_loss - shampoo_loss) < 1e-6
print(f"loss after 100 steps: TKFAC {tkfac_loss:.6f}, ShampooStep {shampoo_loss:.6f}")

# %% [markdown]
# Where a layer has no positions TKFAC and `shampoo-2` are one method, so the two runs agree to rounding: a
# test of the whole way from the class to the step. What the optimizer saw, layer by layer:

# %%
optimizer.diagnostics()
