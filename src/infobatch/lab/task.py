"""What a task is: data, model, per-sample loss, metric, and the settings that suit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.data import Prepare, TaskData
from infobatch.lab.errors import LabError
from infobatch.lab.registry import choose


@dataclass(frozen=True)
class Metric:
    """What a task is judged by.

    Attributes:
        name: for people.
        unit: "%", "nats", ...
        higher_is_better: otherwise lower is.
        margin: default of `--margin`, in that unit.
        digits: behind the point.
    """

    name: str = "test accuracy"
    unit: str = "%"
    higher_is_better: bool = True
    margin: float = 0.5
    digits: int = 2

    @property
    def unit_of_gain(self) -> str:
        """Differences of percentages are in points."""
        return "points" if self.unit == "%" else self.unit

    def gain(self, value: float, reference: float) -> float:
        """How much better a value is than another: positive if it is better."""
        return value - reference if self.higher_is_better else reference - value

    def text(self, value: float) -> str:
        """The number, without its unit."""
        return f"{value:.{self.digits}f}"

    def with_unit(self, value: float) -> str:
        """The number and its unit: `99.50%`, `3.595 nats`."""
        return self.text(value) + ("%" if self.unit == "%" else f" {self.unit}".rstrip())


@dataclass(frozen=True)
class Outcome:
    """What an evaluation has found.

    Attributes:
        metric: in the metric's unit.
        worst_class: the same for the class where it is worst; None without classes.
        more: other numbers that the task reports, by name.
    """

    metric: float
    worst_class: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)


class Trained(Protocol):
    """A run as its evaluation sees it."""

    model: nn.Module
    data: TaskData
    device: torch.device
    seed: int

    def test_outputs(self) -> Iterator[tuple[Any, Any]]:
        """Outputs and targets, batch by batch over the test set, in evaluation mode."""


@dataclass(frozen=True)
class Option:
    """A setting that one task alone has: `--option name=value`.

    Attributes:
        default: its value if it is not given.
        help: one line for people, with what may be given.
        choices: if only these may be given.
    """

    default: str
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A learning problem that arms are compared on.

    Attributes:
        name: what `--task` takes.
        description: one line for people.
        epochs, batch_size, lr, model, optimizer, schedule, weight_decay, label_smoothing,
            grad_clip: defaults; see `Settings`.
        threads: default number of torch threads; 0 leaves torch's choice.
        eval_every: default number of epochs between evaluations; 0: the last one alone.
        models: names that `--model` takes; with "timm:NAME" among them, timm: and any name.
        load: read the data; gets `--data-dir`, or None, and says in a `LabError` what to
            fetch and where to put it when there is nothing.
        build: a fresh model by name and width (None: the model's own) for these data, from the
            global generator.
        prepare: stored rows and targets to model inputs and targets; see `infobatch.lab.data`.
        loss: (outputs, targets, label smoothing) -> the loss of every sample, shape (B,).
        evaluate: judges a run.
        metric: what it is judged by.
        rank: (outputs, targets) -> (B,) what samples are ranked by, where that is not their loss.
        batch_of_test: samples that are evaluated at a time.
        strong: as `prepare`, with strong augmentation; None where there is none.
        human_labels: reads labels that people gave the training set, by `--data-dir` and name;
            None where there are none.
        thumbnail: one stored row as an image for people, uint8 (H, W) or (H, W, 3); None where a
            sample cannot be drawn.
        by_class_logits: outputs are (B, classes) logits and targets (B,) labels, which coresets
            and some in-batch methods need.
        options: settings of this task alone; see `with_options`.
        remake: the task under other values of its options.
        architectures: settings for kinds of models, a model's name among them, for
            `--preset architectures`.
        paper: settings of the InfoBatch paper for this task, for `--preset paper`; its options
            by name under "options".
    """

    name: str
    description: str
    epochs: int
    batch_size: int
    lr: float
    model: str
    threads: int
    models: Sequence[str]
    load: Callable[[Path | None], TaskData]
    build: Callable[[str, int | None, TaskData], nn.Module]
    prepare: Prepare
    loss: Callable[[Any, Any, float], Tensor]
    evaluate: Callable[[Trained], Outcome]
    metric: Metric = Metric()
    optimizer: str = "sgd"
    schedule: str = "onecycle"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    grad_clip: float = 0.0
    eval_every: int = 1
    rank: Callable[[Any, Any], Tensor] | None = None
    batch_of_test: int = 1000
    strong: Prepare | None = None
    human_labels: Callable[[Path | None, str], Tensor] | None = None
    thumbnail: Callable[[Tensor], np.ndarray] | None = None
    by_class_logits: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    remake: Callable[[Mapping[str, str]], Task] | None = None
    architectures: Sequence[Mapping[str, Any]] = ()
    paper: Mapping[str, Any] = field(default_factory=dict)

    def check_model(self, name: str) -> None:
        """See that `--model` may be this.

        Raises:
            LabError: the task has no such model.
        """
        library, colon, rest = name.partition(":")
        if not (colon and rest and f"{library}:NAME" in self.models):
            choose(name, dict.fromkeys(self.models), what="model")

    def with_options(self, given: Mapping[str, str]) -> tuple[Task, dict[str, str]]:
        """The task under these options, and the value of every option it has.

        Raises:
            LabError: the task has no such option, or not with that value.
        """
        for name, value in given.items():
            if name not in self.options:
                have = "; ".join(f"{key} ({option.help})" for key, option in self.options.items())
                raise LabError(f"{self.name} has no option {name!r}; it has: {have or 'none'}")
            choices = self.options[name].choices
            if choices and value not in choices:
                raise LabError(f"--option {name} must be one of {', '.join(choices)}, got {value}")
        values = {name: given.get(name, option.default) for name, option in self.options.items()}
        return (self if self.remake is None else self.remake(values)), values
