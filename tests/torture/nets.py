"""Networks of which a run takes a moment, with what makes resuming hard: dropout, batch norms, an order."""

from torch.utils.data import DataLoader, TensorDataset
from train.nets import images, with_dropout

__all__ = ["images", "in_batches", "mlp"]

mlp = with_dropout


def in_batches():
    """The network with dropout, and its data in many small batches."""
    model, data, likelihood = mlp()
    return model, DataLoader(TensorDataset(*data), batch_size=4), likelihood
