"""What a comparison was asked to do: everything that its numbers depend on, and the margin."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from infobatch.lab.errors import LabError
from infobatch.lab.task import Task

PRECISIONS = ("fp32", "bf16")
AUGMENTATIONS = ("standard", "strong")
OPTIMIZERS = ("sgd", "adamw", "lars", "lamb")
SCHEDULES = ("onecycle", "cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """The settings that every run of a comparison shares.

    Attributes:
        task, model: names.
        width: channels of the model's first layer; None for its own.
        epochs, batch_size: of the full-data run.
        lr: peak of the schedule.
        weight_decay: of the optimizer.
        label_smoothing: of the training loss, where the task has classes.
        nesterov: momentum of SGD and LARS.
        prune_ratio, delta: InfoBatch's, see `infobatch.InfoBatch`.
        device: "cpu", "cuda", ...
        precision: "fp32", or "bf16" for autocast.
        channels_last, compile: memory layout, and `torch.compile`.
        threads: of torch on the CPU; 0 leaves torch's choice.
        eval_every: epochs between evaluations, 0 for none; the last epoch is always evaluated.
        limit_train: training samples used; None for all.
        label_noise: "none"; a fraction of labels drawn anew, as text; or the name of human labels.
        imbalance: size of the largest class over that of the smallest; 1: as the data is.
        augmentation: "standard", the task's own, or "strong".
        margin: what an arm may lose, in the metric's unit, and still count as non-inferior. Stated
            before the runs and kept with them: another margin is another comparison.
        data: fingerprint of the data.
        optimizer, schedule: names, see `infobatch.lab.optim`.
        grad_clip: largest norm of a step's gradient; 0 for no limit.
        options: of the task alone, by name; see `infobatch.lab.task.Option`.
    """

    task: str
    model: str
    width: int | None
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    label_smoothing: float
    nesterov: bool
    prune_ratio: float
    delta: float
    device: str
    precision: str
    channels_last: bool
    compile: bool
    threads: int
    eval_every: int
    limit_train: int | None
    label_noise: str
    imbalance: float
    augmentation: str
    margin: float
    data: str
    # With defaults, as results from before they were kept have these values.
    optimizer: str = "sgd"
    schedule: str = "onecycle"
    grad_clip: float = 0.0
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = {
            "--epochs must be at least 1": self.epochs >= 1,
            "--batch-size must be at least 1": self.batch_size >= 1,
            "--lr must be positive": math.isfinite(self.lr) and self.lr > 0,
            "--weight-decay must not be negative": 0 <= self.weight_decay < math.inf,
            "--label-smoothing must lie in [0, 1)": 0 <= self.label_smoothing < 1,
            "--prune-ratio must lie in [0, 1)": 0 <= self.prune_ratio < 1,
            "--delta must lie in [0, 1]": 0 <= self.delta <= 1,
            "--width must be at least 1": self.width is None or self.width >= 1,
            "--threads must not be negative": self.threads >= 0,
            "--eval-every must not be negative": self.eval_every >= 0,
            "--margin must be positive": 0 < self.margin < math.inf,
            "--imbalance must be at least 1": 1 <= self.imbalance < math.inf,
            f"--augmentation must be one of {', '.join(AUGMENTATIONS)}": (
                self.augmentation in AUGMENTATIONS
            ),
            f"--optimizer must be one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            f"--schedule must be one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            "--grad-clip must not be negative": 0 <= self.grad_clip < math.inf,
            f"--precision must be one of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
        }
        for rule, holds in checks.items():
            if not holds:
                name = rule.split()[0].removeprefix("--").replace("-", "_")
                raise LabError(f"{rule}, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> Settings:
        """Inverse of `to_json`; TypeError or KeyError where entries are missing or unknown."""
        needed = {
            entry.name
            for entry in fields(cls)
            if entry.default is MISSING and entry.default_factory is MISSING
        }
        if not needed <= set(entries) <= {entry.name for entry in fields(cls)}:
            raise KeyError("settings of another version of infobatch")
        return cls(**entries)

    @classmethod
    def of_task(cls, task: Task, changes: Mapping[str, Any]) -> Settings:
        """The task's own settings, but for the changes, among which are `device` and `data`."""
        defaults = {
            "task": task.name,
            "model": task.model,
            "width": None,
            "epochs": task.epochs,
            "batch_size": task.batch_size,
            "lr": task.lr,
            "weight_decay": task.weight_decay,
            "label_smoothing": task.label_smoothing,
            "nesterov": False,
            "prune_ratio": 0.5,
            "delta": 0.875,
            "precision": "fp32",
            "channels_last": False,
            "compile": False,
            "threads": task.threads,
            "eval_every": task.eval_every,
            "limit_train": None,
            "label_noise": "none",
            "imbalance": 1.0,
            "augmentation": "standard",
            "margin": task.metric.margin,
            "optimizer": task.optimizer,
            "schedule": task.schedule,
            "grad_clip": task.grad_clip,
        }
        return cls(**{**defaults, **changes})

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
            option = "--" + name.replace("_", "-")
            if name in ("data", "options") or value is None or value is False:
                continue
            words += [option] if value is True else [option, str(value)]
        for name, value in self.options.items():
            words += ["--option", f"{name}={value}"]
        return shlex.join(words)
