"""Optimizers as users write them."""

import torch

from fisherlab import optim


class Plain(torch.optim.Optimizer):
    """Steps along the gradient; a class without annotations."""

    def __init__(self, params, lr=1, sign=False, power=1.0):
        super().__init__(params, {"lr": lr, "sign": sign, "power": power})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * (p.grad.sign() if group["sign"] else p.grad)


class HandsOn(torch.optim.SGD):
    def __init__(self, params, extra: int = 1, **others):
        super().__init__(params, **others)


class WithoutDefault(torch.optim.SGD):
    def __init__(self, params, lr, width):
        super().__init__(params, lr)


class Forgetful(Plain):
    """What it counts is not in its state."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= 0.01 * self.count * p.grad


class Noisy(Plain):
    def step(self, closure=None):
        torch.randn(3)
        super().step()


class WithoutRate(Plain):
    def __init__(self, params):
        torch.optim.Optimizer.__init__(self, params, {"rate": 0.1})


class Strange(Plain):
    """Its state is no tensor."""

    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["kept"] = object()


class Averaged(Plain):
    def train(self):
        """To the weights of training."""

    def eval(self):
        """To those of evaluation."""


class OfMatrices(Plain):
    """Refuses others in its step alone."""

    def step(self, closure=None):
        assert all(p.dim() == 2 for group in self.param_groups for p in group["params"])
        super().step()


class Natural(optim.NaturalGradient):
    approximation = "kfac"


def function(params):
    return torch.optim.SGD(params)
