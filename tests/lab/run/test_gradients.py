"""The true headroom is that of the gradients, one sample at a time."""

import numpy as np
import pytest
import torch
from tests.lab.support import DIGITS, SETTINGS, SMALL, run_command

from infobatch import DataPruner
from infobatch.lab.arms.base import ArmRun
from infobatch.lab.run.gradients import true_headroom
from infobatch.lab.run.results import read_results
from infobatch.lab.run.train import TrainingRun
from infobatch.policies import FullData


def test_the_true_headroom_is_that_of_the_gradients():
    data = DIGITS.load(None).limit_train(40)
    run = TrainingRun(DIGITS, data, ArmRun(6, DataPruner(40, 6, FullData())), SETTINGS, seed=0)
    for _ in range(3):
        run.run_epoch()
    found = true_headroom(run, 20)
    norms, losses = [], []
    run.model.eval()
    for row in range(0, 40, 2):
        inputs, targets = DIGITS.prepare(*data.samples(torch.tensor([row])), None, False)
        run.model.zero_grad()
        loss = DIGITS.loss(run.model(inputs), targets, SETTINGS.label_smoothing)
        loss.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in run.model.parameters()])
        norms.append(float(gradient.norm()))
        losses.append(float(loss.detach()))
    expected = 1 - np.mean(norms) ** 2 / np.mean(np.square(norms))
    assert found["gradient headroom"] == pytest.approx(expected, rel=1e-4)
    ranks = [np.argsort(np.argsort(values)) for values in (norms, losses)]
    assert found["loss by gradient"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_compare_reports_it_of_full_runs(tmp_path):
    result = run_command(
        "compare", *SMALL, "--arms", "full,infobatch", "--gradient-samples", "9",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for run in read_results(tmp_path):
        assert ("gradient headroom" in run.more) == (run.arm == "full")
