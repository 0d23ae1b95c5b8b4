"""A network of one's own that takes inputs by name, with a mask, and returns several things by name.

fisherlab compare --model examples.own_network:factory --samples 8
python examples/own_network.py
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fisherlab as fl


class Tagger(nn.Module):
    """Classes of sentences: the mean over the tokens of a small network."""

    def __init__(self, vocabulary: int = 40, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, attention_mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        """What each sentence [n, T] is, and what each token was."""
        states = torch.tanh(self.hidden(scale * self.embedding(tokens)))
        weights = attention_mask.unsqueeze(-1) / attention_mask.sum(1)[:, None, None]
        return {"states": states, "logits": self.out((weights * states).sum(1))}


def batches(samples: int = 16, longest: int = 6) -> DataLoader:
    """Dictionaries, as `collate` makes them: `labels` in them are the targets."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 40, (samples, longest), generator=generator)
    lengths = torch.randint(2, longest + 1, (samples, 1), generator=generator)
    mask = (torch.arange(longest) < lengths).long()
    labels = torch.randint(5, (samples,), generator=generator)
    rows = zip(tokens * mask, mask, labels, strict=True)
    return DataLoader([{"tokens": t, "attention_mask": m, "labels": y} for t, m, y in rows], batch_size=8)


def factory() -> tuple[nn.Module, DataLoader, str]:
    """What `--model` calls: a model, its data, and the likelihood."""
    return Tagger(), batches(), "categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data, likelihood = factory()
    table = fl.compare(model, data, likelihood=likelihood, spectra=False).records
    print(table[["layer", "approximation", "relative_error"]].to_string(index=False))
    # Another output, by its name: the states of all tokens, with unit Gaussian noise; it needs no labels.
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in data]
    blocks = fl.exact_fisher(model, inputs, "gaussian", output="states", layers="hidden")
    print(f"tr F of the states: {blocks['hidden'].trace():.4g}")
