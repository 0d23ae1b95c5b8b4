"""Any of the methods as a change of gradients, for use with another optimizer."""

from typing import Any

import torch
from torch import nn

from fisherlab.errors import known_name
from fisherlab.optim.methods import EKFAC, KFAC, LNGD, TKFAC, NGPlus

METHODS = {"lngd": LNGD, "kfac": KFAC, "ekfac": EKFAC, "tkfac": TKFAC, "ngplus": NGPlus}


class Preconditioner:
    """Puts D = F̂⁻¹ ∇h in the place of every layer's gradient.

        preconditioner = fisherlab.optim.Preconditioner(model, "kfac", damping=0.1)
        loss.backward()
        preconditioner.step()
        optimizer.step()

    Args:
        model: the network.
        method: `lngd`, `kfac`, `ekfac`, `tkfac` or `ngplus`.
        **options: those of the optimizer of that name; learning rates, momentum and weight decay are left to
            the optimizer that follows.

    Raises:
        InputError: for an unknown method, and as the optimizer.
    """

    def __init__(self, model: nn.Module, method: str = "kfac", **options: Any) -> None:
        self._optimizer = METHODS[known_name("method", method, METHODS)](
            model, **{"rate": "fixed", **options}
        )

    @torch.no_grad()
    def step(self) -> None:
        """Changes the gradients in place; errors as the optimizer's `step`."""
        self._optimizer.precondition()

    def state_dict(self) -> dict[str, Any]:
        """Statistics, inverses and the random state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state of the same kind."""
        self._optimizer.load_state_dict(state_dict)
