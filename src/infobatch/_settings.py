"""The settings of a run: checked once, never changed, and saved with its state."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from numpy.typing import ArrayLike
from torch.utils.data import BatchSampler

from infobatch._core.budget import Budget, RatioSchedule, epoch_sizes, pruned_epochs
from infobatch._core.policy import Policy
from infobatch._core.validation import check_fraction, check_int
from infobatch.policies import ProportionalSampling, WithinGroups
from infobatch.policies.groups import check_groups
from infobatch.policies.proportional import WITHOUT_BUDGET
from infobatch.policies.wrapper import Wrapper

_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """What a `DataPruner` was built with; its arguments are explained there.

    Raises:
        TypeError, ValueError: a value outside its range, or two that do not go together.
    """

    num_samples: int
    num_epochs: int
    policy: Policy
    delta: float
    seed: int
    own_sampler: bool
    warmup_epochs: int
    score_ema: float
    budget: float | None
    ratio_schedule: RatioSchedule
    batch_size: int | None
    sharded: bool

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "num_epochs": check_int("num_epochs", self.num_epochs, at_least=1),
            "delta": check_fraction("delta", self.delta),
            "seed": check_int("seed", self.seed, at_least=0, at_most=2**63 - 1),
            "warmup_epochs": check_int("warmup_epochs", self.warmup_epochs, at_least=0),
            "score_ema": check_fraction("score_ema", self.score_ema, below_one=True),
            "sharded": bool(self.sharded),
        }
        if self.batch_size is not None:
            checked["batch_size"] = check_int("batch_size", self.batch_size, at_least=1)
        if self.budget is not None:
            checked["budget"] = check_fraction("budget", self.budget)
        elif self.ratio_schedule != "constant":
            raise ValueError("ratio_schedule spreads the saving of a budget; pass budget= with it")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _ = self.sizes  # refuses a budget that cannot be met

    @cached_property
    def pruned(self) -> range:
        """The epochs in which pruning is on."""
        return pruned_epochs(self.num_epochs, self.delta, self.warmup_epochs)

    @cached_property
    def sizes(self) -> Budget | None:
        """How many samples each epoch keeps, if there is a budget."""
        if self.budget is None:
            return None
        least = self.policy.min_keep(self.num_samples)
        sizes = epoch_sizes(
            self.num_samples,
            self.num_epochs,
            self.pruned,
            self.budget,
            min_keep=least,
            ratio_schedule=self.ratio_schedule,
        )
        return Budget(sizes, self.pruned, self.num_samples, least)

    def as_dict(self) -> dict[str, Any]:
        """In plain values: what a state is saved with, and what all ranks must have alike."""
        policy = describe_policy(self.policy)
        if self.sizes is not None:
            sizes = zlib.crc32(repr(self.sizes.sizes).encode())
            policy = {**policy, "budget": self.budget, "epoch_sizes": sizes}
        return {
            "num_samples": self.num_samples,
            "num_epochs": self.num_epochs,
            "policy": policy,
            "delta": self.delta,
            "seed": self.seed,
            "own_sampler": self.own_sampler,
            "warmup_epochs": self.warmup_epochs,
            "score_ema": self.score_ema,
            "sharded": self.sharded,
        }


class Setting(Generic[_T]):
    """An attribute that cannot be set. It shows one of an object's `_settings`.

    Args:
        of: name of another attribute to show.
    """

    def __init__(self, of: str = "") -> None:
        self._of = of

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> _T:
        if instance is None:
            raise AttributeError(self._name)
        if self._of:
            return cast(_T, getattr(instance, self._of))
        return cast(_T, getattr(instance._settings, self._name))

    def __set__(self, instance: Any, value: object) -> None:
        raise AttributeError(
            f"{self._name} is a setting of the run and cannot be changed after the pruner is "
            "built; build a new pruner, and load_state_dict to go on with a run of the same "
            "settings"
        )


def policy_for(
    policy: Policy | None, budget: float | None, groups: ArrayLike | None, num_samples: int
) -> Policy:
    """The policy of a run, within groups if there are any.

    Raises:
        TypeError, ValueError: it must have a budget, or cannot; or the groups are not (N,).
    """
    if policy is None:
        policy = WITHOUT_BUDGET if budget is None else ProportionalSampling()
    if not isinstance(policy, Policy):
        raise TypeError(
            "policy must be an infobatch.policies.Policy with a method select(request), such as "
            f"infobatch.policies.MeanThreshold(prune_ratio=0.5), got {policy!r}"
        )
    if budget is None and policy.needs_budget:
        raise TypeError(
            f"{policy!r} has to be told how many samples to keep: pass budget=, such as 0.7"
        )
    if budget is not None and not policy.takes_budget:
        raise TypeError(
            "budget= needs a policy that can be told how many samples to keep (one with "
            "takes_budget), such as infobatch.policies.ProportionalSampling(), got "
            f"{policy!r}"
        )
    if groups is None:
        return policy
    numbers = check_groups(groups)
    if len(numbers) != num_samples:
        raise ValueError(
            f"groups must be one integer per sample: {num_samples}, got {len(numbers)}"
        )
    return WithinGroups(policy, numbers)


def delta_for(policy: Policy, budget: float | None) -> float:
    """The part of a run that is pruned where nothing else is said.

    Annealing makes good what pruning has done to the gradient (arXiv 2303.04947, section 3.4); a
    policy that leaves out only what hardly matters has done nothing: docs/research-log.md, step 14.
    """
    while isinstance(policy, Wrapper):
        policy = policy.policy
    return 1.0 if budget is None and isinstance(policy, ProportionalSampling) else 0.875


def checked_sampler(sampler: Iterable[int] | None) -> Iterable[int] | None:
    """The user's own sampler, if there is one.

    Raises:
        TypeError: it does not yield the indices of single samples.
    """
    if isinstance(sampler, BatchSampler):
        raise TypeError(
            "sampler must yield the index of one sample at a time, got a "
            f"{type(sampler).__name__}, which yields batches; pass the sampler inside it, and let "
            "the loader form batches from pruner.sampler"
        )
    if sampler is not None and not (
        hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")
    ):
        raise TypeError(
            "sampler must yield the indices of an epoch each time it is iterated, such as a "
            f"torch.utils.data.Sampler, got {sampler!r}"
        )
    return sampler


def describe_policy(policy: object) -> dict[str, Any]:
    """Name and settings of a policy, as far as plain values tell them; also of one inside it."""
    if dataclasses.is_dataclass(policy) and not isinstance(policy, type):
        names = (field.name for field in dataclasses.fields(policy))
        settings = {name: getattr(policy, name) for name in names}
    else:
        settings = dict(vars(policy)) if hasattr(policy, "__dict__") else {}
    plain = {name: repr(value) for name, value in settings.items() if _is_plain(value)}
    inside = {
        name: describe_policy(value)
        for name, value in settings.items()
        if name not in plain and isinstance(value, Policy)
    }
    return {"name": type(policy).__qualname__, "settings": {**plain, **inside}}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


_RENAMED = {
    "EarlyStopping": "IES",
    "LocalWindow": "RePB",
    "OrderedSubset": "OrderDP",
    "RepeatedRandomSampling": "RS2",
    "SlidingWindow": "SeTa",
    "UpperConfidenceBound": "UCB",
}


def with_todays_names(described: object) -> object:
    """A policy as `describe_policy` has told it in an older version, by the names of today."""
    if not isinstance(described, dict) or not isinstance(described.get("settings"), dict):
        return described
    name = described.get("name")
    settings = {key: with_todays_names(value) for key, value in described["settings"].items()}
    if name == "Kakurenbo":
        settings.pop("num_epochs", None)  # it is that of the run
    if name == "ProportionalSampling":
        settings.setdefault("tolerance", repr(ProportionalSampling.tolerance))  # came later
    return {**described, "name": _RENAMED.get(str(name), name), "settings": settings}
