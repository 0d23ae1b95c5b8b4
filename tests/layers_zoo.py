"""Small networks in float64, one or more for every kind of layer that has a Fisher block."""

from collections.abc import Callable
from functools import cache

import torch
from model_cases import Net
from torch import Tensor, nn
from torch.nn import functional
from zoo_reference import Case, Sample, samples_of

# --- networks -----------------------------------------------------------------------------------------


def mean(channels_last: bool = False) -> Net:
    """The mean over positions: dimensions 2, 3, … of images, dimensions 1, … of sequences."""
    return Net(lambda net, x: x.flatten(1, -2).mean(1) if channels_last else x.flatten(2).mean(2))


def frames(net: Net, x: Tensor) -> Tensor:
    """Sequences of images [n, k, c, h, w]: each image by itself, as one batch of n·k."""
    each = net.conv(x.flatten(0, 1)).tanh().flatten(2).mean(2)
    return net.head(each.unflatten(0, x.shape[:2]).square().sum(1))


class Recurrent(nn.Module):
    """One Linear called at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(2, 4)
        self.step = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            state = torch.tanh(self.step(state + self.read(x[:, t])))
        return self.head(state)


class Tied(nn.Module):
    """Two layers share their weight, and their bias too or not."""

    def __init__(self, share_bias: bool, convolution: bool = False) -> None:
        super().__init__()
        make = (lambda: nn.Conv1d(4, 4, 3, padding=1)) if convolution else (lambda: nn.Linear(4, 4))
        self.first, self.second = make(), make()
        self.second.weight = self.first.weight
        if share_bias:
            self.second.bias = self.first.bias
        self.pool = mean() if convolution else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.second(self.first(x).tanh()).sigmoid()))


def two_inputs() -> Net:
    return Net(
        lambda net, x, z: net.head(net.left(x).tanh() * net.right(z).tanh().mean(2)),
        left=nn.Linear(3, 4),
        right=nn.Conv1d(2, 4, 2),
        head=nn.Linear(4, 3),
    )


class Attending(nn.Module):
    """One attention over sequences [n, t, e]; with a second input it is the keys and values."""

    def __init__(self, mask: str = "", **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.head = nn.Linear(4, 3)
        self.mask, self.values = mask, options.get("vdim", 4)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        values = context[..., : self.values]
        options = {}
        if self.mask == "causal":
            options["attn_mask"] = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.mask == "by head":  # numbers to add, [n·heads, t, t]
            distances = torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)
            both = (distances[:, None] - distances).abs() * torch.tensor([0.5, -0.2], dtype=x.dtype).view(
                2, 1, 1
            )
            options["attn_mask"] = both.repeat(len(x), 1, 1)
        if self.mask == "padding":
            hidden = context[..., 0] > 0.5
            hidden[:, 0] = False
            options["key_padding_mask"] = hidden
        if self.attention.batch_first:
            out, weights = self.attention(x, context, values, **options)
            return self.head(out.tanh().mean(1)) + weights[..., :3].square().sum(1)
        x, context, values = (z.transpose(0, 1) for z in (x, context, values))
        out, _ = self.attention(x, context, values, need_weights=False, **options)
        return self.head(out.tanh().mean(0))


def encoder() -> Net:
    """PyTorch's own encoder layer."""
    return Net(
        lambda net, x: net.head(net.layer(x).tanh().mean(1)),
        layer=nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True, norm_first=True),
        head=nn.Linear(4, 3),
    )


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(5, 4), nn.Embedding(4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.RMSNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token(tokens) + self.position(torch.arange(length).expand_as(tokens))
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=hidden, need_weights=False)[0]
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x)


# --- the zoo ------------------------------------------------------------------------------------------

SAMPLES = 6
TIED = {"first": torch.tanh, "second": torch.sigmoid}


def images(*layers: nn.Module, width: int, shape: tuple[int, ...], **options) -> Case:
    """Layers on images, the mean over positions, and a last Linear."""
    return finished(nn.Sequential(*layers, mean(), nn.Linear(width, 3)), numbers(*shape), **options)


def finished(model: nn.Module, *inputs: Tensor, **options) -> Case:
    """Weights and statistics far from those at the start, so that methods differ visibly."""
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("running_var",)):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.mul_(1.5).add_(0.3 * torch.randn_like(tensor))
    with torch.no_grad():
        outputs = model(*inputs)
    options.setdefault("targets", torch.arange(len(outputs)) % outputs.shape[-1])
    return Case(model, inputs, **options)


def numbers(*shape: int, samples: int = SAMPLES) -> Tensor:
    """Not centred, and larger from sample to sample."""
    x = torch.randn(samples, *shape, dtype=torch.float64)
    return x * torch.linspace(0.3, 2.0, samples, dtype=x.dtype).view(-1, *[1] * len(shape)) + 0.2


def tokens(length: int, words: int) -> Tensor:
    return torch.randint(words, (SAMPLES, length)).minimum(torch.randint(words, (SAMPLES, length)))


def conv2d(**options) -> Case:
    return images(
        nn.Conv2d(2, 3, 3, **options), nn.Tanh(), width=3, shape=(2, 5, 4), activations={"0": torch.tanh}
    )


def normed(norm: nn.Module, *shape: int) -> Case:
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(shape) - 1]
    return images(convolution(shape[0], 4, 2), norm, nn.Tanh(), width=4, shape=shape)


def sequence(*layers: nn.Module, width: int, inputs: Tensor, **options) -> Case:
    return finished(nn.Sequential(*layers, mean(True), nn.Linear(width, 3)), inputs, **options)


def attending(model: nn.Module, *inputs: Tensor) -> Case:
    return finished(model, *inputs, activations={"attention.out_proj": torch.tanh})


ZOO: dict[str, Callable[[], Case]] = {
    **{
        f"conv2d {mode}": lambda mode=mode: conv2d(padding=(1, 2), padding_mode=mode)
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
    "conv2d same": lambda: images(
        nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), width=3, shape=(2, 4, 5)
    ),
    "conv2d same reflect": lambda: images(
        nn.Conv2d(2, 3, (2, 3), padding="same", padding_mode="reflect"),
        nn.Sigmoid(),
        width=3,
        shape=(2, 4, 5),
        activations={"0": torch.sigmoid},
    ),
    "conv2d strided": lambda: images(
        nn.Conv2d(2, 3, (2, 3), stride=(2, 1), dilation=(1, 2), padding=1, bias=False),
        nn.ReLU(inplace=True),
        width=3,
        shape=(2, 5, 6),
        activations={"0": torch.relu},
    ),
    "conv2d grouped": lambda: images(
        nn.Conv2d(4, 6, 2, groups=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 6, 2, groups=3, bias=False),
        nn.Softplus(),
        width=6,
        shape=(4, 3, 3),
        activations={"0": torch.tanh, "2": functional.softplus},
    ),
    "conv2d depthwise": lambda: images(
        nn.Conv2d(3, 6, (3, 1), groups=3, padding_mode="circular", padding=1),
        nn.Conv2d(6, 3, 1),
        nn.Tanh(),
        width=3,
        shape=(3, 4, 3),
        activations={"1": torch.tanh},
    ),
    "conv2d whole": lambda: finished(
        nn.Sequential(nn.Conv2d(2, 4, (3, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)),
        numbers(2, 3, 2),
        activations={"0": torch.tanh},
    ),
    "conv2d grouped whole": lambda: finished(
        nn.Sequential(nn.Conv2d(4, 6, (2, 1), groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)),
        numbers(4, 2, 1),
        activations={"0": torch.tanh},
    ),
    "conv1d": lambda: images(
        nn.Conv1d(3, 4, 3, stride=2, padding=2, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv1d(4, 3, 2, dilation=2),
        width=3,
        shape=(3, 7),
        activations={"0": torch.tanh},
    ),
    "conv3d": lambda: images(nn.Conv3d(2, 3, 2, padding=(1, 0, 0)), width=3, shape=(2, 2, 3, 3)),
    "transposed 1d": lambda: images(
        nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1),
        nn.Tanh(),
        width=4,
        shape=(3, 4),
        activations={"0": torch.tanh},
    ),
    "transposed 2d": lambda: images(
        nn.ConvTranspose2d(2, 3, (2, 3), stride=(2, 1), dilation=(2, 1), padding=(1, 0)),
        nn.Tanh(),
        width=3,
        shape=(2, 3, 2),
        activations={"0": torch.tanh},
    ),
    "transposed 3d": lambda: images(
        nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 1), bias=False), width=3, shape=(2, 2, 2, 2)
    ),
    "transposed grouped": lambda: images(
        nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2),
        nn.Tanh(),
        width=6,
        shape=(4, 2, 2),
        activations={"0": torch.tanh},
    ),
    "sequence": lambda: sequence(
        nn.Linear(3, 4), nn.Tanh(), width=4, inputs=numbers(5, 3), activations={"0": torch.tanh}
    ),
    "grid": lambda: sequence(
        nn.Linear(3, 4), nn.GELU(), width=4, inputs=numbers(2, 3, 3), activations={"0": functional.gelu}
    ),
    "frames": lambda: finished(
        Net(frames, conv=nn.Conv2d(2, 3, 2), head=nn.Linear(3, 3)),
        numbers(3, 2, 3, 3),
        activations={"conv": torch.tanh},
    ),
    "embedding": lambda: sequence(
        nn.Embedding(6, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
        width=3,
        inputs=tokens(4, 6),
        activations={"0": torch.tanh},
    ),
    "embedding one": lambda: finished(
        nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 3)),
        tokens(1, 5)[:, 0],
        activations={"0": torch.tanh},
    ),
    "embedding padded": lambda: sequence(
        nn.Embedding(5, 3, padding_idx=0), width=3, inputs=torch.cat([tokens(3, 5), tokens(1, 4) + 1], 1)
    ),
    "batch norm 1d": lambda: finished(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)), numbers(3)
    ),
    "batch norm 2d": lambda: normed(nn.BatchNorm2d(4), 2, 3, 4),
    "batch norm 3d": lambda: normed(nn.BatchNorm3d(4), 2, 2, 3, 3),
    "group norm": lambda: normed(nn.GroupNorm(2, 4), 2, 3, 4),
    "instance norm": lambda: normed(nn.InstanceNorm1d(4, affine=True), 2, 5),
    "layer norm": lambda: sequence(
        nn.Linear(3, 4), nn.LayerNorm((5, 4)), nn.Tanh(), width=4, inputs=numbers(5, 3)
    ),
    "rms norm": lambda: sequence(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh(), width=4, inputs=numbers(5, 3)),
    "attention": lambda: attending(Attending(batch_first=True), numbers(4, 4)),
    "attention causal": lambda: attending(Attending("causal"), numbers(4, 4)),
    "attention padded": lambda: attending(Attending("padding", bias=False, batch_first=True), numbers(4, 4)),
    "attention by head": lambda: attending(Attending("by head", batch_first=True), numbers(3, 4)),
    "attention extra": lambda: attending(
        Attending("padding", add_bias_kv=True, add_zero_attn=True), numbers(3, 4)
    ),
    "attention cross": lambda: attending(Attending(), numbers(2, 4), numbers(3, 4)),
    "attention kdim": lambda: attending(
        Attending("padding", batch_first=True, kdim=3, vdim=2), numbers(2, 4), numbers(3, 3)
    ),
    "encoder": lambda: finished(encoder(), numbers(3, 4), activations={"layer.linear1": torch.relu}),
    "recurrent": lambda: finished(Recurrent(), numbers(3, 2), activations={"step": torch.tanh}),
    "tied": lambda: finished(Tied(share_bias=True), numbers(4), activations=TIED),
    "tied weights": lambda: finished(Tied(share_bias=False), numbers(4), activations=TIED),
    "tied convolutions": lambda: finished(
        Tied(share_bias=True, convolution=True), numbers(4, 4), activations=TIED
    ),
    "two inputs": lambda: finished(
        two_inputs(), numbers(3), numbers(2, 4), activations={"left": torch.tanh, "right": torch.tanh}
    ),
    "language model": lambda: finished(
        LanguageModel(),
        tokens(4, 5),
        targets=tokens(4, 5),
        likelihood="token-categorical",
        activations={"up": functional.gelu},
    ),
}


@cache
def zoo(name: str) -> Case:
    with torch.random.fork_rng([]):
        torch.manual_seed(sum(map(ord, name)))
        return ZOO[name]()


ONE_BASIS = [name for name in ZOO if name not in ("transposed 3d", "transposed grouped")]
"""A stride without overlap gives the places of the kernel equal eigenvalues, and EKFAC many bases."""


@cache
def seen(name: str, kind: str = "predictive") -> list[Sample]:
    """Every sample of a case by itself."""
    return samples_of(zoo(name), kind)
