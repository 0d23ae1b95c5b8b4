"""Statistics that last: files, merging, and collections that go on after an interruption."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
from model_cases import Mean
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.approximations import LNGD, create, registered, saved
from fisherlab.base.tensorfiles import read_tensors, write_tensors
from fisherlab.errors import FisherlabError, InputError

NAMES = tuple(name for name, cls in registered().items() if not cls.from_exact)
KINDS = ("predictive", "empirical", "monte-carlo")
SAMPLES = 12


def images(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


def texts(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(6, 4), nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4), Mean(), nn.Linear(4, 3)
    ).double()


Pair = tuple[Tensor, Tensor]


class Net:
    """A network with data for it; counts the samples that it is given, but for the first look."""

    def __init__(self, name: str) -> None:
        self.build = {"images": images, "texts": texts}[name]
        self.model = self.build()
        x = torch.randn(SAMPLES, 2, 5, 5, dtype=torch.float64)
        self.inputs = x if name == "images" else torch.randint(6, (SAMPLES, 5))
        self.targets = torch.arange(SAMPLES) % 3

    def data(self, *samples: int) -> list[Pair]:
        """Batches of so many samples."""
        sizes = samples or (SAMPLES,)
        return list(zip(self.inputs.split(sizes), self.targets.split(sizes), strict=True))

    def part(self, samples: slice) -> Pair:
        return self.inputs[samples], self.targets[samples]

    def collect(self, data=None, names=NAMES, **options) -> fl.Statistics:
        data = (self.inputs, self.targets) if data is None else data
        return fl.collect_statistics(self.model, data, approximations=names, **options)


@pytest.fixture(params=["images", "texts"])
def net(request) -> Net:
    return Net(request.param)


@pytest.fixture
def dense() -> Net:
    return Net("texts")


@pytest.fixture
def always(monkeypatch) -> None:
    """The work so far is written after every batch."""
    monkeypatch.setattr(saved, "_SAVE_SECONDS", 0.0)


def same(found: fl.Statistics, expected: fl.Statistics, names=NAMES, tolerance: float = 1e-12) -> None:
    """The same operators, up to the order of additions."""
    assert found.samples == expected.samples
    assert found.shapes == expected.shapes
    for name in names:
        operators = found.build(name)
        for layer, operator in expected.build(name).items():
            close(operators[layer].dense(), operator.dense(), tolerance)


def equal(found: fl.Statistics, expected: fl.Statistics) -> None:
    """The same sums and bases to the bit, with the same layout in memory."""
    for name, sums in expected.sums.items():
        own = found.sums[name]
        assert (own.samples, own.positions, own.values.keys()) == (
            sums.samples,
            sums.positions,
            sums.values.keys(),
        )
        for value, other in zip(_tensors(own), _tensors(sums), strict=True):
            assert torch.equal(value, other)
            assert value.stride() == other.stride()


def _tensors(sums) -> list[Tensor]:
    bases = [U for _, basis in sorted(sums.bases.items()) for U in basis if U is not None]
    return [*(value for _, value in sorted(sums.values.items())), *bases]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_back_every_approximation(net, tmp_path, kind):
    statistics = net.collect(kind=kind)
    statistics.save(tmp_path / "sums")
    loaded = fl.load_statistics(tmp_path / "sums")
    assert (loaded.kind, loaded.about) == (kind, statistics.about)
    for layer, sums in statistics.sums.items():
        assert loaded.sums[layer].positions == sums.positions
    for name in NAMES:
        operators = loaded.build(name)
        assert operators.keys() == statistics.build(name).keys()
        for layer, operator in statistics.build(name).items():
            assert type(operators[layer]) is type(operator)
            assert torch.equal(operators[layer].dense(), operator.dense())


def test_an_identity_basis_stays_one(dense, tmp_path):
    statistics = dense.collect(names="ekfac")
    statistics.save(tmp_path / "sums")
    U_A, U_B = fl.load_statistics(tmp_path / "sums").sums["0"].bases["ekfac"]
    assert U_A is None
    assert torch.equal(U_B, statistics.sums["0"].bases["ekfac"][1])


def test_a_grouped_layer_keeps_a_basis_a_group(tmp_path):
    Net("images").collect(names="ekfac").save(tmp_path / "sums")
    loaded = fl.load_statistics(tmp_path / "sums")
    U_A, U_B = loaded.sums["2"].bases["ekfac"]
    assert (U_A.shape, U_B.shape) == ((2, 9, 9), (2, 2, 2))


def test_the_header_says_what_was_summed(net, tmp_path):
    statistics = net.collect()
    statistics.save(tmp_path / "sums")
    with safe_open(tmp_path / "sums", "pt") as file:
        header = json.loads(file.metadata()["header"])
    about = header["about"]
    assert header["kind"] == "predictive"
    assert header["torch"] == torch.__version__
    assert about["model"] == "Sequential"
    assert about["likelihood"] == "categorical"
    assert about["dtype"] == "float64"
    assert [layer["name"] for layer in header["layers"]] == list(statistics.shapes)
    for layer, shape in zip(header["layers"], statistics.shapes.values(), strict=True):
        counts = {"samples": SAMPLES, "positions": statistics.sums[shape.name].positions}
        assert layer == {**asdict(shape), **counts}


def test_hashes_follow_the_weights_and_the_data(net):
    about = net.collect(names="kfac").about
    assert net.collect(names="kfac").about == about
    with torch.no_grad():
        next(net.model.parameters()).flatten()[0] += 1e-9
    moved = net.collect(names="kfac").about
    assert moved["model_sha256"] != about["model_sha256"]
    assert moved["data"] == about["data"]
    net.targets = net.targets.flip(0)
    assert net.collect(names="kfac").about["data"] != about["data"]


def rewritten(path, change=lambda tensors: tensors, **changes) -> None:
    """The file again with other contents, and a checksum that fits them."""
    tensors, header, _ = read_tensors(path)
    write_tensors(path, change(tensors), {**header, **changes})


def refused(path, reason: str) -> None:
    """The file is refused in one line that names it."""
    with pytest.raises(InputError, match=reason) as caught:
        fl.load_statistics(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def file(dense, tmp_path):
    """Saved statistics."""
    dense.collect(names=("kfac", "ekfac")).save(tmp_path / "sums")
    return tmp_path / "sums"


def test_an_older_file_is_refused(file):
    rewritten(file, format="fisherlab-statistics-1")
    refused(file, "of another version of fisherlab; collect them again")


def test_a_file_without_a_checksum_is_of_another_version(file):
    tensors, header, _ = read_tensors(file)
    save_file(tensors, file, header)
    refused(file, "of another version of fisherlab; collect them again")


def test_a_foreign_file_is_refused(dense, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(InputError, match=r"weights' holds no statistics but other tensors"):
        dense.collect(path=tmp_path / "weights")
    write_tensors(tmp_path / "weights", {"w": torch.zeros(2)}, {"step": "3"})
    refused(tmp_path / "weights", "holds no statistics but other tensors")


@pytest.mark.parametrize("part", ["header", "sums"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '"x"', "[" * 100_000, '{"layers": [{}], "progress": {}}'])
def test_a_header_of_something_else_is_refused(file, part, text):
    rewritten(file, **{part: text})
    refused(file, "holds no statistics")


def test_sums_without_their_tensors_are_refused(file):
    rewritten(file, lambda tensors: {"w": torch.zeros(2)})
    refused(file, "holds no statistics")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_sums_that_are_not_finite_are_neither_read_nor_written(dense, file, tmp_path, value):
    def spoiled(tensors):
        next(t for t in tensors.values() if t.numel() > 1).view(-1)[-1] = value
        return tensors

    rewritten(file, spoiled)
    refused(file, "that is not finite in layer .*; collect them again")
    statistics = dense.collect(names="kfac")
    next(iter(statistics.sums["1"].values.values())).view(-1)[0] = value
    with pytest.raises(InputError, match=r"a sum '.*' that is not finite in layer '1'"):
        statistics.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["samples", "positions"])
@pytest.mark.parametrize("count", [0, -3])
def test_counts_below_one_are_refused(file, what, count):
    header = json.loads(read_tensors(file).header["header"])
    header["layers"][1][what] = count
    rewritten(file, header=json.dumps(header))
    refused(file, f"have .*{count} {what}.* in layer '1'; collect them again")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_cut_file_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    refused(file, "is damaged or no safetensors file")


def test_appended_bytes_are_refused(file):
    file.write_bytes(file.read_bytes() + b"\0")
    refused(file, "is damaged or no safetensors file")


def test_a_flipped_bit_is_refused(file):
    whole = file.read_bytes()
    places = torch.randint(8 * len(whole), (300,)).tolist()
    for place in places:
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        file.write_bytes(broken)
        with pytest.raises(InputError):
            fl.load_statistics(file)
    file.write_bytes(whole)
    fl.load_statistics(file)


# --- places that cannot be written ----------------------------------------------------------------------


def test_a_place_without_a_folder_is_refused_before_the_work(dense, tmp_path, passed):
    for path, reason in ((tmp_path / "nope" / "x", "there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=reason):
            dense.collect(names="kfac", path=path) if path != tmp_path else Net("texts").collect().save(path)
    assert len(passed) == 2  # those of the statistics that were to be saved


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can be written beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1, 1000, 4000])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(dense, tmp_path, size):
    path = tmp_path / "sums"
    statistics = dense.collect(names=("kfac", "ekfac"))
    for before in (None, b"what was there"):
        if before is not None:
            path.write_bytes(before)
        with (
            full_disk(size),
            pytest.raises(FisherlabError, match=r"sums' cannot be written \(File too large\)"),
        ):
            statistics.save(path)
        assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["sums"])
    assert path.read_bytes() == before


# --- merging --------------------------------------------------------------------------------------------

ONE_PASS = tuple(name for name in NAMES if not create(name).two_pass)


@pytest.mark.parametrize("kind", ["predictive", "empirical"])
@pytest.mark.parametrize("stored", [False, True])
def test_disjoint_parts_merge_to_the_sums_over_all(net, tmp_path, kind, stored):
    parts = [net.collect(net.part(p), kind=kind) for p in (slice(0, 5), slice(5, 6), slice(6, None))]
    if stored:
        for place, part in enumerate(parts):
            part.save(tmp_path / str(place))
        parts = [fl.load_statistics(tmp_path / str(place)) for place in range(3)]
    merged, whole = parts[0] + parts[1] + parts[2], net.collect(kind=kind)
    same(merged, whole, ONE_PASS)
    for layer, sums in whole.sums.items():
        assert merged.sums[layer].positions == sums.positions
    assert merged.about["data"].split("+") == [part.about["data"] for part in parts]


def test_a_merge_is_saved_like_any_other(net, tmp_path):
    merged = net.collect(net.part(slice(0, 5))) + net.collect(net.part(slice(5, None)))
    merged.save(tmp_path / "merged")
    same(fl.load_statistics(tmp_path / "merged"), net.collect(), ONE_PASS, tolerance=1e-12)


def test_a_merge_leaves_its_parts_as_they_were(net):
    first, second = net.collect(net.part(slice(0, 5))), net.collect(net.part(slice(5, None)))
    before = {name: {k: v.clone() for k, v in sums.values.items()} for name, sums in first.sums.items()}
    _ = first + second
    for name, sums in first.sums.items():
        assert sums.samples == 5
        assert all(torch.equal(sums.values[key], value) for key, value in before[name].items())


def test_merging_with_another_model_is_refused(net):
    one = net.collect(names="kfac")
    net.model = net.build(seed=1)
    with pytest.raises(InputError, match="another model_sha256 cannot be merged"):
        _ = one + net.collect(names="kfac")


def test_merging_other_sums_is_refused(dense):
    one = dense.collect(names="kfac")
    for other in (dense.collect(names="tkfac"), dense.collect(names=("kfac", "foof", "diagonal"))):
        with pytest.raises(InputError, match="another statistics cannot be merged"):
            _ = one + other
    with pytest.raises(InputError, match="different layers or kinds"):
        _ = one + dense.collect(names="kfac", kind="empirical")
    with pytest.raises(InputError, match="different layers or kinds"):
        _ = one + dense.collect(names="kfac", layers=["5"])


# --- a complete file ------------------------------------------------------------------------------------


@pytest.fixture
def passed(monkeypatch) -> list[int]:
    """The passes over the data, each with the first sample that it read."""
    begun: list[int] = []
    original = fl.collect.Collector._passes

    def passes(self, needs, what, most, begin) -> Iterator:
        begun.append(begin or 0)
        return original(self, needs, what, most, begin)

    monkeypatch.setattr("fisherlab.collect.collector.Collector._passes", passes)
    return begun


def test_a_complete_file_is_read_without_a_pass(net, tmp_path, passed):
    first = net.collect(path=tmp_path / "sums")
    assert passed == [0, 0]
    second = net.collect(path=tmp_path / "sums")
    assert passed == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["sums"]
    same(second, first, tolerance=0.0)


DIFFERENT = {
    "weights": ("model sha256", {}),
    "data": ("data", {}),
    "dtype": ("model sha256|dtype", {}),
    "draws": ("labels", {"draws": 2}),
    "seed": ("labels", {"generator": torch.Generator().manual_seed(5)}),
    "methods": ("statistics", {"names": "tkfac"}),
    "kind": ("kind", {"kind": "empirical"}),
    "layers": ("statistics", {"layers": ["1"]}),
}


def changed(net: Net, what: str) -> None:
    if what == "weights":
        net.model = net.build(seed=1)
    if what == "data":
        net.targets = net.targets.flip(0)
    if what == "dtype":
        net.model.float()


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_file_of_something_else_is_refused(dense, tmp_path, what, passed):
    kept = dense.collect(names="kfac", path=tmp_path / "sums")
    before = (tmp_path / "sums").read_bytes()
    reason, options = DIFFERENT[what]
    changed(dense, what)
    with pytest.raises(InputError, match=f"another ({reason}); delete the file or give another path"):
        dense.collect(**{"names": "kfac", "path": tmp_path / "sums", **options})
    assert passed == [0]
    assert (tmp_path / "sums").read_bytes() == before
    same(fl.load_statistics(tmp_path / "sums"), kept, ["kfac"], tolerance=0.0)


def test_a_file_of_another_likelihood_is_refused(dense, tmp_path):
    options = {"data": (dense.inputs, None), "names": "kfac", "path": tmp_path / "sums"}
    dense.collect(**options)
    with pytest.raises(InputError, match="another likelihood"):
        dense.collect(**options, likelihood="gaussian")


def test_a_file_of_another_kind_is_refused_where_no_label_is_used(dense, tmp_path):
    dense.collect(names="foof", path=tmp_path / "sums")
    with pytest.raises(InputError, match="another kind"):
        dense.collect(names="foof", kind="empirical", path=tmp_path / "sums")


def test_a_file_of_layers_of_another_shape_is_refused(dense, tmp_path):
    dense.collect(names="kfac", layers=["1", "5"], bias="ignore", path=tmp_path / "sums")
    with pytest.raises(InputError, match="another"):
        dense.collect(names="kfac", layers=["1", "5"], path=tmp_path / "sums")


def test_a_file_with_another_activation_is_refused(dense, tmp_path):
    dense.collect(names="lngd", path=tmp_path / "sums")
    with pytest.raises(InputError, match="another"):
        dense.collect(names=LNGD(activations={"1": "relu"}), path=tmp_path / "sums")


# --- interruptions --------------------------------------------------------------------------------------

PARTS = (3, 1, 4, 2, 2)
TWO_PASSES = 2 * len(PARTS)
DRAWN = (*(name for name in NAMES if name != "lngd"), LNGD(sampling=3))


def interrupt(after: int):
    """A progress callback that interrupts the work after so many batches, the last of them written."""
    seen = 0

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise KeyboardInterrupt

    return report


def stopped(net: Net, after: int, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        net.collect(**options, progress=interrupt(after))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", ["predictive", "monte-carlo"])
@pytest.mark.parametrize("after", [1, 3, len(PARTS), len(PARTS) + 1, TWO_PASSES - 1, TWO_PASSES])
def test_an_interrupted_collection_goes_on(net, tmp_path, kind, after, passed):
    plain = {"kind": kind, "draws": 2, "data": net.data(*PARTS), "names": DRAWN}
    options = {**plain, "path": tmp_path / "sums"}
    stopped(net, after, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["sums.part"]
    passed.clear()
    found = net.collect(**options)
    begin = sum(PARTS[: (after - 1) % len(PARTS) + 1])
    assert passed == ([begin, 0] if after <= len(PARTS) else [begin])
    assert [p.name for p in tmp_path.iterdir()] == ["sums"]
    equal(found, net.collect(**plain))
    equal(fl.load_statistics(tmp_path / "sums"), found)


class Fused:
    """Batches that interrupt once, as the batch of this number is asked for over all passes."""

    def __init__(self, batches: list[Pair], at: int) -> None:
        self.batches, self.left = batches, at

    def __iter__(self) -> Iterator[Pair]:
        for batch in self.batches:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.usefixtures("always")
def test_data_that_are_interrupted_can_be_gone_on_with(dense, tmp_path, passed):
    begun = set()
    for at in range(1, 40):
        data, path = Fused(dense.data(*PARTS), at), tmp_path / str(at)
        try:
            dense.collect(data, names="ekfac", kind="monte-carlo", path=path)
        except KeyboardInterrupt:
            passed.clear()
            same(
                dense.collect(data, names="ekfac", kind="monte-carlo", path=path),
                dense.collect(data, names="ekfac", kind="monte-carlo"),
                ["ekfac"],
            )
            begun.add(tuple(passed[:-2]))
        else:
            break
    assert begun >= {(0, 0), (3, 0), (8, 0), (10, 0), (4,), (10,)}


@pytest.mark.usefixtures("always")
def test_an_interruption_that_is_interrupted(net, tmp_path):
    options = {"data": net.data(*PARTS), "names": "ekfac", "kind": "monte-carlo"}
    for _ in range(TWO_PASSES):
        stopped(net, 1, **options, path=tmp_path / "sums")
    found = net.collect(**options, path=tmp_path / "sums")
    same(found, net.collect(**options), ["ekfac"])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("after", [2, len(PARTS) + 2])
@pytest.mark.parametrize("what", DIFFERENT)
def test_unfinished_work_on_something_else_is_refused(dense, tmp_path, what, after):
    options = {"names": "ekfac", "path": tmp_path / "sums"}
    stopped(dense, after, **options, data=dense.data(*PARTS))
    before = (tmp_path / "sums.part").read_bytes()
    reason, other = DIFFERENT[what]
    changed(dense, what)
    with pytest.raises(InputError, match=rf"sums\.part' were made with another ({reason}); delete the file"):
        dense.collect(**{**options, "data": dense.data(*PARTS), **other})
    assert (tmp_path / "sums.part").read_bytes() == before


def test_nothing_is_written_before_half_a_minute(dense, tmp_path):
    stopped(dense, 7, data=dense.data(*PARTS), path=tmp_path / "sums")
    assert not list(tmp_path.iterdir())
