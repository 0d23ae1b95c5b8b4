"""Two processes of torchrun give the numbers of one."""

import json
import os
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from model_cases import Mean
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.approximations import LNGD, registered
from fisherlab.base import distributed
from fisherlab.cli import main
from fisherlab.errors import InputError
from fisherlab.plots import workers
from fisherlab.runs.directory import numbered
from fisherlab.runs.part import RunPart, together

NAMES = tuple(n for n, cls in registered().items() if not cls.from_exact and n != "lngd")
KINDS = ("predictive", "monte-carlo")
NETS = ("dense", "images", "texts")
SAMPLES = 13  # 6 and 7 for two processes, neither at the end of a batch
TOLERANCE = 1e-10

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def case(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    targets = torch.arange(SAMPLES) % 3
    if name == "dense":
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))
        inputs = torch.randn(SAMPLES, 4, dtype=torch.float64)
    elif name == "images":
        first, second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 2, groups=2)
        model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
        inputs = torch.randn(SAMPLES, 2, 5, 5, dtype=torch.float64)
    else:
        model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 4), nn.Tanh(), Mean(), nn.Linear(4, 3))
        inputs = torch.randint(6, (SAMPLES, 4))
    data = (
        (inputs, targets) if name == "images" else list(zip(inputs.split(4), targets.split(4), strict=True))
    )
    return model.double(), data


# --- what every process computes ------------------------------------------------------------------------

Numbers = dict[str, Any]


def statistics(name: str, kind: str, folder: Path) -> Numbers:
    model, data = case(name)
    methods = [*NAMES, LNGD(sampling=3)]
    found = fl.collect_statistics(model, data, kind=kind, approximations=methods, draws=2)
    counts = {layer: torch.tensor([s.samples, s.positions]) for layer, s in found.sums.items()}
    operators = {
        f"{getattr(method, 'name', method)} {layer}": operator.dense()
        for method in methods
        for layer, operator in found.build(method).items()
    }
    return {**counts, **operators}


def exact(name: str, kind: str, folder: Path) -> Numbers:
    model, data = case(name)
    found = {}
    for method in ("auto", "gram", "per-sample", *(["kronecker"] if name == "dense" else [])):
        blocks = fl.exact_fisher(model, data, kind=kind, method=method)
        found |= {f"{method} {layer}": block.dense() for layer, block in blocks.items()}
    return found


def first_samples(name: str, kind: str, folder: Path) -> Numbers:
    """All samples of the Gram operators are those of the first process."""
    model, data = case(name)
    with warnings.catch_warnings(action="ignore"):
        blocks = fl.exact_fisher(model, data, kind=kind, method="gram", max_columns=5)
    return {layer: block.dense() for layer, block in blocks.items()}


def comparison(name: str, kind: str, folder: Path) -> Numbers:
    model, data = case(name)
    methods = ("diagonal", "kfac", "ekfac", "tkfac", LNGD(sampling=3), "nearest-kronecker")
    c = fl.compare(model, data, methods, kind=kind)
    tables = {"records": c.records.drop(columns="seconds"), "directions": c.directions}
    return {**contents(tables), "coupling": c.coupling_matrix}


def representations(name: str, kind: str, folder: Path) -> Numbers:
    """With the kind `monte-carlo` labels are drawn, and gradients taken of the first samples' share only."""
    model, data = case(name)
    columns, samples = (1, 5) if kind == "monte-carlo" else (32, SAMPLES)
    with pytest.MonkeyPatch.context() as patch:
        for constant, value in (("MOST_COLUMNS", columns), ("_OPERATIONS", 0), ("_LEAST_SAMPLES", samples)):
            patch.setattr(f"fisherlab.representations.gradients.{constant}", value)
        found = fl.represent(model, data)
    assert set(found.assumption["samples"]) == {samples}
    names = ("moments", "histograms", "quantiles", "assumption", "layers")
    return contents({title: getattr(found, title) for title in names})


def contents(tables: dict[str, pd.DataFrame]) -> Numbers:
    """Columns of tables, numbers as tensors."""
    numbers = {
        f"{title} {column}": torch.tensor(table[column].to_numpy(float))
        for title, table in tables.items()
        for column in table.select_dtypes("number")
    }
    texts = {
        f"{title} {column}": table[column].tolist()
        for title, table in tables.items()
        for column in table.select_dtypes(exclude="number")
    }
    return {**numbers, **texts}


def saved(name: str, kind: str, folder: Path) -> Numbers:
    """The file is there for every process that comes back, and read the second time."""
    model, data = case(name)
    path = folder / f"{name}-{kind}"
    first = fl.collect_statistics(model, data, kind=kind, path=path)
    stored = {n: o.dense() for n, o in fl.load_statistics(path).build("ekfac").items()}
    with counting(model) as forwards:
        second = fl.collect_statistics(model, data, kind=kind, path=path)
    assert len(forwards) == 9  # those of the first look: no pass over the data
    assert first.about == second.about
    return {**stored, "about": sorted(first.about.items())}


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """The samples of every forward pass."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


TASKS: dict[str, Callable[[str, str, Path], Numbers]] = {
    "statistics": statistics,
    "exact": exact,
    "first samples": first_samples,
    "comparison": comparison,
    "representations": representations,
    "saved": saved,
}


def refused(folder: Path) -> list[str]:
    """The errors of data that two processes cannot share."""
    model, data = case("images")
    generator = iter(case("dense")[1])
    calls = (
        lambda: fl.exact_fisher(model, tuple(x[:1] for x in data)),
        lambda: fl.collect_statistics(model, tuple(x[:1] for x in data), path=folder / "refused"),
        lambda: fl.collect_statistics(case("dense")[0], generator),
    )
    messages = []
    for call in calls:
        try:
            call()
        except InputError as error:
            messages.append(str(error))
    return messages


def claims(folder: Path) -> list[Any]:
    """What becomes of a name that the first process chooses, and of one that it is refused."""
    (folder / "claimed").mkdir(exist_ok=True)
    (folder / "claimed" / "file").touch()
    torch.distributed.barrier()
    with together(lambda: RunPart.claim(numbered(folder / "claimed"))) as part:
        found = [part.mine, part.out.name]
        if part.mine:
            part.begin()
            part.finish()
    try:
        together(lambda: RunPart.claim(folder / "claimed"))
    except InputError as error:
        found.append(str(error))
    return found


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.launched():
        found = {
            (task, name, kind): compute(name, kind, folder)
            for task, compute in TASKS.items()
            for name in NETS
            for kind in KINDS
        }
        result = {"size": distributed.size(), "found": found, "refused": refused(folder)}
        result["claims"] = claims(folder)
        torch.save(result, folder / f"rank-{distributed.rank()}.pt")
    assert distributed.size() == 1


# --- what one process computes --------------------------------------------------------------------------

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launched(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python without network and with a cache of its own."""
    root = str(Path(fl.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FISHERLAB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **own, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("FISHERLAB_DATA", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    done = launched(*TORCHRUN, str(Path(__file__).resolve()), str(folder), folder=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_give_the_numbers_of_one(processes, tmp_path, task, name, kind):
    expected = TASKS[task](name, kind, tmp_path)
    for process in processes:
        assert process["size"] == 2
        found = process["found"][task, name, kind]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, Tensor):
                close(found[key], value, key)
            else:
                assert found[key] == value


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """Equal to rounding, relative to the largest number; missing where the other is."""
    scale = expected.double().nan_to_num(0.0).abs().max() if expected.numel() else torch.tensor(0.0)
    difference = (found - expected).abs().nan_to_num(0.0)
    assert torch.equal(found.isnan(), expected.isnan()), what
    assert bool((difference <= TOLERANCE * scale).all()), f"{what}: {float(difference.max())}"


def test_data_that_two_processes_cannot_share_are_refused(processes):
    for process in processes:
        shared, again, read_once = process["refused"]
        assert shared == again == "2 processes cannot share 1 samples; start fewer processes"
        assert read_once == "several processes need data that can be read more than once"


def test_the_first_process_has_the_directory_and_the_others_follow(processes):
    for rank, process in enumerate(processes):
        mine, name, refusal = process["claims"]
        assert (mine, name) == (rank == 0, "claimed-2")
        assert refusal.endswith("(a command takes --force)")


# --- the command line -----------------------------------------------------------------------------------


COMPARE = ("compare", "--model", "mnist-mlp", "--samples", "64", "--dtype", "float64", "--layers", "6")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Result, subprocess.CompletedProcess[str]]:
    """A run of one process, without pictures, and the same with two."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("FISHERLAB_OFFLINE", "1")
        patch.delenv("FISHERLAB_DATA", raising=False)
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setattr("fisherlab.comparison.pictures.figures", lambda *arguments: iter(()))
        one = CliRunner().invoke(main, [*COMPARE, "--out", "one"])
    two = launched(*TORCHRUN, "-m", "fisherlab", *COMPARE, "--out", "two", folder=folder)
    assert (one.exit_code, two.returncode) == (0, 0), two.stderr[-4000:]
    return folder, one, two


def test_torchrun_prints_the_table_once(runs):
    one, two = (run.stdout.splitlines() for run in runs[1:])
    assert two[-2:] == ["run directory: two", "report: two/report.html"]
    assert [line[:9] for line in two[:-2]] == [line[:9] for line in one[:-2]]


def test_torchrun_writes_one_complete_directory(runs):
    folder = runs[0]
    assert {path.name for path in folder.iterdir()} == {"cache", "one", "two"}
    written = {path.name for path in (folder / "two").iterdir()}
    assert written > {path.name for path in (folder / "one").iterdir()}
    assert {"heatmap-6.png", "spectrum-6.pdf"} <= written
    one, two = (tomllib.loads((folder / name / "config.toml").read_text()) for name in ("one", "two"))
    assert one == two
    assert json.loads((folder / "two" / "summary.json").read_text())["directory"] == "two"


@pytest.mark.parametrize("table", ["records", "directions", "coupling"])
def test_torchrun_has_the_records_of_one_process(runs, table):
    equal(*(pd.read_csv(runs[0] / name / f"{table}.csv") for name in ("one", "two")))


def equal(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Equal to rounding, wall time left out."""
    assert list(one.columns) == list(two.columns)
    for column in one.columns.drop("seconds", errors="ignore"):
        if one[column].dtype.kind == "f":
            np.testing.assert_allclose(two[column], one[column], rtol=TOLERANCE, atol=1e-13, err_msg=column)
        else:
            assert two[column].equals(one[column]), column


MODULE = """
import torch
from torch import nn

from fisherlab.plots import workers

workers.save = lambda figure, path: path.with_suffix(".png").touch()  # drawing is no matter of processes


def small():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    return model, (torch.randn(33, 6).double(), torch.arange(33) % 3), "categorical"
"""


@pytest.mark.parametrize(
    ("command", "tables"),
    [
        ("represent", ("moments", "histograms", "histograms-activated", "quantiles", "assumption", "layers")),
        ("trace", ("traces", "diagnostics", "stages")),
    ],
)
def test_torchrun_writes_the_files_of_one_process(tmp_path, monkeypatch, command, tables):
    (tmp_path / "shared_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shared_net", raising=False)
    monkeypatch.setattr("fisherlab.plots.workers.save", workers.save)  # put back afterwards
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = (command, "--model", "shared_net:small", "--out")
    one = CliRunner().invoke(main, [*arguments, "one"])
    two = launched(*TORCHRUN, "-m", "fisherlab", *arguments, "two", folder=tmp_path)
    assert (one.exit_code, two.returncode) == (0, 0), two.stderr[-4000:]
    assert two.stdout.splitlines()[-2:] == ["run directory: two", "report: two/report.html"]
    assert two.stdout.count("run directory") == 1
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1]
    assert not list(tmp_path.glob("*.part"))
    for table in tables:
        equal(*(pd.read_csv(tmp_path / run / f"{table}.csv") for run in ("one", "two")))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
