"""`infobatch compare` and `infobatch report`: options in, settings out, errors in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from infobatch.lab import display, ranks, report, summary
from infobatch.lab.arm import Arm
from infobatch.lab.arms import COST, DEFAULT, all_arms, choose_arms, expand, families
from infobatch.lab.compare import compare as run_comparison
from infobatch.lab.compare import planned_runs
from infobatch.lab.data import TaskData
from infobatch.lab.errors import LabError
from infobatch.lab.presets import PRESETS, Preset, disturbed
from infobatch.lab.registry import choose
from infobatch.lab.results import RunResult, read_results
from infobatch.lab.settings import AUGMENTATIONS, OPTIMIZERS, PRECISIONS, SCHEDULES, Settings
from infobatch.lab.task import Task
from infobatch.lab.tasks import all_tasks

app = typer.Typer(
    name="infobatch",
    help="Train with and without InfoBatch, side by side: what it saves and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def infobatch() -> None:
    """Unbiased dynamic data pruning, measured."""


@app.command()
def compare(
    *,
    task: Annotated[str, typer.Option(help=f"One of: {', '.join(all_tasks())}.")] = "digits",
    arms: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated, of: {', '.join(all_arms())}; or families: "
            f"{', '.join(families())}. Default: {','.join(DEFAULT)}."
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated parts of the full run's cost, such as 0.5,0.75: every arm is run "
            "at each. Default: InfoBatch's realised cost."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Arms and settings of a known question; what is given besides goes first. One "
            f"of: {'; '.join(f'{name} ({p.description})' for name, p in PRESETS.items())}."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; arms pair by seed.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0)] = 0,
    margin: Annotated[
        float | None,
        typer.Option(
            help="What an arm may lose, in the metric's unit, and still be non-inferior. "
            "Default: the task's, 0.5 points of accuracy."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="For results and report. Default: runs/TASK, or runs/TASK-PRESET."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A setting that the task alone has; may come several times."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Default: the task's; an unknown one lists them.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Of the first layer. Default: the model's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of full data. Default: the task's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the task's.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(OPTIMIZERS)}. Default: the task's.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(SCHEDULES)}. Default: the task's.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default: the task's.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default: the task's.")] = None,
    grad_clip: Annotated[
        float | None, typer.Option(help="Largest norm of a gradient, 0: any. Default: the task's.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Default: the task's.")] = None,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov momentum.")] = False,
    prune_ratio: Annotated[
        float | None, typer.Option(help="InfoBatch's, in [0, 1). Default: 0.5.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Pruning ends after this part of the epochs: 0.875.")
    ] = None,
    limit_train: Annotated[int | None, typer.Option(help="Use so many training samples.")] = None,
    label_noise: Annotated[
        str | None,
        typer.Option(
            help="Part of the training labels to draw anew, such as 0.2; on cifar10 also human "
            "labels: aggregate, random1, random2, random3, worst."
        ),
    ] = None,
    imbalance: Annotated[
        float | None, typer.Option(help="Largest class over smallest, such as 10.")
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(AUGMENTATIONS)}.")
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(help="Epochs between evaluations, 0: the last alone. Default: the task's."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes CUDA if there.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(PRECISIONS)}. Default: fp32.")
    ] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last")] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help="torch.compile.")] = False,
    threads: Annotated[
        int | None, typer.Option(help="Torch threads, 0: torch's choice. Default: the task's.")
    ] = None,
) -> None:
    """Train every arm with every seed and compare: accuracy, samples passed, wall time.

    Results are kept as they come. Interrupted, the same command goes on where it stopped.
    """
    with _errors_in_words(), ranks.joined():
        console = _console()
        chosen_task = choose(task, all_tasks(), what="task")
        asked = choose(preset, PRESETS, what="preset") if preset else Preset("")
        preset_options = asked.settings(chosen_task).get("options", {})
        chosen_task, options = chosen_task.with_options({**preset_options, **_pairs(option or [])})
        names = (
            [name.strip() for name in arms.split(",")]
            if arms is not None
            else asked.arms or list(DEFAULT)
        )
        costs = _costs(cost)
        chosen_arms = choose_arms(names, costs=costs)
        if COST in [arm.name for arm in chosen_arms] and COST not in expand(names):
            console.print(f"The arm {COST} runs too: arms without --cost spend what it has spent.")
        given = {
            "model": model,
            "width": width,
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "schedule": schedule,
            "lr": lr,
            "weight_decay": weight_decay,
            "grad_clip": grad_clip,
            "label_smoothing": label_smoothing,
            "nesterov": nesterov or None,
            "prune_ratio": prune_ratio,
            "delta": delta,
            "limit_train": limit_train,
            "label_noise": label_noise,
            "imbalance": imbalance,
            "augmentation": augmentation,
            "eval_every": eval_every,
            "precision": precision,
            "channels_last": channels_last or None,
            "compile": compile_model or None,
            "threads": threads,
            "margin": margin,
        }
        given = {name: value for name, value in given.items() if value is not None}
        chosen_device = _device(device)
        variants = {
            name: {**asked.settings(chosen_task), **changes, **given}
            for name, changes in asked.variants(chosen_task).items()
        }
        for changes in variants.values():
            chosen_task.check_model(str(changes.get("model", chosen_task.model)))
        loaded = chosen_task.load(data_dir)
        folder = out or Path("runs") / "-".join(filter(None, (chosen_task.name, preset)))
        results = []
        for name, changes in variants.items():
            data, settings = _ready(
                chosen_task,
                loaded,
                data_dir,
                {**changes, "device": str(chosen_device), "options": options},
            )
            if name:
                console.print(f"{name}:", highlight=False)
            results += _run(
                console,
                chosen_task,
                data.to(chosen_device),
                settings,
                arms=chosen_arms,
                seeds=range(first_seed, first_seed + seeds),
                costs=costs,
                out=folder / name,
            )
        if ranks.rank() == 0:
            _show(console, results, folder, [folder / name for name in variants])


def _ready(
    task: Task, data: TaskData, data_dir: Path | None, changes: Mapping[str, Any]
) -> tuple[TaskData, Settings]:
    """The data as the settings want them, and the settings with the data's fingerprint."""
    settings = Settings.of_task(task, {**changes, "data": ""})
    if settings.augmentation == "strong" and task.strong is None:
        raise LabError(f"{task.name} has no strong augmentation")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = disturbed(task, data, data_dir, settings.label_noise, settings.imbalance)
    if settings.limit_train is not None:
        data = data.limit_train(settings.limit_train)
    return data, replace(settings, data=data.fingerprint())


def _run(
    console: Console,
    task: Task,
    data: TaskData,
    settings: Settings,
    *,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    costs: Sequence[float],
    out: Path,
) -> list[RunResult]:
    """The comparison, with progress on the console."""
    runs = len(planned_runs(arms, costs)) * len(seeds)
    try:
        with display.listener(console, runs=runs, metric=task.metric) as listener:
            return run_comparison(
                task,
                data,
                settings,
                arms=arms,
                seeds=seeds,
                costs=costs,
                out=out,
                listener=listener,
            )
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. {out} keeps the finished runs, and the one under way up to its "
            "last checkpoint; the same command goes on from there.",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


@app.command("report")
def rebuild_report(
    paths: Annotated[list[Path], typer.Argument(help="results.jsonl files, or their folders.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: that of the first path.")
    ] = None,
) -> None:
    """Build table and report again from results, also from several files at once."""
    with _errors_in_words():
        results = [result for path in paths for result in read_results(path)]
        folders = [path if path.is_dir() else path.parent for path in paths]
        _show(_console(), results, out or folders[0], folders)


def _show(
    console: Console, results: Sequence[RunResult], out: Path, folders: Sequence[Path]
) -> None:
    """Print the tables and write the report; the folders are searched for pictures of samples."""
    comparisons = summary.summarise(results)
    for comparison in comparisons:
        display.show(console, comparison)
    page = report.write_report(comparisons, out, picture_folders=folders)
    console.print(f"Report: {page}", soft_wrap=True)


def _console() -> Console:
    """As wide as the terminal; elsewhere wide enough for the table. The first process talks."""
    console = Console(quiet=ranks.rank() > 0)
    if not console.is_terminal:
        console.width = max(console.width, 190)
    return console


def _costs(text: str | None) -> list[float]:
    """The costs of `--cost`, rising."""
    try:
        costs = sorted({float(word) for word in text.split(",")}) if text else []
    except ValueError:
        costs = [0.0]
    if not all(0 < cost <= 1 for cost in costs):
        raise LabError(
            f"--cost must be parts of the full run in (0, 1], such as 0.5,0.75, got {text}"
        )
    return costs


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """The values of `--option name=value`."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise LabError(f"--option must be name=value, got {word}")
        pairs[name.strip()] = value.strip()
    return pairs


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"--device {name} cannot be used here ({reason}); try auto") from error
    if device.index is not None and ranks.count() > 1:
        raise LabError(f"under torchrun each process has its own device; give cuda, not {name}")
    return device


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """A `LabError` becomes one message and exit code 2."""
    try:
        yield
    except LabError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
