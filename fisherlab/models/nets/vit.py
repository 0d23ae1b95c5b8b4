"""vit-tiny: a small vision transformer for images of 32x32."""

from torch import Tensor, nn

from fisherlab.models.nets.blocks import TransformerBlock, places
from fisherlab.models.preprocess import classes, small_images
from fisherlab.models.registry import ModelSpec


class VisionTransformer(nn.Module):
    """Patches of 4x4 as tokens, learned positions, pre-norm blocks, the mean of the tokens, a Linear.

    The mean over tokens stands in place of a class token (Beyer et al. 2022), and positions are an
    embedding, so that every parameter belongs to a layer. At the default sizes: 2,693,194 parameters.

    Args:
        dim: of the tokens.
        depth: the number of blocks.
        heads: of each attention.
    """

    def __init__(self, dim: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.positions = nn.Embedding(64, dim)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, 32, 32] to logits [n, 10]."""
        x = self.patches(x).flatten(2).transpose(1, 2)  # [n, 64, dim]
        x = x + self.positions(places(x))
        x = self.norm(self.blocks(x))
        return self.head(x.mean(1))


def _initialise(module: nn.Module) -> None:
    """Weights from a normal of deviation 0.02 cut at ±2, biases 0; the convolution as torch makes it."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


VIT_TINY = ModelSpec(
    name="vit-tiny",
    build=VisionTransformer,
    dataset="cifar10",
    likelihood="categorical",
    preprocess=small_images,
    targets=classes,
    default_samples=64,
    description="patches 4x4, 6 pre-norm blocks of width 192 with 3 heads, mean of tokens",
    source="Dosovitskiy et al. (2021), the width of DeiT-Ti (Touvron et al. 2021)",
)
