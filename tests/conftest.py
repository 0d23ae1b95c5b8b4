from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from model_cases import Mean
from reference import NLL, Case
from torch import nn

torch.set_num_threads(1)  # small tensors: threads cost more than they give

settings.register_profile("fisherlab", deadline=None)  # a loaded machine takes its time
settings.load_profile("fisherlab")

LIKELIHOODS = ("categorical", "bernoulli", "gaussian")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests, and those of other people's networks, run where they are asked for by -m."""
    for item in items:
        for mark in ("slow", "networks"):
            if item.get_closest_marker(mark) and not config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"{mark}; run with -m {mark}"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from one random state, and leaves the one it found."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no data directory, no network; returns the cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FISHERLAB_OFFLINE", "1")
    monkeypatch.delenv("FISHERLAB_DATA", raising=False)
    return tmp_path / "xdg" / "fisherlab"


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, also in processes that are started; this process has afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def double() -> Iterator[None]:
    """New tensors are of float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session", params=LIKELIHOODS)
def trained(request: pytest.FixtureRequest) -> Case:
    """A trained network 6-5-4-3 with an activation in place, for each likelihood."""
    return _trained(request.param)


@pytest.fixture(scope="session")
def categorical() -> Case:
    """The trained network of the categorical likelihood."""
    return _trained("categorical")


@pytest.fixture(scope="session")
def sequences() -> Case:
    """A trained network on sequences [n, 4, 3]; its last layer sees the mean over positions."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), Mean(), nn.Linear(3, 3)
    ).double()
    inputs = torch.randn(24, 4, 3, dtype=torch.float64)
    values = 3 * (inputs.sum(1).tanh() + inputs.square().mean(1))
    targets = torch.distributions.Categorical(logits=values).sample()
    return _fitted(Case(model, inputs, targets, "categorical"), steps=40)


@pytest.fixture(params=["vectors", "sequences"])
def any_case(request: pytest.FixtureRequest, categorical: Case, sequences: Case) -> Case:
    """A network on vectors, and one on sequences."""
    return categorical if request.param == "vectors" else sequences


def _trained(likelihood: str) -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Linear(5, 4, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(4, 3),
    ).double()
    inputs = torch.randn(40, 6, dtype=torch.float64)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        values = 3 * teacher(inputs) + 0.5 * torch.randn(40, 3, dtype=torch.float64)
    targets = {
        "categorical": torch.distributions.Categorical(logits=values).sample(),
        "bernoulli": torch.bernoulli(values.sigmoid()),
        "gaussian": values,
    }[likelihood]
    return _fitted(Case(model, inputs, targets, likelihood), steps=40)


def _fitted(case: Case, steps: int) -> Case:
    optimizer = torch.optim.Adam(case.model.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.func.vmap(NLL[case.likelihood])(case.model(case.inputs), case.targets).mean()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return case
