"""Where a result comes from: versions, hardware and commit, but no host name and no path."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import infobatch
from infobatch.lab.run import ranks


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "infobatch": infobatch.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def hardware(device: torch.device) -> str:
    """The device's model, for a CPU how many cores torch may use, and the processes if several."""
    if device.type == "cuda":
        found = torch.cuda.get_device_name(device)
    else:
        model = _cpu_model() or platform.processor() or platform.machine()
        found = f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return found if ranks.count() == 1 else f"{found}, {ranks.count()} processes"


def _cpu_model() -> str:
    """The processor's name; empty where the kernel does not say."""
    names = _lines_of("/proc/cpuinfo", "model name")
    return names[0].partition(":")[2].strip() if names else ""


def _lines_of(path: str, start: str) -> list[str]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if line.startswith(start)]


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring `peak_memory` anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # then `peak_memory` is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that torch has held on a GPU, or that this process has on a CPU (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    marks = _lines_of("/proc/self/status", "VmHWM:")
    return int(marks[0].split()[1]) * 1024 if marks else None


def commit() -> str | None:
    """The commit of the source tree that infobatch is imported from, with "-dirty" if changed.

    None if this file is not tracked by git, as in an installed package, even where that lies
    inside some other repository.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--match=")


def _git(*arguments: str) -> str | None:
    """What git says in the folder of this file; None if it fails or is not there."""
    try:
        finished = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
