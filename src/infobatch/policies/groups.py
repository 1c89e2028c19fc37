"""Any policy, applied within classes or other groups."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infobatch.policies.base import Memory, Selection, selection_of
from infobatch.policies.wrapper import Wrapper
from infobatch.scores import FloatArray


@dataclass(frozen=True, eq=False)
class WithinGroups(Wrapper):
    """Apply a policy to each group of samples by itself, so that none is pruned away.

    A threshold over all samples prunes whole classes where their losses lie lower, and spares
    those where they lie higher. Within groups, each is thinned by its own threshold, and a number
    to keep is shared out in proportion to the groups' sizes.

    It is as unbiased as the policy inside. It costs one call of that policy per group, and 8
    bytes a sample while an epoch lasts.

    Attributes:
        policy: the policy to apply.
        groups: (N,) integers, the group of each sample; only equality matters.
        digest: tells groups apart in a saved state.
    """

    groups: ArrayLike = field(repr=False)
    digest: int = field(init=False)
    _members: Sequence[NDArray[np.intp]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        groups = check_groups(self.groups)
        order = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[order])) + 1
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "digest", zlib.crc32(groups.tobytes()))
        object.__setattr__(self, "_members", tuple(np.split(order, cuts)))

    def min_keep(self, num_samples: int) -> int:
        """The sum of what each group has to keep, in proportion."""
        sizes = np.array([len(rows) for rows in self._members])
        least = np.array([super(WithinGroups, self).min_keep(int(size)) for size in sizes])
        # The number that is shared out has to give every group its least.
        needed = int(np.max(np.ceil(least * (len(np.asarray(self.groups)) / sizes))))
        while (shares(needed, sizes) < least).any():
            needed += 1
        return min(needed, num_samples)

    def select_from(
        self,
        memory: Memory,
        scores: FloatArray,
        keep: int | None,
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """Ask the policy once for each group."""
        sizes = np.array([len(rows) for rows in self._members])
        keeps = [None] * len(sizes) if keep is None else shares(keep, sizes).tolist()
        weights, left_out = np.zeros(len(scores)), 0.0
        for rows, group_keep in zip(self._members, keeps, strict=True):
            part: dict[str, FloatArray] = {name: values[rows] for name, values in memory.items()}
            selection = selection_of(self.policy, part, scores[rows], group_keep, epoch, rng)
            weights[rows] = selection.weights_of(np.arange(len(rows)))
            left_out += 0.0 if selection.is_full else selection.mass_left_out * len(rows)
            for name, values in part.items():
                memory[name][rows] = values
        return Selection(weights, mass_left_out=left_out / len(scores))


def has_groups(policy: object) -> bool:
    """Whether a policy, or one inside it, is applied within groups."""
    while isinstance(policy, Wrapper) and not isinstance(policy, WithinGroups):
        policy = policy.policy
    return isinstance(policy, WithinGroups)


def check_groups(groups: Any) -> NDArray[np.int64]:
    """Groups as int64 (N,).

    Raises:
        ValueError: not one integer per sample.
    """
    array = np.asarray(groups)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iub":
        raise ValueError(
            "groups must be one integer per sample, shape (N,), such as the labels; got "
            f"{array.dtype} of shape {array.shape}"
        )
    numbers: NDArray[np.int64] = array.astype(np.int64)
    return numbers


def shares(keep: int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """`keep` in proportion to the sizes of groups, each at least 1 and at most its size.

    Exact in total, if `keep` is at least the number of groups.
    """
    exact = keep * sizes / sizes.sum()
    parts: NDArray[np.int64] = np.clip(np.floor(exact).astype(np.int64), 1, sizes)
    step = 1 if parts.sum() < keep else -1
    by_rest = np.argsort(step * (parts - exact), kind="stable")  # the most short-changed first
    while (missing := abs(keep - int(parts.sum()))) > 0:
        free = by_rest[(parts[by_rest] + step >= 1) & (parts[by_rest] + step <= sizes[by_rest])]
        if not len(free):
            break  # fewer than one per group, or more than there are
        parts[free[:missing]] += step
    return parts
