"""Policy: decides which samples an epoch keeps. One method, and what it may say beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray, occurrences
from infobatch._core.selection import Selection
from infobatch.errors import PolicyError

Memory: TypeAlias = Mapping[str, FloatArray]
"""What a policy remembers of each sample: float32 arrays (N,) by column, to be written to."""


def new_memory(columns: Mapping[str, float], num_samples: int) -> dict[str, FloatArray]:
    """A memory (N,) with these columns, each full of its first value."""
    return {name: np.full(num_samples, value, dtype=np.float32) for name, value in columns.items()}


@dataclass(frozen=True, eq=False)
class Request:
    """What a policy is asked: which samples to keep in one epoch.

    Attributes:
        scores: (N,) float32, not to be written to. Non-finite where nothing usable is known: keep
            these samples.
        epoch: 0-based number of the epoch to plan.
        num_epochs: length of the run.
        rng: a generator that depends on the run's seed and on the epoch alone.
        keep: how many samples must be kept, `min_keep(N)` to N; None: as many as the policy likes.
        memory: what the policy remembers, by column; empty for most. It may be written to, if a
            second request for the same epoch then gets the same answer.
        summary: sums of `Policy.summarise` over all scores of the run, where `scores` are a part
            of them; None: `scores` are all there are.
    """

    scores: FloatArray
    epoch: int
    num_epochs: int
    rng: np.random.Generator
    keep: int | None = None
    memory: Memory = field(default_factory=dict)
    summary: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def kept_by_budget(self) -> int:
        """`keep`, for policies that need a budget.

        Raises:
            PolicyError: it is None.
        """
        if self.keep is None:
            raise PolicyError("this policy must be told how many samples to keep: pass budget=")
        return self.keep

    def of_group(self, rows: NDArray[np.intp], keep: int | None) -> Request:
        """The same request for some of the samples; its memory is a copy."""
        memory = {name: values[rows] for name, values in self.memory.items()}
        return replace(self, scores=self.scores[rows], keep=keep, memory=memory)


class Visits(NamedTuple):
    """Scores of samples, in the order in which they came.

    Attributes:
        rows: (M,) which samples; may repeat.
        scores: (M,) float32, may be non-finite.
        batches: sizes of the batches that they came in, M in total.
        trained: False where the samples were only passed forward (`DataPruner.rescore`).
    """

    rows: NDArray[np.integer[Any]]
    scores: FloatArray
    batches: list[int]
    trained: bool = True

    def each_once(self) -> Iterator[tuple[NDArray[np.integer[Any]], FloatArray]]:
        """Rows and scores in pieces, in order, such that no row comes twice in one piece."""
        for piece in occurrences(self.rows):
            yield self.rows[piece], self.scores[piece]


class Policy(ABC):
    """Decides which samples an epoch keeps, and with what weight.

        @dataclass(frozen=True)
        class HarderHalf(Policy):
            def select(self, request):
                keep = request.keep or len(request) // 2
                hardest = np.argsort(-np.nan_to_num(request.scores, nan=np.inf))[:keep]
                kept = np.zeros(len(request), dtype=bool)
                kept[hardest] = True
                return Selection.of(kept)

    `select` must be a pure function of the request: every process of a distributed run calls it
    and must get the same answer, and a resumed run calls it again. Make the policy a frozen
    dataclass: its name and fields are stored with the run's state, and a state saved under other
    settings is refused. `infobatch.testing.check_policy` tests all of this.
    """

    @abstractmethod
    def select(self, request: Request) -> Selection:
        """Select the samples of one epoch; exactly `request.keep` of them where it is given."""

    @property
    def takes_budget(self) -> bool:
        """Whether it can be told how many samples to keep, and so work under `budget=`."""
        return True

    @property
    def needs_budget(self) -> bool:
        """Whether it must be told."""
        return False

    @property
    def reads_probability(self) -> bool:
        """Whether it takes exp(-score) for the probability of the right class.

        Scores must then be cross-entropies without label smoothing, whatever is trained with.
        """
        return False

    def bounds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """What bounds the norm of a sample's gradient, by its score (K,), at least 0.

        1 - exp(-score) here: for a cross-entropy, 1 minus the probability of the right class.
        """
        values: NDArray[np.float64] = -np.expm1(-scores)
        return values

    @property
    def columns(self) -> Mapping[str, float]:
        """Columns of its memory by name, and their first value; 4 bytes a sample each."""
        return {}

    def min_keep(self, num_samples: int) -> int:
        """The smallest number that it can be told to keep of so many, at least 1."""
        return 1

    def remember(self, memory: Memory, visits: Visits) -> None:  # noqa: B027  # most have none
        """Take in scores, and write to `memory` (N,) by column.

        An epoch's visits may come in one call or in several, and the outcome must be the same.
        """

    def summarise(self, scores: FloatArray) -> NDArray[np.float64] | None:
        """(K,) sums over samples: all that it must know of scores that it cannot see.

        Sums of several parts of the data set are added and come as `request.summary`. K is the same
        for all parts, 0 for a policy that looks at no scores. None: it has to see all scores.
        """
        return None
