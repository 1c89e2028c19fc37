"""What a policy is, and what it returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray
from infobatch.errors import PolicyError


@dataclass(frozen=True, eq=False)
class Selection:
    """Which samples an epoch keeps, and the rescale weight of each.

    Either one weight per sample, or a small table of weights and one byte per sample that
    points into it, which is how data sets of a billion samples stay small.

    Attributes:
        weights: non-negative and finite; 0 means pruned. Shape (N,) where `level` is None,
            otherwise the table, shape (L,) with L <= 256.
        level: (N,) uint8 indices into `weights`, or None.
        threshold: the score below which samples may be pruned; NaN where there is none.
            For information: it appears in `history`.
        mass_left_out: the part, in [0, 1], of the sum over all samples of what bounds their
            gradients that lies in what is left out; in a random subset, it is the part of the
            samples. Within groups, the mean over samples of that of their group. NaN where the
            policy does not say. It appears in `history`.

    Raises:
        PolicyError: the arrays do not fit these descriptions.
    """

    weights: NDArray[np.floating]
    level: NDArray[np.uint8] | None = None
    threshold: float = float("nan")
    mass_left_out: float = float("nan")

    def __post_init__(self) -> None:
        weights, level = self.weights, self.level
        for name in ("threshold", "mass_left_out"):  # a state holds plain numbers, not numpy's
            object.__setattr__(self, name, float(getattr(self, name)))
        for name, array in (("weights", weights), ("level", level)):
            if not isinstance(array, np.ndarray) and (name == "weights" or array is not None):
                raise PolicyError(
                    f"a Selection's {name} must be a numpy array, got {type(array).__name__}"
                )
        if weights.ndim != 1 or not np.issubdtype(weights.dtype, np.floating):
            raise PolicyError(
                "a Selection's weights must be a 1-D float array, got "
                f"{weights.dtype} of shape {weights.shape}"
            )
        if not self.is_full and not bool(np.all(np.isfinite(weights) & (weights >= 0))):
            raise PolicyError(
                "a Selection's weights must be finite and not negative (0 = pruned); "
                f"got values from {weights.min()} to {weights.max()}"
            )
        if level is not None:
            if level.ndim != 1 or level.dtype != np.uint8:
                raise PolicyError(
                    "a Selection's level must be a 1-D uint8 array, got "
                    f"{level.dtype} of shape {level.shape}"
                )
            if len(level) and int(level.max()) >= len(weights):
                raise PolicyError(
                    f"level {int(level.max())} points outside the table of {len(weights)} weights"
                )

    @classmethod
    def full(cls, num_samples: int, *, threshold: float = float("nan")) -> Selection:
        """Every sample, weight 1, in constant memory."""
        ones = np.broadcast_to(np.float64(1.0), (num_samples,))
        return cls(ones, threshold=threshold, mass_left_out=0.0)

    @property
    def is_full(self) -> bool:
        """Whether this is `Selection.full`: every sample is kept with weight 1."""
        return self.level is None and self.weights.strides == (0,) and self.weights[0] == 1.0

    @property
    def num_kept(self) -> int:
        """How many samples have a positive weight."""
        if self.level is None:
            return len(self) if self.is_full else int(np.count_nonzero(self.weights))
        sizes = np.bincount(self.level, minlength=len(self.weights))
        return int(sizes[self.weights > 0].sum())

    def __len__(self) -> int:
        return len(self.weights if self.level is None else self.level)

    def weights_of(
        self, indices: NDArray[np.integer], dtype: type[np.floating[Any]] = np.float64
    ) -> NDArray[np.floating[Any]]:
        """The weights of some samples, shaped like `indices`; 0 where pruned."""
        if self.level is None:
            return self.weights.take(indices, mode="clip").astype(dtype, copy=False)
        levels = self.level.take(indices, mode="clip")
        return self.weights.astype(dtype, copy=False).take(levels, mode="clip")


@runtime_checkable
class Policy(Protocol):
    """Decides which samples the next epoch keeps, and with what weight.

    Anything with this one method is a policy. It must be a pure function of its arguments:
    every process of a distributed run calls it and must get the same answer, and a resumed
    run calls it again. Make it a frozen dataclass: its name and fields are then stored with
    the pruner's state, and a state saved under other settings is refused.
    """

    def select(self, scores: FloatArray, epoch: int, rng: np.random.Generator) -> Selection:
        """Select the samples of one epoch.

        Args:
            scores: (N,) float32, not to be written to; non-finite where nothing usable is
                known yet: such samples must be kept.
            epoch: 0-based number of the epoch to plan.
            rng: a generator that depends on the run's seed and on the epoch alone.
        """
        ...


@runtime_checkable
class ExactPolicy(Protocol):
    """A policy that can be told how many samples to keep, and so work under `budget=`.

    Pure as `Policy` is. With `sharded=True` each rank selects among the samples that it owns,
    its part of the number, so nothing has to be exchanged.
    """

    def select_exactly(
        self, scores: FloatArray, keep: int, epoch: int, rng: np.random.Generator
    ) -> Selection:
        """Select exactly `keep` samples, min_keep(N) to N, whatever the scores are.

        Args:
            scores: (N,) float32, not to be written to; non-finite where nothing usable is known.
            keep: how many samples must have a positive weight.
            epoch: 0-based number of the epoch to plan.
            rng: a generator that depends on the run's seed and on the epoch alone.
        """
        ...

    def min_keep(self, num_samples: int) -> int:
        """The smallest number that it can keep of so many, at least 1."""
        ...


Memory: TypeAlias = Mapping[str, FloatArray]
"""What a `MemoryPolicy` knows of each sample: float32 arrays (N,) by name, to be written to."""


@runtime_checkable
class MemoryPolicy(Protocol):
    """A policy that has to know more of a sample than its latest score.

    Its memory is kept by the pruner, 4 bytes a sample and column, and is part of its state.
    """

    @property
    def columns(self) -> Mapping[str, float]:
        """Name of each column of the memory, and what it holds before anything is known."""
        ...

    @property
    def is_native(self) -> bool:
        """Whether it can choose by itself how many samples to keep."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether it can be told how many: whether it works under `budget=`."""
        ...

    def min_keep(self, num_samples: int) -> int:
        """The smallest number that it can be told to keep of so many, at least 1."""
        ...

    def remember(
        self,
        memory: Memory,
        rows: NDArray[np.integer[Any]],
        scores: FloatArray,
        batches: list[int],
        *,
        trained: bool,
    ) -> None:
        """Take in scores, in the order in which they came; writes to `memory`.

        An epoch's scores may come in one call or in several, cut between batches, and the
        outcome must be the same.

        Args:
            memory: by column (N,).
            rows: (M,) which samples; may repeat, see `occurrences`.
            scores: (M,) float32, may be non-finite.
            batches: sizes of the batches that they came in, M in total.
            trained: False where the samples were only passed forward (`DataPruner.rescore`).
        """
        ...

    def select_from(
        self,
        memory: Memory,
        scores: FloatArray,
        keep: int | None,
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """Select the samples of one epoch: exactly `keep`, or None for as many as it likes.

        It may write to `memory`, if a second call for the same epoch then returns the same.
        """
        ...


AnyPolicy: TypeAlias = Policy | ExactPolicy | MemoryPolicy
"""What a pruner takes."""


def is_policy(value: object) -> bool:
    """Whether an object is a policy of some kind, and not the class of one."""
    kinds = (Policy, ExactPolicy, MemoryPolicy)
    return isinstance(value, kinds) and not isinstance(value, type)


def is_native(policy: AnyPolicy) -> bool:
    """Whether a policy can choose by itself how many samples to keep."""
    return policy.is_native if isinstance(policy, MemoryPolicy) else isinstance(policy, Policy)


def is_exact(policy: AnyPolicy) -> bool:
    """Whether a policy can be told how many samples to keep."""
    return policy.is_exact if isinstance(policy, MemoryPolicy) else isinstance(policy, ExactPolicy)


def reads_probability(policy: AnyPolicy) -> bool:
    """Whether a policy takes exp(-score) for the probability of the right class.

    Then what it is to rank by is the cross-entropy without label smoothing, whatever is trained
    with. A policy says so by an attribute of this name.
    """
    return bool(getattr(policy, "reads_probability", False))


def for_run(policy: AnyPolicy, num_epochs: int) -> AnyPolicy:
    """A policy for a run of so many epochs.

    A policy whose schedule is in parts of the run has an attribute `num_epochs`. Where that is
    None it becomes the run's, in a copy of the policy; so, too, in a policy inside another, which
    that has as its `policy`. All others are returned as they are.

    Args:
        policy: of any kind; not changed.
        num_epochs: of the run, at least 1.

    Raises:
        ValueError: it was made for another number of epochs.
    """
    changes: dict[str, Any] = {}
    inside: Any = getattr(policy, "policy", None)
    if is_policy(inside) and (told := for_run(inside, num_epochs)) is not inside:
        changes["policy"] = told
    given = getattr(policy, "num_epochs", num_epochs)
    if given is None:
        changes["num_epochs"] = num_epochs
    elif given != num_epochs:
        raise ValueError(
            f"the run has num_epochs={num_epochs}, but {policy!r} was made for {given}; leave "
            "num_epochs of the policy away, and it is that of the run"
        )
    if not changes:
        return policy
    subject: Any = policy
    changed: Any = copy.copy(policy)
    if dataclasses.is_dataclass(subject) and not isinstance(subject, type):
        changed = dataclasses.replace(subject, **changes)
    else:
        vars(changed).update(changes)
    bound: AnyPolicy = changed
    return bound


def selection_of(
    policy: AnyPolicy,
    memory: Memory,
    scores: FloatArray,
    keep: int | None,
    epoch: int,
    rng: np.random.Generator,
) -> Selection:
    """Ask any policy for a selection, in the way that it can be asked.

    Raises:
        PolicyError: `keep` is given and the policy cannot be told, or the reverse.
    """
    if isinstance(policy, MemoryPolicy):
        return policy.select_from(memory, scores, keep, epoch, rng)
    if keep is None and isinstance(policy, Policy):
        return policy.select(scores, epoch, rng)
    if keep is not None and isinstance(policy, ExactPolicy):
        return policy.select_exactly(scores, keep, epoch, rng)
    raise PolicyError(
        f"{policy!r} "
        + ("cannot be told how many samples to keep" if keep else "has to be told how many to keep")
    )


class Remembering:
    """The usual answers of a `MemoryPolicy`: it works in both ways, and can keep a single one."""

    is_native = True
    is_exact = True

    def min_keep(self, num_samples: int) -> int:
        """One."""
        return 1


@runtime_checkable
class ShardedPolicy(Policy, Protocol):
    """A policy that can be told of the scores on other ranks, and so work under `sharded=True`.

    There a rank sees the scores of the samples that it owns and no others. What it has to know
    of all the scores must be a sum over samples: each rank's `summarise` is added to those of
    the others, and `select_with` selects among the rank's own by the total. In one process
    `select(scores, ...)` is `select_with(scores, summarise(scores), ...)`, or more exact.
    """

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """(K,) sums over these samples; K is the same on every rank, and may be 0."""
        ...

    def select_with(
        self,
        scores: FloatArray,
        summary: NDArray[np.float64],
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """Select among these samples, given the summary (K,) of the scores on all ranks."""
        ...


class IgnoresScores:
    """Makes a policy that does not look at the scores work under `sharded=True`."""

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """Nothing: (0,)."""
        return np.empty(0)

    def select_with(
        self: Policy,
        scores: FloatArray,
        summary: NDArray[np.float64],
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """Select among these samples."""
        return self.select(scores, epoch, rng)
