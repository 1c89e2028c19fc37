"""Ray Train itself, through the example: real workers, joined by gloo, that crash and go on."""

import math
import os
from pathlib import Path

import pytest
import ray
import torch
import torch.nn.functional as F
from examples.ray_train_digits import build_model, digits, run
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.schedule import ProgressScheduler

ROOT = Path(__file__).resolve().parents[3]
EPOCHS, BATCH = 4, 128


@pytest.fixture(scope="module", autouse=True)
def _ray():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def plain():
    """A loop without Ray, in one process; what is in its checkpoint at the end."""
    data, model = digits(), build_model()
    pruner = InfoBatch(data, EPOCHS)
    loader = DataLoader(data, BATCH, sampler=pruner.sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    total = EPOCHS * math.ceil(len(data) / BATCH)
    schedule = ProgressScheduler(OneCycleLR(optimizer, 0.2, total_steps=total), pruner)
    steps = 0
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            pruner.update(F.cross_entropy(model(x), y, reduction="none")).backward()
            optimizer.step()
            schedule.step()
            steps += 1
    assert pruner.saved_fraction > 0.1
    return {
        "steps": steps,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "pruner": pruner,
    }


def assert_same(result, plain, *, exact):
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, "state.pt"), weights_only=True)
    pruner = InfoBatch(digits(), EPOCHS)
    pruner.load_state_dict(state["pruner"])
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    assert state["steps"] == plain["steps"]
    assert state["schedule"]["scheduler"]["_last_lr"] == plain["schedule"]["scheduler"]["_last_lr"]
    assert [(r.kept, r.trained) for r in pruner.history] == [
        (r.kept, r.trained) for r in plain["pruner"].history
    ]
    torch.testing.assert_close(pruner.scores, plain["pruner"].scores, **tolerance)
    for name, value in state["model"].items():
        torch.testing.assert_close(value, plain["model"][name.removeprefix("module.")], **tolerance)


@pytest.mark.slow
def test_one_worker_is_a_plain_loop(plain, tmp_path):
    result = run(workers=1, epochs=EPOCHS, global_batch=BATCH, storage=str(tmp_path))
    assert_same(result, plain, exact=True)


@pytest.mark.slow
def test_two_workers_that_crash_within_an_epoch_are_one_process_with_the_double_batch(
    plain, tmp_path
):
    crash_at = 36  # in the third epoch; Ray starts the workers again from the report of step 30
    result = run(
        workers=2, epochs=EPOCHS, global_batch=BATCH, storage=str(tmp_path), crash_at=crash_at
    )
    assert_same(result, plain, exact=False)
