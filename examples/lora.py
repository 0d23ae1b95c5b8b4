"""A fine-tuning with LoRA of peft: only the adapters are trained, and only they have blocks.

    fisherlab compare --model examples.lora:factory --samples 4
    python examples/lora.py

It needs pip install 'fisherlab[networks]', and no download: the weights are random.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fisherlab as fl


def factory() -> tuple[nn.Module, dict[str, Tensor], str]:
    """What `--model` calls: a small Llama with adapters of rank 2, texts, and the likelihood."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, bos_token_id=1, eos_token_id=2, **sizes))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2))
    text = torch.randint(3, 30, (8, 6), generator=torch.Generator().manual_seed(0))
    return adapted, {"input_ids": text, "labels": text}, "token-categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, batch, likelihood = factory()
    # The second matrix of an adapter begins at zero, and with it the gradient, and the block, of the first.
    optimizer = fl.optim.KFAC(model, lr=0.1, likelihood=likelihood)
    for _ in range(5):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.4f}")
    table = fl.compare(model, batch, ("kfac", "lngd"), likelihood, spectra=False).records
    print(table[["layer", "approximation", "relative_error"]].to_string(index=False))
