"""Small networks in float64 NumPy with hand-written derivatives, each sample kept apart."""

from dataclasses import dataclass, field

import numpy as np
from torch import nn

Array = np.ndarray


@dataclass
class Block:
    """A layer s_t = W a_t, W [m, d]; a bias is the last column of W, and 1 the last entry of a_t."""

    W: Array
    bias: bool
    a: Array = field(init=False)  # [n, t, d]
    s: Array = field(init=False)  # [n, t, m]
    g: Array = field(init=False)  # [n, t, m], derivative of each sample's own loss with respect to s

    def respond(self, a: Array) -> Array:
        """s [n, t, m] of inputs [n, t, d without the bias]; keeps both."""
        self.a = np.concatenate([a, np.ones((*a.shape[:2], 1))], axis=2) if self.bias else a
        self.s = self.a @ self.W.T
        return self.s

    def pull_back(self, g: Array) -> Array:
        """Derivative with respect to the inputs [n, t, d without the bias]; keeps g."""
        self.g = g
        return g @ (self.W[:, :-1] if self.bias else self.W)

    def per_sample(self) -> Array:
        """V_n = Σ_t g_t a_tᵀ, [n, m, d]."""
        return np.einsum("ntm,ntd->nmd", self.g, self.a)


class Linear(Block):
    """A layer on vectors [n, d]: one position."""

    def forward(self, x: Array) -> Array:
        return self.respond(x[:, None])[:, 0]

    def backward(self, g: Array) -> Array:
        return self.pull_back(g[:, None])[:, 0]


@dataclass
class Conv(Block):
    """A convolution of images [n, c, h, w]: one position an output pixel; a_t is its patch, channel first."""

    kernel: int = 3
    stride: int = 1
    padding: int = 1

    def forward(self, x: Array) -> Array:
        p, k = self.padding, self.kernel
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        self.padded = x.shape
        self.size = [(side - k) // self.stride + 1 for side in x.shape[2:]]
        patches = [x[:, :, rows, columns].reshape(len(x), -1) for rows, columns in self.windows()]
        s = self.respond(np.stack(patches, axis=1))
        return s.transpose(0, 2, 1).reshape(len(x), -1, *self.size)

    def backward(self, g: Array) -> Array:
        n, channels = self.padded[:2]
        patches = self.pull_back(g.reshape(n, len(self.W), -1).transpose(0, 2, 1))
        x = np.zeros(self.padded)
        for t, (rows, columns) in enumerate(self.windows()):
            x[:, :, rows, columns] += patches[:, t].reshape(n, channels, self.kernel, self.kernel)
        p = self.padding
        return x[:, :, p : x.shape[2] - p, p : x.shape[3] - p]

    def windows(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the patch of each position, in the order of positions."""
        rows, columns = (
            [slice(i * self.stride, i * self.stride + self.kernel) for i in range(s)] for s in self.size
        )
        return [(row, column) for row in rows for column in columns]


@dataclass
class Affine:
    """A scale and a shift for each channel, W [2, c]: parameters of no Fisher block."""

    W: Array

    def forward(self, x: Array) -> Array:
        self.x = x
        scale, shift = (row.reshape(-1, *[1] * (x.ndim - 2)) for row in self.W)
        return scale * x + shift

    def backward(self, g: Array) -> Array:
        self.g = g
        return self.W[0].reshape(-1, *[1] * (g.ndim - 2)) * g

    def per_sample(self) -> Array:
        n, c = self.g.shape[:2]
        return np.stack([part.reshape(n, c, -1).sum(2) for part in (self.g * self.x, self.g)], axis=1)


@dataclass
class Activation:
    """φ, element-wise: "relu" (with slope 0 at 0) or "tanh"."""

    name: str

    def forward(self, x: Array) -> Array:
        self.x = x
        return np.maximum(x, 0) if self.name == "relu" else np.tanh(x)

    def backward(self, g: Array) -> Array:
        return g * self.slope(self.x)

    def slope(self, s: Array) -> Array:
        return (s > 0).astype(float) if self.name == "relu" else 1 - np.tanh(s) ** 2


class Pool:
    """The mean over all pixels, [n, c, h, w] to [n, c, 1, 1]."""

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return x.mean(axis=(2, 3), keepdims=True)

    def backward(self, g: Array) -> Array:
        return np.broadcast_to(g / (self.shape[2] * self.shape[3]), self.shape)


class Flatten:
    """[n, ...] to [n, d]."""

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, g: Array) -> Array:
        return g.reshape(self.shape)


Layer = Linear | Conv | Affine | Activation | Pool | Flatten


@dataclass
class Record:
    """One layer in one pass, by sample: a [n, t, d]; s, slope φ'(s) and g [n, t, m]; V [n, m, d]."""

    a: Array
    s: Array
    slope: Array
    g: Array
    V: Array


@dataclass
class Network:
    """Layers one after another; likelihood "categorical" (cross-entropy) or "gaussian" (½‖y − f‖²)."""

    layers: dict[str, Layer]
    likelihood: str

    @property
    def parameters(self) -> dict[str, Linear | Conv | Affine]:
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, Block | Affine)}

    @property
    def weights(self) -> dict[str, Array]:
        """Copies of all parameters: W [m, d] of a block, [2, c] (scale, shift) of an affine layer."""
        return {name: layer.W.copy() for name, layer in self.parameters.items()}

    def forward(self, x: Array) -> Array:
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def losses(self, x: Array, y: Array) -> Array:
        """The loss of each sample, [n]; h is their mean."""
        f = self.forward(x)
        if self.likelihood == "gaussian":
            return 0.5 * ((y - f) ** 2).sum(1)
        return -np.log(softmax(f)[np.arange(len(f)), y])

    def backward(self, x: Array, y: Array) -> dict[str, Array]:
        """Gradients of each sample's own loss, [n, *W.shape] by parameter; the layers keep a, s and g."""
        f = self.forward(x)
        g = f - y if self.likelihood == "gaussian" else softmax(f) - np.eye(f.shape[1])[y]
        for layer in reversed(self.layers.values()):
            g = layer.backward(g)
        return {name: layer.per_sample() for name, layer in self.parameters.items()}

    def records(self, x: Array, y: Array, last: str = "identity") -> dict[str, Record]:
        """One record a block, with the labels y (the data's, or drawn ones)."""
        V = self.backward(x, y)
        blocks = {name: layer for name, layer in self.layers.items() if isinstance(layer, Block)}
        return {
            name: Record(block.a, block.s, self.slope(name, last), block.g, V[name])
            for name, block in blocks.items()
        }

    def slope(self, name: str, last: str) -> Array:
        """φ'(s) of the activation right after the layer, 1 where there is none.

        Of the layer that gives f, with last="categorical": √(p(1 − p)), so that its square is p(1 − p).
        """
        names = list(self.layers)
        s, after = self.layers[name].s, names[names.index(name) + 1 :]
        if not after and last == "categorical":
            p = softmax(s)
            return np.sqrt(p * (1 - p))
        follower = self.layers[after[0]] if after else None
        return follower.slope(s) if isinstance(follower, Activation) else np.ones_like(s)


def softmax(f: Array) -> Array:
    e = np.exp(f - f.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def from_torch(model: nn.Sequential, likelihood: str) -> Network:
    """The same network, with the same names; a module of one's own with weight and bias [c] is `Affine`."""
    return Network({name: _converted(module) for name, module in model.named_children()}, likelihood)


def _converted(module: nn.Module) -> Layer:
    match module:
        case nn.Linear():
            return Linear(_joint(module), module.bias is not None)
        case nn.Conv2d(groups=1, dilation=(1, 1), padding_mode="zeros"):
            (kernel, _), (stride, _), (padding, _) = module.kernel_size, module.stride, module.padding
            return Conv(
                _joint(module), module.bias is not None, kernel=kernel, stride=stride, padding=padding
            )
        case nn.ReLU() | nn.Tanh():
            return Activation(type(module).__name__.lower())
        case nn.AdaptiveAvgPool2d(output_size=1):
            return Pool()
        case nn.Flatten():
            return Flatten()
        case _ if not type(module).__module__.startswith("torch."):
            return Affine(np.stack([_numpy(module.weight), _numpy(module.bias)]))
    raise NotImplementedError(f"the reference knows no {module}")


def _joint(module: nn.Module) -> Array:
    W = _numpy(module.weight).reshape(len(module.weight), -1)
    return W if module.bias is None else np.column_stack([W, _numpy(module.bias)])


def _numpy(tensor) -> Array:
    return tensor.detach().cpu().double().numpy().copy()
