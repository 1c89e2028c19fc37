"""Numbers among the options of a task, which come as text."""

from __future__ import annotations

from collections.abc import Mapping

from infobatch.lab.errors import LabError


def whole_number(options: Mapping[str, str], name: str, *, at_least: int) -> int:
    """An option's value.

    Raises:
        LabError: it is no such number.
    """
    try:
        value = int(options[name])
    except ValueError:
        value = at_least - 1
    if value < at_least:
        raise LabError(
            f"--option {name} must be a whole number from {at_least} up, got {options[name]}"
        )
    return value


def number(options: Mapping[str, str], name: str, *, at_least: float, at_most: float) -> float:
    """An option's value.

    Raises:
        LabError: it is no such number.
    """
    try:
        value = float(options[name])
    except ValueError:
        value = at_least - 1
    if not at_least <= value <= at_most:
        span = f"from {at_least:g} to {at_most:g}"
        raise LabError(f"--option {name} must be a number {span}, got {options[name]}")
    return value
