"""The same numbers on a GPU as on the CPU, for every layer kind."""

import copy

import pytest
import torch
from layers_zoo import ZOO, zoo

import fisherlab as fl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

METHODS = ("diagonal", "kfac", "ekfac", "tkfac", "lngd", "lngd-lr", "ngplus", "foof")


def on_gpu(value):
    if isinstance(value, tuple):
        return tuple(on_gpu(part) for part in value)
    return value.cuda()


@pytest.fixture(params=sorted(ZOO))
def pair(request):
    """A network and its data on the CPU, and copies on the GPU."""
    case = zoo(request.param)
    data = (case.inputs, case.targets)
    return (case.model, data), (copy.deepcopy(case.model).cuda(), on_gpu(data)), case.likelihood


@pytest.mark.parametrize("method", ["auto", "gram"])
def test_exact_blocks(pair, method):
    cpu, gpu, likelihood = pair
    expected = fl.exact_fisher(*cpu, likelihood, method=method)
    for name, operator in fl.exact_fisher(*gpu, likelihood, method=method).items():
        found, right = operator.dense().cpu(), expected[name].dense()
        assert operator.device.type == "cuda"
        assert torch.linalg.norm(found - right) <= 1e-9 * max(float(torch.linalg.norm(right)), 1e-6)


def test_statistics_and_drawn_labels(pair):
    cpu, gpu, likelihood = pair
    for kind in ("predictive", "monte-carlo"):
        expected = fl.collect_statistics(*cpu, likelihood, kind, approximations=METHODS)
        found = fl.collect_statistics(*gpu, likelihood, kind, approximations=METHODS)
        for name, sums in expected.sums.items():
            for key, value in sums.values.items():
                if not key.startswith("rotated/"):  # a basis of equal eigenvalues is not unique
                    assert torch.allclose(found.sums[name].values[key].cpu(), value, rtol=1e-8, atol=1e-10)


def test_records(pair):
    cpu, gpu, likelihood = pair
    names = ("kfac", "tkfac", "lngd")
    right = fl.compare(*cpu, names, likelihood, spectra=False).records
    found = fl.compare(*gpu, names, likelihood, spectra=False).records
    for column in ("relative_error", "scaled_error", "trace_exact", "trace_approx"):
        assert found[column].to_numpy() == pytest.approx(
            right[column].to_numpy(), rel=1e-6, abs=1e-9, nan_ok=True
        )
