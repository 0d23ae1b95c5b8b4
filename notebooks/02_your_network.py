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
# # Bring your own network
#
# Any `nn.Module`, any data that can be read twice, and the likelihood that your loss stands for.

# %%
# %matplotlib inline
import copy

import rich
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fisherlab as fl
from fisherlab.runs.origin import Origin

# %% [markdown]
# ## Which parameters have a Fisher block?
#
# A small convolutional network with a module that fisherlab does not know: `Mix` mixes the channels of every
# pixel. `coverage()` has a row for every parameter, with the reason where it is in no block.


# %%
class Mix(nn.Module):
    """y[n, :, h, w] = W x[n, :, h, w]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x):
        return torch.einsum("oi,nihw->nohw", self.weight, x)


torch.manual_seed(0)
network = nn.Sequential()
network.add_module("conv", nn.Conv2d(1, 6, 3, padding=1))
network.add_module("norm", nn.BatchNorm2d(6))
network.add_module("relu", nn.ReLU())
network.add_module("mix", Mix(6, 8))
network.add_module("tanh", nn.Tanh())
network.add_module("pool", nn.AdaptiveAvgPool2d(2))
network.add_module("flat", nn.Flatten())
network.add_module("out", nn.Linear(32, 10))

fl.find_layers(network).coverage()

# %% [markdown]
# ## An adapter for a module of your own
#
# Every layer is seen as $s_t = W a_t$ with positions $t$ (here: pixels). An adapter says what $W$, $a$ and
# the gradient of $s$ are. It is registered once; every function then sees the module.


# %%
class MixAdapter(fl.Adapter):
    """Pixels are positions."""

    modules = (Mix,)

    def shape(self, module):
        """(m, d)."""
        return tuple(module.weight.shape)

    def inputs(self, module, x, output):
        """[n, d, h, w] as [n, t, d]."""
        return x.flatten(2).mT

    def outputs(self, module, g):
        """[c, n, m, h, w] as [c, n, t, m]."""
        return g.flatten(3).mT


fl.register_layer(MixAdapter())
fl.find_layers(network).coverage()

# %% [markdown]
# Is the adapter right? `method="per-sample"` takes samples' gradients with `torch.func` and never asks an
# adapter for $a$ or $g$. The two must agree to rounding.

# %%
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float64)[:, None]
labels = torch.tensor(digits.target)
precise = copy.deepcopy(network).double()
few = (images[:20], labels[:20])
by_adapter = fl.exact_fisher(precise, few, layers="mix", method="gram")["mix"]
by_autograd = fl.exact_fisher(precise, few, layers="mix", method="per-sample")["mix"]
difference = fl.metrics.relative_error(by_autograd, by_adapter)
assert difference < 1e-12
difference

# %% [markdown]
# ## Choose layers, and what becomes of a bias
#
# Names and globs of `named_modules()` choose. A bias is the last column of its layer's matrix (`joint`), a
# block of its own (`separate`), or left out (`ignore`).

# %%
print(fl.find_layers(network, include=["conv", "o*"]))
print(fl.find_layers(network, include="out", bias="separate"))

# %% [markdown]
# ## Train, then compare from a `DataLoader`
#
# The loader may be read more than once, so it must give the same batches each time.

# %%
dataset = TensorDataset(images[:600].float(), labels[:600])
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(15):
    for x, y in DataLoader(dataset, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
print(f"last batch: loss {loss.item():.3f}")

# %%
about = Origin("small CNN", "scikit-learn digits 8×8", "15 epochs of Adam, lr 0.01", seed=0)
comparison = fl.compare(
    network,
    DataLoader(dataset, batch_size=100),
    approximations=("kfac", "tkfac", "lngd"),
    likelihood="categorical",
    layers=["conv", "mix", "out"],
    about=about,
)
fl.plots.errors(comparison.records, caption=comparison.caption)

# %% [markdown]
# The coverage of a comparison also names the activation that follows each layer, found from the graph. LNGD
# needs it: behind the convolution stands a norm and not the ReLU, so its slope $\varphi'$ is 1 there.

# %%
comparison.layers.coverage()

# %% [markdown]
# `shuffle=True` does no harm: the random state is put back, so both passes see one order. A loader with a
# generator of its own gives other batches on the second pass. That is found and refused in one sentence.

# %%
try:
    restless = DataLoader(dataset, batch_size=100, shuffle=True, generator=torch.Generator())
    fl.compare(network, restless, "ekfac", layers="mix")
except fl.FisherlabError as error:
    print(error)

# %% [markdown]
# ## Likelihoods
#
# The Fisher is that of $p(y \mid f)$, whatever the loss's reduction: `categorical` (cross-entropy),
# `bernoulli` (binary cross-entropy with logits), `gaussian` ($\frac12\|y - f\|^2$), `token-categorical`
# (cross-entropy of every token). One of your own gives five methods; here counts, $y \sim
# \mathrm{Poisson}(e^{f})$, with $H = \mathrm{diag}(e^f)$.


# %%
class Poisson(fl.likelihoods.Likelihood):
    """Counts with the rates exp f."""

    name = "poisson"

    def columns(self, outputs):
        """u_k = exp(f_k/2) e_k, so that Σ u uᵀ = H."""
        return torch.diag_embed(torch.exp(outputs / 2)).transpose(0, 1)

    def count(self, outputs):
        """One column an output."""
        return outputs.shape[1]

    def residual(self, outputs, targets):
        """The gradient of −log p in f."""
        return torch.exp(outputs) - targets

    def draw(self, outputs, draws, generator):
        """Labels from the model."""
        rates = torch.exp(outputs).unsqueeze(1).repeat(1, draws, 1)
        return torch.poisson(rates, generator).transpose(0, 1)

    def check(self, outputs, targets):
        """Counts, shaped as the outputs."""
        if targets.shape != outputs.shape:
            raise ValueError("targets must be shaped as the outputs")


torch.manual_seed(1)
counter = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
x = torch.randn(400, 4, dtype=torch.float64)
counts = torch.poisson(torch.exp(counter(x).detach()))

# %% [markdown]
# Is it right? The Fisher from drawn labels (`kind="monte-carlo"`) uses `draw` and `residual`, the exact one
# uses `columns`. With more draws the first must come to the second, like $1/\sqrt{\text{draws}}$.

# %%
exact = fl.exact_fisher(counter, (x, counts), Poisson(), layers="0")["0"]
distances = []
for draws in (1, 16, 256):
    drawn = fl.exact_fisher(counter, (x, counts), Poisson(), "monte-carlo", layers="0", draws=draws)["0"]
    distances.append(fl.metrics.relative_error(exact, drawn))
    print(f"{draws:4d} draws: distance {distances[-1]:.4f}")
assert distances[0] > distances[1] > distances[2]

# %% [markdown]
# ## Sequences, ignored targets and padding
#
# In `token-categorical` a sample is a sequence, and its log-likelihood is the sum over its tokens; targets
# equal to `ignore_index` do not count. A token whose target is ignored still feeds others, so it stays in
# the sums of the layers. Padding does not, and KFAC's mean over positions must not count it: a mask says so.

# %%
torch.manual_seed(2)
tagger = nn.Sequential(
    nn.Embedding(12, 8, padding_idx=0), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 5)
).double()
lengths = torch.randint(3, 9, (64,))
tokens = torch.randint(1, 12, (64, 8)).masked_fill(torch.arange(8) >= lengths[:, None], 0)
tags = torch.randint(5, (64, 8)).masked_fill(tokens == 0, -100)
likelihood = fl.likelihoods.TokenCategorical(ignore_index=-100)

# %%
masks = {"*": lambda inputs: inputs != 0}
layers = fl.find_layers(tagger, include=["1", "3"], masks=masks)
masked = fl.approximate("kfac", tagger, (tokens, tags), likelihood, layers=layers)
plain = fl.approximate("kfac", tagger, (tokens, tags), likelihood, layers=["1", "3"])
exact = fl.exact_fisher(tagger, (tokens, tags), likelihood, layers=layers)
for name in ("1", "3"):
    with_mask, without = (fl.metrics.relative_error(exact[name], F[name]) for F in (masked, plain))
    print(f"layer {name}: KFAC's error {with_mask:.3f} with the mask, {without:.3f} without")

# %% [markdown]
# A mask that hides a position which the loss does depend on would give wrong numbers. It is refused.

# %%
try:
    wrong = fl.find_layers(tagger, include="1", masks={"*": lambda inputs: inputs > 3})
    fl.exact_fisher(tagger, (tokens, tags), likelihood, layers=wrong)
except fl.FisherlabError as error:
    print(error)

# %% [markdown]
# ## On the command line
#
# A factory that returns `(model, (inputs, targets), likelihood)` is all that `fisherlab compare` needs:
#
#     fisherlab compare --model my_package.my_module:my_factory
#
# `rich.print(comparison.table())` prints the same table:

# %%
rich.print(comparison.table())
