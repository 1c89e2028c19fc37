"""Digits with Ray Train: workers that fail are started again and go on within the epoch.

    python examples/ray_train_digits.py --workers 2 --crash-at 40

Needs `pip install "infobatch[ray]"`. The three lines are those of training in one process; the rest
is Ray Train's.
"""

import argparse
import tempfile
from pathlib import Path

import ray.train
import torch
import torch.nn.functional as F
from ray.train import Checkpoint, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.schedule import ProgressScheduler


def digits() -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def train_on_worker(config: dict) -> None:
    context, train_set, model = ray.train.get_context(), digits(), build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch_size = config["global_batch"] // context.get_world_size()

    pruner = InfoBatch(train_set, num_epochs=config["epochs"])  # 1
    loader = DataLoader(train_set, batch_size, sampler=pruner.sampler)  # 2
    full_epoch = -(-len(train_set) // config["global_batch"])
    schedule = OneCycleLR(optimizer, 0.2, total_steps=config["epochs"] * full_epoch)
    schedule = ProgressScheduler(schedule, pruner)
    # Our sampler is a DistributedSampler, which Ray keeps: add_dist_sampler makes no difference.
    model, prepared = prepare_model(model), prepare_data_loader(loader)
    pruner.sampler.batches_ahead = 1  # Ray's loader fetches the next batch before it gives one out
    assert prepared.sampler is pruner.sampler

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "pruner": pruner}
    steps, last = 0, ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            saved = torch.load(Path(folder, "state.pt"), weights_only=True)
        steps = saved.pop("steps")
        for name, state in saved.items():
            parts[name].load_state_dict(state)

    def report() -> None:
        pruner.synchronize()  # on every worker: within an epoch the state needs the losses of all
        metrics = {"steps": steps, "epoch": pruner.epoch, "lr": schedule.get_last_lr()[0]}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if context.get_world_rank() == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"steps": steps, **state}, Path(folder, "state.pt"))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({**metrics, **pruner.metrics()}, checkpoint=checkpoint)

    for _ in range(pruner.epoch, config["epochs"]):
        for x, y in prepared:
            if steps == config["crash_at"] and last is None:
                raise RuntimeError("this worker crashes, as --crash-at asked for")
            loss = pruner.update(F.cross_entropy(model(x), y, reduction="none"))  # 3
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            steps += 1
            if steps % config["report_every"] == 0 and pruner.is_within_epoch:
                report()
        report()


def run(
    *, workers: int, epochs: int, storage: str, global_batch: int = 64, crash_at: int | None = None
) -> Result:
    config = {
        "epochs": epochs,
        "global_batch": global_batch,
        "report_every": 10,
        "crash_at": crash_at,
    }
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=1)),
    )
    return trainer.fit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--crash-at", type=int, help="the step at which the workers crash once")
    parser.add_argument("--storage", default=None, help="where Ray keeps checkpoints")
    args = parser.parse_args()
    storage = str(Path(args.storage or tempfile.mkdtemp()).resolve())
    result = run(workers=args.workers, epochs=args.epochs, storage=storage, crash_at=args.crash_at)
    print(result.metrics)
