"""Networks of peft, diffusers, torch-geometric, x-transformers, mambapy and of torch's own layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from networks.language import gpt2, llama
from networks.network import (
    CLASSES,
    LENGTH,
    SAMPLES,
    WORDS,
    Data,
    Network,
    build,
    images,
    labels,
    next_words,
    words,
)

_NODES, _FEATURES = 6, 4
_VIRTUAL = 3  # tokens that a prompt is


def _adapted(model: Callable[[], nn.Module], config: str, **options: Any) -> Callable[[], nn.Module]:
    """A network with the adapters of peft, which alone are trained; none begins at zero."""

    def make() -> nn.Module:
        settings = build("peft", config, task_type="CAUSAL_LM", **options)
        adapted = build("peft", "get_peft_model", model(), settings)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, 1.0 if config == "IA3Config" else 0.0, 0.1)
        return adapted

    return make


def _after_a_prompt() -> Data:
    inputs, targets = next_words()
    return inputs, torch.cat([targets.new_full((SAMPLES, _VIRTUAL), -100), targets], 1)


def _denoised() -> Data:
    return (images(1, 8), torch.randint(1000, (SAMPLES,))), images(1, 8)


def _pictures() -> Data:
    return images(1, 8), images(1, 8)


def _of_a_class() -> Data:
    inputs = {
        "hidden_states": images(2, 4),
        "timestep": torch.randint(1000, (SAMPLES,)),
        "class_labels": labels(),
    }
    return inputs, images(2, 4)


def _unet() -> nn.Module:
    return build(
        "diffusers",
        "UNet2DModel",
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 12),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def _autoencoder() -> nn.Module:
    return build(
        "diffusers",
        "AutoencoderKL",
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
    )


def _dit() -> nn.Module:
    return build(
        "diffusers",
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )


class Graphs(nn.Module):
    """Classes of graphs: nodes [n, nodes, features], edges [n, nodes, nodes].

    Convolutions take the graphs of a batch as one, sample after sample; the mean over nodes is the graph's.
    """

    def __init__(self, first: nn.Module, second: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        graph, source, target = edges.nonzero().T
        index = torch.stack([source, target]) + graph * x.shape[1]
        h = self.second(self.first(x.flatten(0, 1), index).relu(), index).relu()
        return self.head(h.unflatten(0, x.shape[:2]).mean(1))


class DenseGraphs(nn.Module):
    """The same with convolutions of dense batches."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(self.second(self.first(x, edges).relu(), edges).relu().mean(1))


def _graphs() -> Data:
    edges = torch.rand(SAMPLES, _NODES, _NODES) < 0.4
    return (torch.randn(SAMPLES, _NODES, _FEATURES), (edges | edges.mT).float()), labels()


def _convolutions(name: str, whole: type[nn.Module] = Graphs) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        first, second = (build("torch_geometric.nn", name, width, 8) for width in (_FEATURES, 8))
        return whole(first, second, 8)

    return make


def _gin() -> nn.Module:
    first, second = (
        build(
            "torch_geometric.nn",
            "GINConv",
            nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, 8)),
            train_eps=True,
        )
        for d in (_FEATURES, 8)
    )
    return Graphs(first, second, 8)


def _geometric(name: str, make: Callable[[], nn.Module]) -> Network:
    return Network(name, "torch-geometric", make, _graphs, "categorical")


def _decoder() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=16, depth=2, heads=2, attn_dim_head=8, rotary_pos_emb=True, use_rmsnorm=True, ff_glu=True
    )
    return TransformerWrapper(num_tokens=WORDS, max_seq_len=8, attn_layers=layers)


def _mambapy() -> nn.Module:
    settings = build("mambapy.mamba", "MambaConfig", d_model=16, n_layers=2, d_state=4)
    body = build("mambapy.mamba", "Mamba", settings)
    return nn.Sequential(nn.Embedding(WORDS, 16), body, nn.Linear(16, WORDS))


def _operator() -> nn.Module:
    return build(
        "neuralop.models", "FNO", n_modes=(3, 3), in_channels=1, out_channels=1, hidden_channels=4, n_layers=2
    )


def _medical() -> nn.Module:
    return build("monai.networks.nets", "UNet", 2, 1, 1, channels=(4, 8), strides=(2,), num_res_units=1)


class Recurrent(nn.Module):
    """A class of a text, of a recurrent layer's last output."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(WORDS, 6), layer, nn.Linear(width, CLASSES)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(text))[0][:, -1])


class Translator(nn.Module):
    """nn.Transformer between embeddings and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, 16), nn.Embedding(WORDS, 16)
        self.body = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)
        self.head = nn.Linear(16, WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        return self.head(self.body(self.source(source), self.target(target), tgt_mask=mask))


class Characters(nn.Module):
    """A language model of an LSTM whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(WORDS, 8), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, WORDS)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(input_ids))[0])


class Pair(nn.Module):
    """A class of two vectors, by nn.Bilinear."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.head = nn.Bilinear(4, 5, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.product(x, y).tanh())


def _bags() -> nn.Module:
    return nn.Sequential(
        nn.EmbeddingBag(WORDS, 8, mode="mean"), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, CLASSES)
    )


def _normed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(1, 4, 3)),
        nn.ReLU(),
        nn.Flatten(),
        norm(nn.Linear(144, 6)),
        nn.Tanh(),
        nn.Linear(6, CLASSES),
    )


def _recurrent(layer: type[nn.RNNBase], **options: Any) -> Callable[[], nn.Module]:
    width = 7 * (2 if options.get("bidirectional") else 1)
    return lambda: Recurrent(layer(6, 7, batch_first=True, **options), width)


def _both_texts() -> Data:
    text = words(LENGTH + 1)
    return (words(), text[:, :-1]), text[:, 1:]


def _torch(
    name: str, make: Callable[[], nn.Module], data: Callable[[], Data], likelihood: str = "categorical"
) -> Network:
    return Network(name, "torch", make, data, likelihood)


NETWORKS = (
    Network("LoRA on GPT-2", "peft", _adapted(gpt2, "LoraConfig", r=2, fan_in_fan_out=True), next_words),
    Network("LoRA on Llama", "peft", _adapted(llama, "LoraConfig", r=2), next_words),
    Network("IA3 on Llama", "peft", _adapted(llama, "IA3Config"), next_words),
    Network(
        "Prompt tuning of GPT-2",
        "peft",
        _adapted(gpt2, "PromptTuningConfig", num_virtual_tokens=_VIRTUAL),
        _after_a_prompt,
    ),
    Network("UNet2D", "diffusers", _unet, _denoised, "gaussian"),
    Network("AutoencoderKL", "diffusers", _autoencoder, _pictures, "gaussian"),
    Network("DiT", "diffusers", _dit, _of_a_class, "gaussian"),
    _geometric("GCN", _convolutions("GCNConv")),
    _geometric("GAT", _convolutions("GATConv")),
    _geometric("GraphSAGE", _convolutions("SAGEConv")),
    _geometric("GIN", _gin),
    _geometric("GCN, dense batches", _convolutions("DenseGCNConv", DenseGraphs)),
    Network(
        "x-transformers decoder",
        "x-transformers",
        _decoder,
        lambda: (lambda d: (d[0]["input_ids"], d[1]))(next_words()),
    ),
    Network("mambapy", "mambapy", _mambapy, lambda: (lambda d: (d[0]["input_ids"], d[1]))(next_words())),
    Network("FNO", "neuraloperator", _operator, _pictures, "gaussian"),
    Network("UNet (MONAI)", "monai", _medical, _pictures, "gaussian"),
    _torch("LSTM, 2 layers", _recurrent(nn.LSTM, num_layers=2), lambda: (words(), labels())),
    _torch("GRU, both directions", _recurrent(nn.GRU, bidirectional=True), lambda: (words(), labels())),
    _torch("nn.Transformer", Translator, _both_texts, "token-categorical"),
    _torch("Tied character LSTM", Characters, next_words, "token-categorical"),
    _torch("Bilinear", Pair, lambda: ((torch.randn(SAMPLES, 4), torch.randn(SAMPLES, 5)), labels())),
    _torch("EmbeddingBag", _bags, lambda: (words(), labels())),
    _torch("weight_norm", _normed, lambda: (images(1, 8), labels())),
)
