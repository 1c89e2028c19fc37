"""A small comparison that several tests look at, run once through the real command."""

from pathlib import Path

import pytest
import torch
from tests.lab.support import Comparison, small_comparison


@pytest.fixture(autouse=True)
def _threads_restored():
    """The command sets torch's threads for its whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """`infobatch compare` with all arms and two seeds. Only to be read."""
    out: Path = tmp_path_factory.mktemp("comparison")
    result = small_comparison(out)
    assert result.exit_code == 0, result.output
    return Comparison(out, result.output)
