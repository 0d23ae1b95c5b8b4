"""What is asked of each network: exact blocks, coverage, training, and nothing left behind.

The reference is a plain loop: for every sample and every label autograd of the network's parameters, on a
batch of that sample alone. Of fisherlab it takes which entry of a block is which entry of which parameter,
and nothing else.
"""

import copy
import gc
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from model_cases import assert_same, state_of
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import fisherlab as fl
from networks.network import Network, changed

APPROXIMATIONS = ("kfac", "ekfac", "lngd", "diagonal")
RATES = {"LNGD": 0.003, "KFAC": 0.03}
STEPS = 5
_WHOLE = 256  # a block of so many numbers is compared as a whole
_PROBES = 64  # of larger ones so many columns, and products with random vectors
# Rounding of gradients beside the largest ones: a block below it is zero (a key's bias under a softmax).
_ZERO = 1e-22


@dataclass(frozen=True)
class Reference:
    """The samples' gradients by parameter, row by row.

    Attributes:
        rows: √p(y) ∇ log p(y) [n·c, P], one for every sample and label.
        places: where each parameter's entries are among the P, in its own shape.
        samples: n.
    """

    rows: Tensor
    places: dict[str, Tensor]
    samples: int

    @classmethod
    def of(cls, network: Network) -> "Reference":
        """By autograd, one sample and one label after the other."""
        model, (inputs, targets) = network.model(), network.batch()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rows, together = [], network.logits(model, inputs)
        for n in range(len(targets)):
            outputs = network.logits(model, changed(inputs, lambda x, n=n: x[n : n + 1]))
            torch.testing.assert_close(outputs[0], together[n], rtol=1e-9, atol=1e-9)  # samples are apart
            for column in _columns(network, outputs[0], targets[n]):
                gradients = torch.autograd.grad(
                    column, list(trained.values()), retain_graph=True, materialize_grads=True
                )
                rows.append(torch.cat([_numbers(gradient).flatten() for gradient in gradients]))
        sizes = [_numbers(parameter).shape for parameter in trained.values()]
        parts = torch.arange(rows[0].numel()).split([size.numel() for size in sizes])
        places = [part.view(size) for part, size in zip(parts, sizes, strict=True)]
        return cls(torch.stack(rows).detach(), dict(zip(trained, places, strict=True)), len(targets))

    def distance(self, view: Any, block: Any) -> tuple[float, float]:
        """‖(F − F̄) X‖ and ‖F̄ X‖ of a block F and its reference F̄; X is the identity for a small one.

        Of a large one the worse of columns picked at random and of random vectors.
        """
        whole = {name: self.places[name].double() for name in view.parameters}  # exact below 2⁵³
        place = view.to_matrix(whole).long()
        assert place.unique().numel() == place.numel(), "an entry of a parameter stands twice in a block"
        m, d = place.shape
        generator = torch.Generator().manual_seed(0)
        if m * d <= _WHOLE:
            probes = [torch.eye(m * d, dtype=torch.float64)]
        else:
            picked = torch.randperm(m * d, generator=generator)[:_PROBES]
            columns = functional.one_hot(picked, m * d).double().T
            probes = [columns, torch.randn(m * d, 8, generator=generator, dtype=torch.float64)]
        norms = []
        for X in probes:
            expected = self._applied(place, view.groups, X)
            norms.append((float((block @ X - expected).norm()), float(expected.norm())))
        return max(norms, key=lambda pair: pair[0] / max(pair[1], math.ulp(0.0)))

    def _applied(self, place: Tensor, groups: int, X: Tensor) -> Tensor:
        """F̄ X for columns in column-vec order: rows of another group have no part in it."""
        m, d = place.shape
        matrices = X.T.reshape(-1, d, m)
        result = torch.zeros_like(matrices)
        for rows in torch.arange(m).chunk(groups):
            own = self.rows[:, place[rows].T.flatten()]
            result[..., rows] = (matrices[..., rows].flatten(1) @ own.T @ own).view(-1, d, len(rows))
        return result.flatten(1).T / self.samples


def _numbers(x: Tensor) -> Tensor:
    """A tensor of real numbers; two for a complex one."""
    return torch.view_as_real(x) if x.is_complex() else x


def _columns(network: Network, outputs: Tensor, target: Tensor) -> list[Tensor]:
    """What is differentiated for one sample: √p(y) log p(y) with p held, or the outputs themselves."""
    if network.likelihood == "gaussian":
        return list(outputs.flatten())
    log_p = outputs.log_softmax(-1)
    if network.likelihood == "token-categorical":
        log_p = log_p[target != -100]
    return list((log_p.detach().div(2).exp() * log_p).flatten())


class Float64(TorchFunctionMode):
    """Whoever asks for float32 gets float64: many networks round to it in norms and softmaxes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def block_errors(network: Network) -> dict[str, float]:
    """‖F − F̄‖ / ‖F̄‖ of every exact block."""
    with _quiet(), Float64():
        model = network.model()
        blocks = fl.exact_fisher(model, network.batch(), network.likelihood, **network.options)
        views = fl.find_layers(model)
        reference = Reference.of(network)
        found = {name: reference.distance(views[name], block) for name, block in blocks.items()}
    assert all(math.isfinite(number) for pair in found.values() for number in pair), found
    floor = _ZERO * max(norm for _, norm in found.values())
    return {name: error / max(norm, floor) for name, (error, norm) in found.items()}


def compared(network: Network) -> fl.Comparison:
    """The comparison of all layers in float32, as the network comes; it leaves the network as it was."""
    model, data = network.model(torch.float32), network.batch(torch.float32)
    with _quiet():
        _pass(network, model, data[0])
        before = state_of(model)
        found = fl.compare(model, data, APPROXIMATIONS, network.likelihood, spectra=False, **network.options)
    _unchanged(before, state_of(model))
    return found


def coverage(network: Network, layers: fl.layers.Layers) -> tuple[float, dict[str, str]]:
    """The share of the trained numbers that are in blocks, and the reasons of the others by parameter."""
    return share_covered(network.model(), layers)


def share_covered(model: nn.Module, layers: fl.layers.Layers) -> tuple[float, dict[str, str]]:
    """The same of a model."""
    table = layers.coverage()
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    missing = table[~table["covered"] & table["parameter"].isin(trained)]
    reasons = dict(zip(missing["parameter"], missing["reason"], strict=True))
    reasons |= dict.fromkeys(trained.keys() - set(table["parameter"]), "not in the coverage")
    lost = sum(trained[name] for name in reasons)
    return 1 - lost / sum(trained.values()), reasons


def trained(network: Network, name: str) -> tuple[float, float]:
    """The loss of the batch before and after some steps on it, in float32.

    A copy that is made of state dictionaries before the last two steps takes these as well, to the same bits;
    and no hook or attribute stays when the optimizer is gone.
    """
    model, (inputs, targets) = network.model(torch.float32), network.batch(torch.float32)
    with _quiet():
        before = _loss(network, model, inputs, targets)
        untouched = _attached(model)
        first = _optimizer(network, model, name)
        _steps(network, model, first, STEPS - 2)
        twin = network.model(torch.float32)
        twin.load_state_dict(model.state_dict())
        second = _optimizer(network, twin, name)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        _steps(network, model, first, 2)
        _steps(network, twin, second, 2)
        _unchanged(model.state_dict(), twin.state_dict())
        after = _loss(network, model, inputs, targets)
    del first, second
    gc.collect()
    _unchanged(untouched, _attached(model.eval()))
    return before, after


def _unchanged(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Both are the same to the bit; else what is not is named."""
    assert one.keys() == two.keys()
    for name in one:
        try:
            assert_same(one[name], two[name])
        except AssertionError as error:
            raise AssertionError(f"{name} is not the same") from error


def _attached(model: nn.Module) -> dict[str, object]:
    state = state_of(model)
    return {key: state[key] for key in ("hooks", "attributes", "free", "modes")}


def _optimizer(network: Network, model: nn.Module, name: str) -> torch.optim.Optimizer:
    rate = (network.rates or {}).get(name, RATES[name])
    return getattr(fl.optim, name)(model, lr=rate, likelihood=network.likelihood, **network.options)


def _steps(network: Network, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    """The same steps every time: dropout begins anew."""
    inputs, targets = network.batch(torch.float32)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        for _ in range(count):
            optimizer.zero_grad()
            _objective(network, network.logits(model.train(), inputs), targets).backward()
            optimizer.step()


def _loss(network: Network, model: nn.Module, inputs: Any, targets: Tensor) -> float:
    return float(_objective(network, _pass(network, model, inputs), targets))


@torch.no_grad()
def _pass(network: Network, model: nn.Module, inputs: Any) -> Tensor:
    """One forward pass; the first attaches things of its own to some networks."""
    return network.logits(model.eval(), inputs)


def _objective(network: Network, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the negative log-likelihood, over tokens where they have labels."""
    if network.likelihood == "gaussian":
        return 0.5 * (outputs - targets).square().flatten(1).sum(1).mean()
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def _quiet() -> warnings.catch_warnings:
    """What a network warns of is not what is tested; what fisherlab leaves out is in the coverage."""
    return warnings.catch_warnings(action="ignore")
