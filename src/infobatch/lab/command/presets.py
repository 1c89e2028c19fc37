"""Arms and settings for questions that are asked again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.task import Task

_STRESSED = (
    *("full", "fewer-epochs", "random", "infobatch", "infobatch-budget", "infobatch-groups"),
    *("proportional", "rs2", "ucb"),
)

Changes = Mapping[str, Any]
"""Settings by name, see `infobatch.lab.run.settings.Settings`."""


@dataclass(frozen=True)
class Preset:
    """What a preset sets, where the command line does not.

    Attributes:
        description: for people.
        arms: names; None for the default ones.
        variants: settings for a task of each comparison that is run, by the name of its folder.
    """

    description: str
    arms: Sequence[str] | None = None
    variants: Callable[[Task], Mapping[str, Changes]] = lambda _: {"": {}}


def _paper(task: Task) -> Mapping[str, Changes]:
    if not task.paper:
        raise LabError(f"the InfoBatch paper has no {task.name}; leave --preset paper away")
    return {"": task.paper}


def _noise(task: Task) -> Mapping[str, Changes]:
    return {"": {"label_noise": "0.4" if task.human_labels is None else "worst"}}


def _optimizers(_task: Task) -> Mapping[str, Changes]:
    """Each with a step and a decay of its usual size, as they cannot share them.

    LARS as in the InfoBatch paper; the others such that the full run learns digits and CIFAR-10.
    """
    return {
        "sgd": {"optimizer": "sgd", "lr": 0.2, "weight_decay": 5e-4},
        "adamw": {"optimizer": "adamw", "lr": 4e-3, "weight_decay": 5e-2},
        "lars": {"optimizer": "lars", "lr": 5.2, "weight_decay": 5e-4},
        "lamb": {"optimizer": "lamb", "lr": 1e-2, "weight_decay": 5e-2},
    }


def _architectures(task: Task) -> Mapping[str, Changes]:
    if not task.architectures:
        raise LabError(f"{task.name} has one kind of model; leave --preset architectures away")
    return {str(changes["model"]): changes for changes in task.architectures}


PRESETS: Mapping[str, Preset] = {
    "ablation": Preset(
        "selector x rescale x annealing",
        ["full", "fewer-epochs", "infobatch", "infobatch-budget", "ablation"],
    ),
    "architectures": Preset("kinds of models", variants=_architectures),
    "optimizers": Preset("SGD, AdamW, LARS, LAMB", variants=_optimizers),
    "noise": Preset("human labels, or 40% drawn anew", _STRESSED, _noise),
    "imbalance-10": Preset("classes 10:1", _STRESSED, lambda _: {"": {"imbalance": 10.0}}),
    "imbalance-100": Preset("classes 100:1", _STRESSED, lambda _: {"": {"imbalance": 100.0}}),
    "short": Preset(
        "a third of the epochs",
        _STRESSED,
        lambda task: {"": {"epochs": max(1, round(task.epochs / 3))}},
    ),
    "paper": Preset("the settings of the InfoBatch paper for the task", variants=_paper),
    "strong": Preset("strong augmentation", _STRESSED, lambda _: {"": {"augmentation": "strong"}}),
}
"""Every preset by name."""
