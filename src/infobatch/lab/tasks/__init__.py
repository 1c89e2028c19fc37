"""The tasks: each file or folder but `base` defines `TASK`, one of them or a tuple."""

from __future__ import annotations

import sys

from infobatch.lab.registry import discover
from infobatch.lab.tasks.base.task import Task


def all_tasks() -> dict[str, Task]:
    """Every task by its name."""
    return discover(sys.modules[__name__], "TASK", Task)
