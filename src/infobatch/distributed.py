"""For launchers without `torch.distributed`: the way to the other processes, to be given by you."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

__all__ = ["Communicator"]


@runtime_checkable
class Communicator(Protocol):
    """What infobatch needs of a group of processes, for launchers without `torch.distributed`.

    Attributes:
        rank: this process, 0 to world_size - 1.
        world_size: number of processes.
    """

    rank: int
    world_size: int

    def all_gather(self, data: Bytes) -> list[Bytes]:
        """Every process's data, in the order of their ranks; all give equally many bytes."""
        ...
