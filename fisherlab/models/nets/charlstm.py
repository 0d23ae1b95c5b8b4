"""charlstm: a small recurrent language model of characters."""

from torch import Tensor, nn

from fisherlab.datasets.dataset import Dataset
from fisherlab.models.preprocess import next_tokens, text, vocabulary
from fisherlab.models.registry import ModelSpec


class CharLSTM(nn.Module):
    """Token embeddings, an LSTM of several layers and an output layer.

    The logits at a position depend on the tokens up to it.

    Args:
        vocabulary: the number of tokens.
        dim: of the tokens' vectors and of the hidden states.
        depth: the number of layers.
    """

    def __init__(self, vocabulary: int = 100, dim: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.lstm = nn.LSTM(dim, dim, depth, batch_first=True)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [n, t] to logits [n, t, vocabulary]."""
        hidden, _ = self.lstm(self.tokens(tokens))  # [n, t, dim]
        return self.head(hidden)


def build_for(data: Dataset) -> CharLSTM:
    """The model with the vocabulary of a text."""
    return CharLSTM(vocabulary(data))


CHARLSTM = ModelSpec(
    name="charlstm",
    build=CharLSTM,
    build_for=build_for,
    dataset="characters",
    likelihood="token-categorical",
    preprocess=text,
    targets=next_tokens,
    default_samples=32,
    description="recurrent, 64 characters, an LSTM of 2 layers of width 128",
    source="Hochreiter and Schmidhuber 1997, of characters as in Graves 2013 (1308.0850)",
)
