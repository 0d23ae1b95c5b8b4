"""An LSTM on texts of different lengths, packed: two blocks a layer, of its inputs and of its hidden state.

fisherlab compare --model examples.recurrent:factory --samples 8
python examples/recurrent.py
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fisherlab as fl


class Reader(nn.Module):
    """Classes of texts [n, T], from the last state of an LSTM; 0 is padding."""

    def __init__(self, vocabulary: int = 20, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, classes)

    def forward(self, text: Tensor) -> Tensor:
        """What each text is."""
        lengths = (text != 0).sum(1).cpu()
        packed = pack_padded_sequence(self.embedding(text), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(packed)[1][0][-1])


def factory() -> tuple[nn.Module, tuple[Tensor, Tensor], str]:
    """What `--model` calls: a model, texts and their classes, and the likelihood."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(1, 20, (16, 6), generator=generator)
    lengths = torch.randint(2, 7, (16, 1), generator=generator)
    classes = torch.randint(3, (16,), generator=generator)
    return Reader(), (text * (torch.arange(6) < lengths), classes), "categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, (text, classes), likelihood = factory()
    compared = fl.compare(
        model, (text, classes), ("kfac", "ekfac"), likelihood, layers="lstm*", spectra=False
    )
    print(compared.records[["layer", "approximation", "relative_error"]].to_string(index=False))
    optimizer = fl.optim.KFAC(model, lr=0.1)
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(text), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.4f}")
