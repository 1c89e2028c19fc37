"""The tasks: one file each, and each file defines `TASK`."""

from __future__ import annotations

import sys

from infobatch.lab.registry import discover
from infobatch.lab.task import Task


def all_tasks() -> dict[str, Task]:
    """Every task by its name."""
    return discover(sys.modules[__name__], "TASK", Task)
