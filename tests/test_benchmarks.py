"""The benchmark program runs, and its page says what its raw results say."""

import json
import subprocess
import sys

import pytest
from tests.support.pages import ROOT, random_pictures, run_script

BENCHMARKS = ROOT / "benchmarks"
SMALL = ["--size", "8192", "--repeats", "1", "--seconds", "0"]
SMALL += ["--saving-size", "1024", "--saving-epochs", "4"]


def page(results, out):
    script = BENCHMARKS / "report.py"
    run_script(script, ROOT, script.name, "--results", str(results), "--out", str(out))
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a tiny run's raw results."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, BENCHMARKS / "run.py", *SMALL, "--out", folder / "small.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def measurements(results):
    return json.loads((results / "small.json").read_text())["measurements"]


def test_a_small_run_measures_everything(measurements):
    kinds = {measurement["kind"] for measurement in measurements}
    assert kinds >= {"planning", "epoch", "handing_out", "pause", "memory", "saving"}
    assert kinds >= {"step", "compiled", "accelerator", "operations"}


def test_a_step_is_three_operations_and_waits_for_nothing(measurements):
    steps = [one for one in measurements if one["kind"] == "operations"]
    assert {one["pruned"] for one in steps} == {True, False}
    for one in steps:
        assert one["trap_works"]
        assert not one["waiting"]
        assert sum(one["operations"].values()) <= 3


def test_a_page_is_written_from_a_small_run(results, tmp_path):
    text = page(results, tmp_path / "page.md")
    for heading in ("Targets", "Planning an epoch", "A step", "Memory", "Time saved"):
        assert f"## {heading}\n" in text


def test_a_missed_target_is_called_missed(results, tmp_path):
    found = json.loads((results / "small.json").read_text())
    for one in found["measurements"]:
        if one["kind"] == "planning":
            one["samples"] |= {"numpy floor": [1.0, 1.0, 1.0], "infobatch": [2.1, 2.2, 1.0]}
            one["samples"]["infobatch, order made beforehand"] = [0.5, 0.5, 0.5]
    (tmp_path / "slow.json").write_text(json.dumps(found))
    text = page(tmp_path, tmp_path / "page.md")
    assert "| planning, over the numpy floor | at most 2 | 2.1 | **missed** at N = 8,192 |" in text


def test_the_page_is_what_the_committed_results_say(tmp_path):
    assert list((BENCHMARKS / "results").glob("*.json"))
    written = (ROOT / "docs" / "overhead.md").read_text(encoding="utf-8")
    assert page(BENCHMARKS / "results", tmp_path / "page.md") == written


def test_the_tables_of_short_runs_in_the_research_log_are_what_the_committed_results_say():
    script = BENCHMARKS / "research" / "short_runs.py"
    tables = run_script(script, ROOT, script.name, "table").strip().split("\n\n")
    assert len(tables) == 2
    log = (ROOT / "docs" / "research-log.md").read_text(encoding="utf-8")
    assert [table for table in tables if table not in log] == []


def gpu_script(*arguments, before=""):
    """The script for a GPU, in a process of its own: exit status and what it printed."""
    code = f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\nimport gpu\n{before}"
    code += "\nsys.exit(gpu.main())"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_the_script_for_a_gpu_says_that_there_is_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_script() == (0, "no CUDA device here: nothing was checked\n", "")


def test_the_script_for_a_gpu_finds_all_right_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    status, said, error = gpu_script("--device", "cpu", "--size", "3000", "--out", str(out))
    assert status == 0, said + error
    checks = json.loads(out.read_text())["checks"]
    assert len(checks) == 6
    assert not any(checks.values())


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("gpu.InfoBatch.scores = property(lambda self: -right(self))", "not the last losses"),
        ("gpu.InfoBatch.update = lambda *a, **k: 1.5 * update(*a, **k)", "a loss is"),
    ],
)
def test_the_script_for_a_gpu_would_notice(broken, complaint):
    before = f"""
right, update = gpu.InfoBatch.scores.fget, gpu.InfoBatch.update
gpu.WAYS = (gpu.plain,)
{broken}"""
    status, said, _ = gpu_script("--device", "cpu", "--size", "3000", before=before)
    assert status == 1
    assert complaint in said


@pytest.mark.slow
def test_the_comparisons_for_a_gpu_go_on_piece_by_piece(tmp_path):
    script = BENCHMARKS / "gpu_pieces.py"
    random_pictures(tmp_path / "data")
    command = [sys.executable, script, "--smoke", "--device", "cpu", "--out", tmp_path / "out"]
    command += ["--data-dir", tmp_path / "data"]
    first = subprocess.run([*command, "--minutes", "0.1"], capture_output=True, text=True)
    assert first.returncode == 3, first.stderr
    assert "the time is over" in first.stdout
    last = subprocess.run([*command, "--minutes", "9"], capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    found = [file.parent.name for file in (tmp_path / "out").glob("*/results.jsonl")]
    assert len(found) == 4
