"""A mixture of experts of transformers: a block an expert, of the tokens that are routed to it.

    fisherlab compare --model examples.experts:factory --samples 4
    python examples/experts.py

It needs pip install 'fisherlab[networks]', and no download: the weights are random.
"""

import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

import fisherlab as fl


def factory() -> tuple[nn.Module, dict[str, Tensor], str]:
    """What `--model` calls: a small Mixtral with four experts, texts, and the likelihood."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=30, bos_token_id=1, eos_token_id=2, **sizes, **heads)
    text = torch.randint(3, 30, (8, 5), generator=torch.Generator().manual_seed(0))
    return MixtralForCausalLM(config), {"input_ids": text, "labels": text}, "token-categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, batch, likelihood = factory()
    compared = fl.compare(model, batch, ("kfac", "ekfac"), likelihood, layers="*experts*", spectra=False)
    print(compared.records[["layer", "approximation", "relative_error"]].to_string(index=False))
    optimizer = fl.optim.KFAC(model, lr=0.03, likelihood=likelihood)
    for _ in range(5):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.4f}")
