"""GPT-2 as it comes: its own linear layer (Conv1D), a table of positions, and a head that is the embedding.

    fisherlab compare --model examples.gpt2:factory --samples 4
    python examples/gpt2.py

It needs pip install 'fisherlab[networks]', and no download: the weights are random.
"""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import fisherlab as fl


def factory() -> tuple[nn.Module, tuple[dict[str, Tensor], Tensor], str]:
    """What `--model` calls: a small GPT-2, eight texts with the tokens that follow, and the likelihood."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, bos_token_id=1, eos_token_id=2, **sizes))
    text = torch.randint(3, 30, (8, 7), generator=torch.Generator().manual_seed(0))
    return model, ({"input_ids": text[:, :-1]}, text[:, 1:]), "token-categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, (inputs, following), likelihood = factory()
    compared = fl.compare(model, (inputs, following), ("kfac", "diagonal"), likelihood, spectra=False)
    # One block for the matrix that the embedding and the head share, of the sum of both uses. It is made of
    # the samples' gradients: the diagonal is there, and where KFAC's row is empty its note says why.
    print(compared.records[["layer", "approximation", "relative_error"]].to_string(index=False))
    optimizer = fl.optim.KFAC(model, lr=0.03, likelihood=likelihood)
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(**inputs).logits.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.4f}")
