"""Discovery: a module in a package of tasks or arms is registered by being there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TypeVar

from infobatch.lab.errors import LabError

T = TypeVar("T")
SHARED = "base"
"""The module of a package that holds what the others share."""


def discover(package: ModuleType, attribute: str, kind: type[T]) -> dict[str, T]:
    """Collect `module.<attribute>` from every module of a package, by its `name`, sorted.

    Raises:
        TypeError: a module lacks the attribute, or it is neither a `kind` nor a tuple of them.
    """
    found: dict[str, T] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name == SHARED:
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        entry = getattr(module, attribute, None)
        entries = entry if isinstance(entry, tuple) else (entry,)
        if not entries or not all(isinstance(item, kind) for item in entries):
            raise TypeError(
                f"{module.__name__} must define {attribute}, a {kind.__name__} or a tuple of them"
            )
        found.update({str(getattr(item, "name")): item for item in entries})  # noqa: B009 - by convention
    return dict(sorted(found.items()))


def choose(name: str, choices: Mapping[str, T], *, what: str) -> T:
    """The entry of that name, or a LabError that lists the names that exist."""
    if name not in choices:
        raise LabError(f"unknown {what} {name!r}; choose from: {', '.join(choices)}")
    return choices[name]
