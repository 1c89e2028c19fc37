"""Warnings that point at the user's line, wherever in the library they arise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_HERE = str(Path(__file__).parents[1])
_OUTSIDE = ("torch", "contextlib", "functools")


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line that is neither the library's nor torch's.

    Args:
        message: what to say.
        category: a warning class of `infobatch.errors`.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename, frame.f_globals):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_inside(filename: str, names: dict[str, object]) -> bool:
    module = str(names.get("__name__", ""))
    return filename.startswith(_HERE) or module.split(".")[0] in _OUTSIDE
