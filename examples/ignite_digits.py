"""Digits with PyTorch-Ignite, which infobatch has no module for: what a host of your own takes.

    python examples/ignite_digits.py --checkpoints runs/ignite

Stop it with Ctrl-C and start it again: it goes on within the epoch. In several processes:

    torchrun --standalone --nproc-per-node 2 examples/ignite_digits.py

`follow` is explained in docs/hosts.md, "Any other host".
"""

import argparse
from pathlib import Path

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from infobatch import DataPruner, InfoBatch
from infobatch.schedule import ProgressScheduler


def follow(trainer: Engine, loader: DataLoader, pruner: DataPruner, schedule: ProgressScheduler):
    @trainer.on(Events.STARTED)
    def start_where_the_pruner_stands(engine):
        engine.state.epoch = pruner.epoch

    @trainer.on(Events.EPOCH_STARTED)
    def tell_length(engine):
        engine.state.epoch_length = len(loader)

    @trainer.on(Events.ITERATION_COMPLETED)
    def step_schedule(engine):
        schedule.step()
        engine.state.metrics["progress"] = pruner.progress

    @trainer.on(Events.EPOCH_COMPLETED)
    def close_epoch(engine):
        pruner.end_epoch()  # for epochs that terminate_epoch() leaves early
        engine.state.metrics.update(pruner.metrics())
        engine.state.epoch_length = None  # Ignite would multiply it to see whether the run is over


def digits() -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def build(epochs: int, global_batch: int = 64) -> tuple[Engine, DataLoader, dict]:
    train_set = digits()
    model = idist.auto_model(build_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    total_steps = epochs * -(-len(train_set) // global_batch)

    pruner = InfoBatch(train_set, num_epochs=epochs)
    loader = idist.auto_dataloader(train_set, batch_size=global_batch, sampler=pruner.sampler)
    schedule = ProgressScheduler(OneCycleLR(optimizer, 0.2, total_steps=total_steps), pruner)

    def step(_, batch):
        x, y = (part.to(idist.device()) for part in batch)
        loss = pruner.update(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(step)
    follow(trainer, loader, pruner, schedule)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "pruner": pruner}
    return trainer, loader, parts


def keep_checkpoints(trainer: Engine, parts: dict, folder: Path) -> None:
    """Go on from the checkpoint in the folder, if there is one, and write it every ten steps."""
    checkpoint = Checkpoint(
        parts, DiskSaver(folder, require_empty=False), n_saved=1, filename_pattern="last.pt"
    )
    if (folder / "last.pt").exists():
        Checkpoint.load_objects(parts, torch.load(folder / "last.pt", weights_only=True))

    @trainer.on(Events.ITERATION_COMPLETED(every=10))
    def save(engine):
        parts["pruner"].synchronize()  # in every process, before one of them saves
        checkpoint(engine)


def main(epochs: int, checkpoints: Path | None) -> None:
    trainer, loader, parts = build(epochs)
    if checkpoints is not None:
        keep_checkpoints(trainer, parts, checkpoints)

    @trainer.on(Events.EPOCH_COMPLETED)
    @idist.one_rank_only()
    def tell(engine):
        saved = engine.state.metrics["infobatch/saved_fraction"]
        print(f"epoch {engine.state.epoch}: loss {engine.state.output:.4f}, saved {saved:.1%}")

    trainer.run(loader, max_epochs=epochs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoints", type=Path)
    args = parser.parse_args()
    if torch.distributed.is_torchelastic_launched():
        idist.initialize("nccl" if torch.cuda.is_available() else "gloo")
    main(args.epochs, args.checkpoints)
    idist.finalize()
