"""The example for FSDP2, started by torchrun as a user starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "fsdp.py"


def torchrun(processes, folder, checkpoint, *arguments):
    """What the run says at its end: the loss of its last epoch, and the summary."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), SCRIPT, "--epochs", "4"]
    command += ["--checkpoint", folder / checkpoint, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loss, summary = re.search(r"loss ([\d.]+); (.*)", done.stdout).groups()
    return float(loss), summary


@pytest.mark.slow
def test_a_run_goes_on_within_an_epoch_with_another_number_of_processes(tmp_path):
    loss, summary = torchrun(1, tmp_path, "whole")
    _, part = torchrun(2, tmp_path, "stopped", "--stop-at", "50")
    assert part.endswith("in 1 of 4 epochs")  # 38 steps are an epoch
    assert torchrun(1, tmp_path, "stopped") == (pytest.approx(loss, abs=1e-5), summary)
    assert "in 4 of 4 epochs; headroom" in summary
