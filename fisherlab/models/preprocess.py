"""From a data set to what a model takes: images scaled, tokens, and the targets."""

from torch import Tensor

from fisherlab.collect.forms import IGNORED
from fisherlab.datasets.dataset import Dataset
from fisherlab.errors import InputError

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CHANNELS = {
    "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "imagenet": _IMAGENET,
    "imagefolder": _IMAGENET,
}
"""For each data set the mean and the standard deviation of its channels over the training images.

A folder of one's own takes ImageNet's, with which its network was most likely trained.
"""


def images(data: Dataset, *shape: int | None) -> Tensor:
    """The images [n, *shape] of a data set; None in `shape` stands for any size.

    Raises:
        InputError: if the data set holds something else.
    """
    inputs = data.inputs
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and _fits(inputs.shape[1:], shape):
        return inputs
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise InputError(
        f"the model takes images [n, {wanted}], which the data set {data.name!r} does not hold; "
        f"choose another data set."
    )


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape has the sizes that are wanted."""
    return len(found) == len(wanted) and all(
        want in (None, size) for want, size in zip(wanted, found, strict=True)
    )


def colour_images(data: Dataset) -> Tensor:
    """Images [n, 3, h, w] of any size, (x − mean) / deviation for each channel of the data set.

    Raises:
        InputError: if the data set has no colour images, or none with known means.
    """
    if data.name not in _CHANNELS:
        raise InputError(
            f"the model takes colour images, from {' or '.join(sorted(_CHANNELS))}, "
            f"not from the data set {data.name!r}."
        )
    found = images(data, 3, None, None)
    mean, deviation = (found.new_tensor(values).reshape(3, 1, 1) for values in _CHANNELS[data.name])
    return (found - mean) / deviation


def small_images(data: Dataset) -> Tensor:
    """As `colour_images`, for images [n, 3, 32, 32] only."""
    images(data, 3, 32, 32)
    return colour_images(data)


def classes(data: Dataset) -> Tensor:
    """The targets of a data set as they are, such as the classes int64 [n]."""
    return data.targets


def vocabulary(data: Dataset) -> int:
    """The number of tokens in the vocabulary of a text.

    Raises:
        InputError: if the data set is no text.
    """
    if not data.vocabulary:
        raise InputError(f"the data set {data.name!r} has no vocabulary; the model takes text.")
    return len(data.vocabulary)


def text(data: Dataset) -> Tensor:
    """Tokens int64 [n, t] of a text.

    Raises:
        InputError: if the data set is no text, or holds pairs of texts.
    """
    vocabulary(data)
    if not isinstance(data.inputs, Tensor):
        raise InputError(f"the data set {data.name!r} holds pairs of texts; the model takes single ones.")
    return data.inputs


def text_pairs(data: Dataset) -> tuple[Tensor, ...]:
    """Source int64 [n, s] and target input int64 [n, t] of a translation set.

    Raises:
        InputError: if the data set does not hold pairs of texts.
    """
    vocabulary(data)
    if not isinstance(data.inputs, tuple):
        raise InputError(f"the data set {data.name!r} holds single texts; the model takes pairs of texts.")
    return data.inputs


def next_tokens(data: Dataset) -> Tensor:
    """The next tokens int64 [n, t], with `IGNORED` in place of padding.

    A mark outside the vocabulary keeps the padding token itself a possible draw of the model.
    """
    return (
        data.targets
        if data.padding is None
        else data.targets.masked_fill(data.targets == data.padding, IGNORED)
    )
