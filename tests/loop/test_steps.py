"""The steps of a training are those of the loop that one writes by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fisherlab.datasets import Dataset
from fisherlab.loop.objectives import objective
from fisherlab.loop.order import Order
from fisherlab.loop.progress import Progress
from fisherlab.loop.samples import Samples
from fisherlab.loop.schedules import Schedule
from fisherlab.loop.steps import DivergedError, Steps
from fisherlab.optim import LNGD

TOTAL, BATCH, EPOCHS, WARM_UP, LR = 43, 16, 4, 5, 0.3  # the last batch of an epoch has 11 samples


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOTAL, 4, generator=generator, dtype=torch.float64)
    targets = inputs[:, :3].argmax(1)
    return Samples(inputs, targets, Dataset("made", inputs, targets, "train", "made", "", "made", ()))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def steps_of(model: nn.Module, samples: Samples, lr: float = LR, **more) -> Steps:
    parts = more.get("accumulation", 1)
    order = Order(TOTAL, BATCH, parts, 7)
    schedule = Schedule("constant", EPOCHS * order.per_epoch, order.per_epoch, WARM_UP)
    optimizer = LNGD(model, lr, damping=(1e-5, 1.0))
    return Steps(model, optimizer, objective("categorical"), samples, order, schedule, **more)


def test_they_are_a_plain_loop(samples):
    """Shuffled anew each epoch, the mean loss of a batch, a rate that grows linearly to its value."""
    plain = network()
    optimizer = LNGD(plain, LR, damping=(1e-5, 1.0))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    generator, losses = torch.Generator().manual_seed(7), []
    for _ in range(EPOCHS):
        for chosen in torch.randperm(TOTAL, generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = cross_entropy(plain(samples.inputs[chosen]), samples.targets[chosen])
            loss.backward()
            optimizer.step()
            rates.step()
            losses.append(loss.item())
    model, progress = network(), Progress()
    steps, seen = steps_of(model, samples), []
    while progress.step < len(losses):
        steps.take(progress)
        seen.append(progress.loss)
    assert seen == pytest.approx(losses, rel=1e-10)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert (progress.step, progress.loss_steps, progress.start) == (len(losses), len(losses), seen[0])


def test_the_mean_loss_is_of_the_whole_batch(samples):
    """Of micro-batches too; the first loss is before anything has moved."""
    progress, model = Progress(), network()
    chosen = Order(TOTAL, BATCH, 2, 7).take(0)
    expected = cross_entropy(model(samples.inputs[chosen]), samples.targets[chosen]).item()
    steps_of(model, samples, accumulation=2).take(progress)
    assert progress.loss == pytest.approx(expected, rel=1e-12)


def test_a_loss_far_above_the_first_one_stops_it_before_anything_moves(samples):
    model, progress = network(), Progress(start=1e-6)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DivergedError, match="more than 10 times the first one"):
        steps_of(model, samples).take(progress)
    assert progress.step == 0
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
