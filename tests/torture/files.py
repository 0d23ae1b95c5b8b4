"""Damaged and foreign files: refused in a sentence, never loaded as something else, nothing executed."""

import gzip
import io
import os
import pickle
import random
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torture.trials import Tally, fresh, run

from fisherlab.errors import FisherlabError


class _Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return os.system, (f"touch '{self.sign}'",)


def _flipped(payload: bytes, dice: random.Random) -> bytes:
    changed = bytearray(payload)
    changed[dice.randrange(len(payload))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(payload: bytes, dice: random.Random) -> bytes:
    return payload[: dice.randrange(len(payload))]


def _longer(payload: bytes, dice: random.Random) -> bytes:
    return payload + dice.randbytes(dice.randint(1, 64))


def _zeros(payload: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(payload))
    size = min(len(payload) - start, dice.randint(1, 512))
    return payload[:start] + bytes(size) + payload[start + size :]


def _swapped(payload: bytes, dice: random.Random) -> bytes:
    middle = dice.randrange(len(payload))
    return payload[middle:] + payload[:middle]


DAMAGES = (_flipped, _cut, _longer, _zeros, _swapped)


def foreign(sign: Path) -> list[bytes]:
    """Files that are none of ours, some with a pickle that would make `sign`."""
    pickled = pickle.dumps(_Bomb(sign))
    saved, archive = io.BytesIO(), io.BytesIO()
    torch.save({"state": _Bomb(sign)}, saved)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
    deep = b"[" * 100_000
    header = b'{"a":{"dtype":"F64","shape":[99999999999],"data_offsets":[0,799999999992]}}'
    huge = len(header).to_bytes(8, "little") + header
    return [
        *(
            b"",
            b"\0",
            b"{}",
            b"null",
            b"[]",
            deep,
            b'{"a":' * 50_000,
            b"\xff\xfe\x00",
            bytes(8),
            b"\xff" * 64,
        ),
        *(pickled, saved.getvalue(), archive.getvalue(), gzip.compress(pickled), huge, b"PK\x03\x04"),
    ]


class _Kind:
    """A kind of file.

    Args:
        name: of the kind.
        path: of the file.
        load: what reads it, and gives something to compare.
        sure: whether damage must be refused; otherwise it may also load as what the file then says.
    """

    def __init__(self, name: str, path: Path, load: Callable[[], object], *, sure: bool) -> None:
        self.name, self.path, self.load, self.sure = name, path, load, sure
        self.payload, self.content = path.read_bytes(), load()

    def failure(self, payload: bytes) -> str:
        """What went wrong with these bytes in the place of the file."""
        self.path.write_bytes(payload)
        try:
            found = self.load()
        except FisherlabError as error:
            lines = str(error).splitlines()
            return (
                "" if len(lines) == 1 and len(lines[0]) < 500 else f"not one sentence: {str(error)[:300]!r}"
            )
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            self.path.write_bytes(self.payload)
        if self.sure and payload != self.payload and found != self.content:
            return "loaded as something else"
        return ""


def files(place: Path, tries: int, dice: random.Random) -> list[Tally]:
    """Every kind of file that fisherlab reads, damaged in five ways or replaced by a foreign one."""
    tallies = []
    with fresh(place, "files") as folder:
        sign = folder.with_name("executed")
        kinds = _kinds(folder)
        each = max(1, tries // len(kinds))
        strange = foreign(sign)
        for kind in kinds:
            tally = Tally(f"damaged or foreign {kind.name}")
            for number in range(each):
                if number % 3:
                    damage = DAMAGES[number % len(DAMAGES)]
                    payload, words = damage(kind.payload, dice), damage.__name__.strip("_")
                else:
                    place_of = (number // 3) % len(strange)
                    payload, words = strange[place_of], f"foreign file {place_of}"
                failure = kind.failure(payload)
                if sign.exists():
                    sign.unlink()
                    failure = "a pickle was executed"
                tally.count(f"{words}: {failure}" if failure else "")
            tallies.append(tally)
    return tallies


def _kinds(folder: Path) -> list[_Kind]:
    from torture.nets import mlp

    import fisherlab as fl
    from fisherlab.models import load_weights
    from fisherlab.runs.config import read_config
    from fisherlab.runs.finished import read_run
    from fisherlab.train import TrainConfig
    from fisherlab.train.run.checkpoints import Checkpoints

    sys.path.insert(0, str(folder))
    start = ("train", "--model", "torture.nets:mlp", "--epochs", "2", "--batch", "16", "--out", "t", "-q")
    ended = run(folder, *start)
    assert not ended.code, ended
    model, data, _ = mlp()
    fl.collect_statistics(model, data, approximations=("kfac", "ekfac"), path=folder / "statistics")
    torch.save(model.state_dict(), folder / "weights.pt")
    states = folder / "cut"
    _interrupted(states)

    def statistics() -> object:
        found = fl.load_statistics(folder / "statistics")
        return str({name: op.dense().tolist() for name, op in found.build("kfac").items()})

    def weights(path: Path) -> Callable[[], object]:
        def load() -> object:
            other, _, _ = mlp()
            load_weights(other, path)
            return str({name: value.tolist() for name, value in other.state_dict().items()})

        return load

    def state() -> object:
        for path in (states / "states").glob("*"):
            if path != of_state:
                path.unlink()
        found = Checkpoints(states, 2, True, ()).newest(drop=False)
        return None if found is None else (found.entry.step, str(found.weights), str(found.state))

    of_state = max((states / "states").glob("*.safetensors"))
    checkpoint = max((folder / "t" / "checkpoints").glob("step*.safetensors"))
    index = states / "checkpoints" / "index.json"
    return [
        _Kind("statistics", folder / "statistics", statistics, sure=True),
        _Kind("states of a training", of_state, state, sure=True),
        _Kind("indices of checkpoints", index, state, sure=False),
        _Kind("weights (safetensors)", checkpoint, weights(checkpoint), sure=False),
        _Kind("weights (torch)", folder / "weights.pt", weights(folder / "weights.pt"), sure=False),
        _Kind(
            "config.toml",
            folder / "t" / "config.toml",
            lambda: read_config(folder / "t" / "config.toml", TrainConfig),
            sure=False,
        ),
        _Kind("summary.json", folder / "t" / "summary.json", lambda: read_run(folder / "t"), sure=False),
        _Kind(
            "provenance.json", folder / "t" / "provenance.json", lambda: read_run(folder / "t"), sure=False
        ),
    ]


def _interrupted(folder: Path) -> None:
    """The directory of a training that was interrupted, with its states."""
    from fisherlab.train import TrainConfig, train

    class Stopped(BaseException):
        pass

    def report(progress: object, steps: int) -> None:
        if progress.step == 5:  # type: ignore[attr-defined]
            raise Stopped

    try:
        train(
            TrainConfig(model="torture.nets:mlp", epochs=2, batch=16, checkpoint_every=2),
            folder,
            report=report,
        )
    except Stopped:
        shutil.move(f"{folder}.part", folder)
