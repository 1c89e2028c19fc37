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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infobatch._core.headroom import nothing_of
from infobatch._core.history import EpochRecord, LossTally
from infobatch._core.plan import EpochPlan, Rows, shuffled
from infobatch._core.scores import FloatArray
from infobatch._core.selection import Selection
from infobatch._settings import with_todays_names
from infobatch._state.fields import checksum, count, entry, optional, record_of, sequence, vector
from infobatch.errors import PolicyError, StateError

FORMAT = 6
_OLDEST = 4  # without steps, is_over, batch_size and left_out; 5: without headroom and before


@dataclass(frozen=True)
class Snapshot:
    """Where a pruner stands, beside its settings.

    Attributes:
        epoch: the epoch that is running or due.
        position: plan position up to which losses have come; 0 between epochs.
        steps: samples of this epoch that each rank has had, padding included; alike on all ranks.
        is_over: the loop over that epoch had been left, so that the next one is due.
        batch_size: of the loader, as far as it was seen.
        scores: (n,) float32, of `samples`.
        before: (K,) float32, some of them as they were before that epoch.
        memory: by column (n,) float32, what the policy remembers of them.
        plan: of that epoch, if it has been made.
        tally: sums over its losses so far.
        history: of the finished epochs.
        samples: which ones these scores are of.
    """

    epoch: int
    position: int
    steps: float
    is_over: bool
    batch_size: int | None
    scores: FloatArray
    before: FloatArray
    memory: dict[str, FloatArray]
    plan: EpochPlan | None
    tally: LossTally
    history: list[EpochRecord]
    samples: Rows

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
            "before": torch.from_numpy(self.before.copy()),
            "level": torch.from_numpy(level),
            "memory": {name: torch.from_numpy(v.copy()) for name, v in self.memory.items()},
            "plan": () if plan is None else (_pack_plan(plan),),
            "tally": dataclasses.asdict(self.tally),
            "history": tuple(dataclasses.asdict(record) for record in self.history),
            "shard": (self.samples.first, self.samples.step),
        }
        return {**state, "checksum": checksum(state)}

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
        samples = _unpack_samples(state, settings)
        epoch = count(state, "epoch", at_most=settings["num_epochs"])
        scores = vector(state, "scores", len(samples), torch.float32).numpy()
        level = vector(state, "level", len(samples), torch.uint8).numpy()
        before = vector(state, "before", len(nothing_of(len(scores))), torch.float32).numpy()
        memory = _unpack_memory(state, columns, len(samples))
        saved_sum = entry(state, "checksum", int)
        position = count(state, "position", at_most=2**62)
        steps = count(state, "steps", at_most=2**62)
        is_over = bool(count(state, "is_over", at_most=1))
        batch_size = count(state, "batch_size", at_most=2**62) or None
        tally = record_of(entry(state, "tally", dict), LossTally)
        history = _unpack_history(state, epoch)
        packed_plan = sequence(state, "plan")
        if saved_sum != checksum({**checked, "scores": scores, "level": level, "memory": memory}):
            raise StateError(
                "the state is damaged: its contents are not those that its checksum was made of"
            )
        plan = _unpack_plan(packed_plan, level, epoch, settings, samples)
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
            before,
            memory,
            plan,
            tally,
            history,
            samples,
        )


def _check_settings(state: Mapping[str, Any], settings: dict[str, Any]) -> None:
    version = entry(state, "format", int)
    if not _OLDEST <= version <= FORMAT:
        raise StateError(
            f"the state has format {version}, this version of infobatch reads formats {_OLDEST} to "
            f"{FORMAT}"
        )
    saved = entry(state, "settings", dict)
    for name, mine in settings.items():
        theirs = with_todays_names(saved.get(name)) if name == "policy" else saved.get(name)
        if name not in saved or not _is_equal(theirs, mine):
            raise StateError(
                f"the state was saved with {name}={theirs!r}, this pruner has "
                f"{name}={mine!r}; build the pruner with the settings of the saved run"
            )


def _of_today(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state of an older format, with what it lacks."""
    version = entry(state, "format", int)
    lacks: dict[str, float] = {"headroom": math.nan, "rank_correlation": math.nan}
    if not _OLDEST <= version < FORMAT:
        return state
    now = dict(state)
    if version == _OLDEST and isinstance(state.get("tally"), dict):
        now |= {"steps": state.get("position"), "is_over": 0, "batch_size": 0}
        now["tally"] = {"left_out": 0, **state["tally"]}
        lacks["left_out"] = 0
    history = state.get("history")
    records = history if isinstance(history, (list, tuple)) else ()
    now["history"] = tuple({**lacks, **r} if isinstance(r, dict) else r for r in records)
    if isinstance(scores := state.get("scores"), Tensor):
        now["before"] = torch.from_numpy(nothing_of(scores.numel()))
    return now


def _is_equal(saved: object, mine: object) -> bool:
    """Whether two plain values are the same; asks nothing of a value that is not plain."""
    if isinstance(saved, dict) and isinstance(mine, dict):
        return saved.keys() == mine.keys() and all(_is_equal(saved[k], mine[k]) for k in mine)
    return type(saved) is type(mine) and saved == mine


def _unpack_samples(state: Mapping[str, Any], settings: dict[str, Any]) -> Rows:
    pair = sequence(state, "shard")
    plain = len(pair) == 2 and all(type(number) is int for number in pair)
    if not plain or not 0 <= pair[0] < pair[1] or (pair[1] > 1 and not settings["sharded"]):
        raise StateError(f"the state's entry 'shard' must be (index, count), got {pair!r}")
    return Rows(pair[0], pair[1], settings["num_samples"])


def _unpack_memory(
    state: Mapping[str, Any], columns: Collection[str], length: int
) -> dict[str, FloatArray]:
    packed = entry(state, "memory", dict)
    if set(packed) != set(columns):
        raise StateError(
            f"the state's entry 'memory' must have the columns {sorted(columns)}, "
            f"got {sorted(map(str, packed))}"
        )
    return {name: vector(packed, name, length, torch.float32).numpy() for name in columns}


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
    samples: Rows,
) -> EpochPlan | None:
    if not entry:
        return None
    packed = entry[0]
    if len(entry) != 1 or not isinstance(packed, dict):
        raise StateError("the state's entry 'plan' must be a tuple of one dict, or an empty one")
    selection = _unpack_selection(packed, level)
    total = count(packed, "total", at_most=2**62)
    own = optional(packed, "order", Tensor)
    if (own is None) and settings["own_sampler"]:
        raise StateError("the state's plan has no order, which is that of the sampler= of its run")
    order = (
        shuffled(len(samples), settings["seed"], epoch, samples.first)
        if own is None
        else _unpack_order(own, len(samples))
    )
    plan = EpochPlan.build(
        epoch, selection, order, total=total, samples=samples, own_order=own is not None
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
    threshold = entry(packed, "threshold", float)
    left_out = entry(packed, "mass_left_out", float)
    table = optional(packed, "table", list)
    weights = optional(packed, "weights", Tensor)
    if table is None and level.any():
        raise StateError("the state's levels have no table of weights")
    if table is None and weights is None:
        return Selection.full(len(level), threshold=threshold)
    try:
        if table is not None:
            return Selection(np.array(table, dtype=np.float64), level.copy(), threshold, left_out)
        values = vector(packed, "weights", len(level), torch.float32, torch.float64)
        return Selection(values.numpy(), None, threshold, left_out)
    except (PolicyError, TypeError, ValueError) as error:
        raise StateError(f"the state's selection is damaged: {error}") from error


def _unpack_order(packed: Tensor, num_samples: int) -> NDArray[np.int64]:
    named = {"order": packed}
    stored = vector(named, "order", packed.numel(), torch.int32, torch.int64)
    order: NDArray[np.int64] = stored.numpy().astype(np.int64)
    if len(order) and not 0 <= order.min() <= order.max() < num_samples:
        raise StateError(f"the state's order names samples outside 0 to {num_samples - 1}")
    return order


def _unpack_history(state: Mapping[str, Any], epochs: int) -> list[EpochRecord]:
    records = [record_of(item, EpochRecord) for item in sequence(state, "history")]
    if [record.epoch for record in records] != list(range(epochs)):
        raise StateError(
            f"the state's history must have one record for each of its {epochs} finished epochs, "
            f"got those of {[record.epoch for record in records]}"
        )
    return records
