"""Words to tokens: byte-pair encoding trained here on the training sentences, kept in the cache."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fisherlab.datasets.spelling import BOS, EOS, PAD, SPECIAL_TOKENS, WORD_MARK
from fisherlab.datasets.store import keep
from fisherlab.errors import InputError

log = logging.getLogger("fisherlab")

MOST_TOKENS = 1 << 16  # encoded sentences are kept as 16-bit numbers

_TEMPLATES = {"source": "$A <eos>", "target": "<bos> $A <eos>"}
_LONGEST_WORD = 1000  # characters: a choice, more than any language has
_CHUNK = 10_000  # sentences at a time, a choice: lists of Python numbers are held for so many only


def trained_tokenizer(path: Path, lines: Callable[[], Sequence[str]], vocabulary: int) -> Any:
    """The byte-pair encoding in the cache file `path`, or one trained on `lines` and kept there.

    Words are split at spaces, which are kept as marks in front of words, and at punctuation; merges are
    those of Sennrich, Haddow and Birch (2016), arXiv:1508.07909. The tokens 0 to 3 are <pad>, <bos>, <eos>
    and <unk>.

    Args:
        path: in the cache; its name must identify the lines and the vocabulary.
        lines: gives the training sentences of both languages.
        vocabulary: the most tokens that there may be.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        InputError: if the package tokenizers is missing, the vocabulary is not between 5 and 65,536, or a
            word is longer than 1,000 characters.
    """
    try:
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise InputError(
            'text needs the package tokenizers; `pip install "fisherlab[text]"` installs it.'
        ) from error
    if not len(SPECIAL_TOKENS) < vocabulary <= MOST_TOKENS:
        raise InputError(f"vocabulary={vocabulary} does not fit; give a number from 5 to {MOST_TOKENS:,}.")
    if path.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain exceptions
            log.warning("%s in the cache is damaged (%s) and is made again", path.name, error)
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[3]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(WORD_MARK), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(map(_checked_line, lines()), trainer)
    keep(path, tokenizer.to_str().encode())
    return tokenizer


def _checked_line(line: str) -> str:
    """The line itself; a word that is none of a language would take hours, as the square of its length."""
    if len(line) > _LONGEST_WORD:
        word = max(line.split(), key=len, default="")
        if len(word) > _LONGEST_WORD:
            raise InputError(
                f"the text holds a word of {len(word):,} characters, {word[:20]!r}…; give sentences of words "
                f"of at most {_LONGEST_WORD:,} characters"
            )
    return line


def token_texts(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokens, in the order of their numbers."""
    numbers: dict[str, int] = tokenizer.get_vocab()
    return tuple(sorted(numbers, key=numbers.__getitem__))


def encoded(tokenizer: Any, lines: Sequence[str], side: str, longest: int) -> NDArray[np.uint16]:
    """Sentences as tokens [n, T], padded with 0 to the longest of them.

    A sentence of the source is ``w … <eos>``, one of the target ``<bos> w … <eos>``; words are cut off
    where it would have more than `longest` tokens.

    Args:
        tokenizer: from `trained_tokenizer`.
        lines: the sentences.
        side: "source" or "target".
        longest: the most tokens of a sentence.
    """
    from tokenizers.processors import TemplateProcessing

    specials = [(SPECIAL_TOKENS[BOS], BOS), (SPECIAL_TOKENS[EOS], EOS)]
    tokenizer.post_processor = TemplateProcessing(single=_TEMPLATES[side], special_tokens=specials)
    tokenizer.encode_special_tokens = True  # "<pad>" written in a sentence is text
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=PAD, pad_token=SPECIAL_TOKENS[PAD], length=longest)
    tokens = np.empty((len(lines), longest), np.uint16)
    for start in range(0, len(lines), _CHUNK):
        chunk = tokenizer.encode_batch_fast(lines[start : start + _CHUNK])
        tokens[start : start + len(chunk)] = [line.ids for line in chunk]
    return np.ascontiguousarray(tokens[:, : int((tokens != PAD).any(0).sum())])
