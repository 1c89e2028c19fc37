"""Entries of a state: each is read as one type, within bounds, or refused; and the checksum."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from infobatch.errors import StateError

_T = TypeVar("_T")


def entry(state: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    if name not in state:
        raise StateError(f"the state has no entry {name!r}; is it from DataPruner.state_dict()?")
    value = state[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise StateError(
            f"the state's entry {name!r} must be of type {kind.__name__}, "
            f"got {type(value).__name__}"
        )
    return value


def optional(state: Mapping[str, Any], name: str, kind: type[_T]) -> _T | None:
    """An entry that is there, and may be None."""
    return None if name in state and state[name] is None else entry(state, name, kind)


def sequence(state: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """An entry that is a tuple, or a list, into which some formats turn it."""
    value = state.get(name)
    return tuple(value) if isinstance(value, list) else entry(state, name, tuple)


def count(state: Mapping[str, Any], name: str, *, at_most: int) -> int:
    value = entry(state, name, int)
    if not 0 <= value <= at_most:
        raise StateError(f"the state's entry {name!r} must be 0 to {at_most}, got {value}")
    return value


def vector(state: Mapping[str, Any], name: str, length: int, *dtypes: torch.dtype) -> Tensor:
    """A copy, on the host, of a 1-D tensor entry of that length and one of those types."""
    value = entry(state, name, Tensor)
    if value.dtype not in dtypes or tuple(value.shape) != (length,):
        raise StateError(
            f"the state's entry {name!r} must be {' or '.join(map(str, dtypes))} of shape "
            f"({length},), got {value.dtype} of shape {tuple(value.shape)}"
        )
    return value.detach().to("cpu", copy=True)


def record_of(packed: object, kind: type[_T]) -> _T:
    """A dataclass of plain numbers from a dict with exactly its fields."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(packed, dict) or packed.keys() != fields.keys():
        raise StateError(
            f"a {kind.__name__} in the state must have the entries {sorted(fields)}, got {packed!r}"
        )
    for name, annotation in fields.items():
        value = entry(packed, name, int if annotation == "int" else float)
        if annotation == "int" and value < 0:
            raise StateError(f"{name} of a {kind.__name__} in the state is negative: {value}")
    return kind(**packed)


def checksum(state: Mapping[str, Any]) -> int:
    """Of all that a state holds but its settings, which are compared one by one."""
    content = {k: v for k, v in state.items() if k not in ("settings", "checksum")}
    return _add_to_checksum(content, 0)


def _add_to_checksum(value: Any, checksum: int) -> int:
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, (list, tuple)):
        for item in value:
            checksum = _add_to_checksum(item, checksum)
        return checksum
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).data, checksum)
    return zlib.crc32(repr(value).encode(), checksum)
