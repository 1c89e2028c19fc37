"""What a figure depends on besides the code: versions and hardware, without host names or paths."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

import infobatch


def versions() -> dict[str, str]:
    """Versions of everything that is on the clock."""
    return {
        "infobatch": infobatch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def machine() -> dict[str, str | int | None]:
    """CPU model, cores, memory, operating system, accelerator."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerator": cuda,
    }


def cpu_model() -> str:
    """The CPU's own name for itself."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_gib() -> int | None:
    """Physical memory; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):
        return None
