"""The life of an optimizer: it ends with its last reference, and a copy goes on to the same bits."""

import gc
import io
import pickle
import weakref
from copy import deepcopy

import pytest
import torch
from optim.cases import METHODS, assert_same, batches, network, train, weights
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from fisherlab.errors import InputError
from fisherlab.optim import LNGD, Preconditioner

DUE = {"statistics_every": 2, "inverse_every": 2}


class Calls(TorchFunctionMode):
    """How often torch is called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_pass(model: nn.Module) -> int:
    [(x, y)] = batches("mlp")
    with Calls() as calls:
        cross_entropy(model(x), y).backward()
    for p in model.parameters():
        p.grad = None
    return calls.count


def hooks_of(model: nn.Module) -> int:
    forward = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    return forward + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_ends_with_its_last_reference(method, used):
    """Without the garbage collector: nothing of it is left on the model, and a pass is a plain pass."""
    model = network("mlp")
    plain = calls_of_a_pass(model)
    gc.disable()
    try:
        for _ in range(3):
            optimizer = METHODS[method](model)
            if used:
                train(model, optimizer, batches("mlp", 2))
                optimizer.zero_grad()
            gone = (
                weakref.ref(optimizer),
                weakref.ref(optimizer._maker),
                weakref.ref(optimizer._tap),
            )
            del optimizer
            assert [ref() for ref in gone] == [None, None, None]
            assert hooks_of(model) == 0
        assert calls_of_a_pass(model) == plain
    finally:
        gc.enable()


def test_an_optimizer_with_a_scheduler_ends_with_both():
    model = network("mlp")
    gc.disable()
    try:
        optimizer = LNGD(model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        train(model, optimizer, batches("mlp"))
        scheduler.step()
        gone = weakref.ref(optimizer)
        del optimizer, scheduler
        assert gone() is None
        assert hooks_of(model) == 0
    finally:
        gc.enable()


def test_an_optimizer_that_ends_in_the_middle_of_a_pass():
    """Its hooks on the graph do nothing any more."""
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = LNGD(model)
    loss = cross_entropy(model(x), y)
    del optimizer
    loss.backward()
    assert hooks_of(model) == 0


def copied(model: nn.Module, optimizer) -> tuple:
    return deepcopy((model, optimizer))


def pickled(model: nn.Module, optimizer) -> tuple:
    return pickle.loads(pickle.dumps((model, optimizer)))


def saved(model: nn.Module, optimizer) -> tuple:
    file = io.BytesIO()
    torch.save({"model": model, "optimizer": optimizer}, file)
    file.seek(0)
    found = torch.load(file, weights_only=False)
    return found["model"], found["optimizer"]


@pytest.mark.parametrize("copy", [copied, pickled, saved])
@pytest.mark.parametrize("method", METHODS)
def test_a_copy_goes_on_to_the_same_bits(method, copy):
    """And so does the original; before the first step, and between refreshes."""
    data = batches("mlp", 5)
    for stop in (0, 3):
        model = network("mlp")
        optimizer = METHODS[method](model, **DUE, groups=[{"layers": ["0"], "lr": 0.02}])
        train(model, optimizer, data[:stop])
        optimizer.zero_grad()
        other, again = copy(model, optimizer)
        assert again.param_groups[0]["params"][0] is other[0].weight
        found = train(other, again, data[stop:])
        assert_same(found, train(model, optimizer, data[stop:]))


@pytest.mark.parametrize("name", ["transformer", "grouped", "twice"])
def test_copies_of_every_kind_of_layer(name):
    data = batches(name, 4)
    model = network(name)
    optimizer = LNGD(model, **DUE)
    train(model, optimizer, data[:2])
    optimizer.zero_grad()
    for _ in range(2):  # a copy of a copy
        model, optimizer = deepcopy((model, optimizer))
    usual = network(name)
    assert_same(train(model, optimizer, data[2:]), train(usual, LNGD(usual, **DUE), data))


def test_a_copy_of_the_optimizer_alone_has_a_model_of_its_own():
    model, data = network("mlp"), batches("mlp", 3)
    optimizer = LNGD(model, **DUE)
    train(model, optimizer, data[:1])
    other = deepcopy(optimizer)
    before = weights(model)
    assert other.param_groups[0]["params"][0] is not model[0].weight
    with pytest.raises(InputError, match="without a backward pass"):
        train(model, other, data[1:2])  # it follows its own model
    assert_same(weights(model), before)


def test_an_added_group_is_part_of_a_copy():
    model, data = network("mlp"), batches("mlp", 3)
    scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = LNGD(model)
    optimizer.add_param_group({"params": [scale], "lr": 0.1})
    other, again, own = deepcopy((model, optimizer, scale))
    for net, one, factor in ((model, optimizer, scale), (other, again, own)):
        for x, y in data:
            one.zero_grad()
            cross_entropy(net(x) * factor, y).backward()
            one.step()
    assert_same(weights(model), weights(other))
    assert torch.equal(scale, own)
    assert float(scale) != 1


def test_a_preconditioner_is_copied_too():
    model, data = network("mlp"), batches("mlp", 3)
    preconditioner = Preconditioner(model, "kfac", **DUE)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    other, second, plain = deepcopy((model, preconditioner, sgd))
    for net, first, last in ((model, preconditioner, sgd), (other, second, plain)):
        for x, y in data:
            last.zero_grad()
            cross_entropy(net(x), y).backward()
            first.step()
            last.step()
    assert_same(weights(model), weights(other))


@pytest.mark.parametrize("stop", [0, 1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_state_of_distributed_checkpoints(method, stop):
    """Parameters by name, before the first step too: training goes on to the same bits."""
    data = batches("cnn", 5)
    model, again = network("cnn"), network("cnn", seed=3)
    optimizer, other = METHODS[method](model, **DUE), METHODS[method](again, **DUE)
    train(model, optimizer, data[:stop])
    optimizer.zero_grad()
    state = deepcopy(get_optimizer_state_dict(model, optimizer))
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, other, state)
    assert_same(train(again, other, data[stop:]), train(model, optimizer, data[stop:]))


def test_taking_a_distributed_checkpoint_changes_nothing():
    data = batches("mlp", 3)
    model, usual = network("mlp"), network("mlp")
    optimizer, reference = LNGD(model, **DUE), LNGD(usual, **DUE)
    get_optimizer_state_dict(model, optimizer)
    train(model, optimizer, data[:1])
    get_optimizer_state_dict(model, optimizer)
    assert_same(train(model, optimizer, data[1:]), train(usual, reference, data))


@pytest.mark.parametrize("dtype", [torch.float16])
@pytest.mark.parametrize("method", ["lngd", "kfac"])
def test_weights_in_float16_are_refused(method, dtype):
    with pytest.raises(InputError, match=r"parameter '0\.weight' is in float16.*bfloat16.*autocast"):
        METHODS[method](network("mlp", dtype=dtype))


@pytest.mark.parametrize("method", ["lngd", "ekfac", "kfac"])
@pytest.mark.parametrize("used", [False, True])
def test_a_full_state_of_distributed_checkpoints(used, method):
    """On the CPU and whole, into a fresh optimizer and into one with steps."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    data = batches("cnn", 5)
    model, again = network("cnn"), network("cnn", seed=3)
    optimizer, other = METHODS[method](model, **DUE), METHODS[method](again, **DUE)
    train(model, optimizer, data[:3])
    optimizer.zero_grad()
    if used:
        train(again, other, data[:1])
        other.zero_grad()
    state = deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, other, state, options=options)
    assert_same(train(again, other, data[3:]), train(model, optimizer, data[3:]))


def spoiled(state: dict, what: str) -> object:
    layer = next(v["layers"]["0"] for v in state["state"].values() if "layers" in v)
    if what == "nothing":
        return None
    if what == "no steps":
        del state["fisherlab"]["steps"]
    elif what == "steps of text":
        state["fisherlab"]["steps"] = "3"
    elif what == "no layers":
        state["state"] = {}
    elif what == "no statistics":
        del layer["average"]
    elif what == "other statistics":
        layer["average"] = {"foreign": torch.ones(2)}
    elif what == "another size":
        layer["average"] = {key: torch.ones(2) for key in layer["average"]}
    return state


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "no steps",
        "steps of text",
        "no layers",
        "no statistics",
        "other statistics",
        "another size",
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(what):
    data = batches("mlp", 4)
    model, usual = network("mlp"), network("mlp")
    optimizer, reference = LNGD(model), LNGD(usual)
    train(model, optimizer, data[:2])
    train(usual, reference, data[:2])
    with pytest.raises(InputError, match=r"damaged|another optimizer|has nothing of layer"):
        optimizer.load_state_dict(spoiled(deepcopy(optimizer.state_dict()), what))
    assert_same(train(model, optimizer, data[2:]), train(usual, reference, data[2:]))


def test_a_model_compiled_later_is_refused():
    model = network("mlp")
    optimizer = LNGD(model)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(InputError, match="compiled after the optimizer was made"):
        compiled(batches("mlp")[0][0])
    assert optimizer.param_groups
