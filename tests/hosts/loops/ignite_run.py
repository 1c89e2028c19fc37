"""The example for Ignite, watched; as a program, one rank of a run in several processes."""

import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from examples.ignite_digits import build, keep_checkpoints
from ignite.engine import Events
from tests.hosts.support import Run

EPOCHS, BATCH = 6, 128


class Killed(Exception):
    pass


def train(*, folder=None, kill_at=None, terminate_at=None):
    """The run; with `kill_at`, what raises Killed after that many steps of this process."""
    trainer, loader, parts = build(EPOCHS, BATCH)
    pruner, optimizer = parts["pruner"], parts["optimizer"]
    if folder is not None:
        keep_checkpoints(trainer, parts, Path(folder))
    rates, epochs = [], []

    @trainer.on(Events.ITERATION_STARTED)
    def look(engine):
        rates.append(optimizer.param_groups[0]["lr"])

    @trainer.on(Events.ITERATION_COMPLETED)
    def kill(engine):
        if len(rates) == kill_at:
            raise Killed
        if terminate_at is not None and engine.state.iteration % terminate_at == 0:
            engine.terminate_epoch()

    @trainer.on(Events.EPOCH_COMPLETED)
    def look_at_epoch(engine):
        epochs.append((engine.state.epoch, pruner.epoch))

    try:
        trainer.run(loader, max_epochs=EPOCHS)
    except Killed:
        return None
    weights = [p.detach().clone() for p in parts["model"].parameters()]
    run = Run(len(rates), rates, pruner.scores, pruner.history, weights, pruner.saved_fraction)
    return run, epochs, trainer.state


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    idist.initialize("gloo")
    run, *_ = train()
    train(folder=folder / "state", kill_at=36)
    resumed, *_ = train(folder=folder / "state")
    torch.save((run, resumed), folder / f"{idist.get_rank()}.pt")
    idist.finalize()
