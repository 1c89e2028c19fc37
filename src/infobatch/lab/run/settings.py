"""The settings of a comparison: everything that its numbers depend on, and the margin."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, Any, NamedTuple, get_type_hints

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.task import Task


class Rule(NamedTuple):
    """What must hold of a setting: in words, and as a test."""

    text: str
    holds: Callable[[Any], bool]


class Setting(NamedTuple):
    """A field of `Settings` that is an option of the command line: its help, and its rule."""

    help: str
    rule: Rule | None = None


def _choice(*names: str, default: str) -> Setting:
    listed = ", ".join(names)
    rule = Rule(f"must be one of {listed}", lambda name: name in names)
    return Setting(f"One of: {listed}. Default: {default}.", rule)


_FROM_ONE = Rule("must be at least 1", lambda x: x is None or 1 <= x < math.inf)
_POSITIVE = Rule("must be positive", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = Rule("must not be negative", lambda x: 0 <= x < math.inf)
_FRACTION = Rule("must lie in [0, 1]", lambda x: 0 <= x <= 1)
_BELOW_ONE = Rule("must lie in [0, 1)", lambda x: 0 <= x < 1)


@dataclass(frozen=True)
class Settings:
    """The settings that every run of a comparison shares.

    Those with a default here have it in results from before they were kept.

    Attributes:
        data: fingerprint of the data.
        options: of the task alone, by name.
    """

    task: str
    model: Annotated[str, Setting("Default: the task's; an unknown one lists them.")]
    width: Annotated[
        int | None, Setting("Channels of the first layer. Default: the model's.", _FROM_ONE)
    ]
    epochs: Annotated[int, Setting("Of the full-data run. Default: the task's.", _FROM_ONE)]
    batch_size: Annotated[int, Setting("Default: the task's.", _FROM_ONE)]
    lr: Annotated[float, Setting("Peak learning rate. Default: the task's.", _POSITIVE)]
    weight_decay: Annotated[float, Setting("Default: the task's.", _NOT_NEGATIVE)]
    label_smoothing: Annotated[float, Setting("Default: the task's.", _BELOW_ONE)]
    nesterov: Annotated[bool, Setting("Nesterov momentum, of SGD and LARS.")]
    prune_ratio: Annotated[float, Setting("InfoBatch's, in [0, 1). Default: 0.5.", _BELOW_ONE)]
    delta: Annotated[
        float, Setting("InfoBatch prunes in this fraction of the epochs: 0.875.", _FRACTION)
    ]
    device: str
    precision: Annotated[str, _choice("fp32", "bf16", default="fp32")]
    channels_last: Annotated[bool, Setting("Memory layout of images.")]
    compile: Annotated[bool, Setting("torch.compile.")]
    threads: Annotated[
        int, Setting("Torch threads, 0: torch's choice. Default: the task's.", _NOT_NEGATIVE)
    ]
    eval_every: Annotated[
        int,
        Setting(
            "Epochs between evaluations, 0: only the last. Default: the task's.", _NOT_NEGATIVE
        ),
    ]
    limit_train: Annotated[int | None, Setting("Use so many training samples.")]
    label_noise: Annotated[
        str,
        Setting(
            "Fraction of the training labels to draw anew, such as 0.2; on cifar10 also human "
            "labels: aggregate, random1, random2, random3, worst."
        ),
    ]
    imbalance: Annotated[
        float, Setting("Size of the largest class over the smallest, such as 10.", _FROM_ONE)
    ]
    augmentation: Annotated[str, _choice("standard", "strong", default="standard")]
    margin: Annotated[
        float,
        Setting(
            "What an arm may lose, in the metric's unit, and still be non-inferior. Default: the "
            "task's, 0.5 points of accuracy.",
            _POSITIVE,
        ),
    ]
    data: str
    optimizer: Annotated[str, _choice("sgd", "adamw", "lars", "lamb", default="the task's")] = "sgd"
    schedule: Annotated[str, _choice("onecycle", "cosine", "constant", default="the task's")] = (
        "onecycle"
    )
    grad_clip: Annotated[
        float, Setting("Largest norm of a gradient, 0: any. Default: the task's.", _NOT_NEGATIVE)
    ] = 0.0
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (_, setting) in settings_of_command().items():
            value = getattr(self, name)
            if setting.rule is not None and not setting.rule.holds(value):
                raise LabError(f"{_option(name)} {setting.rule.text}, got {value}")

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> Settings:
        """Inverse of `to_json`; TypeError where entries are missing or unknown."""
        return cls(**entries)

    @classmethod
    def of_task(cls, task: Task, changes: Mapping[str, Any]) -> Settings:
        """The task's own settings, but for the changes, among which are `device` and `data`."""
        own = {name: getattr(task, name) for name in _OF_TASK}
        return cls(
            **{**_DEFAULTS, **own, "task": task.name, "margin": task.metric.margin, **changes}
        )

    @property
    def digest(self) -> str:
        """Equal for equal settings; results with different digests are never mixed."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: Settings) -> str:
        """Where the two differ, for people: `lr 0.1 (there 0.2), ...`."""
        theirs = other.to_json()
        return ", ".join(
            f"{name.replace('_', '-')} {value} (there {theirs[name]})"
            for name, value in self.to_json().items()
            if value != theirs[name]
        )

    def command(
        self, arms: Sequence[str], seeds: Sequence[int], costs: Sequence[float] = ()
    ) -> str:
        """The command line that repeats the comparison, with every setting spelled out."""
        words = ["infobatch", "compare", "--arms", ",".join(arms)]
        if costs:
            words += ["--cost", ",".join(f"{cost:g}" for cost in costs)]
        words += ["--seeds", str(len(seeds)), "--first-seed", str(seeds[0])]
        for name, value in self.to_json().items():
            if name in ("data", "options") or value is None or value is False:
                continue
            words += [_option(name)] if value is True else [_option(name), str(value)]
        for name, value in self.options.items():
            words += ["--option", f"{name}={value}"]
        return shlex.join(words)


@cache
def settings_of_command() -> dict[str, tuple[type, Setting]]:
    """Type and help of each setting that is an option of the command line."""
    hints = get_type_hints(Settings, include_extras=True)
    return {
        name: (hint.__origin__, setting)
        for name, hint in hints.items()
        for setting in getattr(hint, "__metadata__", ())
    }


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


_OF_TASK = (
    *("model", "epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "threads"),
    *("eval_every", "optimizer", "schedule", "grad_clip"),
)
"""Settings whose defaults a task has."""
_DEFAULTS = {
    "width": None,
    "nesterov": False,
    "prune_ratio": 0.5,
    "delta": 0.875,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "limit_train": None,
    "label_noise": "none",
    "imbalance": 1.0,
    "augmentation": "standard",
}
