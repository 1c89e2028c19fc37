"""Interleaved timing: contestants take turns, so that a busy moment hits all of them alike.

What has one thread and waits for nothing is timed by the CPU time of the process: on an idle
machine that is the wall time, and on a busy one it leaves out the turns of other programs.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Samples = dict[str, list[float]]

cpu_clock = time.process_time
wall_clock = time.perf_counter


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        repeats: rounds at least, one turn of every contestant each.
        seconds: go on with further rounds for this long, up to `most` of them.
        most: rounds at most.
    """

    repeats: int = 5
    seconds: float = 20.0
    most: int = 101


def interleave(contestants: Mapping[str, Callable[[], float]], effort: Effort) -> Samples:
    """Let the contestants take turns and collect what each reports, in order of the rounds.

    A first round warms caches and allocators up and is not counted. The order within a round
    rotates, so that nobody always runs behind the same neighbour. Garbage is collected before
    the rounds and not between them: a collection walks over every object of the process and
    would leave the next turn with cold caches.

    Args:
        contestants: by name; each prepares itself and returns the seconds of the timed part.
        effort: how many rounds.
    """
    names = list(contestants)
    for name in names:
        contestants[name]()
    gc.collect()
    samples: Samples = {name: [] for name in names}
    began = wall_clock()
    rounds = 0
    while rounds < effort.repeats or (
        rounds < effort.most and wall_clock() - began < effort.seconds
    ):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(contestants[name]())
        rounds += 1
    return samples


def timed(action: Callable[[], object]) -> float:
    """Seconds of CPU time that one call takes."""
    start = cpu_clock()
    action()
    return cpu_clock() - start


def brief(samples: Samples) -> str:
    """Medians on one line, for the eye while a run goes on."""
    return ", ".join(f"{name} {statistics.median(v):.4g}" for name, v in samples.items())
