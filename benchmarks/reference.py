"""The public reference implementation, loaded from a checkout and made to finish an epoch."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from published import COMMITS, NAME
from torch.utils.data import dataloader


class Reference:
    """A checkout of the reference's repository, or its one file.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.file = path if path.is_file() else path / "infobatch" / "infobatch.py"
        if not self.file.is_file():
            raise FileNotFoundError(f"--reference must hold infobatch/infobatch.py: {path}")
        self._module = _load(self.file)

    def describe(self) -> dict[str, str | None]:
        """Which version it is: name, commit as far as it can be known, and a digest of the file."""
        root = self.file.resolve().parents[1]
        git = ["git", "-C", str(root), "rev-parse"]
        top = _output([*git, "--show-toplevel"])
        same = top is not None and Path(top) == root
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        commit = _output([*git, "HEAD"]) if same else None
        return {"name": NAME, "commit": commit or COMMITS.get(digest), "sha256": digest}

    def pruner(self, scores: torch.Tensor) -> Any:
        """Its wrapper around a data set without content, long before annealing begins."""
        wrapper = self._module.InfoBatch(range(len(scores)), num_epochs=10**9)
        wrapper.scores.copy_(scores)
        return wrapper

    def distributed(self, dataset: Any, num_epochs: int) -> Any:
        """Its wrapper around a real data set; inside a process group its sampler shards."""
        return self._module.InfoBatch(dataset, num_epochs=num_epochs, delta=1.0)

    def loader(self, loader: Any) -> Iterable[Any]:
        """That data set's batches (inputs, labels), with its patch of all loaders switched on."""
        return _Patched(loader, self._module.info_hack_indices)


class _Patched:
    def __init__(self, loader: Any, patch: Any) -> None:
        self._loader, self._patch = loader, patch

    def __iter__(self) -> Iterator[Any]:
        kept = dataloader._BaseDataLoaderIter.__next__
        dataloader._BaseDataLoaderIter.__next__ = self._patch  # type: ignore[method-assign]
        try:
            yield from self._loader
        finally:
            dataloader._BaseDataLoaderIter.__next__ = kept  # type: ignore[method-assign]


def one_pass(sampler: Any) -> Iterator[int]:
    """One epoch of the reference's sampler: what planning and drawing cost it, and an end.

    `iter` of that sampler plans an epoch and returns the sampler itself. BatchSampler takes
    `iter` of what it draws from for every batch, so with today's torch it plans anew for every
    batch and never ends. Here `iter` is called once, as in one epoch meant to end, and indices
    are drawn by the sampler's own `__next__`, through an iterator that is its own `iter`.
    """
    return iter(iter(sampler).__next__, object())


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("infobatch_reference", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # Importing it replaces a method of every DataLoader in the process; the other contestants
    # must not pay for that.
    kept = dataloader._BaseDataLoaderIter.__next__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    finally:
        dataloader._BaseDataLoaderIter.__next__ = kept  # type: ignore[method-assign]
    return module


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
