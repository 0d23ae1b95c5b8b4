"""Which parameters have a block, under which name, and why the others have none."""

import functools

import pytest
import torch
import torch.ao.nn.qat
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.errors import InputError, InputTypeError
from fisherlab.layers import BlockShape, LayerCall
from fisherlab.layers.adapter import class_name


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.body = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4))
        self.tied_in = nn.Linear(4, 4)
        self.tied_out = nn.Linear(4, 4, bias=False)
        self.tied_out.weight = self.tied_in.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.tied_out(self.tied_in(self.body(self.norm(self.first(x))))) * self.scale


@pytest.fixture
def mixed() -> Mixed:
    return Mixed()


def reasons(layers) -> dict[str, str]:
    table = layers.coverage()
    return dict(zip(table["parameter"], table["reason"], strict=True))


def use_of(x: Tensor) -> LayerCall:
    """A call of a layer with four outputs."""
    return LayerCall(x, x.new_zeros(*x.shape[:-1], 4))


def test_layers_in_the_order_of_the_modules(mixed):
    layers = fl.find_layers(mixed)
    expected = ["scale", "first", "norm", "body.0", "body.2", "tied_in", "tied_in.bias"]
    assert list(layers) == expected
    view = layers["first"]
    assert (view.outputs, view.inputs, view.size) == (4, 4, 16)
    assert view.parameters == ("first.weight", "first.bias")
    assert layers["body.0"].parameters == ("body.0.weight",)
    assert (layers["body.0"].inputs, layers["body.2"].inputs) == (4, 5)
    assert (view.family, layers["norm"].family) == ("Linear", "LayerNorm")
    assert layers["norm"].parameters == ("norm.weight", "norm.bias")
    assert layers["tied_in"].parameters == ("tied_in.weight",)
    assert layers["tied_in"].modules == (mixed.tied_in, mixed.tied_out)
    assert layers["scale"].parameters == ("scale",)
    assert (layers["scale"].family, layers["scale"].size) == ("Parameter", 1)
    assert len(layers) == 7


def test_coverage_has_a_row_for_every_parameter_once(mixed):
    table = fl.find_layers(mixed).coverage()
    assert list(table.columns) == ["parameter", "layer", "activation", "covered", "reason"]
    names = [name for name, _ in mixed.named_parameters()]
    assert sorted(table["parameter"]) == sorted(names)
    covered = dict(zip(table["parameter"], table["covered"], strict=True))
    assert covered == dict.fromkeys(names, True)


def test_coverage_gives_the_reason(mixed):
    found = reasons(fl.find_layers(mixed))
    assert found["first.weight"] == ""
    assert found["norm.weight"] == ""
    assert found["tied_in.weight"] == "tied: summed over tied_out too"
    assert found["tied_in.bias"] == ""
    assert found["scale"] == f"a parameter of {Mixed.__module__}.Mixed"


def test_frozen_parameters_have_no_block(mixed):
    mixed.body[0].weight.requires_grad_(False)
    mixed.first.bias.requires_grad_(False)
    layers = fl.find_layers(mixed)
    assert "body.0" not in layers
    assert layers["first"].parameters == ("first.weight",)
    assert layers["first"].inputs == 3
    found = reasons(layers)
    assert found["body.0.weight"] == found["first.bias"] == "frozen (requires_grad is False)"


def test_a_frozen_weight_leaves_the_bias(mixed):
    mixed.first.weight.requires_grad_(False)
    for bias in ("joint", "separate"):
        layers = fl.find_layers(mixed, bias=bias)
        assert layers["first.bias"].parameters == ("first.bias",)
        assert (layers["first.bias"].outputs, layers["first.bias"].inputs) == (4, 1)
        assert "first" not in layers


@pytest.mark.parametrize("bias", ["joint", "separate", "ignore"])
def test_modes_of_the_bias(bias):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    layers = fl.find_layers(model, bias=bias)
    expected = {"joint": ["0", "1"], "separate": ["0", "0.bias", "1"], "ignore": ["0", "1"]}
    assert list(layers) == expected[bias]
    assert layers["0"].inputs == (4 if bias == "joint" else 3)
    assert reasons(layers)["0.bias"] == ("biases are ignored" if bias == "ignore" else "")


def test_globs_choose_and_exclude(mixed):
    assert list(fl.find_layers(mixed, "body.*")) == ["body.0", "body.2"]
    assert list(fl.find_layers(mixed, ("first", "body.2"))) == ["first", "body.2"]
    assert list(fl.find_layers(mixed, exclude=("body.*", "tied*", "scale"))) == ["first", "norm"]
    assert list(fl.find_layers(mixed, "scale")) == ["scale"]
    assert list(fl.find_layers(mixed, "body.?", exclude="body.0")) == ["body.2"]
    found = reasons(fl.find_layers(mixed, "first"))
    assert found["body.0.weight"] == "not selected"
    found = reasons(fl.find_layers(mixed, "body.?", exclude="body.0"))
    assert (found["body.0.weight"], found["first.weight"]) == ("excluded", "not selected")
    table = fl.find_layers(mixed, "first").coverage().set_index("parameter")
    assert not table["covered"]["body.0.weight"]
    assert table["covered"]["first.weight"]


@pytest.mark.parametrize("name", ["frist", "body.1", "bdy.*"])
def test_a_name_that_matches_nothing_is_refused_with_near_ones(mixed, name):
    with pytest.raises(InputError, match="unknown layer") as caught:
        fl.find_layers(mixed, name)
    if name == "frist":
        assert "did you mean first" in str(caught.value)


def test_wrong_arguments(mixed):
    with pytest.raises(InputTypeError, match=r"model must be a torch\.nn\.Module, not 'model'"):
        fl.find_layers("model")
    with pytest.raises(InputTypeError, match="include must be strings, not "):
        fl.find_layers(mixed, (1,))
    for globs in (1, None):
        with pytest.raises(InputTypeError, match="exclude must be strings, not "):
            fl.find_layers(mixed, exclude=globs)
    for activation in (3, ["relu"], None):
        with pytest.raises(InputTypeError, match="activations must be a mapping of strings to strings"):
            fl.find_layers(mixed, activations={"first": activation})
    for argument in ("activations", "masks"):
        with pytest.raises(InputTypeError, match=f"{argument} must be a mapping of strings to "):
            fl.find_layers(mixed, **{argument: ["first"]})
    with pytest.raises(InputTypeError, match="masks must be a mapping of strings to "):
        fl.find_layers(mixed, masks={"first": torch.ones(2, 3)})
    with pytest.raises(InputError, match="did you mean joint"):
        fl.find_layers(mixed, bias="join")
    with pytest.raises(InputError, match="unknown layer 'second'"):
        fl.find_layers(mixed, activations={"second": "relu"})
    with pytest.raises(InputError, match="unknown activation 'rellu'; did you mean relu"):
        fl.find_layers(mixed, activations={"first": "rellu"})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU()), "the model has no parameters"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), "Embedding with max_norm changes its weight"),
        (nn.Linear(2, 2).requires_grad_(False), "frozen"),
    ],
)
def test_a_model_without_blocks_is_refused_with_the_reasons(model, message):
    with pytest.raises(InputError, match=message):
        fl.find_layers(model)


def test_a_selection_without_layers_is_refused(mixed):
    with pytest.raises(InputError, match=r"exclude=\('\*',\) leaves out all of the 7 layers"):
        fl.find_layers(mixed, exclude="*")
    with pytest.raises(InputError, match=r"exclude=\('body', 'first'\) leaves out all of the 2 layers"):
        fl.find_layers(mixed, ("first", "body.2"), exclude=("body", "first"))
    with pytest.raises(InputError, match="not selected"):
        fl.find_layers(mixed, ())


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_linear():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    layers = fl.find_layers(nn.Sequential(Named(2, 3), Twice(3, 2)))
    assert list(layers) == ["0", "1.weight", "1.bias"]
    assert [view.by_gradients for view in layers.values()] == [False, True, True]
    twice = reasons(layers)["1.weight"]
    assert twice.startswith(f"{__name__}.test_a_subclass")
    assert ".Twice is a Linear with a forward of its own; " in twice


FAMILIES = {
    "linear": lambda: nn.Linear(3, 3),
    "convolution": lambda: nn.Conv1d(3, 3, 1),
    "norm": lambda: nn.LayerNorm(3),
    "embedding": lambda: nn.Embedding(5, 3),
    "attention": lambda: nn.MultiheadAttention(3, 1),
    "recurrent": lambda: nn.GRU(3, 3),
    "unknown": lambda: nn.Bilinear(3, 3, 2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_replaced_on_the_instance_is_named(family):
    """As accelerate's `add_hook_to_module` does."""
    module = FAMILIES[family]()
    module._old_forward = module.forward
    module.forward = functools.update_wrapper(functools.partial(module.forward), module.forward)
    layers = fl.find_layers(nn.Sequential(nn.Linear(3, 3), module))
    assert not any(name.startswith("1") and "out_proj" not in name for name in layers)
    found = {name: reason for name, reason in reasons(layers).items() if name.startswith("1.")}
    found = {name: reason for name, reason in found.items() if "out_proj" not in name}
    assert found
    for reason in found.values():
        assert reason.startswith(f"the forward of this {type(module).__name__} was replaced on the instance")
        assert "accelerate.hooks.remove_hook_from_module" in reason
    del module.forward
    assert not any(
        "replaced" in reason for reason in reasons(fl.find_layers(nn.Sequential(nn.Linear(3, 3), module)))
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("unknown", "norm")])
def test_a_subclass_of_any_family_with_a_forward_of_its_own_is_named(family):
    module = FAMILIES[family]()
    known = type(module)

    class Own(known):
        def forward(self, *args, **keywords):
            return super().forward(*args, **keywords)

    module.__class__ = Own
    found = reasons(fl.find_layers(nn.Sequential(nn.Linear(3, 3), module)))
    own = [reason for name, reason in found.items() if name.startswith("1.") and "out_proj" not in name]
    assert own
    for reason in own:
        assert f".Own is a {known.__name__} with a forward of its own; " in reason
        assert "register_layer" in reason


def test_a_class_that_is_not_of_torch_has_its_full_name():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))

    Linear.__module__, Linear.__qualname__ = "other_package.nn.dense", "Linear"
    found = reasons(fl.find_layers(nn.Sequential(nn.Linear(3, 3), Linear())))
    assert found["1.weight"] == "a parameter of other_package.nn.dense.Linear"
    assert class_name(nn.PReLU) == "PReLU"
    assert class_name(torch.ao.nn.qat.Linear) == "torch.ao.nn.qat.modules.linear.Linear"


@pytest.mark.parametrize(
    ("lazy", "name"),
    [
        (lambda: nn.LazyLinear(4), "1.weight"),
        (lambda: nn.LazyConv1d(4, 1), "1.weight"),
        (lambda: nn.LazyBatchNorm1d(affine=False), "1.running_mean"),
    ],
)
def test_what_has_no_shape_yet_is_refused(lazy, name):
    model = nn.Sequential(nn.Linear(3, 3), lazy())
    for function in (fl.find_layers, lambda m: fl.exact_fisher(m, torch.ones(2, 3), "gaussian")):
        with pytest.raises(InputError, match=f"'{name}' has no shape yet.*run the model once"):
            function(model)


def test_sparse_parameters_have_no_block():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].weight = nn.Parameter(torch.eye(3).to_sparse())
    layers = fl.find_layers(model)
    assert reasons(layers)["0.weight"] == "sparse parameters are not supported"
    assert layers["0.bias"].parameters == ("0.bias",)


def test_extra_parameters_of_a_linear_are_named():
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.extra = nn.Parameter(torch.ones(1))

    assert reasons(fl.find_layers(nn.Sequential(Scaled())))["0.extra"] == "neither weight nor bias"


def test_a_model_that_is_one_layer():
    model = nn.Linear(3, 2)
    assert list(fl.find_layers(model)) == [""]
    assert list(fl.find_layers(model, bias="separate")) == ["", "bias"]
    x = torch.randn(5, 3)
    F = fl.exact_fisher(model, (x, None), "gaussian")[""]
    a = torch.cat([x, torch.ones(5, 1)], 1).double()
    assert torch.allclose(F.dense(), torch.kron(a.T @ a / 5, torch.eye(2).double()), atol=1e-6)


def test_activations_named_by_the_user(mixed):
    layers = fl.find_layers(mixed, activations={"first": "relu"})
    assert layers["first"].activation == "relu"
    assert layers["body.0"].activation is None
    table = layers.coverage().set_index("parameter")
    assert table["activation"]["first.weight"] == "relu"
    assert table["reason"]["first.weight"] == "named by the user"


def test_masks_go_to_the_layers_they_are_given_for(mixed):
    def first(x):
        return x[..., 0] > 0

    def second(x):
        return x[..., 1] > 0

    layers = fl.find_layers(mixed, exclude="tied*", masks={"body.*": first, "body.2": second})
    masks = {name: view.mask for name, view in layers.items()}
    assert masks == {"scale": None, "first": None, "norm": None, "body.0": first, "body.2": second}
    with pytest.raises(InputError, match=r"unknown layer 'bdy\.0'; did you mean body\.0"):
        fl.find_layers(mixed, masks={"bdy.0": first})


def test_a_view_of_other_shapes_is_refused(mixed):
    view = fl.find_layers(mixed)["first"]
    assert view.to_inputs(use_of(torch.zeros(5, 7, 3)), 5).shape == (5, 7, 4)
    assert view.to_inputs(use_of(torch.zeros(10, 3)), 5).shape == (5, 2, 4)
    with pytest.raises(InputError, match=r"layer 'first' sees a tensor of shape \[7, 4\] for 5 samples"):
        view.to_inputs(use_of(torch.zeros(7, 3)), 5)


def test_leading_factors_are_positions_of_a_sample(mixed):
    view = fl.find_layers(mixed, bias="ignore")["body.0"]
    x = torch.arange(24.0).reshape(6, 4)
    assert torch.equal(view.to_inputs(use_of(x), 3)[1], x[2:4])
    g = torch.arange(48.0).reshape(2, 6, 4)
    assert torch.equal(view.to_outputs(g, use_of(x), 3)[1, 2], g[1, 4:6])


@pytest.mark.parametrize("batch_dim", [1, -2])
def test_samples_can_be_counted_by_another_dimension(mixed, batch_dim):
    view = fl.find_layers(mixed, bias="ignore")["body.0"]
    x = torch.arange(24.0).reshape(3, 2, 4)
    a = view.to_inputs(use_of(x), 2, batch_dim)
    assert torch.equal(a, x.transpose(0, 1))
    g = torch.arange(48.0).reshape(2, 3, 2, 4)
    assert torch.equal(view.to_outputs(g, use_of(x), 2, batch_dim), g.transpose(1, 2))


def test_gradients_make_one_matrix(mixed):
    view = fl.find_layers(mixed)["first"]
    gradients = {"first.weight": torch.zeros(2, 4, 3), "first.bias": torch.ones(2, 4)}
    matrix = view.to_matrix(gradients)
    assert matrix.shape == (2, 4, 4)
    assert torch.equal(matrix[..., -1], torch.ones(2, 4))


def test_shapes_without_a_module():
    assert BlockShape("layer", 3, 5).size == 15
    assert "first: Linear 4×4" in repr(fl.find_layers(Mixed()))
