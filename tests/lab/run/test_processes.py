"""Under torchrun a comparison is that of one process: its results, its console, and its resume.

With a model without batch normalisation, whose statistics on the CPU are those of a process.
"""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.distributed.support import launch, results_of
from tests.lab.support import (
    AUGMENTED,
    DIGITS,
    SETTINGS,
    digits,
    run_command,
    run_compare,
    training_run,
)

from infobatch.lab.errors import LabError
from infobatch.lab.run import compare as comparing
from infobatch.lab.run import ranks, train
from infobatch.lab.run.results import FILE_NAME, read_results

ARMS = ("full", "infobatch", "kakurenbo")
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


def compared(_rank, out, arms, stop=None):
    """A comparison in this process, which stops in its `stop`th epoch, the warm-up being first."""
    comparing.CHECKPOINT_SECONDS = 0.0
    run_epoch, epochs = train.TrainingRun.run_epoch, iter(range(1000))

    def interrupted(self):
        if next(epochs) == stop:
            raise InterruptedError
        return run_epoch(self)

    train.TrainingRun.run_epoch = interrupted
    try:
        return run_compare(DIGITS, digits(), SETTINGS_HERE, arms, out)
    finally:
        train.TrainingRun.run_epoch = run_epoch


def test_an_interrupted_comparison_goes_on_with_any_number_of_processes(tmp_path, monkeypatch):
    stopped = launch(2, compared, tmp_path / "two", ["full", "infobatch"], 10)
    assert [type(error) for _, error in stopped] == [InterruptedError] * 2
    assert [result.arm for result in read_results(tmp_path / "two")] == ["full"]
    assert [path.name for path in tmp_path.glob("two/checkpoints/*")] == ["infobatch-0.pt"]
    shutil.copytree(tmp_path / "two", tmp_path / "one")

    monkeypatch.setattr(train, "even_sizes", of_pairs)
    monkeypatch.setattr(comparing, "CHECKPOINT_SECONDS", 0.0)
    in_two = results_of(2, compared, tmp_path / "two", ["full", "infobatch"])[1]
    in_one = compared(0, tmp_path / "one", ["full", "infobatch"])
    straight = compared(0, tmp_path / "straight", ["full", "infobatch"])
    for found, name in ((in_two, "two"), (in_one, "one")):
        assert_same_results(found, straight)
        assert len((tmp_path / name / FILE_NAME).read_text().splitlines()) == 2
        assert not list((tmp_path / name).glob("checkpoints/*"))


def on_each_rank(rank, out):
    """What a rank draws, what it is told by the first one, and what it is refused."""
    run = training_run("full", digits(), task=AUGMENTED)
    draws = [torch.rand(1, generator=run._generator(0, step)).item() for step in range(3)]
    told = ranks.on_first(lambda: rank)

    def refused(arm, batch_size=40):
        settings = replace(SETTINGS_HERE, epochs=2, batch_size=batch_size)
        with pytest.raises(LabError) as error:
            run_compare(DIGITS, digits(80), settings, [arm], out)
        return str(error.value)

    def failing():
        raise LabError(f"found by rank {rank}")

    with pytest.raises(LabError) as error:
        ranks.on_first(failing)
    run_compare(DIGITS, digits(80), replace(SETTINGS_HERE, epochs=2), ["full"], out)
    messages = [str(error.value), refused("es"), refused("static-el2n")]
    return draws, told, [*messages, refused("full", 41), refused("full", 20)]


def test_ranks_draw_differently_know_what_the_first_has_found_and_refuse_alike(tmp_path):
    (draws, told, messages), other = results_of(2, on_each_rank, tmp_path)
    assert not set(draws) & set(other[0])
    assert (told, other[1]) == (0, 0)
    assert messages == other[2]
    expected = (
        "found by rank 0",
        "es runs in one process alone",
        "static-el2n runs in one process alone",
        "must be a multiple of their number, got 41",
        "holds results with other settings",
    )
    assert all(words in message for words, message in zip(expected, messages, strict=True))
