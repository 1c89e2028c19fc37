"""What a task needs beside the `lab` extra, imported when it is needed."""

from __future__ import annotations

import importlib
from typing import Any

from infobatch.lab.errors import LabError


def need(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises:
        LabError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and something that it needs is not
        raise LabError(
            f'{module.partition(".")[0]} is needed for this: pip install "infobatch[{extra}]"'
        ) from error
