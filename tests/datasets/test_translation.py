import gzip
import hashlib
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fisherlab import datasets
from fisherlab.datasets import registry
from fisherlab.datasets.source import DataFile, Request
from fisherlab.datasets.sources import translation
from fisherlab.errors import InputError

ENGLISH = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "runs",
    "jumps",
    "over",
    "under",
    "red",
    "blue",
    "house",
    "tree",
    "street",
    "quickly",
    "and",
]
WORDS = dict(zip(ENGLISH, [word[::-1] + "ü" for word in ENGLISH], strict=True))

pytest.importorskip("tokenizers")


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    source = [[rng.choice(ENGLISH) for _ in range(rng.randint(2, 9))] for _ in range(count)]
    return [" ".join(s) + "." for s in source], [" ".join(WORDS[word] for word in s) + "!" for s in source]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A directory of the splits train (plain), valid and test (compressed)."""
    place = tmp_path / "pairs"
    place.mkdir()
    for seed, (split, count) in enumerate({"train": 60, "valid": 7, "test": 5}.items()):
        for language, lines in zip(("en", "de"), sentences(count, seed), strict=True):
            text = ("\n".join(lines) + "\n").encode()
            if split == "train":
                (place / f"{split}.{language}").write_bytes(text)
            else:
                (place / f"{split}.{language}.gz").write_bytes(gzip.compress(text))
    return place


def text(data: datasets.Dataset, tokens: torch.Tensor) -> str:
    """The sentence of a row of tokens, without the special ones."""
    words = [data.vocabulary[token] for token in tokens if token > 3]
    return "".join(words).replace("▁", " ").strip()


@pytest.mark.parametrize(("split", "seed", "count"), [("train", 0, 60), ("val", 1, 7), ("test", 2, 5)])
def test_tokens_spell_the_sentences(pairs, split, seed, count) -> None:
    data = datasets.load_translation(pairs, split, vocabulary=120)
    source, target_in = data.inputs
    english, german = sentences(count, seed)
    assert [text(data, row) for row in source] == english
    assert [text(data, row) for row in target_in] == german
    assert [text(data, row) for row in data.targets] == german
    assert {source.dtype, target_in.dtype, data.targets.dtype} == {torch.int64}


def test_special_tokens_are_where_a_decoder_needs_them(pairs) -> None:
    data = datasets.load_translation(pairs, vocabulary=120)
    source, target_in = data.inputs
    target = data.targets
    assert data.vocabulary[:4] == ("<pad>", "<bos>", "<eos>", "<unk>")
    assert data.padding == 0
    assert (target_in[:, 0] == 1).all()
    assert torch.equal(target_in != 0, target != 0)
    lengths = (target != 0).sum(1)
    assert (target.gather(1, lengths[:, None] - 1) == 2).all()
    assert ((target == 2).sum(1) == 1).all()
    shifted = target_in[:, 1:]
    assert torch.equal(shifted[shifted != 0], target[:, :-1][shifted != 0])
    for tokens in (source, target):  # padded to the longest, behind the words only
        assert (tokens[:, -1] != 0).any()
        assert ((tokens != 0).long().diff(dim=1) <= 0).all()


def test_the_vocabulary_is_as_large_as_asked_and_joint(pairs) -> None:
    small, large = (datasets.load_translation(pairs, vocabulary=size) for size in (60, 90))
    assert (len(small.vocabulary), len(large.vocabulary)) == (60, 90)
    assert set(small.vocabulary) < set(large.vocabulary)
    assert {"ü", "!", "."} < {token.strip("▁") for token in small.vocabulary}
    assert small.targets.shape[1] >= large.targets.shape[1]
    assert max(part.max() for part in (*small.inputs, small.targets)) < 60
    assert small.checksum != large.checksum


def test_long_sentences_are_cut_and_still_end(pairs) -> None:
    data = datasets.load_translation(pairs, vocabulary=120, longest=4)
    assert [part.shape[1] for part in (*data.inputs, data.targets)] == [4, 4, 4]
    assert ((data.targets == 2).sum(1) == 1).all()
    assert ((data.inputs[0] == 2).sum(1) == 1).all()
    whole = datasets.load_translation(pairs, vocabulary=120)
    assert torch.equal(data.inputs[0][:, :3], whole.inputs[0][:, :3])


def test_samples_are_those_of_the_subset(pairs) -> None:
    whole = datasets.load_translation(pairs, vocabulary=120)
    part = datasets.load_translation(pairs, vocabulary=120, samples=9, seed=4)
    for found, wanted in zip((*part.inputs, part.targets), _tensors(whole.subset(9, 4)), strict=True):
        assert torch.equal(found, wanted)


def _tensors(data: datasets.Dataset) -> tuple[torch.Tensor, ...]:
    return (*data.inputs, data.targets)


def test_the_result_is_the_same_with_and_without_the_cache(pairs, home, monkeypatch, tmp_path) -> None:
    first = datasets.load_translation(pairs, vocabulary=120)
    again = datasets.load_translation(pairs, vocabulary=120)
    for path in (home / "text").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    damaged = datasets.load_translation(pairs, vocabulary=120)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    anew = datasets.load_translation(pairs, vocabulary=120)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # no directory can be made there
    uncached = datasets.load_translation(pairs, vocabulary=120)
    for data in (again, damaged, anew, uncached):
        assert (data.checksum, data.vocabulary) == (first.checksum, first.vocabulary)
        for found, wanted in zip(_tensors(data), _tensors(first), strict=True):
            assert torch.equal(found, wanted)


def test_another_text_is_not_taken_from_the_cache(pairs) -> None:
    before = datasets.load_translation(pairs, "val", vocabulary=120)
    lines = (pairs / "train.en").read_text().replace("dog", "cat")
    (pairs / "train.en").write_text(lines)
    after = datasets.load_translation(pairs, "val", vocabulary=120)
    assert after.checksum != before.checksum


def test_special_tokens_and_unknown_letters_in_a_sentence_are_text(pairs) -> None:
    (pairs / "odd.en").write_text("<pad> the <eos> man\nthe 猫\r\nplain")
    (pairs / "odd.de").write_text("a\nb\nc\n")
    train, odd = (translation._pair(pairs, split, ("en", "de")) for split in ("train", "train"))
    odd = tuple(
        translation.Text(pairs / f"odd.{end}", (pairs / f"odd.{end}").read_bytes()) for end in ("en", "de")
    )
    data = translation._dataset("odd", train, odd, Request("train", []), 120, 32)
    source = data.inputs[0]
    assert ((source == 2).sum(1) == 1).all()
    assert ((source != 0).long().diff(dim=1) <= 0).all()
    assert (source[1] == 3).sum() == 1
    assert "\r" not in "".join(data.vocabulary)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("train.en", None, r"holds no train\.en\[\.gz\]"),
        ("valid.de.gz", None, r"holds no val\.de\[\.gz\] or valid\.de\[\.gz\] or dev\.de\[\.gz\]"),
        ("valid.de.gz", gzip.compress(b"one\ntwo\n", mtime=0), "has 7 lines and .* has 2"),
        ("valid.en.gz", b"no gzip", "is no text"),
        ("valid.en.gz", gzip.compress(b"\xff\xfe\n", mtime=0), "is no text"),
        ("valid.en.gz", gzip.compress(b"", mtime=0), "is empty"),
    ],
)
def test_files_that_cannot_be_used_are_named(pairs, file, content, reason) -> None:
    (pairs / file).unlink()
    if content is not None:
        (pairs / file).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        datasets.load_translation(pairs, "val", vocabulary=120)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vocabulary": 4}, "vocabulary=4 does not fit"),
        ({"vocabulary": 100_000}, "from 5 to 65,536"),
        ({"longest": 1}, "cannot have 1 tokens"),
        ({"samples": 61}, "1 to 60"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_options_that_do_not_fit_are_refused(pairs, options, reason) -> None:
    with pytest.raises(InputError, match=reason):
        datasets.load_translation(pairs, **options)


def test_a_word_without_an_end_is_refused_at_once(pairs) -> None:
    """Training takes as long as the square of its length: of a megabyte, hours."""
    with (pairs / "train.en").open("a") as file:
        file.write("hello " + "ab" * 500_000 + "\n")
    with pytest.raises(InputError, match=r"a word of 1,000,000 characters, 'abab\w*'…; give sentences"):
        datasets.load_translation(pairs)


def test_without_the_package_the_extra_is_named(pairs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r'pip install "fisherlab\[text\]"'):
        datasets.load_translation(pairs)


def test_wmt_takes_any_directory_or_a_stand_in(pairs, tmp_path) -> None:
    assert datasets.load("wmt", "val", data_dir=pairs).source == str(pairs)
    assert datasets.load("wmt", "val", data_dir=tmp_path).label == "wmt (stand-in: synthetic)"
    pairs.rename(tmp_path / "wmt14")
    found = datasets.load("wmt", "test", data_dir=tmp_path, samples=3)
    assert (found.label, found.source, len(found)) == ("wmt", str(tmp_path / "wmt14"), 3)


def test_published_pairs_are_checked_by_their_sums(pairs, monkeypatch, tmp_path) -> None:
    for path in pairs.glob("train.*"):
        (pairs / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    splits = {
        split: tuple(
            DataFile(name, hashlib.sha256((pairs / name).read_bytes()).hexdigest())
            for name in (f"{stem}.en.gz", f"{stem}.de.gz")
        )
        for split, stem in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    source = replace(translation.MULTI30K, name="small", layouts=("pairs",), mirrors=(), splits=splits)
    monkeypatch.setitem(registry.SOURCES, "small", source)
    data = datasets.load("small", "test", data_dir=tmp_path)
    assert data.label == "small"
    assert [text(data, row) for row in data.targets] == sentences(5, 2)[1]
    assert {row.status for row in datasets.verify(tmp_path) if row.dataset == "small"} == {"ok"}
    (pairs / "train.de.gz").write_bytes(gzip.compress(b"another\n"))
    with pytest.raises(InputError, match=r"train\.de\.gz' is damaged"):
        datasets.load("small", "test", data_dir=tmp_path)
    (pairs / "train.de.gz").unlink()
    assert datasets.load("small", "test", data_dir=tmp_path).stand_in == "synthetic"


PLACE = Path(os.environ.get("FISHERLAB_DATA", "/nowhere"))


@pytest.mark.skipif(not (PLACE / "multi30k").is_dir(), reason="FISHERLAB_DATA holds no multi30k")
def test_the_real_pairs(monkeypatch) -> None:
    data = datasets.load("multi30k", "val", data_dir=PLACE)
    assert (len(data), len(data.vocabulary), data.stand_in) == (1014, 4000, "")
    assert [part.shape[1] for part in _tensors(data)] == [32, 32, 32]
    assert text(data, data.inputs[0][0]).startswith("A group of men are loading cotton")
    assert (data.targets == 3).float().mean() < 1e-3
