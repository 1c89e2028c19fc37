"""The pruner's state on disk: how it is written, and how a foreign one is refused.

A state is a dict of plain numbers, strings, lists and tensors, so `torch.load` reads it back with
`weights_only=True`. Between epochs it holds the scores alone, 4 bytes a sample; within an epoch
also which samples that epoch keeps, one byte each more. The order is computed again from the
seed, unless it is that of the user's own sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infobatch.errors import PolicyError, StateError
from infobatch.history import EpochRecord, LossTally
from infobatch.plan import EpochPlan, shuffled
from infobatch.policies.base import Selection
from infobatch.scores import FloatArray

FORMAT = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """Where a pruner stands, beside its settings.

    Attributes:
        epoch: the epoch that is running or due.
        position: plan position of the next loss; 0 between epochs.
        scores: (N,) float32.
        plan: of that epoch, if it has been made.
        tally: sums over its losses so far.
        history: of the finished epochs.
    """

    epoch: int
    position: int
    scores: FloatArray
    plan: EpochPlan | None
    tally: LossTally
    history: list[EpochRecord]

    def pack(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The state to save, with the settings that it belongs to."""
        plan = self.plan
        if self.position == 0 and not settings["own_sampler"]:
            plan = None  # it can be made again
        return {
            "format": FORMAT,
            "settings": settings,
            "epoch": self.epoch,
            "position": self.position,
            "scores": torch.from_numpy(self.scores.copy()),
            "plan": None if plan is None else _pack_plan(plan, with_order=settings["own_sampler"]),
            "tally": dataclasses.asdict(self.tally),
            "history": [dataclasses.asdict(record) for record in self.history],
        }

    @classmethod
    def unpack(cls, state: Mapping[str, Any], settings: dict[str, Any]) -> Snapshot:
        """The inverse of `pack`, for a pruner with these settings.

        Raises:
            StateError: the state is damaged, or was saved under other settings.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"a state is a dict, got {type(state).__name__}")
        _check_settings(state, settings)
        epoch = _count(state, "epoch", at_most=settings["num_epochs"])
        plan = _unpack_plan(state, epoch, settings)
        return cls(
            epoch=epoch,
            position=_count(state, "position", at_most=len(plan) - 1 if plan else 0),
            scores=_vector(state, "scores", settings["num_samples"], torch.float32).numpy(),
            plan=plan,
            tally=_unpack_fields(_entry(state, "tally", dict), LossTally),
            history=_unpack_history(state, epoch),
        )


def describe_policy(policy: object) -> dict[str, Any]:
    """Name and settings of a policy, as far as plain values tell them."""
    if dataclasses.is_dataclass(policy) and not isinstance(policy, type):
        settings = dataclasses.asdict(policy)
    else:
        settings = dict(vars(policy)) if hasattr(policy, "__dict__") else {}
    plain = {name: repr(value) for name, value in settings.items() if _is_plain(value)}
    return {"name": type(policy).__qualname__, "settings": plain}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _check_settings(state: Mapping[str, Any], settings: dict[str, Any]) -> None:
    version = _entry(state, "format", int)
    if version != FORMAT:
        raise StateError(
            f"the state has format {version}, this version of infobatch reads format {FORMAT}"
        )
    saved = _entry(state, "settings", dict)
    for name, mine in settings.items():
        if name not in saved or saved[name] != mine:
            raise StateError(
                f"the state was saved with {name}={saved.get(name)!r}, this pruner has "
                f"{name}={mine!r}; build the pruner with the settings of the saved run"
            )


def _pack_plan(plan: EpochPlan, *, with_order: bool) -> dict[str, Any]:
    selection = plan.selection
    level = selection.level
    return {
        "total": plan.total,
        "order": torch.from_numpy(plan.order.copy()) if with_order else None,
        "weights": None if selection.is_full else torch.from_numpy(selection.weights.copy()),
        "level": None if level is None else torch.from_numpy(level.copy()),
        "threshold": selection.threshold,
    }


def _unpack_plan(
    state: Mapping[str, Any], epoch: int, settings: dict[str, Any]
) -> EpochPlan | None:
    if _optional(state, "plan", dict) is None:
        return None
    packed = _entry(state, "plan", dict)
    num_samples = settings["num_samples"]
    selection = _unpack_selection(packed, num_samples)
    total = _count(packed, "total", at_most=2**62)
    if settings["own_sampler"]:
        order = _unpack_order(packed, num_samples)
    else:
        order = shuffled(num_samples, settings["seed"], epoch)
    plan = EpochPlan.build(epoch, selection, order, total=total)
    if not 0 < len(plan) <= total:
        raise StateError(f"the state's plan keeps {len(plan)} of {total} samples")
    return plan


def _unpack_selection(packed: dict[str, Any], num_samples: int) -> Selection:
    threshold = _entry(packed, "threshold", float)
    weights = _optional(packed, "weights", Tensor)
    if weights is None:
        return Selection.full(num_samples, threshold=threshold)
    level: NDArray[np.uint8] | None = None
    if _optional(packed, "level", Tensor) is not None:
        level = _vector(packed, "level", num_samples, torch.uint8).numpy()
    try:
        selection = Selection(weights.detach().cpu().numpy().copy(), level, threshold)
    except (PolicyError, TypeError) as error:
        raise StateError(f"the state's selection is damaged: {error}") from error
    if len(selection) != num_samples:
        raise StateError(
            f"the state's selection is of {len(selection)} samples, this pruner has {num_samples}"
        )
    return selection


def _unpack_order(packed: dict[str, Any], num_samples: int) -> NDArray[np.int64]:
    length = _entry(packed, "order", Tensor).numel()
    stored = _vector(packed, "order", length, torch.int32, torch.int64)
    order: NDArray[np.int64] = stored.numpy().astype(np.int64)
    if len(order) and not 0 <= order.min() <= order.max() < num_samples:
        raise StateError(f"the state's order names samples outside 0 to {num_samples - 1}")
    return order


def _unpack_history(state: Mapping[str, Any], epochs: int) -> list[EpochRecord]:
    records = [_unpack_fields(item, EpochRecord) for item in _entry(state, "history", list)]
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
        _entry(packed, name, int if annotation == "int" else float)
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
