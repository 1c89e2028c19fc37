"""The pruner's state on disk: how it is written, and how a foreign one is refused.

A state is a dict of plain numbers, strings, tuples and tensors, so `torch.load` reads it back with
`weights_only=True`. Its keys and the shapes of its tensors are the same at any time, which
`torch.distributed.checkpoint` needs (it looks into dicts and lists, and keeps tuples as they are,
whatever is in them): 4 bytes of score a sample and one of selection. The order is computed again
from the seed, unless it is that of the user's own sampler.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infobatch._core.history import EpochRecord, LossTally
from infobatch._core.plan import EpochPlan, Shard, shuffled
from infobatch._core.policy import Selection, is_policy
from infobatch._core.scores import FloatArray
from infobatch.errors import PolicyError, StateError

FORMAT = 5
_OLDEST = 4  # without steps, is_over, batch_size and left_out

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """Where a pruner stands, beside its settings.

    Attributes:
        epoch: the epoch that is running or due.
        position: plan position up to which losses have come; 0 between epochs.
        steps: samples of this epoch that each rank has had, padding included; alike on all ranks.
        is_over: the loop over that epoch had been left, so that the next one is due.
        batch_size: of the loader, as far as it was seen.
        scores: (n,) float32, of the samples in `shard`.
        memory: by column (n,) float32, what the policy remembers of them.
        plan: of that epoch, if it has been made.
        tally: sums over its losses so far.
        history: of the finished epochs.
        shard: the samples that it is of.
    """

    epoch: int
    position: int
    steps: float
    is_over: bool
    batch_size: int | None
    scores: FloatArray
    memory: dict[str, FloatArray]
    plan: EpochPlan | None
    tally: LossTally
    history: list[EpochRecord]
    shard: Shard

    def pack(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The state to save, with the settings that it belongs to."""
        plan, level = self.plan, np.zeros(len(self.scores), dtype=np.uint8)
        if plan is not None and self.position == 0 and not (plan.own_order or settings["sharded"]):
            plan = None  # it can be made again
        if plan is not None and plan.selection.level is not None:
            level = plan.selection.level.copy()
        state = {
            "format": FORMAT,
            "settings": settings,
            "epoch": self.epoch,
            "position": self.position,
            "steps": math.ceil(self.steps),
            "is_over": int(self.is_over),
            "batch_size": self.batch_size or 0,
            "scores": torch.from_numpy(self.scores.copy()),
            "level": torch.from_numpy(level),
            "memory": {name: torch.from_numpy(v.copy()) for name, v in self.memory.items()},
            "plan": () if plan is None else (_pack_plan(plan),),
            "tally": dataclasses.asdict(self.tally),
            "history": tuple(dataclasses.asdict(record) for record in self.history),
            "shard": (self.shard.index, self.shard.count),
        }
        return {**state, "checksum": _checksum(state)}

    @classmethod
    def unpack(
        cls, state: object, settings: dict[str, Any], columns: Collection[str] = ()
    ) -> Snapshot:
        """The inverse of `pack`, for a pruner with these settings, whose policy has these columns.

        Raises:
            StateError: the state is damaged, or was saved under other settings.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"a state is a dict, got {type(state).__name__}")
        return cls._unpack(_of_today(state), settings, columns, checked=state)

    @classmethod
    def _unpack(
        cls,
        state: Mapping[str, Any],
        settings: dict[str, Any],
        columns: Collection[str],
        *,
        checked: Mapping[str, Any],
    ) -> Snapshot:
        _check_settings(state, settings)
        shard = _unpack_shard(state, settings)
        epoch = _count(state, "epoch", at_most=settings["num_epochs"])
        scores = _vector(state, "scores", len(shard), torch.float32).numpy()
        level = _vector(state, "level", len(shard), torch.uint8).numpy()
        memory = _unpack_memory(state, columns, len(shard))
        saved_sum = _entry(state, "checksum", int)
        position = _count(state, "position", at_most=2**62)
        steps = _count(state, "steps", at_most=2**62)
        is_over = bool(_count(state, "is_over", at_most=1))
        batch_size = _count(state, "batch_size", at_most=2**62) or None
        tally = _unpack_fields(_entry(state, "tally", dict), LossTally)
        history = _unpack_history(state, epoch)
        packed_plan = _sequence(state, "plan")
        if saved_sum != _checksum({**checked, "scores": scores, "level": level, "memory": memory}):
            raise StateError(
                "the state is damaged: its contents are not those that its checksum was made of"
            )
        plan = _unpack_plan(packed_plan, level, epoch, settings, shard)
        if position > (len(plan) if plan else 0):
            raise StateError(
                f"the state's entry 'position' must be at most {len(plan) if plan else 0}, "
                f"got {position}"
            )
        return cls(
            epoch,
            position,
            steps,
            is_over,
            batch_size,
            scores,
            memory,
            plan,
            tally,
            history,
            shard,
        )

    @classmethod
    def merge(
        cls,
        states: Iterable[object],
        settings: dict[str, Any],
        shard: Shard,
        columns: Collection[str] = (),
    ) -> Snapshot:
        """The state of one shard out of the states of all ranks of a run with other shards.

        Args:
            states: of every rank, in any order; taken one at a time.
            settings: the pruner's.
            shard: the samples that this rank owns now.
            columns: of the policy's memory.

        Raises:
            StateError: one of them does not fit, or they are not one of each rank.
        """
        merged = _Merged(shard, columns)
        for state in states:
            merged.add(cls.unpack(state, settings, columns))
        return merged.snapshot()


class _Merged:
    """What one shard takes from the snapshots of other shards."""

    def __init__(self, shard: Shard, columns: Collection[str]) -> None:
        self._shard = shard
        self._memory = {name: np.full(len(shard), np.nan, dtype=np.float32) for name in columns}
        self._scores = np.full(len(shard), np.nan, dtype=np.float32)
        self._weights = np.zeros(len(shard))
        self._done: list[NDArray[np.int64]] = []
        self._due: list[NDArray[np.int64]] = []
        self._tally = LossTally()
        self._threshold, self._mass_left_out = float("nan"), 0.0
        self._first: Snapshot | None = None
        self._seen: set[int] = set()

    def add(self, saved: Snapshot) -> None:
        first = self._first = self._first or saved
        moment, moment_of_first = (
            (snapshot.epoch, snapshot.steps, snapshot.is_over, snapshot.shard.count)
            for snapshot in (saved, first)
        )
        if moment != moment_of_first or not _same_history(saved.history, first.history):
            raise StateError(
                "the states are of different times or runs: one was saved at epoch "
                f"{saved.epoch}, after {saved.steps} samples on each of {saved.shard.count} ranks, "
                f"another at epoch {first.epoch}, after {first.steps} on each of "
                f"{first.shard.count}; pass those that all ranks have saved at one moment"
            )
        if saved.shard.index in self._seen:
            raise StateError(f"the states hold that of rank {saved.shard.index} twice")
        self._seen.add(saved.shard.index)
        source = np.arange(len(saved.shard))
        rows = self._shard.rows(saved.shard.ids(source).astype(np.int64))
        self._scores[rows[rows >= 0]] = saved.scores[rows >= 0]
        for name, values in saved.memory.items():
            self._memory[name][rows[rows >= 0]] = values[rows >= 0]
        if saved.plan is not None and saved.position > 0:
            order = saved.plan.order
            mine = rows[order]
            self._weights[mine[mine >= 0]] = saved.plan.selection.weights_of(order[mine >= 0])
            self._threshold = saved.plan.threshold
            part_of_all = len(saved.shard) / saved.shard.dataset_size
            self._mass_left_out += saved.plan.selection.mass_left_out * part_of_all
            for part, into in (
                (mine[: saved.position], self._done),
                (mine[saved.position :], self._due),
            ):
                into.append(part[part >= 0])
        if self._shard.index == 0:  # what has been trained so far is counted once
            for name, value in dataclasses.asdict(saved.tally).items():
                setattr(self._tally, name, getattr(self._tally, name) + value)

    def snapshot(self) -> Snapshot:
        first = self._first
        if first is None or self._seen != set(range(first.shard.count)):
            missing = sorted(set(range(first.shard.count)) - self._seen) if first else "all"
            raise StateError(
                f"the state of every rank is needed, but that of {missing} is missing; save "
                "pruner.state_dict() on every rank and pass all of them to load_state_dict"
            )
        plan, position = None, 0
        if self._done:
            done = np.concatenate(self._done)
            order = np.concatenate([done, *self._due])
            selection = Selection(self._weights, None, self._threshold, self._mass_left_out)
            plan = EpochPlan.build(
                first.epoch,
                selection,
                order,
                total=len(self._shard),
                shard=self._shard,
                own_order=True,
            )
            position = len(done)
        return Snapshot(
            first.epoch,
            position,
            first.steps * first.shard.count / self._shard.count,
            first.is_over,
            first.batch_size,
            self._scores,
            self._memory,
            plan,
            self._tally,
            first.history,
            self._shard,
        )


def _same_history(one: list[EpochRecord], other: list[EpochRecord]) -> bool:
    """Whether they are of one run; under a budget each rank has had thresholds of its own."""
    first, second = (
        [dataclasses.replace(r, threshold=0.0) for r in records] for records in (one, other)
    )
    return repr(first) == repr(second)  # NaN equals NaN


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
        if name not in plain and is_policy(value)
    }
    return {"name": type(policy).__qualname__, "settings": {**plain, **inside}}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _checksum(state: Mapping[str, Any]) -> int:
    """Of all that a state holds but its settings, which are compared one by one."""
    content = {k: v for k, v in state.items() if k not in ("settings", "checksum")}
    return _add_to_checksum(content, 0)


def _add_to_checksum(value: Any, checksum: int) -> int:
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, (list, tuple)):
        for item in value:
            checksum = _add_to_checksum(item, checksum)
        return checksum
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).data, checksum)
    return zlib.crc32(repr(value).encode(), checksum)


def _check_settings(state: Mapping[str, Any], settings: dict[str, Any]) -> None:
    version = _entry(state, "format", int)
    if not _OLDEST <= version <= FORMAT:
        raise StateError(
            f"the state has format {version}, this version of infobatch reads formats {_OLDEST} to "
            f"{FORMAT}"
        )
    saved = _entry(state, "settings", dict)
    for name, mine in settings.items():
        if name not in saved or not _is_equal(saved[name], mine):
            raise StateError(
                f"the state was saved with {name}={saved.get(name)!r}, this pruner has "
                f"{name}={mine!r}; build the pruner with the settings of the saved run"
            )


def _of_today(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state of an older format, with what it lacks."""
    if _entry(state, "format", int) != _OLDEST or not isinstance(state.get("tally"), dict):
        return state
    history = state.get("history")
    records = history if isinstance(history, (list, tuple)) else ()
    with_left_out = tuple({"left_out": 0, **r} if isinstance(r, dict) else r for r in records)
    return {
        **state,
        "steps": state.get("position"),
        "is_over": 0,
        "batch_size": 0,
        "tally": {"left_out": 0, **state["tally"]},
        "history": with_left_out,
    }


def _is_equal(saved: object, mine: object) -> bool:
    """Whether two plain values are the same; asks nothing of a value that is not plain."""
    if isinstance(saved, dict) and isinstance(mine, dict):
        return saved.keys() == mine.keys() and all(_is_equal(saved[k], mine[k]) for k in mine)
    return type(saved) is type(mine) and saved == mine


def _unpack_shard(state: Mapping[str, Any], settings: dict[str, Any]) -> Shard:
    pair = _sequence(state, "shard")
    plain = len(pair) == 2 and all(type(number) is int for number in pair)
    if not plain or not 0 <= pair[0] < pair[1] or (pair[1] > 1 and not settings["sharded"]):
        raise StateError(f"the state's entry 'shard' must be (index, count), got {pair!r}")
    return Shard(pair[0], pair[1], settings["num_samples"])


def _unpack_memory(
    state: Mapping[str, Any], columns: Collection[str], length: int
) -> dict[str, FloatArray]:
    packed = _entry(state, "memory", dict)
    if set(packed) != set(columns):
        raise StateError(
            f"the state's entry 'memory' must have the columns {sorted(columns)}, "
            f"got {sorted(map(str, packed))}"
        )
    return {name: _vector(packed, name, length, torch.float32).numpy() for name in columns}


def _pack_plan(plan: EpochPlan) -> dict[str, Any]:
    selection = plan.selection
    own_weights = selection.level is None and not selection.is_full
    return {
        "total": plan.total,
        "threshold": selection.threshold,
        "mass_left_out": selection.mass_left_out,
        "order": torch.from_numpy(plan.order.copy()) if plan.own_order else None,
        "weights": torch.from_numpy(selection.weights.copy()) if own_weights else None,
        "table": None if selection.level is None else selection.weights.tolist(),
    }


def _unpack_plan(
    entry: tuple[Any, ...],
    level: NDArray[np.uint8],
    epoch: int,
    settings: dict[str, Any],
    shard: Shard,
) -> EpochPlan | None:
    if not entry:
        return None
    packed = entry[0]
    if len(entry) != 1 or not isinstance(packed, dict):
        raise StateError("the state's entry 'plan' must be a tuple of one dict, or an empty one")
    selection = _unpack_selection(packed, level)
    total = _count(packed, "total", at_most=2**62)
    own = _optional(packed, "order", Tensor)
    if (own is None) and settings["own_sampler"]:
        raise StateError("the state's plan has no order, which is that of the sampler= of its run")
    order = (
        shuffled(len(shard), settings["seed"], epoch, shard.index)
        if own is None
        else _unpack_order(own, len(shard))
    )
    plan = EpochPlan.build(
        epoch, selection, order, total=total, shard=shard, own_order=own is not None
    )
    if not 0 < len(plan) <= total:
        raise StateError(f"the state's plan keeps {len(plan)} of {total} samples")
    heaviest = float(selection.weights.max())
    if heaviest > settings["num_samples"]:
        raise StateError(
            f"the state's plan has a weight of {heaviest:g}; weights are at most the number of "
            f"samples, {settings['num_samples']}"
        )
    return plan


def _unpack_selection(packed: dict[str, Any], level: NDArray[np.uint8]) -> Selection:
    threshold = _entry(packed, "threshold", float)
    left_out = _entry(packed, "mass_left_out", float)
    table = _optional(packed, "table", list)
    weights = _optional(packed, "weights", Tensor)
    if table is None and level.any():
        raise StateError("the state's levels have no table of weights")
    if table is None and weights is None:
        return Selection.full(len(level), threshold=threshold)
    try:
        if table is not None:
            return Selection(np.array(table, dtype=np.float64), level.copy(), threshold, left_out)
        values = _vector(packed, "weights", len(level), torch.float32, torch.float64)
        return Selection(values.numpy(), None, threshold, left_out)
    except (PolicyError, TypeError, ValueError) as error:
        raise StateError(f"the state's selection is damaged: {error}") from error


def _unpack_order(packed: Tensor, num_samples: int) -> NDArray[np.int64]:
    named = {"order": packed}
    stored = _vector(named, "order", packed.numel(), torch.int32, torch.int64)
    order: NDArray[np.int64] = stored.numpy().astype(np.int64)
    if len(order) and not 0 <= order.min() <= order.max() < num_samples:
        raise StateError(f"the state's order names samples outside 0 to {num_samples - 1}")
    return order


def _unpack_history(state: Mapping[str, Any], epochs: int) -> list[EpochRecord]:
    records = [_unpack_fields(item, EpochRecord) for item in _sequence(state, "history")]
    if [record.epoch for record in records] != list(range(epochs)):
        raise StateError(
            f"the state's history must have one record for each of its {epochs} finished epochs, "
            f"got those of {[record.epoch for record in records]}"
        )
    return records


def _unpack_fields(packed: object, kind: type[_T]) -> _T:
    """A dataclass of plain numbers from a dict with exactly its fields."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(packed, dict) or packed.keys() != fields.keys():
        raise StateError(
            f"a {kind.__name__} in the state must have the entries {sorted(fields)}, got {packed!r}"
        )
    for name, annotation in fields.items():
        value = _entry(packed, name, int if annotation == "int" else float)
        if annotation == "int" and value < 0:
            raise StateError(f"{name} of a {kind.__name__} in the state is negative: {value}")
    return kind(**packed)


def _optional(state: Mapping[str, Any], name: str, kind: type[_T]) -> _T | None:
    """An entry that is there, and may be None."""
    return None if name in state and state[name] is None else _entry(state, name, kind)


def _entry(state: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    if name not in state:
        raise StateError(f"the state has no entry {name!r}; is it from DataPruner.state_dict()?")
    value = state[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise StateError(
            f"the state's entry {name!r} must be of type {kind.__name__}, "
            f"got {type(value).__name__}"
        )
    return value


def _sequence(state: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """An entry that is a tuple, or a list, into which some formats turn it."""
    value = state.get(name)
    return tuple(value) if isinstance(value, list) else _entry(state, name, tuple)


def _count(state: Mapping[str, Any], name: str, *, at_most: int) -> int:
    value = _entry(state, name, int)
    if not 0 <= value <= at_most:
        raise StateError(f"the state's entry {name!r} must be 0 to {at_most}, got {value}")
    return value


def _vector(state: Mapping[str, Any], name: str, length: int, *dtypes: torch.dtype) -> Tensor:
    """A copy, on the host, of a 1-D tensor entry of that length and one of those types."""
    value = _entry(state, name, Tensor)
    if value.dtype not in dtypes or tuple(value.shape) != (length,):
        raise StateError(
            f"the state's entry {name!r} must be {' or '.join(map(str, dtypes))} of shape "
            f"({length},), got {value.dtype} of shape {tuple(value.shape)}"
        )
    return value.detach().to("cpu", copy=True)
