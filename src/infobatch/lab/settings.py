"""What a comparison was asked to do: everything that its numbers depend on, and the margin."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from infobatch.lab.errors import LabError

PRECISIONS = ("fp32", "bf16")
AUGMENTATIONS = ("standard", "strong")


@dataclass(frozen=True)
class Settings:
    """The settings that every run of a comparison shares.

    Attributes:
        task, model: names.
        width: channels of the model's first layer; None for its own.
        epochs, batch_size: of the full-data run.
        lr: peak of the one-cycle schedule.
        weight_decay, label_smoothing, nesterov: SGD with momentum 0.9.
        prune_ratio, delta: InfoBatch's, see `infobatch.InfoBatch`.
        device: "cpu", "cuda", ...
        precision: "fp32", or "bf16" for autocast.
        channels_last, compile: memory layout, and `torch.compile`.
        threads: of torch on the CPU; 0 leaves torch's choice.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        limit_train: training samples used; None for all.
        label_noise: "none"; a fraction of labels drawn anew, as text; or the name of human labels.
        imbalance: size of the largest class over that of the smallest; 1: as the data is.
        augmentation: "standard", the task's own, or "strong".
        margin: percentage points that an arm may lose and still count as non-inferior. Stated
            before the runs and kept with them: another margin is another comparison.
        data: fingerprint of the data.
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
            "--eval-every must be at least 1": self.eval_every >= 1,
            "--margin must be positive": 0 < self.margin < math.inf,
            "--imbalance must be at least 1": 1 <= self.imbalance < math.inf,
            f"--augmentation must be one of {', '.join(AUGMENTATIONS)}": (
                self.augmentation in AUGMENTATIONS
            ),
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
        if set(entries) != {field.name for field in fields(cls)}:
            raise KeyError("settings of another version of infobatch")
        return cls(**entries)

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
            if name == "data" or value is None or value is False:
                continue
            words += [option] if value is True else [option, str(value)]
        return shlex.join(words)
