"""Ahead: the permutation of the next epoch, made in a thread while this one is trained."""

from __future__ import annotations

import threading
from typing import Any

from infobatch._core.plan import IndexArray, Rows, order_dtype, shuffled

FEWEST, MOST = 1 << 17, 1 << 24  # rows: fewer are not worth a thread, more take too much memory


class Ahead:
    """Has the order of one coming epoch made beforehand: it depends on seed and epoch alone.

    Numpy shuffles without holding the interpreter's lock. The order takes 4 bytes a row until it
    is fetched, so it is made for at most 16.8 million rows.
    """

    def __init__(self) -> None:
        self._key: tuple[Rows, int, int] | None = None
        self._thread: threading.Thread | None = None
        self._made: list[IndexArray] = []

    def start(self, samples: Rows, seed: int, epoch: int) -> None:
        """Begin with the order of an epoch, unless that has been done."""
        key = (samples, seed, epoch)
        if not FEWEST <= len(samples) <= MOST or self._key == key:
            return
        made: list[IndexArray] = []
        self._key, self._made = key, made
        self._thread = threading.Thread(target=lambda: made.append(_made(*key)), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what has been begun is made."""
        if self._thread is not None:
            self._thread.join()

    def order(self, samples: Rows, seed: int, epoch: int) -> IndexArray:
        """The permutation of all rows for one epoch: that of the thread, or made now."""
        if self._key == (samples, seed, epoch):
            self.wait()
            made, self._made, self._key = self._made, [], None
            if made:  # not so in a process that was forked meanwhile
                return made[0]
        return shuffled(len(samples), seed, epoch, samples.first)

    def __getstate__(self) -> dict[str, Any]:
        return Ahead().__dict__  # a thread stays where it is


def _made(samples: Rows, seed: int, epoch: int) -> IndexArray:
    order = shuffled(len(samples), seed, epoch, samples.first)
    return order.astype(order_dtype(len(samples)))
