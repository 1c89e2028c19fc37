"""Agreement: before ranks exchange anything, all make sure that they stand at the same place.

A header of some integers goes before the data, so that ranks that disagree all find out, from the
same figures, before sizes could fail to match.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import EpochPlan
from infobatch._ranks.world import Ranks, World
from infobatch.distributed import Bytes
from infobatch.errors import DistributedError

_PROTOCOL = 3
_DIGEST_SAMPLES = 1 << 16

OCCASIONS = (
    "the first update",
    "the end of an epoch",
    "synchronize()",
    "the planning of an epoch",
    "rescore()",
    "the sharing out of an epoch",
)
FIRST_UPDATE, EPOCH_END, SYNCHRONIZE, PLANNING, RESCORE, SHARING = range(6)


@dataclass(frozen=True)
class Header:
    """Where a rank stands: what all ranks must agree on before anything is sent.

    Attributes:
        occasion: what the rank is doing: one of `OCCASIONS`.
        epoch: 0-based.
        start: plan position from which this epoch is trained.
        position: samples of this rank's share that have been accounted for.
        plan: digest of the epoch plan.
        count: how much follows: losses or scores, of which ranks may have unequal numbers; while
            planning and sharing out, bytes, of which all must have as many.
        has_scores, rows: what comes with losses; see `PendingLosses.kind_of_rows`.
    """

    occasion: int
    epoch: int
    start: int
    position: int
    plan: int
    count: int = 0
    has_scores: bool = False
    rows: int = 0


def plan_digest(plan: EpochPlan) -> int:
    """A number that differs, in all likelihood, for plans that differ; cheap at any size.

    Of the order, up to 131,072 entries and the sum are looked at. Threshold and mean weight depend
    on the scores, so digests also tell scores apart, as finely as the policy looks at them.
    """
    step = max(1, len(plan.order) // _DIGEST_SAMPLES)
    sampled = np.ascontiguousarray(plan.order[::step], dtype=np.int64)
    facts = (
        len(plan),
        plan.total,
        plan.threshold,
        plan.mean_weight,
        int(plan.order.sum(dtype=np.int64)),
    )
    return zlib.crc32(sampled.tobytes(), zlib.crc32(repr(facts).encode()))


@dataclass(frozen=True)
class Meeting:
    """All ranks stand at the same place, and can go on together.

    Attributes:
        headers: (W,) those of rank 0 to W - 1.
        processes: (W,) the process of the group that stands for each rank: where several have
            the same data-parallel rank, the first of them.
    """

    ranks: Ranks
    headers: list[Header]
    processes: list[int]
    occasion: str

    def all_gather(self, data: NDArray[Any], what: str = "sums of the epoch") -> list[Bytes]:
        """The data of rank 0 to W - 1, equally many bytes each; a collective operation.

        Args:
            data: this rank's.
            what: name of it, for the message of an error.
        """
        gathered = self.ranks.all_gather(data.view(np.uint8), self.occasion, what=what)
        return [gathered[process] for process in self.processes]


def meet(
    ranks: Ranks, world: World, settings: Mapping[str, Any], header: Header, *, uneven: bool = False
) -> Meeting:
    """Tell every rank where this one stands, and make sure that all stand at the same place.

    Args:
        ranks: the way to the others.
        world: this rank's place.
        settings: the pruner's; compared one by one.
        header: where this rank stands.
        uneven: the ranks may have come to different positions.

    Raises:
        DistributedError: they do not agree; on every rank alike.
    """
    names = sorted(settings)
    digests = [zlib.crc32(json.dumps(settings[name], sort_keys=True).encode()) for name in names]
    place = [int(value) for value in vars(header).values()]
    own = np.array([_PROTOCOL, world.size, *digests, *place, world.rank], dtype=np.int64)
    occasion = f"{OCCASIONS[header.occasion]} (epoch {header.epoch}, position {header.position})"
    parts = ranks.all_gather(own.view(np.uint8), occasion, what="places in the run")
    table = [part.view(np.int64).tolist() for part in parts]
    first = table[0]
    for column, name in enumerate(["version of infobatch", "world_size", *names]):
        differing = [row[-1] for row in table if row[column] != first[column]]
        if differing:
            mine = f" (here: {settings[name]!r})" if name in settings else ""
            raise DistributedError(
                f"rank(s) {differing} have another {name} than rank {first[-1]}{mine}; build the "
                "pruner with the same arguments on every rank"
            )
    processes = {row[-1]: process for process, row in reversed(list(enumerate(table)))}
    if sorted(processes) != list(range(world.size)):
        raise DistributedError(
            f"the process group must hold ranks 0 to {world.size - 1}, got {sorted(processes)}; "
            "pass rank= and world_size= of the data-parallel dimension"
        )
    headers = [Header(*row[-1 - len(place) : -1]) for row in table]
    for row, other in zip(table, headers, strict=True):
        _compare(first[-1], headers[0], row[-1], other, uneven=uneven)
    by_rank = [processes[rank] for rank in range(world.size)]
    return Meeting(ranks, [headers[process] for process in by_rank], by_rank, occasion)


def _compare(rank: int, header: Header, other_rank: int, other: Header, *, uneven: bool) -> None:
    where = " and ".join(
        f"rank {number} is at {OCCASIONS[place.occasion]}, epoch {place.epoch}, sample "
        f"{place.position} of its share"
        for number, place in ((rank, header), (other_rank, other))
    )
    if (header.occasion, header.epoch, header.start) != (other.occasion, other.epoch, other.start):
        raise DistributedError(
            f"the ranks do not stand at the same place: {where}. Every rank must train on every "
            "batch of its loader, call synchronize and load_state_dict alike, and leave an epoch "
            "early (break) only where all do"
        )
    if header.plan != other.plan:
        raise DistributedError(
            f"rank {other_rank} has planned epoch {header.epoch} otherwise than rank {rank}: their "
            "scores, their policies or the orders of their own samplers differ. Load the same "
            "state on every rank; let a policy draw from its rng alone; let a sampler= of your "
            "own yield the whole order, the same on every rank (no DistributedSampler: the "
            "pruner shards it)"
        )
    if header.occasion in (PLANNING, SHARING) and header.count != other.count:
        raise DistributedError(
            f"at {OCCASIONS[header.occasion]} {header.epoch} rank {rank} has {header.count} bytes "
            f"to send and rank {other_rank} {other.count}: their policies differ. Let summarise "
            "return equally many numbers on every rank, whatever the scores are"
        )
    if header.position != other.position and not uneven:
        raise DistributedError(
            f"the ranks have trained on different numbers of samples: {where}. A rank that leaves "
            "an epoch early (break) must do so with all others, after the same batch"
        )
