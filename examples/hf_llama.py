"""A language model of transformers as it comes: inputs by name, padding, its own labels, its ModelOutput.

    fisherlab compare --model examples.hf_llama:factory --samples 4
    fisherlab compare --model transformers:gpt2 --layers "transformer.h.0.*" --samples 2
    python examples/hf_llama.py

It needs pip install 'fisherlab[networks]', and no download: the weights are random.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fisherlab as fl


def network() -> nn.Module:
    """A small causal language model; `LlamaForCausalLM.from_pretrained(...)` goes the same way."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=30, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    )


def sentences(samples: int = 8, longest: int = 6) -> dict[str, Tensor]:
    """What a tokenizer gives, with the tokens as labels, which the model moves by one itself."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 30, (samples, longest), generator=generator)
    mask = (torch.arange(longest) < torch.randint(3, longest + 1, (samples, 1), generator=generator)).long()
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def factory() -> tuple[nn.Module, dict[str, Tensor], str]:
    """What `--model` calls."""
    return network(), sentences(), "token-categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, batch, likelihood = factory()
    table = fl.compare(model, batch, likelihood=likelihood, layers="*mlp*", spectra=False).records
    print(table[["layer", "approximation", "relative_error"]].to_string(index=False))
    optimizer = fl.optim.KFAC(model, lr=0.1, source="empirical", likelihood=likelihood)
    for _ in range(3):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.4f}")
