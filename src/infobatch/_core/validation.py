"""Argument checks shared by the rooms: each error names the argument, the rule and what came."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sized
from typing import SupportsIndex


def check_fraction(name: str, value: object, *, below_one: bool = False) -> float:
    """Return `value` as a float in [0, 1], or in [0, 1) with `below_one`.

    Raises:
        TypeError: not a real number.
        ValueError: outside the range, or NaN.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # the except clause is the check
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if math.isnan(number) or number < 0.0 or number > 1.0 or (below_one and number == 1.0):
        interval = "[0, 1)" if below_one else "[0, 1]"
        raise ValueError(
            f"{name} must be in {interval}, a fraction and not a percentage, got {value!r}"
        )
    return number


def check_int(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """Return `value` as an int within bounds; booleans and floats are refused.

    Raises:
        TypeError: not an integer.
        ValueError: out of bounds.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # the except clause is the check
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < at_least or (at_most is not None and number > at_most):
        upper = "" if at_most is None else f" and at most {at_most}"
        raise ValueError(f"{name} must be at least {at_least}{upper}, got {number}")
    return number


def check_at_least(name: str, value: object, bound: float, *, inclusive: bool = True) -> float:
    """Return `value` as a finite float not below a bound, or above it.

    Raises:
        TypeError: not a real number.
        ValueError: out of bounds, infinite or NaN.
    """
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # the except clause is the check
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < bound or (number == bound and not inclusive):
        rule = f"at least {bound:g}" if inclusive else f"above {bound:g}"
        raise ValueError(f"{name} must be a finite number {rule}, got {value!r}")
    return number


def length(dataset: Sized | SupportsIndex) -> int:
    """The length of a data set, or the length itself where that is given; at least 1.

    Raises:
        TypeError: it has none, or one that counts something else than samples.
        ValueError: it is empty.
    """
    if (remedy := _instead_of(dataset)) is not None:
        raise TypeError(
            "dataset must be the data set, whose length is the number of samples, got "
            f"{type(dataset).__name__}{remedy}"
        )
    try:
        size = len(dataset)  # type: ignore[arg-type]  # the except clause is the check
    except TypeError:
        if not isinstance(dataset, SupportsIndex):
            raise TypeError(
                "dataset must have a length, or be the length itself, got "
                f"{type(dataset).__name__}; samples of a stream without a length cannot be planned"
            ) from None
        size = check_int("dataset", dataset, at_least=1)
    if size < 1:
        raise ValueError("dataset must have at least one sample, got an empty one")
    return size


def _instead_of(dataset: object) -> str | None:
    """What is wrong with what stands near a data set and has a length too; None: nothing."""
    if isinstance(dataset, (str, bytes, os.PathLike)):
        return f" {os.fspath(dataset)!r}; pass the data set that is read from there"
    if isinstance(dataset, Mapping):
        names = list(dataset)
        shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        example = f', such as splits["{names[0]}"]' if names and isinstance(names[0], str) else ""
        return (
            f" of {shown or 'nothing'}; pass one of its values{example}, or the number of samples"
        )
    if isinstance(dataset, tuple):
        return (
            f" of {len(dataset)}; for inputs and labels pass TensorDataset(x, y), for samples "
            "list(samples)"
        )
    is_loader = hasattr(dataset, "dataset") and hasattr(dataset, "sampler")  # torch's, or like it
    if is_loader and not hasattr(dataset, "__getitem__"):
        return ", which counts batches; pass loader.dataset"
    return None
