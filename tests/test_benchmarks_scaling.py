"""The benchmarks of scale and communication run, and the page says what their raw results say."""

import json
import shutil
import subprocess
import sys

import pytest
from tests.support.pages import ROOT, run_script

BENCHMARKS = ROOT / "benchmarks"


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def write_page(folder, *arguments):
    script, page = BENCHMARKS / "scaling_page.py", folder / "page.md"
    shutil.copy(ROOT / "docs" / "scaling.md", page)
    run_script(script, ROOT, script.name, *map(str, arguments), "--page", str(page))
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    small = ["--size", 20_000, "--total", 80_000, "--ranks", 4, "--repeats", 1]
    run("scale.py", *small, "--out", folder / "scale.json")
    small = ["--size", 2048, "--epochs", 3, "--ranks", 2]
    run("communication.py", *small, "--out", folder / "communication.json")
    return folder


def test_an_epoch_of_ddp_takes_two_collectives_and_four_bytes_a_sample(results):
    (found,) = json.loads((results / "communication.json").read_text())["runs"]
    assert found["epochs"]["plain DDP"][0]["collectives"] == 0
    full, later = found["epochs"]["infobatch, nothing pruned"][:2]
    assert (full["collectives"], later["collectives"]) == (3, 2)
    assert later["bytes_sent"] == 4 * 1024 + 160
    pruned = found["epochs"]["infobatch"][1]
    assert pruned["collectives"] == 2
    assert pruned["bytes_sent"] < later["bytes_sent"]


def test_the_wire_of_a_sharded_run_is_that_of_the_page(results):
    found = json.loads((results / "scale.json").read_text())["measurements"]
    assert found["wire, mean"]["found"]["pruned"] == [160, 112, 160, 16, 160, 8]
    assert found["wire, quantiles"]["found"]["pruned"] == [160, 112, 160, 2**19, 160, 8]


def test_what_has_been_measured_is_not_measured_again(results, tmp_path):
    shutil.copy(results / "scale.json", tmp_path)
    before = (tmp_path / "scale.json").read_bytes()
    small = ["--size", 20_000, "--total", 80_000, "--ranks", 4, "--repeats", 1]
    run("scale.py", *small, "--out", tmp_path / "scale.json")
    assert (tmp_path / "scale.json").read_bytes() == before


def test_a_page_is_written_from_a_small_run(results, tmp_path):
    text = write_page(tmp_path, "--results", results)
    assert "20,000, one rank's of 80,000 over 4" in text
    assert text.count("# Scaling") == 1


def test_the_page_is_what_the_committed_results_say(tmp_path):
    assert write_page(tmp_path) == (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
