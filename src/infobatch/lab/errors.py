"""What the user of the command line can put right."""

from __future__ import annotations

import importlib
from typing import Any

from infobatch.errors import InfoBatchError


class LabError(InfoBatchError, ValueError):
    """A request that cannot be carried out; the message says what to do instead.

    The command line prints it without a traceback and exits with code 2.
    """


def need(module: str, extra: str) -> Any:
    """Import a module that the `lab` extra does not bring; a LabError names the extra that does."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is there, and something that it needs is not
        raise LabError(f'{package} is needed for this: pip install "infobatch[{extra}]"') from error
