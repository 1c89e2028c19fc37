"""Gathering: the losses of all ranks become known to all, once an epoch.

Every rank can compute the whole epoch plan, so no index has to be sent: the losses of all ranks,
laid side by side, are in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import IndexArray
from infobatch._core.scores import FloatArray
from infobatch._ranks.agreement import Meeting

_PLANNED, NO_LOSS = -1, -2  # in place of a row: the planned one; none at all
LEFT_OUT, OWN_ROWS = 1, 2  # what rows come with losses


@dataclass
class PendingLosses:
    """The losses of this rank that the others do not know yet, in the order in which they came.

    Attributes:
        batches: sizes of the batches that they came in.
    """

    batches: list[int] = field(default_factory=list)
    _losses: list[FloatArray] = field(default_factory=list)
    _scores: list[FloatArray | None] = field(default_factory=list)
    _rows: list[NDArray[np.int64] | None] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(self.batches)

    @property
    def has_scores(self) -> bool:
        """Whether some of them came with scores of their own."""
        return any(scores is not None for scores in self._scores)

    @property
    def kind_of_rows(self) -> int:
        """0: all losses are of the planned samples; LEFT_OUT: some are left out; OWN_ROWS: else."""
        given = [rows for rows in self._rows if rows is not None]
        if any(bool((rows >= 0).any()) for rows in given):
            return OWN_ROWS
        return LEFT_OUT if given else 0

    def add(
        self,
        losses: FloatArray,
        scores: FloatArray | None,
        batches: list[int],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Take in losses (M,), of the planned samples or of those in `rows`."""
        self._losses.append(losses)
        self._scores.append(scores)
        self._rows.append(rows)
        self.batches += batches

    def skip(self, count: int) -> None:
        """Leave out the next `count` planned samples."""
        nothing = np.zeros(count, dtype=np.float32)
        self.add(nothing, None, [count], np.full(count, NO_LOSS))

    def pack(self, size: int, *, with_scores: bool, with_rows: bool) -> NDArray[np.uint8]:
        """`size` losses, then as many scores, then as many rows, as bytes."""
        fill = size - len(self)
        losses = [*self._losses, np.zeros(fill, np.float32)]
        parts: list[Sequence[NDArray[Any]]] = [losses]
        if with_scores:
            scores = zip(self._scores, self._losses, strict=True)
            parts.append([*(b if a is None else a for a, b in scores), losses[-1]])
        if with_rows:
            planned = (np.full(len(part), _PLANNED) for part in self._losses)
            rows = zip(self._rows, planned, strict=True)
            parts.append([*(b if a is None else a for a, b in rows), np.full(fill, NO_LOSS)])
        return np.concatenate([np.concatenate(part).view(np.uint8) for part in parts])


def gather_losses(
    meeting: Meeting, pending: PendingLosses, planned: IndexArray
) -> tuple[IndexArray, FloatArray, FloatArray, list[int]]:
    """Every rank's losses, in the order of the plan: the one large collective of an epoch.

    Args:
        meeting: of all ranks.
        pending: this rank's losses.
        planned: (M,) the rows that the plan has for these losses, over all ranks.

    Returns:
        rows, losses, scores: (M,) each; and the sizes of the batches that they came in.
    """
    size = max(header.count for header in meeting.headers)
    with_scores = any(header.has_scores for header in meeting.headers)
    with_rows = any(header.rows for header in meeting.headers)
    packed = pending.pack(size, with_scores=with_scores, with_rows=with_rows)
    parts = meeting.all_gather(packed, "losses")
    side_by_side = [part[: 4 * size].view(np.float32) for part in parts]
    losses = scores = np.stack(side_by_side, axis=1).reshape(-1)
    if with_scores:
        side_by_side = [part[4 * size : 8 * size].view(np.float32) for part in parts]
        scores = np.stack(side_by_side, axis=1).reshape(-1)
    if not with_rows:
        losses = losses[: len(planned)]  # what lies beyond is padding
        scores = scores[: len(planned)] if with_scores else losses
        batches = cut_batches([size * len(parts) for size in pending.batches], len(planned))
        return planned, losses, scores, batches
    rows = np.stack([part[-8 * size :].view(np.int64) for part in parts], axis=1).reshape(-1)
    as_planned = np.full(len(rows), NO_LOSS)
    as_planned[: len(planned)] = planned
    rows = np.where(rows == _PLANNED, as_planned, rows)
    came = rows >= 0
    rows, kept_losses = rows[came], losses[came]
    return rows, kept_losses, scores[came] if with_scores else kept_losses, [len(rows)]


def gather_rescored(
    meeting: Meeting, rows: NDArray[np.int64], scores: FloatArray
) -> tuple[NDArray[np.int64], FloatArray]:
    """The rows and scores that all ranks have from forward passes, rank after rank.

    Args:
        meeting: of all ranks; the headers count the scores of each.
        rows: (M,) this rank's.
        scores: (M,) of them.
    """
    counts = [header.count for header in meeting.headers]
    fill = max(counts) - len(rows)
    numbers = np.concatenate([rows, np.full(fill, NO_LOSS)]).view(np.uint8)
    values = np.concatenate([scores, np.zeros(fill, np.float32)]).view(np.uint8)
    parts = meeting.all_gather(np.concatenate([numbers, values]), "fresh scores")
    size = max(counts)
    by_rank = list(zip(parts, counts, strict=True))
    all_rows = np.concatenate([part[: 8 * size].view(np.int64)[:n] for part, n in by_rank])
    return all_rows, np.concatenate([part[8 * size :].view(np.float32)[:n] for part, n in by_rank])


def cut_batches(batches: list[int], length: int) -> list[int]:
    """The sizes of batches, without what lies beyond `length` samples."""
    cut = []
    for size in batches:
        cut.append(min(size, length))
        length -= cut[-1]
    return [size for size in cut if size > 0]
