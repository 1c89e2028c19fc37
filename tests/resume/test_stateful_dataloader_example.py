"""The example for torchdata's StatefulDataLoader, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "stateful_dataloader.py"


def run(folder, *arguments):
    command = [sys.executable, SCRIPT, "--checkpoint", folder / "run.pt", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_run_that_is_stopped_within_an_epoch_ends_as_one_that_is_not(tmp_path):
    whole = run(tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "8 of 8 epochs" in whole.stdout
    stopped = run(tmp_path, "--stop-at", "40")
    assert "stopped after step 40, in epoch 1" in stopped.stderr
    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
