"""What the tests of the laboratory share."""

import contextlib
import io
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner, Result

from infobatch.lab.arms import all_arms
from infobatch.lab.arms.base import ArmContext
from infobatch.lab.command.app import app
from infobatch.lab.command.display import ConsoleListener
from infobatch.lab.run.compare import compare
from infobatch.lab.run.results import RunResult
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import TrainingRun
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.data import TensorData
from infobatch.lab.tasks.base.task import Task

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS = all_tasks()["digits"]
AUGMENTED = replace(DIGITS, prepare=replace(DIGITS.prepare, crop_padding=1, flip=True))
SMALL = ("--epochs", "5", "--limit-train", "300", "--batch-size", "50", "--seeds", "2")

SETTINGS = Settings.of_task(
    DIGITS,
    {
        "width": 4,
        "epochs": 6,
        "batch_size": 40,
        "lr": 0.1,
        "delta": 0.7,
        "limit_train": 200,
        "device": "cpu",
        "data": "none",
    },
)


@dataclass(frozen=True)
class Comparison:
    """Where a comparison lies and what the command printed."""

    out: Path
    output: str


def run_command(*arguments: str) -> Result:
    """What `infobatch` prints and returns, in this process."""
    return CliRunner().invoke(app, list(arguments))


def run_example_here(name: str, *words: str) -> str:
    """What one of the examples prints, run in this process as its docstring says."""
    path, printed = EXAMPLES / name, io.StringIO()
    before, sys.argv = sys.argv, [str(path), *words]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
    return printed.getvalue()


def small_comparison(out: Path, *arguments: str) -> Result:
    """The command that the shared comparison comes from, with further options."""
    return run_command("compare", *SMALL, "--out", str(out), *arguments)


def run_compare(task: Task, data, settings: Settings, arms, out: Path, **more) -> list[RunResult]:
    """`compare` without its console: at 0.8 of the cost and with seed 0, if not told otherwise."""
    progress = Progress(console=Console(quiet=True), disable=True)
    return compare(
        task,
        data,
        settings,
        **{"arms": [all_arms()[arm] for arm in arms], "seeds": [0], "costs": [0.8], **more},
        out=out,
        listener=ConsoleListener(progress, 1, task.metric),
    )


def digits(size: int = 200) -> TensorData:
    return DIGITS.load(None).limit_train(size)


def training_run(
    arm: str,
    data: TensorData,
    *,
    task: Task = DIGITS,
    seed: int = 0,
    cost: float | None = None,
    **changes,
) -> TrainingRun:
    """One run of an arm on digits, with changes to the small settings; told arms cost 0.75."""
    chosen = all_arms()[arm]
    if cost is None and chosen.cost == "told":
        cost = 0.75
    settings = replace(SETTINGS, **changes)
    context = ArmContext(
        dataset_size=len(data),
        epochs=settings.epochs,
        prune_ratio=settings.prune_ratio,
        delta=settings.delta,
        seed=seed,
        labels=None if data.labels is None else data.labels.numpy(),
        cost=cost,
    )
    return TrainingRun(task, data, chosen.start(context), settings, seed=seed)


def finish(run: TrainingRun) -> TrainingRun:
    while not run.finished:
        run.run_epoch()
    return run
