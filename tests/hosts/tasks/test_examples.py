"""The examples of generation and pretraining are run as their docstrings say."""

import pytest
from tests.hosts.support import run_example

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("score", ["raw", "timestep"])
def test_diffusion_saves_and_learns_and_generates(score, tmp_path):
    end = run_example(
        "diffusion.py", tmp_path, "--epochs", 8, "--score", score, "--out", tmp_path / "made"
    )
    assert 0.1 < end.saved < 0.5
    assert end.metric < 0.4  # always guessing zero gives 1
    assert len(list((tmp_path / "made").glob("*.png"))) == 16


def test_mae_saves_and_its_encoder_classifies(tmp_path):
    end = run_example("mae.py", tmp_path, "--epochs", 12, "--fine-tuning-epochs", 40)
    assert 0.1 < end.saved < 0.5
    assert end.metric > 0.3  # chance is 0.1
