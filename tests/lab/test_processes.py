"""Under torchrun a comparison is that of one process: its results, its console, and its resume.

With a model without batch normalisation, whose statistics on the CPU are those of a process.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.distributed.support import launch, results_of
from tests.lab.support import AUGMENTED, DIGITS, SETTINGS, digits, run_command, training_run

from infobatch.lab import compare as comparing
from infobatch.lab import ranks, train
from infobatch.lab.arms import all_arms
from infobatch.lab.display import LineListener
from infobatch.lab.errors import LabError
from infobatch.lab.results import FILE_NAME, read_results

ARMS = ("full", "fewer-epochs", "infobatch", "random", "kakurenbo")
SMALL = (
    *("--model", "vit-tiny", "--width", "16", "--epochs", "5", "--limit-train", "200"),
    *("--batch-size", "40", "--lr", "0.05", "--seeds", "1", "--arms", ",".join(ARMS)),
)
SETTINGS_HERE = replace(SETTINGS, model="vit-tiny", width=16, lr=0.05)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def of_pairs(count, largest):
    """The batches of two processes: even ones, as each has one half."""
    return [2 * size for size in _even(-(-count // 2), largest // 2)]


_even = train.even_sizes


def assert_same_results(several, alone):
    assert [result.arm for result in several] == [result.arm for result in alone]
    for many, one in zip(several, alone, strict=True):
        assert many.settings == one.settings
        assert many.cost == one.cost
        assert many.curves.kept == one.curves.kept
        assert many.curves.mean_loss == pytest.approx(one.curves.mean_loss, rel=1e-3)
        assert many.metric == pytest.approx(one.metric, abs=100 / 599 + 1e-9)  # one test image
        assert many.observations.most_pruned == one.observations.most_pruned


@pytest.mark.slow
def test_two_processes_write_the_results_of_one(tmp_path, monkeypatch):
    out = tmp_path / "two"
    done = subprocess.run(
        [*TORCHRUN, "2", "-m", "infobatch", "compare", *SMALL, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(train, "even_sizes", of_pairs)
    alone = run_command("compare", *SMALL, "--out", str(tmp_path / "one"))
    assert alone.exit_code == 0, alone.output
    assert_same_results(read_results(out), read_results(tmp_path / "one"))

    assert done.stdout.count("] full seed 0: ") == 1
    assert done.stdout.count("Report: ") == 1
    assert "2 processes" in read_results(out)[0].hardware
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}


def compared(_rank, out, arms, stop=None, batch_size=40, task=DIGITS):
    """A comparison in this process, which stops in its `stop`th epoch, the warm-up being first."""
    comparing.CHECKPOINT_SECONDS = 0.0
    run_epoch, epochs = train.TrainingRun.run_epoch, iter(range(1000))

    def interrupted(self):
        if next(epochs) == stop:
            raise InterruptedError
        return run_epoch(self)

    train.TrainingRun.run_epoch = interrupted
    try:
        return comparing.compare(
            task,
            digits(),
            replace(SETTINGS_HERE, batch_size=batch_size),
            arms=[all_arms()[arm] for arm in arms],
            seeds=[0],
            costs=[0.8],
            out=out,
            listener=LineListener(Console(quiet=True), 1, task.metric),
        )
    finally:
        train.TrainingRun.run_epoch = run_epoch


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_comparison_goes_on_with_any_number_of_processes(
    processes, tmp_path, monkeypatch
):
    stopped = launch(2, compared, tmp_path, ["full", "infobatch"], 10)
    assert [type(error) for _, error in stopped] == [InterruptedError] * 2
    assert [result.arm for result in read_results(tmp_path)] == ["full"]
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["infobatch-0.pt"]

    monkeypatch.setattr(train, "even_sizes", of_pairs)
    monkeypatch.setattr(comparing, "CHECKPOINT_SECONDS", 0.0)
    if processes == 2:
        found = results_of(2, compared, tmp_path, ["full", "infobatch"])[1]
    else:
        found = compared(0, tmp_path, ["full", "infobatch"])
    straight = compared(0, tmp_path / "straight", ["full", "infobatch"])
    assert_same_results(found, straight)
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 2
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize("arm", ["es", "static-el2n"])
def test_arms_that_need_all_samples_at_once_are_refused_on_every_rank(arm, tmp_path):
    for kind, error in launch(2, compared, tmp_path, [arm]):
        assert (kind, type(error)) == ("error", LabError)
        assert f"{arm} runs in one process alone" in str(error)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path):
    for kind, error in launch(2, compared, tmp_path, ["full"], None, 41):
        assert (kind, type(error)) == ("error", LabError)
        assert "must be a multiple of their number, got 41" in str(error)


def draws_and_outcome(rank):
    run = training_run("full", digits(), task=AUGMENTED)
    draws = [torch.rand(1, generator=run._generator(0, step)).item() for step in range(3)]

    def failing():
        raise LabError(f"found by rank {rank}")

    with pytest.raises(LabError, match="found by rank 0"):
        ranks.on_first(failing)
    return draws, ranks.on_first(lambda: rank)


def test_ranks_augment_differently_and_know_what_the_first_has_found():
    (first, found), (second, told) = results_of(2, draws_and_outcome)
    assert not set(first) & set(second)
    assert (found, told) == (0, 0)


def test_a_folder_that_another_comparison_has_filled_is_refused_on_every_rank(tmp_path: Path):
    results_of(2, compared, tmp_path, ["full"])
    for kind, error in launch(2, compared, tmp_path, ["full"], None, 20):
        assert (kind, type(error)) == ("error", LabError)
        assert "holds results with other settings" in str(error)
