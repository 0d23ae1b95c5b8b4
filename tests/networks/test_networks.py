"""Networks of other people: `pytest -m networks`, where their packages are installed."""

import pytest

from networks import NETWORKS
from networks.checks import RATES, block_errors, compared, coverage, trained
from networks.network import Network

pytestmark = pytest.mark.networks


@pytest.fixture(params=NETWORKS, ids=lambda network: network.name)
def network(request: pytest.FixtureRequest) -> Network:
    if not request.param.installed():
        pytest.skip(f"{request.param.package} is not installed")
    return request.param


def test_every_block_is_exact(network):
    errors = block_errors(network)
    assert max(errors.values()) < 1e-10, errors


def test_a_comparison_leaves_nothing_behind_and_has_a_reason_for_what_is_not_covered(network):
    share, reasons = coverage(network, compared(network).layers)
    assert share == 1 or all(reasons.values())


@pytest.mark.parametrize("optimizer", RATES)
def test_a_few_steps_lower_the_loss_and_go_on_from_a_state(network, optimizer):
    before, after = trained(network, optimizer)
    assert after < before
