"""Scores that lose their meaning with age: what was not seen lately drifts to the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory, Selection
from infobatch._core.scores import FloatArray, finite_sum
from infobatch._core.validation import check_at_least
from infobatch.policies.wrapper import Wrapper

_SEEN = "last_seen"


@dataclass(frozen=True, eq=False)
class AgedScores(Wrapper):
    """Ask a policy with scores that are the less trusted, the older they are.

    A score that is a epochs old is replaced by mean + (score - mean) * 2**(-a / half_life), where
    the mean is that of all known scores: what a low loss of long ago says of a sample fades, and it
    is looked at again sooner.

    As unbiased as the policy inside: what it is given depends on the past alone.

    Attributes:
        policy: the policy to ask.
        half_life: in epochs, above 0.
    """

    half_life: float = 5.0

    def __post_init__(self) -> None:
        half_life = check_at_least("half_life", self.half_life, 0.0, inclusive=False)
        object.__setattr__(self, "half_life", half_life)

    @property
    def columns(self) -> Mapping[str, float]:
        """Those of the policy inside, and the epoch after which a score came; NaN: the last."""
        return {**super().columns, _SEEN: float("nan")}

    def remember(
        self,
        memory: Memory,
        rows: NDArray[np.integer[Any]],
        scores: FloatArray,
        batches: list[int],
        *,
        trained: bool,
    ) -> None:
        """Their scores are new."""
        memory[_SEEN][rows] = np.nan
        super().remember(memory, rows, scores, batches, trained=trained)

    def select_from(
        self,
        memory: Memory,
        scores: FloatArray,
        keep: int | None,
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """The answer of the policy inside to the aged scores."""
        seen = memory[_SEEN]
        seen[np.isnan(seen)] = epoch
        total, count = finite_sum(scores)
        mean = np.float32(total / count if count else 0.0)
        trust = np.exp2((seen - np.float32(epoch)) / np.float32(self.half_life))
        with np.errstate(invalid="ignore"):  # infinite scores stay unusable
            aged = mean + (scores - mean) * trust
        return super().select_from(memory, aged, keep, epoch, rng)
