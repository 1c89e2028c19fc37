"""Arms and settings for questions that are asked again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from infobatch.lab.datasets.human_labels import NAMES
from infobatch.lab.errors import LabError
from infobatch.lab.task import Task, TaskData

_CONTROLS = ["full", "fewer-epochs", "random"]
_STRESSED = [
    *_CONTROLS,
    "infobatch",
    "infobatch-budget",
    "infobatch-groups",
    "infobatch-protected",
    "rs2",
    "ucb",
]


@dataclass(frozen=True)
class Preset:
    """What a preset sets, where the command line does not.

    Attributes:
        description: for people.
        arms: names.
        epochs: part of the task's own number.
        label_noise, imbalance, augmentation: see `Settings`.
    """

    description: str
    arms: list[str] | None = None
    epochs: float = 1.0
    label_noise: str = "none"
    imbalance: float = 1.0
    augmentation: str = "standard"

    def label_noise_of(self, task: Task) -> str:
        """`label_noise`, or human labels where a task has them."""
        return "worst" if self.label_noise != "none" and task.human_labels else self.label_noise


PRESETS: Mapping[str, Preset] = {
    "ablation": Preset(
        "selector x rescale x annealing",
        ["full", "fewer-epochs", "infobatch", "infobatch-budget", "ablation"],
    ),
    "noise": Preset("human labels, or 40% drawn anew", _STRESSED, label_noise="0.4"),
    "imbalance-10": Preset("classes 10:1", _STRESSED, imbalance=10.0),
    "imbalance-100": Preset("classes 100:1", _STRESSED, imbalance=100.0),
    "short": Preset("a third of the epochs", _STRESSED, epochs=1 / 3),
    "strong": Preset("strong augmentation", _STRESSED, augmentation="strong"),
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
