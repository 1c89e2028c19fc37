"""`infobatch compare` and `infobatch report`: options in, settings out, errors in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from infobatch.lab import display, report, summary
from infobatch.lab.arms import COST, all_arms, choose_arms
from infobatch.lab.compare import compare as run_comparison
from infobatch.lab.errors import LabError
from infobatch.lab.models import MODELS
from infobatch.lab.registry import choose
from infobatch.lab.results import RunResult, read_results
from infobatch.lab.settings import PRECISIONS, Settings
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
        str, typer.Option(help=f"Comma-separated, of: {', '.join(all_arms())}. Default: all.")
    ] = ",".join(all_arms()),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; arms pair by seed.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0)] = 0,
    margin: Annotated[
        float, typer.Option(help="Points that an arm may lose and still be non-inferior.")
    ] = 0.5,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and report. Default: runs/TASK.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(MODELS)}. Default: the task's.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of the first layer. Default: the model's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of full data. Default: the task's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the task's.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default: the task's.")
    ] = None,
    weight_decay: Annotated[float, typer.Option()] = 5e-4,
    label_smoothing: Annotated[float, typer.Option()] = 0.1,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov momentum.")] = False,
    prune_ratio: Annotated[float, typer.Option(help="InfoBatch's, in [0, 1).")] = 0.5,
    delta: Annotated[
        float, typer.Option(help="Pruning ends after this part of the epochs.")
    ] = 0.875,
    limit_train: Annotated[int | None, typer.Option(help="Use so many training samples.")] = None,
    eval_every: Annotated[int, typer.Option(help="Epochs between evaluations.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes CUDA if there.")] = "auto",
    precision: Annotated[str, typer.Option(help=f"One of: {', '.join(PRECISIONS)}.")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last")] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help="torch.compile.")] = False,
    threads: Annotated[
        int | None, typer.Option(help="Torch threads, 0: torch's choice. Default: the task's.")
    ] = None,
) -> None:
    """Train every arm with every seed and compare: accuracy, samples passed, wall time.

    Results are kept as they come. Interrupted, the same command goes on where it stopped.
    """
    console = _console()
    with _errors_in_words():
        chosen_task = choose(task, all_tasks(), what="task")
        names = [name.strip() for name in arms.split(",")]
        chosen_arms = choose_arms(names)
        choose(model or chosen_task.model, MODELS, what="model")
        if COST not in names and any(arm.equal_cost for arm in chosen_arms):
            console.print(f"The arm {COST} runs too: equal-cost arms spend what it has spent.")
        chosen_device = _device(device)
        data = chosen_task.load(data_dir)
        if limit_train is not None:
            data = data.limit_train(limit_train)
        settings = Settings(
            task=chosen_task.name,
            model=model or chosen_task.model,
            width=width,
            epochs=chosen_task.epochs if epochs is None else epochs,
            batch_size=chosen_task.batch_size if batch_size is None else batch_size,
            lr=chosen_task.lr if lr is None else lr,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            nesterov=nesterov,
            prune_ratio=prune_ratio,
            delta=delta,
            device=str(chosen_device),
            precision=precision,
            channels_last=channels_last,
            compile=compile_model,
            threads=chosen_task.threads if threads is None else threads,
            eval_every=eval_every,
            limit_train=limit_train,
            margin=margin,
            data=data.fingerprint(),
        )
        if settings.threads:
            torch.set_num_threads(settings.threads)
        folder = out or Path("runs") / chosen_task.name
        seed_list = range(first_seed, first_seed + seeds)
        try:
            with display.listener(console, runs=len(chosen_arms) * seeds) as listener:
                results = run_comparison(
                    chosen_task,
                    data.to(chosen_device),
                    settings,
                    arms=chosen_arms,
                    seeds=seed_list,
                    out=folder,
                    listener=listener,
                )
        except KeyboardInterrupt:
            console.print(
                f"\nInterrupted. {folder} keeps the finished runs, and the one under way up to its "
                "last checkpoint; the same command goes on from there.",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
        _show(console, results, folder, [folder])


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
    """As wide as the terminal; elsewhere wide enough for the table."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    return console


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"--device {name} cannot be used here ({reason}); try auto") from error
    return device


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """A `LabError` becomes one message and exit code 2."""
    try:
        yield
    except LabError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
