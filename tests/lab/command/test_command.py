"""`infobatch compare` from the command line: what it prints, keeps, refuses and goes on with."""

import io
import json
import signal
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from tests.lab.support import run_command, small_comparison

from infobatch.lab import cli
from infobatch.lab.command import display
from infobatch.lab.report.summary import cells, summarise
from infobatch.lab.run import compare
from infobatch.lab.run.results import FILE_NAME, read_results
from infobatch.lab.run.train import TrainingRun
from infobatch.lab.tasks import all_tasks

ARMS = ("full", "fewer-epochs", "infobatch", "infobatch-quantile", "proportional", "random")


def test_all_arms_and_seeds_are_in_the_results_the_log_and_the_table(comparison):
    runs = [(run.arm, run.seed) for run in read_results(comparison.out)]
    assert sorted(runs) == sorted((arm, seed) for arm in ARMS for seed in (0, 1))
    for arm, seed in runs:
        assert f"{arm} seed {seed}: " in comparison.output
    for heading in (
        "metric",
        "trained",
        "forwarded",
        "saved",
        "steps",
        "wall s",
        "difference",
        "verdict",
    ):
        assert heading in comparison.output
    assert "margin 0.5 points" in " ".join(comparison.output.split())


def test_a_narrow_terminal_gets_every_number_in_several_tables(comparison):
    (part,) = summarise(read_results(comparison.out))
    console = Console(width=80, file=io.StringIO())
    display.show(console, part)
    text = console.file.getvalue()
    assert "…" not in text
    for row in part.rows:
        assert all(cell in text for cell in cells(row))
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_but_results_and_report_is_left(comparison):
    left = {path.name for path in comparison.out.iterdir()}
    assert left - {path for path in left if path.endswith(".png")} <= {
        FILE_NAME,
        "report.html",
        "checkpoints",
    }
    assert list(comparison.out.glob("checkpoints/*")) == []


def without_clock(run):
    curves = replace(run.curves, seconds=[])
    return replace(
        run, wall_seconds=0.0, peak_memory=0, curves=curves, time="", commit=None, hardware=""
    )


def test_two_runs_of_the_same_command_give_the_same_numbers(comparison, tmp_path):
    arguments = ("--seeds", "1", "--first-seed", "1", "--arms", "infobatch")
    assert small_comparison(tmp_path, *arguments).exit_code == 0
    (again,) = read_results(tmp_path)
    (first,) = [
        run for run in read_results(comparison.out) if (run.arm, run.seed) == ("infobatch", 1)
    ]
    assert without_clock(again) == without_clock(first)


@pytest.mark.parametrize("stop", [2, 8])
def test_an_interrupted_comparison_goes_on_to_the_same_results(
    comparison, tmp_path, monkeypatch, stop
):
    run_epoch = TrainingRun.run_epoch
    epochs = iter(range(-1, 100))  # the first one is the warm-up before the first run

    def interrupted(self):
        if next(epochs) == stop:
            signal.raise_signal(signal.SIGINT)  # as Control-C in a terminal does
        return run_epoch(self)

    monkeypatch.setattr(compare, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(TrainingRun, "run_epoch", interrupted)
    arguments = ("--seeds", "1", "--arms", "full,infobatch")
    stopped = small_comparison(tmp_path, *arguments)
    assert stopped.exit_code == 130
    assert "Interrupted." in stopped.output
    assert "Traceback" not in stopped.output + stopped.stderr
    assert "the same command goes on from there" in stopped.output
    file = tmp_path / FILE_NAME
    finished = file.read_text().splitlines() if file.exists() else []
    assert len(finished) == stop // 5
    assert all(json.loads(line) for line in finished)

    done = small_comparison(tmp_path, *arguments)
    assert done.exit_code == 0, done.output
    assert f"goes on after epoch {stop % 5} of 5" in done.output
    expected = {(r.arm, r.seed): r for r in read_results(comparison.out)}
    results = read_results(tmp_path)
    assert len(results) == 2
    for result in results:
        assert without_clock(result) == without_clock(expected[result.arm, result.seed])


def test_an_arm_at_equal_cost_brings_the_run_that_it_depends_on(tmp_path):
    arguments = ("--seeds", "1", "--arms", "full,random", "--epochs", "3")
    result = small_comparison(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    assert "The arm infobatch runs too" in result.output
    assert [run.arm for run in read_results(tmp_path)] == ["full", "infobatch", "random"]
    assert "undecided (1 seed)" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mnist"], f"unknown task 'mnist'; choose from: {', '.join(all_tasks())}"),
        (
            ["--arms", "full,best"],
            "unknown arm 'best'; choose from: full, adaptive, align-prune, bls, ",
        ),
        (["--cost", "60"], "--cost must be fractions of the full run in (0, 1]"),
        (["--cost", "half"], "--cost must be fractions of the full run in (0, 1]"),
        (["--cost", "0.2", "--arms", "infobatch-budget"], "infobatch-budget at cost 0.2: budget"),
        (["--cost", "0.3", "--arms", "es"], "es cannot cost 0.3 of the full run here"),
        (["--cost", "0.1", "--arms", "static-el2n"], "static-el2n cannot cost 0.1"),
        (["--cost", "0.3", "--arms", "ies"], "ies cannot cost 0.3"),
        (["--preset", "best"], "unknown preset 'best'; choose from: ablation"),
        (["--preset", "paper"], "the InfoBatch paper has no digits; leave --preset paper away"),
        (["--label-noise", "worst"], "--label-noise for digits must be a fraction, got worst"),
        (["--label-noise", "2"], "--label-noise must be a fraction, got 2"),
        (["--imbalance", "0.5"], "--imbalance must be at least 1, got 0.5"),
        (["--augmentation", "weak"], "--augmentation must be one of standard, strong"),
        (["--arms", ""], "unknown arm ''; choose from"),
        (["--model", "vgg"], "unknown model 'vgg'; choose from: digits-cnn, cifar-cnn, vit-tiny"),
        (["--task", "cifar10"], "Download cifar-10-python.tar.gz"),
        (["--prune-ratio", "1"], "--prune-ratio must lie in [0, 1), got 1.0"),
        (["--delta", "1.5"], "--delta must lie in [0, 1], got 1.5"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--lr", "nan"], "--lr must be positive, got nan"),
        (["--margin", "0"], "--margin must be positive, got 0.0"),
        (["--precision", "fp8"], "--precision must be one of fp32, bf16, got fp8"),
        (["--limit-train", "99999"], "--limit-train must lie in 1..1198, got 99999"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_words(arguments, message, tmp_path):
    result = run_command("compare", "--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / FILE_NAME).exists()


def test_other_settings_in_the_same_folder_are_refused(comparison):
    result = small_comparison(comparison.out, "--margin", "1.0")
    assert result.exit_code == 2
    assert "margin 1.0 (there 0.5); use another --out" in result.stderr


def test_a_folder_that_cannot_be_used_is_an_error_in_words(tmp_path):
    (tmp_path / "file").touch()
    result = small_comparison(tmp_path / "file")
    assert result.exit_code == 2
    assert "Error: --out" in result.stderr


def test_an_inferior_arm_does_not_change_the_exit_code(comparison, tmp_path):
    path = tmp_path / FILE_NAME
    with path.open("w") as file:
        for run in read_results(comparison.out):
            worse = replace(run, metric=50.0 + run.seed / 100) if run.arm == "infobatch" else run
            worse = replace(run, metric=90.0 + run.seed / 100) if run.arm == "full" else worse
            file.write(json.dumps(worse.to_json()) + "\n")
    result = small_comparison(tmp_path)
    assert result.exit_code == 0
    assert "inferior" in next(
        line for line in result.output.splitlines() if line.startswith("infobatch ")
    )


def test_missing_extras_are_named_with_the_command_that_installs_them(monkeypatch):
    for module in ("typer", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert "needs typer, scikit-learn." in stopped.value.code
    assert "pip install 'infobatch[lab]'" in stopped.value.code


def test_help_names_every_task_and_arm():
    result = run_command("compare", "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.replace("│", " ").split())
    assert all(task in text for task in all_tasks())
    assert all(arm in text for arm in ARMS)
