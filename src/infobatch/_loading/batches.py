"""RecordedBatches: batches of the user's own making, noted as they are drawn."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from infobatch.errors import SamplerError


class RecordedBatches:
    """A batch sampler like the one that it wraps, which remembers the batches it has handed out.

    Made by `DataPruner.batches`. An iteration begins a new record; the pruner, which is told by
    its sampler of the same iteration, keeps a reference to that record.

    Attributes:
        sampler: the pruner's sampler, on which hosts call `set_epoch`.

    Args:
        batches: draws from the pruner's sampler and yields lists of indices, in any order and of
            any size.
        sampler: the pruner's.
        knows: whether the pruner's account is kept by a record.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[int]],
        sampler: Sampler[int],
        knows: Callable[[Record], bool],
    ) -> None:
        if not isinstance(batches, Iterable):
            raise TypeError(
                "batches needs a batch sampler: something that yields lists of indices when it is "
                f"iterated, such as MyBatchSampler(pruner.sampler), got {batches!r}"
            )
        self._batches, self.sampler, self._knows = batches, sampler, knows
        self.record = Record()

    def __iter__(self) -> Iterator[Sequence[int]]:
        self.record = Record()
        loop = self._iterate(self.record)
        self.record.loop = weakref.ref(loop)
        return loop

    def _iterate(self, record: Record) -> Iterator[Sequence[int]]:
        for batch in self._batches:
            if not record.batches and not self._knows(record):
                raise SamplerError(
                    f"{type(self._batches).__name__} has not drawn from pruner.sampler since its "
                    "iteration began, so the pruner cannot tell which epoch its batches are of; "
                    "iterate pruner.sampler within its __iter__"
                )
            if (held := record.hold(batch)) is not None:
                yield held
        if (last := record.finish()) is not None:
            yield last

    def __len__(self) -> int:
        if not isinstance(self._batches, Sized):
            raise TypeError(f"{type(self._batches).__name__} has no length")
        return len(self._batches)


class Record:
    """The batches of one iteration.

    One batch is held back, so that the last is known to be the last when it is handed out.

    Attributes:
        batches: (B,) int64 indices of each batch that has been handed out.
        ends: how many samples had been handed out with each of them.
        is_complete: whether no more will come.
        loop: a weak reference to the iteration.
    """

    def __init__(self) -> None:
        self.batches: list[NDArray[np.int64]] = []
        self.ends: list[int] = []
        self.is_complete = False
        self.loop: Callable[[], Any] = lambda: None
        self._held: Sequence[int] | None = None

    def hold(self, batch: Sequence[int]) -> Sequence[int] | None:
        """Take in the next batch; what was held before is handed out."""
        due, self._held = self._held, copy.copy(batch)  # some samplers use one list for all
        return self._hand_out(due)

    def finish(self) -> Sequence[int] | None:
        """Hand out the last batch."""
        due, self._held = self._held, None
        self.is_complete = True
        return self._hand_out(due)

    def _hand_out(self, batch: Sequence[int] | None) -> Sequence[int] | None:
        if batch is None:
            return None
        try:
            ids = torch.as_tensor(batch).numpy()
        except (TypeError, ValueError, RuntimeError):
            ids = np.empty((0, 0))
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
            raise SamplerError(
                "a batch sampler must yield lists of indices, at least one in each, got "
                f"{batch!r:.200}"
            )
        self.batches.append(ids.astype(np.int64))
        self.ends.append((self.ends[-1] if self.ends else 0) + len(ids))
        return batch
