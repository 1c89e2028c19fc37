"""The scripts of examples/ are run as their docstrings say, with fewer epochs."""

import csv

import pytest
from tests.hosts.support import run_example

CONV = 1079  # digits that are trained on: 60% of 1,797
SPLIT = 1257  # and here 70%

pytestmark = pytest.mark.slow


def assert_in_budget(end, batch):
    """Within half a batch of all processes, as far as three digits are shown."""
    assert end.saved == pytest.approx(0.3, abs=batch / 2 / end.passes + 0.0005)


def test_lightning_saves_and_learns_and_resumes_to_the_same_end(tmp_path):
    end = run_example("lightning_digits.py", tmp_path, "--epochs", 8)
    assert end.passes == 8 * CONV
    assert end.saved > 0.1
    assert end.metric > 0.8  # of ten classes
    log = tmp_path / "digits" / "lightning_logs" / "version_0" / "metrics.csv"
    logged = [row["infobatch/saved_fraction"] for row in csv.DictReader(log.open())]
    assert float([value for value in logged if value][-1]) == pytest.approx(end.saved, abs=5.1e-4)

    resume = ["--resume", "digits/epoch=2.ckpt", "--logger", "tensorboard"]
    assert run_example("lightning_digits.py", tmp_path, "--epochs", 8, *resume) == end
    assert list(tmp_path.glob("digits/**/events.out.tfevents.*"))


def test_transformers_saves_and_learns(tmp_path):
    end = run_example("transformers_pages.py", tmp_path, "--epochs", 4, "--budget", 0.7)
    assert_in_budget(end, batch=32)
    assert end.metric > 0.4  # the longest of the six pages has 28% of the passages


def test_trl_with_lora_saves_and_learns(tmp_path):
    end = run_example("trl_lora.py", tmp_path, "--epochs", 4, "--budget", 0.7)
    assert_in_budget(end, batch=16)
    assert end.metric < 200  # guessing tokens by how frequent they are: 394
    assert list(tmp_path.glob("lora/checkpoint-*/adapter_model.safetensors"))


def test_accelerate_saves_and_learns_and_resumes_to_the_same_end(tmp_path):
    end = run_example("accelerate_digits.py", tmp_path, "--epochs", 10)
    assert end.passes == 10 * SPLIT
    assert end.saved > 0.1
    assert end.metric > 0.8
    resume = ["--resume", "digits/epoch-3"]
    assert run_example("accelerate_digits.py", tmp_path, "--epochs", 10, *resume) == end


def test_accelerate_in_two_processes(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    end = run_example(
        "accelerate_digits.py", tmp_path, "--epochs", 10, "--budget", 0.7, launcher=launcher
    )
    assert end.passes == 10 * SPLIT
    assert_in_budget(end, batch=2 * 16)
    assert end.metric > 0.8
    assert (tmp_path / "digits" / "epoch-9" / "random_states_1.pkl").exists()  # of the second
