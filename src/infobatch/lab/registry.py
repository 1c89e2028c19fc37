"""Discovery: what lies as a file in a package is registered, and nothing else needs editing."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TypeVar

from infobatch.lab.errors import LabError

T = TypeVar("T")


def discover(package: ModuleType, attribute: str, kind: type[T]) -> dict[str, T]:
    """Collect `module.<attribute>` from every module of a package, by its `name`, sorted.

    Raises:
        TypeError: a module of the package lacks the attribute, or has it with another type.
    """
    found: dict[str, T] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        entry = getattr(module, attribute, None)
        if not isinstance(entry, kind):
            raise TypeError(f"{module.__name__} must define {attribute}, a {kind.__name__}")
        found[str(getattr(entry, "name"))] = entry  # noqa: B009 - T has a name by convention
    return dict(sorted(found.items()))


def choose(name: str, choices: Mapping[str, T], *, what: str) -> T:
    """The entry of that name.

    Raises:
        LabError: there is none; the message lists the names that exist.
    """
    if name not in choices:
        raise LabError(f"unknown {what} {name!r}; choose from: {', '.join(choices)}")
    return choices[name]
