"""Which passes count: those through which gradients of parameters arrive, whoever is called."""

import copy
import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from model_cases import Mean, Net
from optim.cases import METHODS, assert_close, assert_same, batches, network, train, weights
from optim.identity import EXACT, assert_identity, assert_identity_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from fisherlab.errors import InputError
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC, NaturalGradient, NGPlus, Preconditioner

Attack = Callable[[nn.Module, NaturalGradient, Tensor, Tensor], None]


# --- passes that are no part of a step ------------------------------------------------------------------


def fgsm(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    """One pass for the gradient of the inputs alone."""
    x = x.clone().requires_grad_()
    torch.autograd.grad(cross_entropy(model(x), y), x)


def pgd(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    for _ in range(3):
        fgsm(model, optimizer, x, y)


def fgsm_by_backward(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    """Gradients of parameters come too, and are thrown away."""
    x = x.clone().requires_grad_()
    cross_entropy(model(x), y).backward()
    optimizer.zero_grad()


def fgsm_cleared_by_the_model(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    x = x.clone().requires_grad_()
    cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=False)


def fgsm_cleared_by_hand(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    x = x.clone().requires_grad_()
    cross_entropy(model(x), y).backward()
    for p in model.parameters():
        p.grad = None


def saliency(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    """The gradient of one output by the inputs, of the same pass twice."""
    x = x.clone().requires_grad_()
    output = model(x)
    torch.autograd.grad(output[:, 0].sum(), x, retain_graph=True)
    torch.autograd.grad(output[:, 1].sum(), x)


def features(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    """A pass with gradients that nobody asks for."""
    model[:2](x)
    model(x)


def probe(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    """The gradients of parameters, asked for by themselves."""
    torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


ATTACKS: tuple[Attack, ...] = (
    fgsm,
    pgd,
    fgsm_by_backward,
    fgsm_cleared_by_the_model,
    fgsm_cleared_by_hand,
    saliency,
    features,
    probe,
)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", METHODS)
def test_passes_for_other_gradients_count_nothing(method, attack):
    """To the bit, and in every step: N, statistics, rates and drawn labels are those of the real pass."""
    due = {"statistics_every": 2, "inverse_every": 2}
    model, usual = network("mlp"), network("mlp")
    optimizer, reference = METHODS[method](model, **due), METHODS[method](usual, **due)
    for x, y in batches("mlp", 4):
        optimizer.zero_grad()
        attack(model, optimizer, x, y)
        cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_same(weights(model), train(usual, reference, batches("mlp", 4)))


@pytest.mark.parametrize("attack", [fgsm, pgd, saliency])
def test_an_attack_between_the_forward_and_the_backward_pass(attack):
    model = network("mlp")
    [(x, y)] = batches("mlp")
    optimizer = LNGD(model, **EXACT)

    def step() -> None:
        loss = cross_entropy(model(x), y)
        attack(model, optimizer, x, y)
        loss.backward()
        optimizer.step()

    assert_identity(model, optimizer, x, y, step)


@pytest.mark.parametrize("make", [LNGD, NGPlus, EKFAC])
def test_the_gradient_of_inputs_before_the_backward_pass_of_one_pass(make):
    """autograd.grad with retain_graph, then backward: the pass counts once, with the second gradient."""
    model = network("mlp")
    [(x, y)] = batches("mlp")
    optimizer = make(model, **EXACT)

    def step() -> None:
        inputs = x.clone().requires_grad_()
        loss = cross_entropy(model(inputs), y)
        torch.autograd.grad(3 * loss, inputs, retain_graph=True)
        loss.backward()
        optimizer.step()

    assert_identity(model, optimizer, x, y, step)


def test_adversarial_training_has_the_rate_of_its_own_samples():
    """Each real pass is made of attacked inputs, the attack's graph still alive."""
    model = network("cnn").eval()
    [(x, y)] = batches("cnn")
    optimizer = LNGD(model, **EXACT)
    inputs = x.clone().requires_grad_()
    kept = cross_entropy(model(inputs), y)
    attacked = x + 0.1 * torch.autograd.grad(kept, inputs)[0].sign()
    assert_identity(model, optimizer, attacked, y)


# --- evaluation mode, and modules that are called themselves --------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "transformer", "sequences", "twice"])
@pytest.mark.parametrize("method", METHODS)
def test_evaluation_mode_trains_as_training_mode(method, name):
    """Without dropout and batch norm they are the same function."""
    model, usual = network(name).eval(), network(name)
    found = train(model, METHODS[method](model), batches(name, 3))
    assert_close(found, train(usual, METHODS[method](usual), batches(name, 3)))


@pytest.mark.parametrize("make", [KFAC, EKFAC, TKFAC, NGPlus, LNGD])
def test_a_network_with_frozen_batch_norms_is_preconditioned(make):
    """Fine-tuning in evaluation mode is no plain SGD, and the rate is that of the samples."""
    model, usual = network("cnn").eval(), network("cnn").eval()
    [(x, y)] = batches("cnn")
    assert_identity(model, make(model, **EXACT), x, y)
    sgd = torch.optim.SGD(usual.parameters(), lr=0.03)
    train(usual, sgd, [(x, y)])
    fixed = network("cnn").eval()
    train(fixed, make(fixed, lr=0.03, momentum=0.0, weight_decay=0.0, rate="fixed"), [(x, y)])
    for found, plain in zip(fixed[0].parameters(), usual[0].parameters(), strict=True):
        assert not torch.allclose(found, plain, rtol=1e-6)


def test_a_preconditioner_in_evaluation_mode():
    model = network("cnn").eval()
    [(x, y)] = batches("cnn")
    preconditioner = Preconditioner(model, "kfac")
    cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model[0].parameters()]
    preconditioner.step()
    assert not any(torch.equal(p.grad, g) for p, g in zip(model[0].parameters(), before, strict=True))


class Holder(nn.Module):
    """Is never called itself: its training step calls what it holds."""

    def __init__(self, name: str, cut: int | None = None) -> None:
        super().__init__()
        self.net = network(name)
        self.cut = cut

    def training_step(self, x: Tensor) -> Tensor:
        if self.cut is None:
            return self.net(x)
        return self.net[self.cut :](self.net[: self.cut](x))


def never_called(net: nn.Module, *inputs: Tensor) -> Tensor:
    raise NotImplementedError


def pair() -> Net:
    """An encoder and a decoder, called one after the other, an activation between them."""
    torch.manual_seed(0)
    return Net(
        never_called,
        encoder=nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)),
        decoder=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
    ).double()


def cell_and_head() -> Net:
    """A cell that a loop outside calls for every step, as recurrent code does."""
    torch.manual_seed(0)
    cell = nn.Sequential(nn.Linear(12, 6), nn.Tanh())
    return Net(never_called, cell=cell, head=nn.Linear(6, 3)).double()


def step_by_step(net: nn.Module, x: Tensor) -> Tensor:
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = net.cell(torch.cat([x[:, t], h], 1))
    return net.head(h)


CALLED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], str]] = {
    "self.net(x)": (lambda: Holder("mlp"), lambda m, x: m.net(x), "mlp"),
    "one layer after the other": (lambda: Holder("mlp"), lambda m, x: _each(m.net, x), "mlp"),
    "encoder, then decoder": (pair, lambda m, x: m.decoder(torch.tanh(m.encoder(x))), "mlp"),
    "a loop over a cell": (cell_and_head, step_by_step, "sequences"),
}


def _each(net: nn.Sequential, x: Tensor) -> Tensor:
    for module in net:
        x = module(x)
    return x


@pytest.mark.parametrize("case", CALLED)
@pytest.mark.parametrize("method", METHODS)
def test_whoever_is_called(method, case):
    """The steps are those of a call of the whole model: one pass, of the same samples, with its outputs."""
    make, call, data = CALLED[case]
    model, usual = make(), Net(lambda net, x: call(net.inner, x), inner=make())
    optimizer, reference = METHODS[method](model), METHODS[method](usual)
    for x, y in batches(data, 3):
        for one, output in ((optimizer, lambda x=x: call(model, x)), (reference, lambda x=x: usual(x))):
            one.zero_grad()
            cross_entropy(output(), y).backward()
            one.step()
    expected = {name.removeprefix("inner."): value for name, value in weights(usual).items()}
    assert_close(weights(model), expected)


@pytest.mark.parametrize("case", CALLED)
def test_the_rate_whoever_is_called(case):
    make, call, data = CALLED[case]
    model = make()
    [(x, y)] = batches(data)
    assert_identity(model, LNGD(model, **EXACT), x, y, call=lambda inputs: call(model, inputs))


def test_labels_are_not_drawn_from_the_middle_of_a_network():
    """The encoder's output is no model output where the decoder is called with it."""
    seen = {}

    class Drawing(type(KFAC(nn.Linear(2, 2))._likelihood)):
        def draw(self, outputs, draws, generator):
            seen.setdefault("shapes", []).append(tuple(outputs.shape))
            return super().draw(outputs, draws, generator)

    model = pair()
    optimizer = KFAC(model, likelihood=Drawing())
    [(x, y)] = batches("mlp")
    cross_entropy(model.decoder(torch.tanh(model.encoder(x))), y).backward()
    optimizer.step()
    assert seen["shapes"][-1] == (8, 3)


def test_modules_called_with_other_numbers_of_samples_are_refused():
    """One after the other, the second with rows of several samples."""
    model = pair()
    optimizer = LNGD(model)
    x, y = torch.randn(4, 2, 6, dtype=torch.float64), torch.arange(8) % 3
    with pytest.raises(InputError, match=r"with 4 and 8 samples.*call them inside one module's forward"):
        cross_entropy(model.decoder(model.encoder(x).reshape(-1, 4)), y).backward()
    assert optimizer.param_groups


def test_a_second_model_that_shares_layers():
    """Its passes are of the shared layers, with its own samples."""
    model = network("mlp")
    other = nn.Sequential(model[0], model[1], nn.Linear(5, 3).double())
    [(x, y)] = batches("mlp")
    optimizer = LNGD(model, **EXACT)
    before = weights(model)
    cross_entropy(other(x), y).backward()
    optimizer.step()
    after = weights(model)
    view = optimizer._layers["0"]
    v = view.to_matrix({p: (before[p] - after[p]) / 0.1 for p in view.parameters})
    model.load_state_dict(before)
    found = []
    for n in (slice(None), *(slice(n, n + 1) for n in range(len(x)))):
        grads = torch.autograd.grad(cross_entropy(other(x[n]), y[n]), [model[0].weight, model[0].bias])
        found.append((v * view.to_matrix(dict(zip(view.parameters, grads, strict=True)))).sum())
    torch.testing.assert_close(found[0], torch.stack(found[1:]).square().mean())


def test_labels_of_layers_in_two_models_are_refused():
    """With drawn labels one output has to be the model's."""
    model = network("mlp")
    other = nn.Sequential(model[0], model[1], nn.Linear(5, 3).double())
    [(x, y)] = batches("mlp")
    optimizer = KFAC(model)
    train(model, optimizer, [(x, y)])
    optimizer._cadence.count = 10
    optimizer.zero_grad()
    with pytest.raises(InputError, match=r"passes that end in module.*use source='empirical'"):
        cross_entropy(other(x), y).backward()


# --- several backward passes ------------------------------------------------------------------------------


def two_losses(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    output = model(x)
    return cross_entropy(output, y), 0.1 * output.square().sum(1).mean()


@pytest.mark.parametrize("method", ["lngd", "lngd-empirical", "kfac-empirical", "kfac-layerwise", "ngplus"])
def test_two_backward_passes_of_one_forward_pass_are_refused(method):
    """Where gradients of samples are looked at: they would be those of one loss only."""
    model = network("mlp")
    optimizer = METHODS[method](model)
    before = weights(model)
    first, second = two_losses(model, *batches("mlp")[0])
    first.backward(retain_graph=True)
    with pytest.raises(InputError, match=r"add the losses and call backward\(\) once"):
        second.backward()
    assert_same(weights(model), before)
    assert optimizer.param_groups


@pytest.mark.parametrize("method", ["kfac", "ekfac", "tkfac", "lngd-sample"])
def test_two_backward_passes_are_their_sum_where_labels_are_drawn(method):
    model, usual = network("mlp"), network("mlp")
    optimizer, reference = METHODS[method](model), METHODS[method](usual)
    for batch in batches("mlp", 3):
        optimizer.zero_grad()
        first, second = two_losses(model, *batch)
        first.backward(retain_graph=True)
        second.backward()
        optimizer.step()
        reference.zero_grad()
        sum(two_losses(usual, *batch)).backward()
        reference.step()
    assert_close(weights(model), weights(usual))


@pytest.mark.parametrize("method", ["kfac", "ekfac", "lngd-sample"])
def test_gradients_by_task_put_together_by_hand(method):
    """As methods of several tasks do: a backward pass a loss, cleared, and the sum given back."""
    model, usual = network("mlp"), network("mlp")
    optimizer, reference = METHODS[method](model), METHODS[method](usual)
    for batch in batches("mlp", 2):
        total = None
        losses = two_losses(model, *batch)
        for place, loss in enumerate(losses):
            optimizer.zero_grad()
            loss.backward(retain_graph=place == 0)
            grads = [p.grad.clone() for p in model.parameters()]
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        for p, g in zip(model.parameters(), total, strict=True):
            p.grad = g
        optimizer.step()
        reference.zero_grad()
        sum(two_losses(usual, *batch)).backward()
        reference.step()
    assert_close(weights(model), weights(usual))


def test_a_pass_whose_statistics_are_gone_is_refused():
    model = network("mlp")
    optimizer = LNGD(model)
    first, second = two_losses(model, *batches("mlp")[0])
    first.backward(retain_graph=True)
    optimizer.zero_grad()
    with pytest.raises(InputError, match="run the forward pass again"):
        second.backward()


# --- one answer for one loss --------------------------------------------------------------------------------


def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A decay in the loss."""
    return cross_entropy(model(x), y) + 0.1 * sum(p.square().sum() for p in model.parameters())


def of_inputs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A penalty on the gradient by the inputs."""
    x = x.clone().requires_grad_()
    loss = cross_entropy(model(x), y)
    [gradient] = torch.autograd.grad(loss, x, create_graph=True)
    return loss + gradient.square().sum()


def one_call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A residual with derivatives of the model in it."""
    x = x.clone().requires_grad_()
    [slope] = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope - 1).square().mean()


def two_calls(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same with values at a boundary."""
    return one_call(model, x, y) + cross_entropy(model(x[:3]), y[:3])


NO_PARTS = "not made of what came back to its output|not part of the pass that the gradient came through"


@pytest.mark.parametrize("loss", [penalty, of_inputs, one_call, two_calls])
@pytest.mark.parametrize("since", ["the start", "some steps", "a loaded state"])
def test_a_gradient_that_is_not_made_of_the_samples_parts_is_refused_in_every_step(since, loss):
    model = network("mlp")
    optimizer = LNGD(model)
    if since != "the start":
        train(model, optimizer, batches("mlp", 3))
    if since == "a loaded state":
        state = optimizer.state_dict()
        optimizer = LNGD(model)
        optimizer.load_state_dict(state)
    before = weights(model)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, *batches("mlp")[0]).backward()
        optimizer.step()

    for _ in range(2):
        with pytest.raises(InputError, match=NO_PARTS):
            step()
        assert_same(weights(model), before)


@pytest.mark.parametrize("make", [NGPlus, lambda model: KFAC(model, source="empirical")])
@pytest.mark.parametrize("loss", [of_inputs, one_call])
def test_statistics_of_a_loss_with_derivatives_are_refused(loss, make):
    model = network("mlp")
    optimizer = make(model)

    def step() -> None:
        loss(model, *batches("mlp")[0]).backward()
        optimizer.step()

    with pytest.raises(InputError, match=NO_PARTS):
        step()


@pytest.mark.parametrize("make", [NGPlus, lambda model: KFAC(model, source="empirical")])
@pytest.mark.parametrize("loss", [of_inputs, one_call, two_calls, penalty])
def test_statistics_of_such_a_loss_are_refused_wherever_they_are_due(loss, make):
    """After ordinary steps, and from a loaded state."""
    model = network("mlp")
    optimizer = make(model)
    train(model, optimizer, batches("mlp", 10))
    other = make(model)
    other.load_state_dict(optimizer.state_dict())
    for one in (optimizer, other):
        one.zero_grad()
        loss(model, *batches("mlp")[0]).backward()
        with pytest.raises(InputError, match=NO_PARTS):
            one.step()


@pytest.mark.parametrize("method", METHODS)
def test_a_discarded_backward_pass_may_be_of_any_loss(method):
    """What `zero_grad` throws away is not judged."""
    model, usual = network("mlp"), network("mlp")
    optimizer, reference = METHODS[method](model), METHODS[method](usual)
    for x, y in batches("mlp", 3):
        of_inputs(model, x, y).backward()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(weights(model), train(usual, reference, batches("mlp", 3)))


@pytest.mark.parametrize("loss", [penalty, of_inputs])
def test_drawn_labels_do_not_ask_what_the_loss_is(loss):
    model = network("mlp")
    optimizer = KFAC(model)
    before = weights(model)
    for batch in batches("mlp", 2):
        optimizer.zero_grad()
        loss(model, *batch).backward()
        optimizer.step()
    assert not any(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_gradient_kept_from_the_step_before_is_refused():
    """Without zero_grad() a step's gradient is not that of its batch."""
    model, data = network("mlp"), batches("mlp", 2)
    optimizer = LNGD(model)
    train(model, optimizer, data[:1])
    cross_entropy(model(data[1][0]), data[1][1]).backward()
    with pytest.raises(InputError, match="kept from an earlier backward pass"):
        optimizer.step()


# --- no optimizer without statistics -----------------------------------------------------------------------


def direct() -> Net:
    """Uses the weight of a layer without calling it."""
    return Net(
        lambda net, x: net.last(torch.tanh(x @ net.layer.weight.T + net.layer.bias)),
        layer=nn.Linear(6, 5),
        last=nn.Linear(5, 3),
    )


def reentrant() -> Net:
    return Net(
        lambda net, x: net.last(checkpoint(net.inner, net.first(x), use_reentrant=True).tanh()),
        first=nn.Linear(6, 6),
        inner=nn.Linear(6, 5),
        last=nn.Linear(5, 3),
    )


def bare() -> Net:
    """An attention module that is called by itself."""
    return Net(never_called, attention=nn.MultiheadAttention(6, 2, batch_first=True), last=nn.Linear(6, 3))


def encode(net: nn.Module, x: Tensor) -> Tensor:
    return net.last(net.attention(x, x, x)[0].mean(1))


UNSEEN = {
    "its weight is used outside the module": (direct, lambda m, x: m(x), "mlp"),
    "its MultiheadAttention was called by itself": (bare, encode, "transformer"),
}


@pytest.mark.parametrize("why", UNSEEN)
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_without_statistics_is_left_out_with_the_cause(method, why):
    make, call, data = UNSEEN[why]
    torch.manual_seed(0)
    model = make().double()
    optimizer = METHODS[method](model)
    [(x, y)] = batches(data)
    cross_entropy(call(model, x), y).backward()
    with pytest.warns(UserWarning, match=why):
        optimizer.step()
    assert list(optimizer.rates()["layer"]) == ["last"]


@pytest.mark.parametrize("method", METHODS)
def test_reentrant_checkpointing_is_refused(method):
    torch.manual_seed(0)
    model = reentrant().double()
    optimizer, before = METHODS[method](model), weights(model)
    with pytest.raises(InputError, match="use_reentrant=False"):
        train(model, optimizer, batches("mlp"))
    assert_same(weights(model), before)


def test_a_layer_that_thaws_is_named_once():
    model, data = network("mlp"), batches("mlp", 4)
    model[0].requires_grad_(False)
    optimizer = KFAC(model)
    with warnings.catch_warnings(action="error"):
        train(model, optimizer, data[:1])
    model[0].requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"0\.bias, 0\.weight had requires_grad=False.*after they are thawed"
    ):
        train(model, optimizer, data[1:2])
    with warnings.catch_warnings(action="error"):
        train(model, optimizer, data[2:])


@pytest.mark.parametrize("method", METHODS)
def test_passes_of_both_modes_take_turns(method):
    """A validation pass with gradients between steps changes nothing, though it is another function."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    usual = copy.deepcopy(model.double())
    optimizer, reference = METHODS[method](model), METHODS[method](usual)
    for step, (x, y) in enumerate(batches("mlp", 3)):
        for net, one, look in ((model, optimizer, True), (usual, reference, False)):
            torch.manual_seed(step)
            one.zero_grad()
            cross_entropy(net(x), y).backward()
            one.step()
            if look:
                kept = net.eval()(x)
                net.train()
                del kept
    gc.collect()
    assert_same(weights(model), weights(usual))


def test_a_mean_over_positions_is_no_second_count():
    """A layer called for every position of a loop has N samples, not N a call."""
    model = cell_and_head()
    [(x, y)] = batches("sequences")
    optimizer = LNGD(model, **EXACT, source="empirical")
    assert_identity(model, optimizer, x, y, call=lambda inputs: step_by_step(model, inputs))
    assert isinstance(Mean()(x), Tensor)


# --- samples of which some go elsewhere -------------------------------------------------------------------


class Tasks(nn.Module):
    """A trunk and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
        self.double()

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[task](self.trunk(x))

    def both(self, x: Tensor, cut: int) -> Tensor:
        """The first samples to one head, the others to the other."""
        parts = [self(part, task) for task, part in enumerate((x[:cut], x[cut:])) if len(part)]
        return torch.cat(parts)


@pytest.mark.parametrize("cut", [4, 1, 7])
@pytest.mark.parametrize("make", [LNGD, KFAC, EKFAC, TKFAC, NGPlus])
def test_a_layer_that_some_of_the_samples_go_through(make, cut):
    """(1/N) Σ_n is over all samples of the step: the others have a part of zero."""
    model = Tasks()
    [(x, y)] = batches("mlp")
    optimizer = make(model, **EXACT)

    def sides(n: slice) -> Tensor:
        start = range(len(x))[n][0]
        return model.both(x[n], max(0, cut - start))

    names = [name for name, _ in model.named_parameters()]
    own = list(model.parameters())

    def gradient(n: slice) -> dict[str, Tensor]:
        grads = torch.autograd.grad(cross_entropy(sides(n), y[n]), own, allow_unused=True)
        return {a: torch.zeros_like(p) if g is None else g for a, p, g in zip(names, own, grads, strict=True)}

    whole, single = gradient(slice(None)), [gradient(slice(n, n + 1)) for n in range(len(x))]

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(sides(slice(None)), y).backward()
        optimizer.step()

    assert_identity_of(model, optimizer, whole, single, step)


def test_statistics_of_a_layer_that_some_of_the_samples_go_through():
    """E[V Vᵀ] of NG+ is over all samples."""
    model = Tasks()
    [(x, y)] = batches("mlp")
    optimizer = NGPlus(model, rate="fixed")
    grads = [
        torch.autograd.grad(
            cross_entropy(model(x[n : n + 1], int(n >= 4)), y[n : n + 1]), model.heads[0].weight
        )[0]
        if n < 4
        else torch.zeros(3, 5, dtype=torch.float64)
        for n in range(8)
    ]
    biases = [
        torch.autograd.grad(cross_entropy(model(x[n : n + 1], 0), y[n : n + 1]), model.heads[0].bias)[0]
        if n < 4
        else torch.zeros(3, dtype=torch.float64)
        for n in range(8)
    ]
    V = torch.cat([torch.stack(grads), torch.stack(biases)[:, :, None]], 2)
    cross_entropy(model.both(x, 4), y).backward()
    optimizer.step()
    [average] = optimizer._blocks["heads.0"].average.values()
    torch.testing.assert_close(average, (V @ V.mT).mean(0))


def actor() -> Net:
    """Two heads of the same samples behind one trunk."""
    torch.manual_seed(0)
    return Net(
        never_called,
        trunk=nn.Sequential(nn.Linear(6, 5), nn.Tanh()),
        policy_head=nn.Linear(5, 3),
        value_head=nn.Linear(5, 3),
    ).double()


def two_encodings(net: nn.Module, x: Tensor) -> Tensor:
    return net.policy_head(net.trunk(x)) + net.value_head(net.trunk(x))


def one_encoding(net: nn.Module, x: Tensor) -> Tensor:
    z = net.trunk(x)
    return net.policy_head(z) + net.value_head(z)


@pytest.mark.parametrize("call", [two_encodings, one_encoding])
@pytest.mark.parametrize("method", ["lngd", "ngplus", "kfac-empirical"])
def test_two_heads_of_the_same_samples(method, call):
    """Called by hand, on one tensor or on one encoding: N samples, not twice as many."""
    model = actor()
    [(x, y)] = batches("mlp")
    optimizer = METHODS[method](model, **EXACT)
    assert_identity(model, optimizer, x, y, call=lambda inputs: call(model, inputs))


def test_statistics_of_a_head_that_is_called_twice_by_hand():
    """Those of one call of the whole."""
    model, usual = actor(), actor()
    optimizer = LNGD(model, rate="fixed", exclude=["value_head"])

    def twice(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        z = net.trunk(x)
        return net.policy_head(z), net.policy_head(z.relu())

    whole = Net(lambda net, x: twice(net.inner, x), inner=usual)
    reference = LNGD(whole, rate="fixed", exclude=["inner.value_head"])
    [(x, y)] = batches("mlp")
    for outputs in (twice(model, x), whole(x)):
        sum(cross_entropy(output, y) for output in outputs).backward()
    optimizer.step()
    reference.step()
    found = optimizer._blocks["policy_head"].average
    expected = reference._blocks["inner.policy_head"].average
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_labels_of_two_heads_called_by_hand_are_refused():
    model = actor()
    optimizer = KFAC(model)
    [(x, y)] = batches("mlp")
    with pytest.raises(InputError, match=r"labels can be drawn at one output only; use source='empirical'"):
        cross_entropy(one_encoding(model, x), y).backward()
    assert optimizer.param_groups


def split_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The backward pass in two parts, as pipelines and checkpoints by hand do."""
    h = model[1](model[0](x))
    d = h.detach().requires_grad_()
    cross_entropy(model[2:](d), y).backward()
    h.backward(d.grad)


def local_losses(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Each part has a loss of its own."""
    h = model[1](model[0](x))
    (cross_entropy(model[2:](h.detach()), y) + h.square().sum(1).mean()).backward()


@pytest.mark.parametrize("way", [split_by_hand, local_losses])
@pytest.mark.parametrize("make", [LNGD, NGPlus, lambda m, **o: KFAC(m, source="empirical", **o)])
def test_parts_of_a_network_that_are_cut_apart(make, way):
    """They are of the same samples: N is theirs, once."""
    model = network("mlp")
    [(x, y)] = batches("mlp")
    optimizer = make(model, **EXACT)

    def gradient(n: slice) -> dict[str, Tensor]:
        way(model, x[n].clone(), y[n])
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        return found

    whole, single = gradient(slice(None)), [gradient(slice(n, n + 1)) for n in range(len(x))]

    def step() -> None:
        way(model, x, y)
        optimizer.step()

    assert_identity_of(model, optimizer, whole, single, step)


def test_the_same_samples_in_two_backward_passes_are_refused():
    """Two forward passes of one batch, each with a backward pass of its own."""
    model = network("mlp")
    [(x, y)] = batches("mlp")
    optimizer = LNGD(model)
    cross_entropy(model(x), y).backward()
    with pytest.raises(InputError, match=r"add the losses and call backward\(\) once"):
        model(x).square().mean().backward()
    assert optimizer.param_groups


@pytest.mark.parametrize(
    "call", [lambda m, z: m.policy_head(z.roll(1, 0)), lambda m, z: m.policy_head(z.flip(0))]
)
def test_rows_in_another_order_between_modules_called_by_hand_are_refused(call):
    model = actor()
    optimizer = LNGD(model)
    [(x, y)] = batches("mlp")
    with pytest.raises(InputError, match="the rows are in another order or along another dimension"):
        cross_entropy(call(model, model.trunk(x)), y).backward()
    assert optimizer.param_groups


def test_positions_first_between_modules_called_by_hand_are_refused():
    """As many positions as samples."""
    model = actor()
    optimizer = LNGD(model)
    x, y = torch.randn(4, 4, 6, dtype=torch.float64), torch.arange(4) % 3
    with pytest.raises(InputError, match="the rows are in another order or along another dimension"):
        cross_entropy(model.policy_head(model.trunk(x.transpose(0, 1)).mean(0)), y).backward()
    assert optimizer.param_groups


# --- what else a first step finds -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [KFAC, EKFAC, TKFAC])
def test_outputs_that_are_not_of_the_likelihood_are_refused(make):
    """One logit under the default likelihood would give statistics of zero."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = make(model)
    with pytest.raises(InputError, match="at least 2 outputs; for one logit use 'bernoulli'"):
        model(batches("mlp")[0][0])
    assert optimizer.param_groups


@pytest.mark.parametrize(
    "make",
    [NGPlus, lambda m: KFAC(m, source="empirical"), lambda m: LNGD(m, source="empirical", rate="fixed")],
)
def test_a_scaler_that_was_not_given_is_found_with_a_fixed_rate(make):
    model, [(x, y)] = network("mlp", dtype=torch.float32), batches("mlp", dtype=torch.float32)
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    scaler.scale(cross_entropy(model(x), y)).backward()
    with pytest.raises(InputError, match=r"divided by 1024 .* give the GradScaler in use as scaler="):
        scaler.step(optimizer)
    assert_same(weights(model), before)


def test_a_model_made_half_later_is_refused():
    model = network("mlp", dtype=torch.float32)
    optimizer = KFAC(model)
    model.half()
    with pytest.raises(InputError, match="weights in float16 now"):
        model(torch.randn(4, 6).half())
    assert optimizer.param_groups


def test_a_rate_of_some_samples_is_checked_where_statistics_are_due():
    model = network("mlp")
    optimizer = LNGD(model, rate_samples=3, statistics_every=2)
    train(model, optimizer, batches("mlp", 2))
    optimizer.zero_grad()
    penalty(model, *batches("mlp")[0]).backward()
    with pytest.raises(InputError, match="is not made of what came back to its output"):
        optimizer.step()
