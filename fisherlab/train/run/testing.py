"""What is measured on held-out samples: the mean loss and the metric."""

from collections.abc import Callable

import torch
from torch import Tensor

from fisherlab.base import distributed
from fisherlab.collect.forms import ModelInputs
from fisherlab.loop.objectives import Objective
from fisherlab.loop.samples import Samples


@torch.no_grad()
def tested(
    model: Callable[[ModelInputs], Tensor], samples: Samples, objective: Objective, batch: int
) -> tuple[float, float]:
    """The mean loss, without label smoothing, and the metric on some samples.

    Args:
        model: gives its outputs for some inputs, in evaluation mode.
        samples: shared out among the processes.
        objective: loss and metric.
        batch: samples at a time.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=samples.targets.device)
    start, stop = distributed.share(len(samples.targets))
    for at in range(start, stop, batch):
        inputs, targets = samples.take(slice(at, min(stop, at + batch)))
        outputs = model(inputs)
        count = sums.new_tensor(objective.count(targets))
        sums += torch.stack([objective.total(outputs, targets), objective.points(outputs, targets), count])
    distributed.add_up([sums])
    total, points, counted = sums.tolist()
    return total / counted, objective.value(total, points, int(counted))
