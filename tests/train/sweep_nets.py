"""Models that go wrong in training, after they have been looked at in evaluation mode."""

import os

import torch
from torch import nn
from train.nets import CLASSES, vectors


class Ending(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            os._exit(9)
        return super().forward(x)


class Failing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ZeroDivisionError("in the model")
        return super().forward(x)


class Unsaved(nn.Linear):
    def _save_to_state_dict(self, *given) -> None:
        raise ZeroDivisionError("in the saving")


def ending():
    return nn.Sequential(Ending(6, CLASSES)), vectors(), "categorical"


def failing():
    return nn.Sequential(Failing(6, CLASSES)), vectors(), "categorical"


def unsaved():
    return nn.Sequential(Unsaved(6, CLASSES)), vectors(), "categorical"
