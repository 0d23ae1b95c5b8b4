"""Networks of transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from networks.network import (
    CLASSES,
    SAMPLES,
    WORDS,
    Data,
    Network,
    build,
    images,
    labelled_words,
    labels,
    masked_words,
    next_words,
    translation,
    words,
)

_PLACES = {"max_position_embeddings": 16}
_TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_BODY = {**_TOKENS, **_SIZES, **_PLACES, "intermediate_size": 24}
_GROUPED = {**_BODY, "num_key_value_heads": 1}
_GPT2 = {**_TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
_CLASSES = {"num_labels": CLASSES}
_EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}  # the other ways have no float64
_SPEECH = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": 1,
}


def pretrained(name: str, config: str, **options: Any) -> nn.Module:
    """A model class of transformers on a configuration of its own."""
    return build("transformers", name, build("transformers", config, **options))


def _network(
    name: str,
    model: str,
    config: str,
    data: Callable[[], Data],
    likelihood: str = "token-categorical",
    output: str | None = None,
    **options: Any,
) -> Network:
    return Network(
        name, "transformers", lambda: pretrained(model, config, **options), data, likelihood, output
    )


def gpt2() -> nn.Module:
    """A small GPT-2: its own linear layer, a tied head."""
    return pretrained("GPT2LMHeadModel", "GPT2Config", **_GPT2)


def llama() -> nn.Module:
    """A small Llama."""
    return pretrained("LlamaForCausalLM", "LlamaConfig", **_GROUPED)


def _pictures(channels: int, size: int) -> Callable[[], Data]:
    return lambda: ({"pixel_values": images(channels, size)}, labels())


def _sound() -> Data:
    return {"input_values": torch.randn(SAMPLES, 120)}, labels()


def _speech() -> Data:
    text = words(6)
    features = torch.randn(SAMPLES, 6, 20)
    return {"input_features": features, "decoder_input_ids": text[:, :-1]}, text[:, 1:]


def _embedded() -> Data:
    return {"input_ids": words()}, torch.randn(SAMPLES, 6)


def _causal(name: str, model: str, **options: Any) -> Network:
    return _network(name, f"{model}ForCausalLM", f"{model}Config", next_words, **options)


def _classes(name: str, model: str, data: Callable[[], Data] = labelled_words, **options: Any) -> Network:
    kind = {labelled_words: "Sequence", _sound: "Sequence"}.get(data, "Image")
    classifier = f"{model}For{kind}Classification"
    return _network(name, classifier, f"{model}Config", data, "categorical", **_CLASSES, **options)


NETWORKS = (
    Network("GPT-2", "transformers", gpt2, next_words),
    Network("Llama", "transformers", llama, next_words),
    _causal("Qwen2", "Qwen2", **_GROUPED),
    _causal("Mistral", "Mistral", **_GROUPED, sliding_window=3),
    _causal("Gemma 2", "Gemma2", **_GROUPED, head_dim=8),
    _causal("Phi", "Phi", **_BODY),
    _causal("Falcon", "Falcon", **_TOKENS, **_SIZES),
    _causal("OPT", "OPT", **_TOKENS, **_SIZES, **_PLACES, ffn_dim=24, word_embed_proj_dim=16),
    _causal("Bloom", "Bloom", **_TOKENS, hidden_size=16, n_layer=2, n_head=2),
    _causal("GPT-NeoX", "GPTNeoX", **_BODY),
    _causal("Mixtral", "Mixtral", **_GROUPED, **_EXPERTS, num_local_experts=3),
    _causal(
        "Qwen2-MoE",
        "Qwen2Moe",
        **_GROUPED,
        **_EXPERTS,
        num_experts=3,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
    _causal("Mamba", "Mamba", **_TOKENS, hidden_size=16, num_hidden_layers=2, state_size=4),
    _network("BERT", "BertForMaskedLM", "BertConfig", masked_words, **_BODY),
    _network(
        "DistilBERT",
        "DistilBertForTokenClassification",
        "DistilBertConfig",
        lambda: (masked_words()[0], masked_words()[1].clamp(max=CLASSES - 1)),
        **_CLASSES,
        **_TOKENS,
        **_PLACES,
        dim=16,
        hidden_dim=24,
        n_layers=2,
        n_heads=2,
    ),
    _classes("RoBERTa", "Roberta", **_BODY),
    # At 0.03 its loss falls to 0.91 in three steps, and the fourth goes too far.
    replace(_classes("ALBERT", "Albert", **_BODY, embedding_size=8), rates={"KFAC": 0.01}),
    _classes("ELECTRA", "Electra", **_BODY, embedding_size=8),
    _classes("DeBERTa-v2", "DebertaV2", **_BODY, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    _network(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        translation,
        vocab_size=WORDS,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    ),
    _network(
        "BART", "BartForConditionalGeneration", "BartConfig", translation, **_TOKENS, **_PLACES, **_SPEECH
    ),
    _network(
        "CLIP text",
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        _embedded,
        "gaussian",
        "text_embeds",
        **_BODY,
        projection_dim=6,
    ),
    _classes("ViT", "ViT", _pictures(3, 8), **_SIZES, intermediate_size=24, image_size=8, patch_size=4),
    _classes(
        "Swin",
        "Swin",
        _pictures(3, 8),
        image_size=8,
        patch_size=2,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=2,
    ),
    _classes("ConvNeXt", "ConvNext", _pictures(3, 16), num_stages=2, hidden_sizes=[8, 12], depths=[1, 1]),
    _classes(
        "ResNet (transformers)",
        "ResNet",
        _pictures(3, 16),
        embedding_size=6,
        hidden_sizes=[6, 10],
        depths=[1, 1],
        layer_type="basic",
    ),
    _classes(
        "Wav2Vec2",
        "Wav2Vec2",
        _sound,
        vocab_size=WORDS,
        **_SIZES,
        intermediate_size=24,
        conv_dim=[8, 8],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        apply_spec_augment=False,
    ),
    _network(
        "Whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _speech,
        **_TOKENS,
        **_SPEECH,
        num_mel_bins=6,
        max_source_positions=10,
        max_target_positions=16,
    ),
)
