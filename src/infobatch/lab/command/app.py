"""`infobatch compare` and `infobatch report`: options in, settings out, errors in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from infobatch.lab.arms import COST, DEFAULT, all_arms, choose_arms, expand, families
from infobatch.lab.command import display
from infobatch.lab.command.presets import PRESETS, Preset
from infobatch.lab.errors import LabError
from infobatch.lab.registry import choose
from infobatch.lab.report import page, summary
from infobatch.lab.run import ranks
from infobatch.lab.run.compare import compare as run_comparison
from infobatch.lab.run.compare import planned_runs
from infobatch.lab.run.results import RunResult, read_results
from infobatch.lab.run.settings import Settings, settings_of_command
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.task import Task
from infobatch.lab.tasks.cifar.human_labels import NAMES as HUMAN_LABELS

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


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each setting of a comparison."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name, (kind, setting) in settings_of_command().items():
        option = typer.Option("--" + name.replace("_", "-"), help=setting.help)
        flag = kind is bool
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if flag else None,
                annotation=Annotated[kind if flag else kind | None, option],
            )
        )
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@app.command()
@_with_settings
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
            help="Comma-separated fractions of the full run's cost, such as 0.5,0.75: every arm is "
            "run at each. Default: InfoBatch's realised cost."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Arms and settings of a known question; other options override it. One of: "
            f"{'; '.join(f'{name} ({p.description})' for name, p in PRESETS.items())}."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; arms pair by seed.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0)] = 0,
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
    gradient_samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="After each full run, the true gradients of so many training samples: their "
            "headroom, and how losses rank them. Default: 0, none.",
        ),
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes CUDA if there.")] = "auto",
    **settings: Any,
) -> None:
    """Train every arm with every seed and compare: accuracy, samples passed, wall time.

    Results are kept as they come. Interrupted, the same command goes on where it stopped.
    """
    given = {
        name: value for name, value in settings.items() if value is not None and value is not False
    }
    with _errors_in_words(), ranks.joined():
        console = _console()
        asked = choose(preset, PRESETS, what="preset") if preset else Preset("")
        chosen_task = choose(task, all_tasks(), what="task")
        variants = asked.variants(chosen_task)
        preset_options = next(iter(variants.values())).get("options", {})
        chosen_task, options = chosen_task.with_options({**preset_options, **_pairs(option or [])})
        if arms is None:
            names = list(asked.arms or DEFAULT)
        else:
            names = [name.strip() for name in arms.split(",")]
        costs = _costs(cost)
        chosen_arms = choose_arms(names, costs=costs)
        if COST in [arm.name for arm in chosen_arms] and COST not in expand(names):
            console.print(f"The arm {COST} runs too: without --cost the others match its cost.")
        common = {"device": str(_device(device)), "options": options}
        variants = {name: {**changes, **given, **common} for name, changes in variants.items()}
        for changes in variants.values():
            chosen_task.check_model(str(changes.get("model", chosen_task.model)))
        loaded = chosen_task.load(data_dir)
        folder = out or Path("runs") / "-".join(filter(None, (chosen_task.name, preset)))
        results: list[RunResult] = []
        for name, changes in variants.items():
            data, shared = _ready(chosen_task, loaded, data_dir, changes)
            if name:
                console.print(f"{name}:", highlight=False)
            runs = len(planned_runs(chosen_arms, costs)) * seeds
            with (
                _interruptible(console, folder / name),
                display.listener(console, runs=runs, metric=chosen_task.metric) as listener,
            ):
                results += run_comparison(
                    chosen_task,
                    data.to(torch.device(shared.device)),
                    shared,
                    arms=chosen_arms,
                    seeds=range(first_seed, first_seed + seeds),
                    costs=costs,
                    out=folder / name,
                    listener=listener,
                    gradient_samples=gradient_samples,
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
    if settings.label_noise != "none":
        data = _with_noise(task, data, data_dir, settings.label_noise)
    if settings.imbalance > 1:
        data = data.imbalanced(settings.imbalance)
    if settings.limit_train is not None:
        data = data.limit_train(settings.limit_train)
    return data, replace(settings, data=data.fingerprint())


def _with_noise(task: Task, data: TaskData, data_dir: Path | None, noise: str) -> TaskData:
    """The data with a fraction of the labels drawn anew, or with those that people gave."""
    try:
        fraction = float(noise)
    except ValueError:
        if task.human_labels is None or noise not in HUMAN_LABELS:
            have = f", or one of {', '.join(HUMAN_LABELS)}" if task.human_labels else ""
            raise LabError(
                f"--label-noise for {task.name} must be a fraction{have}, got {noise}"
            ) from None
        return data.with_labels(task.human_labels(data_dir, noise))
    if not 0 <= fraction <= 1:
        raise LabError(f"--label-noise must be a fraction, got {noise}")
    return data.with_random_labels(fraction)


@contextmanager
def _interruptible(console: Console, out: Path) -> Iterator[None]:
    try:
        yield
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
    """Print the tables and write the report; the folders may hold pictures of samples."""
    comparisons = summary.summarise(results)
    for comparison in comparisons:
        display.show(console, comparison)
    written = page.write_report(comparisons, out, picture_folders=folders)
    console.print(f"Report: {written}", soft_wrap=True)


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
            f"--cost must be fractions of the full run in (0, 1], such as 0.5,0.75, got {text}"
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
