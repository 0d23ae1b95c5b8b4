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
# # LNGD inside your training loop
#
# `fl.optim.LNGD(model)` goes where `torch.optim.Adam(model.parameters())` was; the loop stays. This notebook
# shows the settings that matter, what `diagnostics()` tells, and how to use a preconditioner with any other
# optimizer.
#
# One seed and one small problem: it shows how the optimizers are used, not which one is best.

# %%
# %matplotlib inline
import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import fisherlab as fl

# %% [markdown]
# ## The loop
#
# Scikit-learn's digits, 1,500 to train and 297 to test; two networks, without and with batch norms.

# %%
digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.images / 16).float().flatten(1)[order]
labels = torch.tensor(digits.target)[order]
x, y, test_x, test_y = images[:1500], labels[:1500], images[1500:], labels[1500:]


def network(norms=False):
    """64-32-32-10, always from the same start."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d if norms else lambda size: nn.Identity()
    return nn.Sequential(
        *(nn.Linear(64, 32), norm(32), nn.ReLU()),
        *(nn.Linear(32, 32), norm(32), nn.ReLU()),
        nn.Linear(32, 10),
    )


EPOCHS, BATCH = 12, 64
STEPS = EPOCHS * -(-len(x) // BATCH)


def train(model, optimizer, scheduler=None, after_step=lambda: None):
    """The loss of every step, and the test accuracy at the end."""
    losses, shuffle = [], torch.Generator().manual_seed(0)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            loss = cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.item())
            after_step()
    model.eval()
    accuracy = (model(test_x).argmax(1) == test_y).double().mean().item()
    return losses, accuracy


def decay(optimizer, warm_up=1):
    """A linear warm-up, then a linear way down to zero."""
    return LambdaLR(optimizer, lambda step: min(1, (step + 1) / warm_up) * (1 - step / STEPS))


# %% [markdown]
# ## From Adam to LNGD, without norm layers
#
# A step of LNGD is $W \leftarrow W - \alpha\,\alpha_l D$ with a momentum, where
#
# $$D = (\Psi + \lambda_\Psi I)^{-1}\, \nabla h\, (\Phi + \lambda_\Phi I)^{-1}, \qquad
# \alpha_l = \frac{\langle D, \nabla h\rangle}{\frac1N \sum_n \langle D, \nabla \ell_n\rangle^2 + \mu} .$$
#
# The defaults are for networks with norm layers. Without them the first $\alpha_l$ are large, and the loss
# jumps. The cure is a wider damping, a warm-up of 100 steps or more, and a rate that falls.

# %%
runs = {}

model = network()
optimizer = torch.optim.Adam(model.parameters(), lr=0.03)  # the best of 0.003, 0.01 and 0.03
runs["Adam, lr 0.03"] = train(model, optimizer, decay(optimizer))

model = network()
optimizer = fl.optim.LNGD(model)
runs["LNGD, defaults"] = train(model, optimizer, decay(optimizer))

model = network()
optimizer = fl.optim.LNGD(model, lr=0.3, damping=(1e-5, 1.0))
rates = []
runs["LNGD, damping to 1, warm-up"] = train(
    model, optimizer, decay(optimizer, warm_up=100), lambda: rates.append(optimizer.diagnostics()["rate"])
)


# %%
def report(runs):
    """A line a run."""
    for name, (losses, accuracy) in runs.items():
        highest, last = max(losses[:30]), np.mean(losses[-24:])
        print(f"{name:29s} highest of 30 steps {highest:6.2f}   last epoch {last:.4f}   test {accuracy:.1%}")


report(runs)
assert max(runs["LNGD, defaults"][0][:30]) > 2 * max(runs["LNGD, damping to 1, warm-up"][0][:30])

# %%
CAPTION = "data: scikit-learn digits 8×8; model: 64-32-32-10; checkpoint: none; seed: 0; device: cpu"


@fl.plots.styled
def curves(runs, caption):
    """Training losses, each the mean of twelve steps."""
    figure = fl.plots.new_figure(fl.plots.PAGE_WIDTH, 2.4, caption=f"{caption}; means of 12 steps")
    axes = figure.add_subplot()
    for name, (losses, _) in runs.items():
        axes.plot(np.arange(12, STEPS + 1, 12), np.reshape(losses, (-1, 12)).mean(1), label=name)
    axes.set(yscale="log", xlabel="step", ylabel="training loss")
    axes.legend()
    return figure


curves(runs, CAPTION)

# %% [markdown]
# ## What the optimizer says of itself
#
# `diagnostics()` has a row a layer, from the last step: the rate $\alpha_l$, the traces of the two factors
# and their damping, the condition number of the damped $\hat F$, and the norms of $D$ and $\nabla h$.

# %%
optimizer.diagnostics()


# %%
@fl.plots.styled
def layer_rates(rates, layers, caption):
    """α_l of every step."""
    figure = fl.plots.new_figure(fl.plots.PAGE_WIDTH, 2.2, caption=caption)
    axes = figure.add_subplot()
    for layer, values in zip(layers, np.array(rates).T, strict=True):
        axes.plot(values, lw=0.8, label=f"layer {layer}")
    axes.set(yscale="log", xlabel="step", ylabel="rate α of the layer")
    axes.legend()
    return figure


layer_rates(rates, optimizer.diagnostics()["layer"], f"{CAPTION}; LNGD, damping to 1, warm-up")

# %% [markdown]
# The rates differ between layers by orders of magnitude and move with the loss: that is what they are for.
# `max_rate=1` caps them, which is another way to tame the first steps.
#
# ## With norm layers
#
# Here the defaults serve. What is in no block (the norms' scales and shifts) takes a step of SGD with
# momentum at `other_lr`. A decaying rate still is part of the method: at a constant one, $\alpha_l$ settles
# at a noise floor.

# %%
normed_runs = {}
for name, falls in {"LNGD, constant rate": False, "LNGD, falling rate": True}.items():
    model = network(norms=True)
    optimizer = fl.optim.LNGD(model)
    normed_runs[name] = train(model, optimizer, decay(optimizer) if falls else None)
report(normed_runs)
curves(normed_runs, CAPTION.replace("64-32-32-10", "64-32-32-10 with batch norms"))

# %% [markdown]
# ## A preconditioner for any other optimizer
#
# `Preconditioner` puts $\hat F^{-1} \nabla h$ in the place of every layer's gradient, and leaves the step to
# the optimizer that follows: here SGD with Nesterov's momentum, which fisherlab's own do not have. Each has
# the best rate of a small grid.


# %%
class Both:
    """A preconditioner and an optimizer, stepped one after the other."""

    def __init__(self, preconditioner, optimizer):
        self.preconditioner, self.optimizer = preconditioner, optimizer

    def zero_grad(self):
        """As the optimizer's."""
        self.optimizer.zero_grad()

    def step(self):
        """D in the place of the gradients, then the optimizer's step."""
        self.preconditioner.step()
        self.optimizer.step()


preconditioned = {}
for name, lr in {"SGD, lr 0.3": 0.3, "SGD on KFAC's D, lr 0.02": 0.02}.items():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    stepper = Both(fl.optim.Preconditioner(model, "kfac", damping=0.03), sgd) if "KFAC" in name else sgd
    preconditioned[name] = train(model, stepper, decay(sgd))
report(preconditioned)

# %% [markdown]
# ## Stop and go on
#
# `state_dict` holds momentum, statistics, inverses and the random state: a run that goes on from it is the
# same to the bit.


# %%
def steps(model, optimizer, first, last):
    """Some steps on batches that depend on the step alone."""
    model.train()
    for step in range(first, last):
        chosen = torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()


model = network(norms=True)
optimizer = fl.optim.LNGD(model)
steps(model, optimizer, 0, 15)
saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
steps(model, optimizer, 15, 30)

other = network(norms=True)
other.load_state_dict(saved[0])
resumed = fl.optim.LNGD(other)
resumed.load_state_dict(saved[1])
steps(other, resumed, 15, 30)
assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))

# %% [markdown]
# On the command line the same training is `fisherlab train --model mnist-mlp --optimizer lngd`, with
# checkpoints that `fisherlab compare --checkpoint` and `fisherlab trace --run` read.
