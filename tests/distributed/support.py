"""Ranks for tests: real processes joined by gloo, and threads joined by a barrier."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import pickle
import tempfile
import threading
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

PRELOAD = ["torch", "torch.distributed.fsdp", "torch.nn.parallel", "infobatch"]
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([*PRELOAD, __name__])


def launch(world_size, target, *args, timeout=30.0):
    """Run target(rank, *args) in real processes with a gloo group; what each returned or raised.

    Returns:
        one entry a rank: ("ok", value) or ("error", exception), or ("died", exit code).
    """
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            _processes.Process(
                target=_run_rank, args=(rank, world_size, folder, timeout, target, args)
            )
            for rank in range(world_size)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=120)
        outcomes = []
        for rank, worker in enumerate(workers):
            if worker.is_alive():
                worker.kill()
                worker.join()
            file = Path(folder) / f"{rank}.pkl"
            outcomes.append(
                pickle.loads(file.read_bytes()) if file.exists() else ("died", worker.exitcode)
            )
            worker.close()
        return outcomes


def results_of(world_size, target, *args, timeout=30.0):
    """The same, where nothing may go wrong: the values alone."""
    outcomes = launch(world_size, target, *args, timeout=timeout)
    assert [kind for kind, _ in outcomes] == ["ok"] * world_size, outcomes
    return [value for _, value in outcomes]


def _run_rank(rank, world_size, folder, timeout, target, args):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=dt.timedelta(seconds=timeout),
    )
    try:
        outcome = ("ok", target(rank, *args))
    except Exception as error:
        traceback.print_exc()
        error.__traceback__ = error.__cause__ = error.__context__ = None
        outcome = ("error", error)
    (Path(folder) / f"{rank}.tmp").write_bytes(pickle.dumps(outcome))
    (Path(folder) / f"{rank}.tmp").rename(Path(folder) / f"{rank}.pkl")
    if outcome[0] == "error":
        os._exit(1)  # the others are not waited for
    dist.destroy_process_group()


class ThreadGroup:
    """An `infobatch.distributed.Communicator` of threads in this process."""

    def __init__(self, shared, rank):
        self._shared = shared
        self.rank, self.world_size = rank, shared["size"]
        self.bytes_sent = 0
        self.calls = 0

    @classmethod
    def of(cls, world_size):
        shared = {"size": world_size, "barrier": threading.Barrier(world_size), "slots": {}}
        return [cls(shared, rank) for rank in range(world_size)]

    def all_gather(self, data):
        self.calls += 1
        self.bytes_sent += data.nbytes
        self._shared["slots"][self.rank] = data.copy()
        self._shared["barrier"].wait(timeout=20)
        gathered = [self._shared["slots"][rank].copy() for rank in range(self.world_size)]
        self._shared["barrier"].wait(timeout=20)
        return gathered


def in_threads(world_size, target):
    """Run target(group) in one thread a rank; the values, or the first error."""
    groups = ThreadGroup.of(world_size)
    values, errors = [None] * world_size, []

    def run(group):
        try:
            values[group.rank] = target(group)
        except BaseException as error:
            errors.append(error)
            group._shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        raise (causes or errors)[0]
    return values
