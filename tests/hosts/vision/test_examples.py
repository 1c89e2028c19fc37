"""The scripts of examples/ are run as their docstrings say, with fewer epochs."""

import csv

import pytest
from tests.hosts.support import run_example

pytestmark = pytest.mark.slow


@pytest.fixture
def mended(tmp_path):
    """A folder that mends torchvision, where that is needed, in processes that import from it."""
    (tmp_path / "mended").mkdir()
    (tmp_path / "mended" / "sitecustomize.py").write_text("import tests.hosts.vision.conftest\n")
    return tmp_path / "mended"


def test_timm_saves_and_learns(tmp_path, mended):
    budget = ["--epochs", 4, "--budget", 0.7]
    end = run_example("timm_digits.py", tmp_path, *budget, path=[mended])
    assert end.passes == 4 * 1257  # 70% of 1,797
    assert end.saved == 0.3
    assert end.metric > 0.8  # of ten classes


def test_ultralytics_saves_and_learns(tmp_path, mended):
    end = run_example("ultralytics_digits.py", tmp_path, "--epochs", 8, path=[mended])
    assert end.passes == 8 * 160
    assert end.saved > 0.1
    assert end.metric > 0.3  # one that has not learned, or found no objects, is near 0
    with (tmp_path / "sheets" / "run" / "results.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["infobatch/saved_fraction"]) == pytest.approx(end.saved, abs=5.1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_imagenet_saves_and_learns_in_one_process_and_in_two(processes, tmp_path, mended):
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    launcher = several if processes > 1 else []
    end = run_example("imagenet.py", tmp_path, "--workers", 0, launcher=launcher, path=[mended])
    assert end.passes == 6 * 400
    assert end.saved > 0.1
    assert end.metric > 0.5  # of four classes
