"""A vision transformer: its class token and its table of positions are parameters of no layer.

fisherlab compare --model examples.vision_transformer:factory --samples 8
python examples/vision_transformer.py
"""

import torch
from torch import Tensor, nn

import fisherlab as fl


class VisionTransformer(nn.Module):
    """Classes of images [n, 1, 8, 8], from four patches."""

    def __init__(self, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """What each image shows: read off the class token."""
        patches = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.out(self.block(tokens + self.positions)[:, 0])


def factory() -> tuple[nn.Module, tuple[Tensor, Tensor], str]:
    """What `--model` calls: a model, images of noise and their classes, and the likelihood."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return VisionTransformer(), (images, torch.randint(3, (16,), generator=generator)), "categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data, likelihood = factory()
    compared = fl.compare(model, data, ("kfac", "diagonal"), likelihood, spectra=False)
    print(compared.layers.coverage()[["parameter", "covered", "layer"]].to_string(index=False))
    # Raw parameters have an exact block each; of the approximations they have the diagonal.
    table = compared.records.query("layer in ('class_token', 'positions', 'patches')")
    print(table[["layer", "approximation", "relative_error"]].to_string(index=False))
