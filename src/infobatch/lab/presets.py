"""Arms and settings for questions that are asked again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from infobatch.lab.data import TaskData
from infobatch.lab.datasets.human_labels import NAMES
from infobatch.lab.errors import LabError
from infobatch.lab.task import Task

_CONTROLS = ["full", "fewer-epochs", "random"]
_STRESSED = [
    *_CONTROLS,
    "infobatch",
    "infobatch-budget",
    "infobatch-groups",
    "infobatch-protected",
    "proportional",
    "rs2",
    "ucb",
]


Changes = Mapping[str, Any]
"""Settings by name, see `infobatch.lab.settings.Settings`."""


@dataclass(frozen=True)
class Preset:
    """What a preset sets, where the command line does not.

    Attributes:
        description: for people.
        arms: names; None for the default ones.
        settings: of a task.
        variants: of a task: comparisons that are run one after the other, by the name of their
            folder, and what each sets besides.
    """

    description: str
    arms: list[str] | None = None
    settings: Callable[[Task], Changes] = lambda _: {}
    variants: Callable[[Task], Mapping[str, Changes]] = lambda _: {"": {}}


def _noise(task: Task) -> Changes:
    return {"label_noise": "0.4" if task.human_labels is None else "worst"}


def _short(task: Task) -> Changes:
    return {"epochs": max(1, round(task.epochs / 3))}


def _paper(task: Task) -> Changes:
    if not task.paper:
        raise LabError(f"the InfoBatch paper has no {task.name}; leave --preset paper away")
    return task.paper


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
    "imbalance-10": Preset("classes 10:1", _STRESSED, lambda _: {"imbalance": 10.0}),
    "imbalance-100": Preset("classes 100:1", _STRESSED, lambda _: {"imbalance": 100.0}),
    "short": Preset("a third of the epochs", _STRESSED, _short),
    "paper": Preset("the settings of the InfoBatch paper for the task", settings=_paper),
    "strong": Preset("strong augmentation", _STRESSED, lambda _: {"augmentation": "strong"}),
}
"""Every preset by name."""


def disturbed(
    task: Task, data: TaskData, data_dir: Path | None, label_noise: str, imbalance: float
) -> TaskData:
    """The data with noisy labels, with unequal classes, or as it is.

    Raises:
        LabError: the task has no such labels, or the noise is no fraction.
    """
    if label_noise != "none":
        try:
            fraction = float(label_noise)
        except ValueError:
            data = data.with_labels(_human_labels(task, data_dir, label_noise))
        else:
            if not 0 <= fraction <= 1:
                raise LabError(f"--label-noise must be a fraction, got {label_noise}")
            data = data.with_random_labels(fraction)
    if imbalance < 1:
        raise LabError(f"--imbalance must be at least 1, got {imbalance:g}")
    return data.imbalanced(imbalance) if imbalance > 1 else data


def _human_labels(task: Task, data_dir: Path | None, name: str) -> Tensor:
    if task.human_labels is None or name not in NAMES:
        have = f", or one of {', '.join(NAMES)}" if task.human_labels else ""
        raise LabError(f"--label-noise for {task.name} must be a fraction{have}, got {name}")
    return task.human_labels(data_dir, name)
