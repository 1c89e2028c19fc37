"""Any policy, applied within classes or other groups."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infobatch._core.policy import Request
from infobatch._core.selection import Selection
from infobatch.policies.wrapper import Wrapper


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
    _sizes: NDArray[np.int64] = field(init=False, repr=False)
    _least: NDArray[np.int64] = field(init=False, repr=False)
    _members: Sequence[NDArray[np.intp]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        groups = check_groups(self.groups)
        order = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[order])) + 1
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "digest", zlib.crc32(groups.tobytes()))
        members = tuple(np.split(order, cuts))
        sizes = np.array([len(rows) for rows in members])
        least = np.array([super(WithinGroups, self).min_keep(size) for size in sizes.tolist()])
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_least", least)

    def min_keep(self, num_samples: int) -> int:
        """The sum of what each group has to keep."""
        return min(int(self._least.sum()), num_samples)

    def select(self, request: Request) -> Selection:
        """Ask the policy once for each group."""
        keeps: list[int | None] = [None] * len(self._sizes)
        if request.keep is not None:
            keeps = shares(request.keep, self._sizes, self._least).tolist()
        weights, left_out = np.zeros(len(request)), 0.0
        for rows, keep in zip(self._members, keeps, strict=True):
            group = request.of_group(rows, keep)
            selection = self.policy.select(group)
            weights[rows] = selection.weights_of(np.arange(len(rows)))
            left_out += selection.mass_left_out * len(rows)
            for name, values in group.memory.items():
                request.memory[name][rows] = values
        return Selection(weights, mass_left_out=left_out / len(request))


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


def shares(
    keep: int, sizes: NDArray[np.int64], least: NDArray[np.int64] | int = 1
) -> NDArray[np.int64]:
    """`keep` in proportion to the sizes of groups, but of each at least its least.

    Exact in total, if `keep` lies between the sum of the least and that of the sizes.
    """
    least = np.broadcast_to(least, sizes.shape)
    exact = keep * sizes / sizes.sum()
    parts: NDArray[np.int64] = np.clip(np.floor(exact).astype(np.int64), least, sizes)
    step = 1 if parts.sum() < keep else -1
    by_rest = np.argsort(step * (parts - exact), kind="stable")  # the most short-changed first
    while (missing := abs(keep - int(parts.sum()))) > 0:
        after = parts[by_rest] + step
        free = by_rest[(after >= least[by_rest]) & (after <= sizes[by_rest])]
        if not len(free):
            break  # less than the least, or more than there is
        parts[free[:missing]] += step
    return parts
