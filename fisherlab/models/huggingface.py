"""``transformers:CONFIG_OR_PATH``: a language model of the package transformers, on random tokens."""

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fisherlab.errors import FisherlabError, InputError

STAND_IN = "random tokens, seed {seed}"

_SAMPLES, _LENGTH = 256, 16  # of the random tokens: a choice, small beside any text
_MAYBE_ON_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a path has more parts, or begins with a dot
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXTS = ("", ".json", ".jsonl", ".jinja", ".txt", ".md", ".model", ".py", ".yaml", ".yml", ".png")
_NAMED = 3  # weights in a sentence: a choice, what a line holds
_TOKENS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "WithLMHeadModel")
_TOKEN_CLASSES, _CLASSES = "ForTokenClassification", "ForSequenceClassification"


class Pretrained(NamedTuple):
    """A model, with random tokens, the likelihood of its head, and where weights are from, if not random."""

    model: nn.Module
    data: tuple[dict[str, Tensor], Tensor]
    likelihood: str
    weights: str


def pretrained(name: str, seed: int) -> Pretrained:
    """The model that a folder or a configuration's name stands for, with random tokens in the place of data.

    Args:
        name: a folder with ``config.json``, and weights as safetensors or none (then as initialised); the
            name of a model type, such as ``gpt2``, at its default size; or what is in Hugging Face's cache
            already. Nothing is downloaded.
        seed: of the tokens.

    Raises:
        InputError: where transformers is not installed, nothing of that name is on this machine, the weights
            are not in safetensors, or the model has no tokens or no logits.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise InputError(
            f"the model 'transformers:{name}' needs {error.name}; run: pip install 'fisherlab[networks]'"
        ) from error
    try:
        with _quiet(transformers):
            config = _config(transformers, name)
            architecture = _architecture(transformers, name, config)
            tokens = _tokens(name, architecture, config, seed)
            model, weights = _made(transformers, name, config, architecture)
    except FisherlabError:
        raise
    except Exception as error:  # also of transformers itself, which imports its parts as they are needed
        raise _unusable(name, error) from error
    return Pretrained(model, *tokens, weights)


def _config(transformers: Any, name: str) -> Any:
    """The configuration of a folder, a model type, or what is in the cache."""
    if not name:
        raise InputError(
            "'transformers:' names no model; give a folder or a model type, as transformers:gpt2"
        )
    if Path(name).is_file():
        raise InputError(f"{name!r} is a file; give its folder, with the configuration as config.json")
    if not Path(name).is_dir() and name in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[name]()
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise InputError(f"the folder {name!r} has no config.json, so it is no model of transformers")
    try:
        return transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if Path(name).is_dir():
            raise _unusable(name, error) from error
        near = difflib.get_close_matches(name, transformers.CONFIG_MAPPING, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"get it first: hf download {name}"
        if not _MAYBE_ON_HUB.fullmatch(name):
            hint = "check the path"
        raise InputError(
            f"'transformers:{name}' is neither a folder, nor a model type of transformers (such as gpt2), "
            f"nor in Hugging Face's cache, and nothing is downloaded; {hint}"
        ) from error


def _architecture(transformers: Any, name: str, config: Any) -> type[nn.Module]:
    """The class of the model: that of the configuration, or the language model of its type."""
    for architecture in config.architectures or ():
        found = getattr(transformers, architecture, None)
        if found is not None:
            return found
    auto: list[Any] = [transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification]
    if config.is_encoder_decoder:
        auto.insert(0, transformers.AutoModelForSeq2SeqLM)
    elif not getattr(config, "is_decoder", False):
        # else a model that sees both sides would be read as one that does not
        auto.insert(0, transformers.AutoModelForMaskedLM)
    for kind in auto:
        if type(config) in kind._model_mapping:
            found = kind._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise _no_head(name, type(config).__name__)


def _made(transformers: Any, name: str, config: Any, architecture: Any) -> tuple[nn.Module, str]:
    """The model with the weights of its folder, or as initialised, and where they are from."""
    folder = Path(name)
    if name in transformers.CONFIG_MAPPING and not folder.is_dir():
        return architecture(config), ""
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        _require_no_weights(name, folder)
        return architecture(config), ""
    if (folder / "adapter_config.json").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise _pickles(name)  # of an adapter transformers takes the pickle where there is nothing else
    model, loading = architecture.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # said below, by name
        output_loading_info=True,
    )
    _require_all(name, loading)
    origin, others = str(folder.absolute()) if folder.is_dir() else name, sorted(loading["unexpected_keys"])
    return model, f"{origin} (but {_few(others)}, which the model does not have)" if others else origin


def _require_all(name: str, loading: Mapping[str, Any]) -> None:
    """Raises `InputError` where weights were left as initialised: transformers only warns of them.

    A weight that is tied to one that is there is not missing, and transformers does not list it.
    """
    wrong = [f"{key} is {list(there)}, not {list(own)}" for key, there, own in loading["mismatched_keys"]]
    wrong += [f"{_few(missing)} missing"] if (missing := sorted(loading["missing_keys"])) else []
    if wrong:
        raise InputError(
            f"the weights of 'transformers:{name}' are not those of its configuration "
            f"({_few(sorted(wrong))}); save both together (model.save_pretrained), or take the weights' file "
            "away for random ones"
        )


def _require_no_weights(name: str, folder: Path) -> None:
    """Raises `InputError` where a folder without safetensors has what may be weights of another form."""
    others = sorted(one.name for one in folder.iterdir() if one.is_file() and one.suffix not in _TEXTS)
    if any(other.endswith(_PICKLES) for other in others):
        raise _pickles(name)
    if others:
        raise InputError(
            f"{_few(others)} in {name!r} may be weights, and are not read; save them as safetensors "
            "(model.save_pretrained), or take them away for random ones"
        )


def _few(names: list[str]) -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _pickles(name: str) -> InputError:
    return InputError(
        f"the weights in {name!r} are pickles, which may run anything; save them as safetensors "
        "(model.save_pretrained)"
    )


def _tokens(
    name: str, architecture: type, config: Any, seed: int
) -> tuple[tuple[dict[str, Tensor], Tensor], str]:
    """Random tokens for the model, targets, and the likelihood."""
    text = config.get_text_config()
    vocabulary, padding = getattr(text, "vocab_size", None), getattr(text, "pad_token_id", None)
    kind = architecture.__name__
    if vocabulary is None or not kind.endswith((*_TOKENS, _TOKEN_CLASSES, _CLASSES)):
        raise _no_head(name, kind)
    length = min(_LENGTH, getattr(text, "max_position_embeddings", None) or _LENGTH)
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, *shape: int) -> Tensor:
        return torch.randint(size, (_SAMPLES, *shape), generator=generator)

    tokens = draw(vocabulary, length + 1)
    if padding is not None:
        tokens[tokens == padding] = (padding + 1) % vocabulary
    inputs, following = {"input_ids": tokens[:, :-1].clone()}, tokens[:, 1:].clone()
    if kind.endswith(_CLASSES):
        return (inputs, draw(config.num_labels)), "categorical"
    if kind.endswith(_TOKEN_CLASSES):
        return (inputs, draw(config.num_labels, length)), "token-categorical"
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"].flip(0)
        following = following.flip(0)
    return (inputs, following), "token-categorical"


def _no_head(name: str, kind: str) -> InputError:
    return InputError(
        f"'transformers:{name}' is a {kind}, which has no logits of tokens or classes to be measured on "
        "random tokens; give it with data of its own, by --model package.module:factory"
    )


def _unusable(name: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    return InputError(
        f"the model 'transformers:{name}' cannot be made: {type(error).__name__}: {text}".rstrip(".")
    )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the warnings and bars of transformers, whose settings are then as before."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
