"""Tokens as sentences, and the references of a split."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlab import datasets
from fisherlab.datasets.spelling import BOS, EOS, PAD, spelled
from fisherlab.datasets.tokens import encoded, token_texts, trained_tokenizer

TRAINING = ["Ein Mann, der (schnell) läuft.", "Zwei Hunde – 12 Bälle!", "a cow-boy's  hat: red/blue"]


def test_special_tokens_are_not_written_and_a_sentence_ends_at_its_end() -> None:
    vocabulary = ("<pad>", "<bos>", "<eos>", "<unk>", "▁a", "b", "▁", ",")
    rows = torch.tensor([[BOS, 4, 5, EOS, 4, PAD], [4, 6, 7, 4, PAD, PAD], [4, 3, PAD, PAD, PAD, PAD]])
    assert spelled(vocabulary, rows) == ("ab", "a , a", "a<unk>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    pytest.importorskip("tokenizers")
    return trained_tokenizer(tmp_path_factory.mktemp("text") / "t.json", lambda: TRAINING * 20, 90)


@settings(max_examples=60)
@given(words=st.text(sorted(set("".join(TRAINING)) | {" "}), min_size=1, max_size=40))
def test_spelling_undoes_the_splitting(tokenizer, words: str) -> None:
    sentence = words.strip()
    if not sentence:
        return
    tokens = torch.from_numpy(encoded(tokenizer, [sentence], "source", 100).astype("int64"))
    assert spelled(token_texts(tokenizer), tokens) == (sentence,)


def test_references_are_the_lines_as_written(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    lines = ["ein Hund ☃ läuft sehr schnell durch den Wald.", "die  Katze", "ein Hund"]
    for split in ("train", "val"):
        (tmp_path / f"{split}.en").write_text("a dog\na cat\na dog\n")
        (tmp_path / f"{split}.de").write_text("ein Hund\ndie Katze\nein Hund\n")
    (tmp_path / "val.de").write_text("\n".join(lines) + "\n")
    whole = datasets.load_translation(tmp_path, "val", vocabulary=30, longest=6)
    assert whole.references == tuple(lines)
    assert whole.targets.shape[1] == 6  # cut, and ☃ is unknown; the reference has both
    part = datasets.load_translation(tmp_path, "val", vocabulary=30, samples=2, seed=3)
    assert part.references == whole.subset(2, 3).references
    assert len(part.references) == 2
    assert set(part.references) < set(lines)
    assert datasets.load_translation(tmp_path, "train", vocabulary=30).references == ()


def test_stand_ins_have_references_too() -> None:
    data = datasets.load("wmt", "test", samples=5)
    assert data.references == spelled(data.vocabulary, data.targets)
    lengths = (data.targets > EOS).sum(1).tolist()
    assert [len(text.split()) for text in data.references] == lengths
