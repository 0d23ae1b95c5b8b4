"""Convolutions, plain and transposed, in one to three dimensions: a_t is the patch under position t."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from fisherlab.errors import InputError
from fisherlab.gradients.patches import Patches
from fisherlab.layers.adapter import Adapter, class_name, register_layer


class _ChannelAdapter(Adapter):
    """A weight in G groups, and outputs of which the second dimension counts channels."""

    sample_first: ClassVar[bool] = True

    def groups(self, module: Any) -> int:
        """G."""
        return module.groups

    def outputs(self, module: Any, g: Tensor) -> Tensor:
        """[c, l, out, …] as [c, l, t, out]."""
        return g.flatten(3).transpose(2, 3)


class ConvolutionAdapter(_ChannelAdapter):
    """W is weight.flatten(1) [out, in/G·k]; any stride, padding mode, dilation and groups."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def shape(self, module: Any) -> tuple[int, int]:
        """[out_channels, in_channels/G · kernel size]."""
        return module.out_channels, module.weight[0].numel()

    def inputs(self, module: Any, x: Tensor, output: Tensor) -> Tensor | Patches:
        """The padded input as patches, channels before places of the kernel: [l, t, in·k]."""
        _check_dimensions(module, x)
        found = Patches(_padded(module, x), module.kernel_size, module.stride, module.dilation)
        return found if module.groups == 1 else found.unfolded()

    def applied(self, module: Any, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """The convolution of the padded input."""
        convolve = getattr(functional, f"conv{len(module.kernel_size)}d")
        padded = _padded(module, x)
        return convolve(padded, weight, None, module.stride, 0, module.dilation, module.groups)


class TransposedConvolutionAdapter(_ChannelAdapter):
    """W is weight.transpose(0, 1).flatten(1) [out, in/G·k], group by group.

    Position t of the output sees the inputs, with `stride − 1` zeros between them, under the flipped kernel.
    """

    modules: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
    )

    def shape(self, module: Any) -> tuple[int, int]:
        """[out_channels, in_channels/G · kernel size]."""
        return module.out_channels, module.weight[:, 0].numel() // module.groups

    def inputs(self, module: Any, x: Tensor, output: Tensor) -> Tensor:
        """[l, t, in·k]; the output's size decides the padding on the right (`output_size`)."""
        _check_dimensions(module, x)
        spaced = x.new_zeros(
            *x.shape[:2],
            *((size - 1) * step + 1 for size, step in zip(x.shape[2:], module.stride, strict=True)),
        )
        places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in module.stride))
        spaced[places] = x
        sides: list[int] = []
        for place, size in enumerate(output.shape[2:]):
            reach = module.dilation[place] * (module.kernel_size[place] - 1)
            left = reach - module.padding[place]
            right = size + reach - spaced.shape[2 + place] - left
            sides = [left, right, *sides]
        dimensions = len(module.kernel_size)
        padded = functional.pad(spaced, sides)
        unfolded = Patches(padded, module.kernel_size, (1,) * dimensions, module.dilation).unfolded()
        kernel = unfolded.unflatten(-1, (x.shape[1], *module.kernel_size))
        return kernel.flip(tuple(range(-dimensions, 0))).flatten(2)

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        """[..., in, out/G, k…] as [..., out, in/G·k]."""
        flat = weight.flatten(weight.dim() - len(module.kernel_size))
        grouped = flat.unflatten(-3, (module.groups, -1)).transpose(-3, -2)
        return grouped.flatten(-4, -3).flatten(-2)

    def weight(self, module: Any, matrix: Tensor) -> Tensor:
        """[out, in/G·k] as [in, out/G, k…]."""
        by_group = matrix.unflatten(0, (module.groups, -1)).unflatten(-1, (-1, *module.kernel_size))
        return by_group.transpose(1, 2).flatten(0, 1)

    def applied(self, module: Any, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """The transposed convolution to the size of the output."""
        convolve = getattr(functional, f"conv_transpose{len(module.kernel_size)}d")
        extra = []
        for place, size in enumerate(output.shape[2:]):
            reach = module.dilation[place] * (module.kernel_size[place] - 1) - 2 * module.padding[place]
            extra.append(size - (x.shape[2 + place] - 1) * module.stride[place] - reach - 1)
        own = module.stride, module.padding, tuple(extra), module.groups, module.dilation
        return convolve(x, weight, None, *own)


def _padded(module: Any, x: Tensor) -> Tensor:
    sides = module._reversed_padding_repeated_twice
    if not any(sides):
        return x
    return functional.pad(x, sides, "constant" if module.padding_mode == "zeros" else module.padding_mode)


def _check_dimensions(module: Any, x: Tensor) -> None:
    if x.dim() != len(module.kernel_size) + 2:
        raise InputError(
            f"a {class_name(type(module))} sees a tensor of shape {list(x.shape)}; give inputs with a "
            "first dimension for the samples"
        )


for _adapter in (ConvolutionAdapter(), TransposedConvolutionAdapter()):
    register_layer(_adapter)
