"""What a task is: data, model, per-sample loss, metric, and the settings that suit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.errors import LabError
from infobatch.lab.registry import choose
from infobatch.lab.tasks.base.data import Prepare, TaskData


@dataclass(frozen=True)
class Metric:
    """What a task is judged by.

    Attributes:
        unit: "%", "nats", ...
        higher_is_better: otherwise lower is.
        margin: default of `--margin`, in that unit.
        digits: after the decimal point.
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
        """By how much a value is better than the reference; negative if it is worse."""
        return value - reference if self.higher_is_better else reference - value

    def text(self, value: float) -> str:
        """The number without its unit."""
        return f"{value:.{self.digits}f}"

    def with_unit(self, value: float) -> str:
        """The number with its unit: `99.50%`, `3.595 nats`."""
        return self.text(value) + ("%" if self.unit == "%" else f" {self.unit}".rstrip())


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        metric: in the metric's unit.
        worst_class: the same for the worst class; None without classes.
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
        help: one line, with what may be given.
        choices: the only values, if there are few.
        kind, at_least, at_most: int or float, and its range.
    """

    default: str
    help: str
    choices: tuple[str, ...] = ()
    kind: type[int] | type[float] | type[str] = str
    at_least: float = 0
    at_most: float = math.inf

    def parsed(self, name: str, text: str) -> Any:
        """The value that a text stands for; a LabError if the option may not have it."""
        if self.choices and text not in self.choices:
            raise LabError(f"--option {name} must be one of {', '.join(self.choices)}, got {text}")
        try:
            value = self.kind(text)
            if isinstance(value, str) or self.at_least <= value <= self.at_most:
                return value
        except ValueError:
            pass
        kind = "whole number" if self.kind is int else "number"
        end = "up" if self.at_most == math.inf else f"to {self.at_most:g}"
        raise LabError(f"--option {name} must be a {kind} from {self.at_least:g} {end}, got {text}")


@dataclass(frozen=True)
class Task:
    """A learning problem that arms are compared on.

    Attributes:
        name: what `--task` takes.
        description: one line for people.
        epochs, batch_size, lr, model, optimizer, schedule, weight_decay, label_smoothing,
            grad_clip: defaults; see `Settings`.
        threads: default number of torch threads; 0 leaves torch's choice.
        eval_every: default number of epochs between evaluations; 0: only the last epoch.
        models: names that `--model` takes; "timm:NAME" among them allows any name after timm:.
        load: reads the data from `--data-dir`, or None; a `LabError` says what to fetch and where
            to put it.
        build: (name, width, data) -> a fresh model, drawn from the global generator; width None:
            the model's own.
        prepare: stored rows and targets to model inputs and targets; see `tasks.base.data`.
        loss: (outputs, targets, label smoothing) -> the loss of every sample, shape (B,).
        evaluate: judges a run.
        metric: what it is judged by.
        rank: (outputs, targets) -> (B,) scores, where they are not the losses.
        batch_of_test: samples that are evaluated at a time.
        strong: as `prepare`, with strong augmentation; None where there is none.
        human_labels: reads labels that people gave the training set, by `--data-dir` and name.
        thumbnail: one stored row as an image, uint8 (H, W) or (H, W, 3); None where a sample
            cannot be drawn.
        by_class_logits: outputs are (B, classes) logits and targets (B,) labels, which coresets
            and some in-batch methods need.
        options: settings of this task alone; see `with_options`.
        of_options: values of the options to the fields that depend on them.
        architectures: settings for kinds of models, each with "model", for
            `--preset architectures`.
        paper: settings of the InfoBatch paper, for `--preset paper`; values of options under
            "options".
    """

    name: str
    description: str
    epochs: int
    batch_size: int
    lr: float
    model: str
    models: Sequence[str]
    load: Callable[[Path | None], TaskData]
    build: Callable[[str, int | None, TaskData], nn.Module]
    prepare: Prepare
    loss: Callable[[Any, Any, float], Tensor]
    evaluate: Callable[[Trained], Outcome]
    metric: Metric = Metric()
    optimizer: str = "adamw"
    schedule: str = "onecycle"
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    grad_clip: float = 0.0
    eval_every: int = 1
    threads: int = 1
    rank: Callable[[Any, Any], Tensor] | None = None
    batch_of_test: int = 1000
    strong: Prepare | None = None
    human_labels: Callable[[Path | None, str], Tensor] | None = None
    thumbnail: Callable[[Tensor], np.ndarray] | None = None
    by_class_logits: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    of_options: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {}
    architectures: Sequence[Mapping[str, Any]] = ()
    paper: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def with_defaults(
        cls,
        options: Mapping[str, Option],
        of_options: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        **fields: Any,
    ) -> Task:
        """A task whose fields that depend on its options are those of their defaults."""
        values = {name: option.parsed(name, option.default) for name, option in options.items()}
        return cls(options=options, of_options=of_options, **fields, **of_options(values))

    def check_model(self, name: str) -> None:
        """Raise a LabError if the task has no such model."""
        library, colon, rest = name.partition(":")
        if not (colon and rest and f"{library}:NAME" in self.models):
            choose(name, dict.fromkeys(self.models), what="model")

    def with_options(self, given: Mapping[str, str]) -> tuple[Task, dict[str, str]]:
        """The task under these options, and the value of every option it has.

        Raises:
            LabError: the task has no such option, or not with that value.
        """
        for name in given.keys() - self.options.keys():
            have = "; ".join(f"{key} ({option.help})" for key, option in self.options.items())
            raise LabError(f"{self.name} has no option {name!r}; it has: {have or 'none'}")
        texts = {name: given.get(name, option.default) for name, option in self.options.items()}
        values = {name: self.options[name].parsed(name, text) for name, text in texts.items()}
        return replace(self, **self.of_options(values)), texts
