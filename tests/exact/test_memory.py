"""The memory limit: work is cut for it, what cannot fit is refused before the work, and the peak is below."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch import nn

import fisherlab as fl
from fisherlab.approximations import LNGD
from fisherlab.base import memory
from fisherlab.errors import InputError, MemoryLimitError
from fisherlab.linalg.numerics import spans
from fisherlab.traces import trace


def small() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network with a convolution in float64, and data."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
    return nn.Sequential(*layers).double(), (torch.randn(24, 1, 4, 4).double(), torch.arange(24) % 3)


def test_a_piece_takes_its_part_of_the_limit_and_no_more_than_its_own_size():
    assert memory.at_most(2**28, 16) == 2**28  # of 4 GiB
    with memory.limited(2**30):
        assert memory.at_most(2**28, 16) == 2**26
        assert memory.at_most(2**20, 16) == 2**20
        with memory.limited(2**22):
            assert memory.at_most(2**28, 16) == 2**20  # the least
        assert memory.limit() == 2**30
        assert next(iter(spans(2**30, 1))) == (0, 2**26)
    assert memory.limit() == memory.DEFAULT


def test_the_limit_ends_with_an_error():
    with pytest.raises(RuntimeError), memory.limited(2**20):
        raise RuntimeError
    assert memory.limit() == memory.DEFAULT


def test_pieces_do_not_change_the_numbers(monkeypatch):
    model, data = small()
    names = ("kfac", "ekfac", "lngd")
    expected = fl.compare(model, data, names).records
    seen = []
    monkeypatch.setattr(memory, "_LEAST", 1)
    monkeypatch.setattr(
        "fisherlab.linalg.numerics.at_most", lambda *given: seen.append(1) or memory.at_most(*given)
    )
    found = fl.compare(model, data, names, memory="400kB").records
    assert seen
    assert list(found["method"]) == list(expected["method"])
    left = "seconds", "population_error_se", "damped_step_share"  # of all samples, or of none
    numbers = [c for c in expected.select_dtypes("number") if c not in left]
    pd.testing.assert_frame_equal(found[numbers], expected[numbers], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("approximation", ["kfac", "ekfac", LNGD(sampling=10**9)])
def test_draws_without_end_are_refused_before_the_work(approximation):
    model, data = small()
    options = {"kind": "monte-carlo", "draws": 10**9}
    refused = pytest.raises(
        MemoryLimitError, match=r"^1,000,000,000 label columns a sample would need .* labels$"
    )
    with refused:
        fl.approximate(approximation, model, data, **options)
    with refused:
        fl.collect_statistics(model, data, approximations=approximation, **options)
    with refused:
        fl.compare(model, data, approximation, **options)


@pytest.mark.parametrize("method", ["auto", "per-sample"])
def test_exact_blocks_of_draws_without_end_are_refused(method):
    model, data = small()
    with pytest.raises(MemoryLimitError, match="label columns a sample would need"):
        fl.exact_fisher(model, data, kind="monte-carlo", draws=10**9, method=method)


def test_traces_of_draws_without_end_are_refused():
    model, data = small()
    with pytest.raises(MemoryLimitError, match="label columns a sample would need"):
        trace(model, data, kind="monte-carlo", draws=10**9)


def test_draws_that_would_take_days_are_refused_however_large_the_limit():
    model, data = small()
    with pytest.raises(InputError, match=r"more than a day; draw fewer labels$"):
        fl.approximate("kfac", model, data, kind="monte-carlo", draws=10**12, memory=10**18)


def test_draws_that_fit_are_drawn():
    model, data = small()
    F = fl.exact_fisher(model, data, kind="monte-carlo", draws=200, memory="2MB")["5"]
    expected = fl.exact_fisher(model, data)["5"]
    assert abs(float(F.trace() / expected.trace()) - 1) < 0.1


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), True, 0, -1, "nan", "1e400", None])
@pytest.mark.parametrize("door", [fl.exact_fisher, fl.compare, fl.collect_statistics, trace])
def test_a_limit_that_is_no_size_is_refused(door, limit):
    with pytest.raises((ValueError, TypeError), match="memory"):
        door(*small(), memory=limit)


@pytest.mark.parametrize("columns", [1.5, True, 0, float("nan"), "4096"])
@pytest.mark.parametrize("door", [fl.exact_fisher, fl.compare, trace])
def test_a_number_of_columns_that_is_none_is_refused(door, columns):
    with pytest.raises((ValueError, TypeError), match="max_columns"):
        door(*small(), max_columns=columns)


GROWTH = """
import torch, fisherlab as fl
from torch import nn

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024

def work(samples, width, memory):
    layers = nn.Linear(196, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    model = nn.Sequential(*layers)
    data = torch.randn(samples, 196), torch.randint(10, (samples,))
    return lambda: fl.compare(model, data, "kfac", spectra=False, memory=memory)

torch.set_num_threads(1)
work(16, 4, "4GiB")()  # libraries make their own pools
measured = work(1000, 20, "128MiB")
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmHWM")
measured()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_grows_by_no_more_than_the_limit():
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.15 * 128 + 200
