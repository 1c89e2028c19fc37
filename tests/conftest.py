"""Settings that all tests share: one thread, seeded draws, hypothesis profiles."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
HOSTS = TESTS / "hosts"
LAB = TESTS / "lab"
# What trains for long there, and is no part of `make test`.
AT_LENGTH = ("test_presets.py", "test_processes.py", "test_report.py", "test_training.py")

# No deadline: the first example pays for imports and caches of torch. The health check on speed is
# off for the same reason; the number of examples is what bounds the time.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=25, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "quick"))

# The tests compute on tiny tensors: more threads only get in each other's way, and the promise that
# the thread count changes nothing has a test of its own.
torch.set_num_threads(1)


# A shell lets what it starts in the background ignore Control-C, which a test sends to the command.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path, config):
    """Tests of hosts need their frameworks and are run by name: `make test-hosts`."""
    if collection_path == HOSTS and not any("hosts" in Path(arg).parts for arg in config.args):
        return True
    return None


def pytest_collection_modifyitems(items):
    """All of the laboratory is one group, what takes long in it slow."""
    for item in items:
        if LAB in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if item.path.name in AT_LENGTH or LAB / "tasks" in item.path.parents:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded_torch():
    """A test's draws depend on nothing that ran before it; pytest-randomly seeds the others."""
    torch.manual_seed(0)
