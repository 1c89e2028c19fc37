"""What every host is compared with: a plain loop on real digits, with the same seed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.schedule import ProgressScheduler

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, BATCH, EPOCHS = 500, 32, 8  # 16 batches, the last of 20 samples; the last epoch is full


def digits(samples=SAMPLES):
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:samples] / 16, dtype=torch.float32)
    return TensorDataset(x, torch.tensor(labels[:samples]))


def build_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


@dataclass
class Run:
    """What a run came to.

    Attributes:
        steps: of the optimizer.
        rates: the learning rate with which each of them was made.
        scores, history, weights: of the pruner and of the model, at the end.
    """

    steps: int
    rates: list[float]
    scores: torch.Tensor
    history: list
    weights: list[torch.Tensor]
    saved: float


def assert_same(run, reference, *, exact=True):
    """A host's run is that of the plain loop: steps, learning rates, what was pruned, weights."""
    assert run.steps == reference.steps
    assert run.rates == pytest.approx(reference.rates, rel=1e-9)
    assert [r.kept for r in run.history] == [r.kept for r in reference.history]
    assert run.saved == reference.saved
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(run.scores, reference.scores, equal_nan=True, **tolerance)
    for ours, plain in zip(run.weights, reference.weights, strict=True):
        torch.testing.assert_close(ours, plain, **tolerance)


def plain_run(
    *,
    epochs=EPOCHS,
    batch=BATCH,
    accumulate=1,
    mean_of_rest=False,
    limit=None,
    clip=None,
    **settings,
):
    """The loop of the README with a one-cycle schedule, gradients summed over `accumulate`.

    Where fewer batches than that are left in an epoch, hosts divide by `accumulate`, or, with
    `mean_of_rest`, by the number that is left.
    """
    data, model = digits(), build_model()
    pruner = InfoBatch(data, epochs, **settings)
    loader = DataLoader(data, batch, sampler=pruner.sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = math.ceil(len(data) / batch)
    batches = batches if limit is None else int(batches * limit)
    total = epochs * math.ceil(batches / accumulate)
    scheduler = ProgressScheduler(OneCycleLR(optimizer, 0.2, total_steps=total), pruner)
    clips = {"norm": clip_grad_norm_, "value": clip_grad_value_}
    rates = []
    for _ in range(epochs):
        in_epoch = len(loader) if limit is None else int(len(loader) * limit)
        for index, (x, y) in enumerate(loader):
            if index == in_epoch:
                break
            loss = pruner.update(F.cross_entropy(model(x), y, reduction="none"))
            rest = index >= in_epoch - in_epoch % accumulate
            (loss / (in_epoch % accumulate if rest and mean_of_rest else accumulate)).backward()
            if (index + 1) % accumulate == 0 or index + 1 == in_epoch:
                if clip is not None:
                    clips[clip](model.parameters(), 0.05)
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        pruner.end_epoch()
    weights = [p.detach().clone() for p in model.parameters()]
    return Run(len(rates), rates, pruner.scores, pruner.history, weights, pruner.saved_fraction)


def torchrun(script, processes, *arguments):
    """Run a script in several processes, as a user would; its output, or an AssertionError."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return _run(["-m", *launcher, script, *arguments])


def run_example(name, folder, *arguments, launcher=(), path=()):
    """Run a script of examples/ in a folder, as a user would; what it says at its end.

    Args:
        launcher: arguments for Python that go before the script.
        path: further folders to import from.

    Returns:
        an End.
    """
    output = _run([*launcher, ROOT / "examples" / name, *arguments], folder, path)
    end = _END.search(output)
    assert end, output[-4000:]
    percent, total, used, _, metric = (float(number.replace(",", "")) for number in end.groups())
    assert percent == pytest.approx(100 * (1 - used / total), abs=0.0501)  # it has one decimal
    return End(percent / 100, int(total), metric)


# What an example ends with: the pruner's summary of a whole run, and a metric of unseen data.
_END = re.compile(
    r"^([\d.]+)% of ([\d,]+) sample passes saved \(([\d,]+) used\) in (\d+) of \4 epochs\n"
    r"test [a-zA-Z0-9 ]+? ([\d.]+).*\n\Z",
    re.MULTILINE,
)


@dataclass
class End:
    """The last two lines of an example.

    Attributes:
        saved: part of the sample passes.
        passes: of the full run.
        metric: of unseen data.
    """

    saved: float
    passes: int
    metric: float


def _run(arguments, folder=None, path=()):
    paths = [*map(str, path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout
