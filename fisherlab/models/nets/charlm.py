"""charlm: a small causal language model of characters."""

from torch import Tensor, nn

from fisherlab.datasets.dataset import Dataset
from fisherlab.models.nets.blocks import TransformerBlock, places
from fisherlab.models.preprocess import next_tokens, text, vocabulary
from fisherlab.models.registry import ModelSpec


class CharLM(nn.Module):
    """Token and position embeddings, causal pre-norm blocks, a norm and an output layer of its own.

    The logits at a position depend on the tokens up to it.

    Args:
        vocabulary: the number of tokens.
        context: the most tokens of a text.
        dim: of the tokens' vectors.
        depth: the number of blocks.
        heads: of each attention.
    """

    def __init__(
        self, vocabulary: int = 100, context: int = 64, dim: int = 128, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [n, t] to logits [n, t, vocabulary]."""
        x = self.tokens(tokens) + self.positions(places(tokens))  # [n, t, dim]
        x = self.norm(self.blocks(x))
        return self.head(x)


def _initialise(module: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, biases 0, as in GPT-2."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def build_for(data: Dataset) -> CharLM:
    """The model with the vocabulary of a text."""
    return CharLM(vocabulary(data))


CHARLM = ModelSpec(
    name="charlm",
    build=CharLM,
    build_for=build_for,
    dataset="characters",
    likelihood="token-categorical",
    preprocess=text,
    targets=next_tokens,
    default_samples=32,
    description="causal, 64 characters, 4 pre-norm blocks of width 128 with 4 heads",
    source="the form of GPT-2 (Radford et al. 2019), small",
)
