"""How each kind of layer is found: its name, its size, its parameters, and the reasons of the others."""

import pytest
import torch
from layers_zoo import Attending, LanguageModel, Recurrent, Tied, encoder
from model_cases import Net
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.errors import InputError


def sizes(model: nn.Module, **options) -> dict[str, tuple[int, int]]:
    return {name: (view.outputs, view.inputs) for name, view in fl.find_layers(model, **options).items()}


def reasons(model: nn.Module) -> dict[str, str]:
    table = fl.find_layers(model).coverage()
    return dict(zip(table["parameter"], table["reason"], strict=True))


SIZES = {
    nn.Linear(3, 2): (2, 4),
    nn.Conv1d(3, 4, 5): (4, 16),
    nn.Conv2d(3, 4, (5, 2), bias=False): (4, 30),
    nn.Conv3d(2, 4, 2): (4, 17),
    nn.Conv2d(6, 9, 2, groups=3): (9, 9),
    nn.Conv2d(6, 6, 3, groups=6): (6, 10),
    nn.ConvTranspose1d(3, 4, 5): (4, 16),
    nn.ConvTranspose2d(3, 4, (5, 2), bias=False): (4, 30),
    nn.ConvTranspose3d(2, 4, 2): (4, 17),
    nn.ConvTranspose2d(4, 6, 2, groups=2): (6, 9),
    nn.Embedding(7, 3): (3, 7),
    nn.BatchNorm1d(5): (10, 1),
    nn.BatchNorm2d(5): (10, 1),
    nn.BatchNorm3d(5): (10, 1),
    nn.GroupNorm(2, 4): (8, 1),
    nn.InstanceNorm2d(3, affine=True): (6, 1),
    nn.LayerNorm((3, 4)): (24, 1),
    nn.LayerNorm(4, bias=False): (4, 1),
    nn.RMSNorm(4): (4, 1),
}


def described(module: nn.Module) -> str:
    return repr(module).replace(" ", "")


@pytest.mark.parametrize("module", SIZES, ids=described)
def test_sizes_with_a_joint_bias(module):
    assert sizes(nn.Sequential(nn.ReLU(), module)) == {"1": SIZES[module]}


@pytest.mark.parametrize("module", SIZES, ids=described)
def test_sizes_without_and_beside_the_bias(module):
    m, d = SIZES[module]
    weight, bias = module.weight, getattr(module, "bias", None)
    if d == 1:
        alone, own = (weight.numel(), 1), bias is not None and (bias.numel(), 1)
    else:
        alone, own = (m, d - (bias is not None)), bias is not None and (m, 1)
    model = nn.Sequential(nn.ReLU(), module)
    assert sizes(model, bias="ignore") == {"1": alone}
    assert sizes(model, bias="separate") == ({"1": alone, "1.bias": own} if own else {"1": alone})


@pytest.mark.parametrize("module", SIZES, ids=described)
def test_a_block_has_as_many_numbers_as_its_parameters(module):
    view = fl.find_layers(nn.Sequential(module))["0"]
    assert view.size == sum(parameter.numel() for parameter in module.parameters())
    assert view.parameters == tuple(f"0.{name}" for name, _ in module.named_parameters())
    assert view.groups == getattr(module, "groups", 1)
    assert view.family == type(module).__name__


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(3, affine=False),
        nn.InstanceNorm1d(3),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.RMSNorm(3, elementwise_affine=False),
    ],
    ids=described,
)
def test_a_norm_without_parameters_has_no_block(module):
    assert list(fl.find_layers(nn.Sequential(nn.Linear(3, 3), module))) == ["0"]


# --- attention ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_blocks_of_attention(batch_first):
    model = Attending(batch_first=batch_first)
    assert sizes(model) == {
        "attention.q": (4, 5),
        "attention.k": (4, 5),
        "attention.v": (4, 5),
        "attention.out_proj": (4, 5),
        "head": (3, 5),
    }
    assert sizes(model, bias="ignore")["attention.v"] == (4, 4)
    separate = sizes(model, bias="separate")
    for part in ("q", "k", "v", "out_proj"):
        assert separate[f"attention.{part}"] == (4, 4)
        assert separate[f"attention.{part}.bias"] == (4, 1)


def test_blocks_of_attention_with_other_keys_and_values():
    found = sizes(Attending(kdim=3, vdim=2))
    assert [found[f"attention.{part}"] for part in "qkv"] == [(4, 5), (4, 4), (4, 3)]
    found = sizes(Attending(kdim=3, vdim=2, bias=False))
    assert [found[f"attention.{part}"] for part in "qkv"] == [(4, 4), (4, 3), (4, 2)]


def test_parts_of_attention_are_chosen_by_name():
    model = Attending()
    assert list(fl.find_layers(model, "attention.?")) == ["attention.q", "attention.k", "attention.v"]
    assert list(fl.find_layers(model, exclude="attention.*")) == ["head"]


def test_further_keys_of_attention_have_no_block():
    found = reasons(Attending(add_bias_kv=True))
    assert found["attention.bias_k"]
    assert found["attention.bias_v"]
    assert not found["attention.in_proj_weight"]


def test_blocks_of_an_encoder_layer():
    found = sizes(encoder())
    assert list(found) == [
        *(f"layer.self_attn.{part}" for part in ("q", "k", "v", "out_proj")),
        "layer.linear1",
        "layer.linear2",
        "layer.norm1",
        "layer.norm2",
        "head",
    ]
    assert found["layer.norm1"] == (8, 1)


def test_every_parameter_of_a_language_model_is_covered():
    model = LanguageModel()
    table = fl.find_layers(model).coverage()
    assert set(table["parameter"]) == {name for name, _ in model.named_parameters()}
    assert table["covered"].all()
    numbers = sum(view.size for view in fl.find_layers(model).values())
    assert numbers == sum(parameter.numel() for parameter in model.parameters())


# --- shared parameters ------------------------------------------------------------------------------------


def test_a_shared_weight_is_one_block():
    assert sizes(Tied(share_bias=True)) == {"first": (4, 5), "head": (3, 5)}
    assert sizes(Tied(share_bias=False)) == {
        "first": (4, 4),
        "first.bias": (4, 1),
        "second.bias": (4, 1),
        "head": (3, 5),
    }
    assert sizes(Recurrent()) == {"read": (4, 3), "step": (4, 5), "head": (3, 5)}


def test_a_weight_shared_by_layers_of_different_kinds_has_one_block():
    model = LanguageModel()
    model.head.weight = model.token.weight
    found = fl.find_layers(model)
    assert found["token"].parameters == ("token.weight",)
    assert found["token"].by_gradients
    assert "head" not in found
    reason = reasons(model)["token.weight"]
    assert "Embedding" in reason
    assert "Linear" in reason


class Elsewhere(nn.Module):
    """A weight that is used outside of its layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.again = nn.ParameterList([self.layer.weight])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x) @ self.again[0])


def test_a_weight_that_another_module_holds_is_made_of_gradients():
    found = fl.find_layers(Elsewhere())
    assert found["layer"].by_gradients
    assert not found["layer.bias"].by_gradients
    assert "again" in reasons(Elsewhere())["layer.weight"]


# --- refusals -------------------------------------------------------------------------------------------


def own_positions() -> Net:
    """Positions are looked up once, without the samples."""
    return Net(
        lambda net, x: net.head((net.token(x) + net.position(torch.arange(3))).tanh().mean(1)),
        token=nn.Embedding(5, 4),
        position=nn.Embedding(3, 4),
        head=nn.Linear(4, 3),
    )


def test_an_output_without_samples_is_that_of_every_sample():
    model, x = own_positions().double(), torch.randint(5, (4, 3))
    F = fl.exact_fisher(model, (x, None))
    expected = fl.exact_fisher(model, (x, None), method="per-sample")
    assert list(F) == ["token", "position", "head"]
    for name in F:
        assert torch.allclose(F[name].dense(), expected[name].dense(), rtol=1e-12, atol=1e-15)


def test_batches_of_one_input_without_a_sample_dimension_are_refused():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(0))
    with pytest.raises(InputError):
        fl.exact_fisher(model, (torch.randn(2, 4), None), "gaussian")


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("module", [Scaled(1, 2, 3)], ids=described)
def test_modules_of_other_kinds_are_named(module):
    model = nn.Sequential(nn.Linear(2, 2), module)
    layers = fl.find_layers(model)
    own = [f"1.{name}" for name, _ in module.named_parameters()]
    assert list(layers) == ["0", *own]
    assert {layers[name].family for name in own} == {"Parameter"}
    found = [reason for name, reason in reasons(model).items() if name.startswith("1.")]
    assert all(type(module).__name__ in reason for reason in found)


def test_an_embedding_that_renormalises_itself_is_refused():
    model = nn.Sequential(nn.Embedding(4, 3, max_norm=1.0), nn.Linear(3, 2))
    assert list(fl.find_layers(model)) == ["1"]
    assert reasons(model)["0.weight"]
