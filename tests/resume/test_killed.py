"""A training process that is killed with SIGKILL, again and again, ends as if it never had been."""

import datetime as dt
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.distributed.support import PRELOAD
from tests.distributed.test_equivalence import Points, model_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from infobatch import InfoBatch

N, EPOCHS, GLOBAL_BATCH, EVERY = 600, 8, 10, 7  # a checkpoint every 7 steps, and after each epoch
KILLS = 20

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([*PRELOAD, "tests.distributed.support", __name__])


def train(folder: Path, rank: int, world_size: int) -> None:
    """Train from the folder's checkpoint, if there is one; leave the result in the folder."""
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = f"file://{folder}/store-{os.getppid()}-{(folder / 'attempt').read_text()}"
        timeout = dt.timedelta(seconds=30)
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout
        )
    model, pruner = model_of(), InfoBatch(N, EPOCHS, seed=5, score_ema=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if (folder / "checkpoint.pt").exists():
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        pruner.load_state_dict(checkpoint["pruner"])
    stepped = model if world_size == 1 else DistributedDataParallel(model)
    loader = DataLoader(Points(N), GLOBAL_BATCH // world_size, sampler=pruner.sampler)

    def save(name="checkpoint.pt"):
        pruner.synchronize()
        if rank == 0:
            content = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "pruner": pruner.state_dict(),
            }
            torch.save(content, folder / f"{name}.new")
            (folder / f"{name}.new").rename(folder / name)

    for epoch in range(pruner.epoch, EPOCHS):
        for step, (inputs, labels, _) in enumerate(loader):
            losses = F.cross_entropy(stepped(inputs.double()), labels, reduction="none")
            optimizer.zero_grad()
            pruner.update(losses).backward()
            optimizer.step()
            (folder / f"at-{rank}").write_text(f"{epoch} {step}")
            if step % EVERY == EVERY - 1:
                save()
        save()
    save("result.pt")
    if world_size > 1:
        dist.destroy_process_group()


def attempt(folder, number, world_size):
    """Start the run's processes once more."""
    (folder / "attempt").write_text(str(number))
    for rank in range(world_size):
        (folder / f"at-{rank}").unlink(missing_ok=True)
    workers = [
        _processes.Process(target=train, args=(folder, rank, world_size))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    return workers


def end(workers):
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
        worker.close()


def kill(folder, workers, victim, steps, delay):
    """Kill one process after so many steps and a moment; where it was, or None if it had ended."""
    place, seen, deadline = None, 0, time.monotonic() + 60
    while seen < steps and workers[victim].is_alive() and time.monotonic() < deadline:
        at = folder / f"at-{victim}"
        now = at.read_text() if at.exists() else None
        if now and now != place:  # some steps may pass unseen
            place, seen = now, seen + 1
    time.sleep(delay)
    alive = workers[victim].is_alive()
    if alive:
        os.kill(workers[victim].pid, signal.SIGKILL)
    for worker in workers:
        if alive and worker is not workers[victim]:
            worker.terminate()  # as torchrun does when a rank has died
        worker.join(timeout=60)
    killed = workers[victim].exitcode == -signal.SIGKILL
    assert killed or workers[victim].exitcode == 0  # it may have ended just before the signal
    for worker in workers:
        worker.close()
    return place if killed else None


def killed_run(folder, world_size, kills):
    """A run that is killed until it has been often enough, and then left to end."""
    draw = random.Random(1)
    places, number = [], 0
    while len(places) < kills:
        workers = attempt(folder, number, world_size)
        number += 1
        # So many steps that the kills spread over the run, of some 340.
        steps, delay = draw.randint(2, 600 // kills), draw.random() * 0.004
        place = kill(folder, workers, draw.randrange(world_size), steps, delay)
        if place is None:  # it got to its end: start anew, which costs a run of some seconds
            (folder / "checkpoint.pt").unlink()
            (folder / "result.pt").unlink(missing_ok=True)  # where another rank was stopped
            continue
        places.append(place)
        assert number < 4 * kills
    end(attempt(folder, number, world_size))
    return places


@pytest.fixture
def uninterrupted(tmp_path, request):
    folder = tmp_path / "whole"
    folder.mkdir()
    end(attempt(folder, 0, request.param))
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize(
    ("world_size", "kills", "uninterrupted"),
    [
        (1, 4, 1),
        pytest.param(1, KILLS, 1, marks=pytest.mark.slow),
        pytest.param(2, 4, 2, marks=pytest.mark.slow),
    ],
    indirect=["uninterrupted"],
    ids=["one process", "one process, often", "two ranks"],
)
def test_a_killed_run_ends_with_exactly_the_scores_history_and_parameters_of_a_whole_one(
    world_size, kills, uninterrupted, tmp_path
):
    folder = tmp_path / "killed"
    folder.mkdir()
    places = killed_run(folder, world_size, kills)
    assert len(places) == kills
    epochs = {place.split()[0] for place in places}
    assert len(epochs) >= min(4, kills // 2), places  # not all at the same place
    result = torch.load(folder / "result.pt", weights_only=True)
    assert torch.equal(result["pruner"]["scores"], uninterrupted["pruner"]["scores"])
    assert repr(result["pruner"]["history"]) == repr(uninterrupted["pruner"]["history"])
    assert result["pruner"]["checksum"] == uninterrupted["pruner"]["checksum"]
    for part in ("model", "optimizer"):
        left = torch.utils._pytree.tree_leaves(result[part])
        right = torch.utils._pytree.tree_leaves(uninterrupted[part])
        assert len(left) == len(right) > 3
        for mine, other in zip(left, right, strict=True):
            assert torch.equal(mine, other) if torch.is_tensor(mine) else mine == other
