"""``transformers:CONFIG_OR_PATH``, without a network."""

import json
import sys
from pathlib import Path

import pytest
import torch

import fisherlab as fl
from fisherlab import models
from fisherlab.errors import InputError


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers; run: pip install 'fisherlab\[networks\]'"):
        models.load("transformers:gpt2")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def folder(transformers, tmp_path: Path) -> Path:
    """A small causal language model, saved."""
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_folder_has_its_weights_and_next_tokens(folder, transformers):
    prepared = models.prepare(f"transformers:{folder}")
    own = transformers.LlamaForCausalLM.from_pretrained(folder).state_dict()
    found = prepared.model.state_dict()
    assert all(torch.equal(own[name], found[name]) for name in own)
    assert torch.equal(prepared.inputs["input_ids"][:, 1:], prepared.targets[:, :-1])
    assert not bool((prepared.targets == 0).any()), "padding is no token"
    assert prepared.dataset.stand_in == "random tokens, seed 0"
    assert prepared.checkpoint == str(folder)
    assert len(prepared.checkpoint_hash) == 64
    assert len(prepared.targets) == 4
    blocks = fl.exact_fisher(prepared.model, prepared.data, prepared.likelihood, layers="*gate_proj")
    assert float(next(iter(blocks.values())).trace()) > 0


def test_a_folder_without_weights_is_as_initialised(folder):
    (folder / "model.safetensors").unlink()
    first, second, other = (models.prepare(f"transformers:{folder}", seed=seed) for seed in (0, 0, 1))
    assert first.checkpoint == "init"
    weights = [next(one.model.parameters()) for one in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def rewritten(folder: Path, change) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    file = folder / "model.safetensors"
    weights = safetensors.load_file(file)
    change(weights)
    safetensors.save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"\(model.norm.weight missing\); save both together"),
        (lambda w: w.pop("lm_head.weight"), r"\(lm_head.weight missing\)"),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            r"\(model.norm.weight is \[3\], not \[8\]\)",
        ),
        (
            lambda w: [w.pop(key) for key in list(w)[1:]],
            r"lm_head\S+, model\S+, model\S+ and \d missing|more",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_configuration_are_refused(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        models.load(f"transformers:{folder}")
    assert "\n" not in str(caught.value)


def test_weights_that_the_model_does_not_have_are_told(folder):
    rewritten(folder, lambda w: w.update({"head.weight": torch.ones(2)}))
    prepared = models.prepare(f"transformers:{folder}")
    assert prepared.checkpoint == f"{folder} (but head.weight, which the model does not have)"


def test_tied_weights_are_not_missing(transformers, tmp_path):
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    made = transformers.GPT2LMHeadModel(config)
    made.save_pretrained(tmp_path)
    found = models.prepare(f"transformers:{tmp_path}")
    assert found.checkpoint == str(tmp_path)
    assert torch.equal(found.model.lm_head.weight, made.transformer.wte.weight)


class Loud:
    """What a pickle runs when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize("name", ["other.bin", "adapter_model.bin"])
def test_a_pickle_beside_safetensors_is_not_opened(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    torch.save(Loud(), folder / name)
    if name == "adapter_model.bin":
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"]}')
    else:
        weights = {"model.norm.weight": name, "lm_head.weight": "model.safetensors"}
        index = {"metadata": {}, "weight_map": weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with pytest.raises(InputError):
        models.load(f"transformers:{folder}")
    assert not Path("opened").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.ckpt"])
def test_pickles_are_refused(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(InputError, match="are pickles, which may run anything; save them as safetensors"):
        models.load(f"transformers:{folder}")


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.gguf", "model.onnx"])
def test_weights_of_another_form_are_not_taken_for_none(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(InputError, match=f"{name} in '.*' may be weights, and are not read"):
        models.load(f"transformers:{folder}")


def test_a_file_is_no_folder(folder):
    with pytest.raises(InputError, match="is a file; give its folder"):
        models.load(f"transformers:{folder / 'config.json'}")


def test_a_folder_with_texts_alone_has_random_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "README.md").write_text("a model")
    assert models.prepare(f"transformers:{folder}").checkpoint == "init"


@pytest.mark.parametrize(
    ("architecture", "options", "likelihood", "inputs"),
    [
        ("BertForMaskedLM", {}, "token-categorical", ["input_ids"]),
        ("BertForSequenceClassification", {"num_labels": 3}, "categorical", ["input_ids"]),
        ("BertForTokenClassification", {"num_labels": 3}, "token-categorical", ["input_ids"]),
        ("T5ForConditionalGeneration", {}, "token-categorical", ["input_ids", "decoder_input_ids"]),
    ],
)
def test_the_architecture_of_the_configuration(
    tmp_path, transformers, architecture, options, likelihood, inputs
):
    sizes = (
        {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
        if architecture.startswith("T5")
        else {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    kind = getattr(transformers, architecture).config_class
    kind(vocab_size=20, architectures=[architecture], **sizes, **options).save_pretrained(tmp_path)
    model, data, found = models.load(f"transformers:{tmp_path}", samples=2)
    assert (type(model).__name__, found, list(data[0])) == (architecture, likelihood, inputs)
    table = fl.compare(model, data, "diagonal", found, spectra=False).records
    assert table["relative_error"].notna().any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "names no model"),
        (
            "no/such",
            "neither a folder, nor a model type .* nothing is downloaded; get it first: hf download no/",
        ),
        ("gptt2", "nothing is downloaded; did you mean gpt2"),
        ("./nothere", "nothing is downloaded; check the path$"),
        ("/not/here", "nothing is downloaded; check the path$"),
        ("vit", "has no logits of tokens or classes"),
        (".", "the folder '.' has no config.json"),
    ],
)
def test_what_is_missing_is_said_in_one_line(transformers, monkeypatch, tmp_path, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        models.load(f"transformers:{name}")
    assert "\n" not in str(caught.value)


def test_nothing_of_the_library_is_changed(folder, transformers):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    models.load(f"transformers:{folder}")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_rows_of_a_data_set_of_datasets(folder, transformers):
    datasets = pytest.importorskip("datasets", minversion="2")  # a folder of the tests has this name
    model = models.load(f"transformers:{folder}", dtype=torch.float64).model
    tokens = torch.randint(3, 20, (5, 6), generator=torch.Generator().manual_seed(0))
    rows = datasets.Dataset.from_dict({"input_ids": tokens.tolist(), "labels": tokens.tolist()})
    found = fl.exact_fisher(model, rows.with_format("torch"), "token-categorical", layers="*gate_proj")
    plain = {"input_ids": tokens, "labels": tokens}
    expected = fl.exact_fisher(model, plain, "token-categorical", layers="*gate_proj")
    encoded = transformers.BatchEncoding(plain)
    again = fl.exact_fisher(model, encoded, "token-categorical", layers="*gate_proj")
    for name, F in expected.items():
        assert torch.equal(again[name].dense(), F.dense())
        assert torch.allclose(found[name].dense(), F.dense(), rtol=1e-12, atol=0.0)
    with pytest.raises(InputError, match=r'with_format\("torch"\)'):
        fl.exact_fisher(model, rows, "token-categorical")
