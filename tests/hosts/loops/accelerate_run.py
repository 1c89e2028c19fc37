"""A plain loop with Accelerate; as a program, one rank of a run in several processes."""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from tests.hosts.support import BATCH, EPOCHS, Run, build_model, digits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import MisalignedUpdateError
from infobatch.integrations.accelerate import prepare
from infobatch.schedule import ProgressScheduler


def follow(item, pruner):
    """As `prepare` does by itself: a scheduler that follows the pruner's progress."""
    return ProgressScheduler(item, pruner) if isinstance(item, OneCycleLR) else item


def train(
    *,
    batch=BATCH,
    accumulate=1,
    prune=None,
    load=None,
    save=None,
    workers=0,
    mixed_precision=None,
    prepare=prepare,
    **configuration,
):
    """Train on digits.

    Args:
        load: folder of a saved state to go on from.
        save: (step, folder): where to save the state after that many batches.

    Returns:
        a Run, the pruner, the accelerator and how many values gather_for_metrics gave an epoch.
    """
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=accumulate,
        mixed_precision=mixed_precision,
        dataloader_config=DataLoaderConfiguration(**configuration),
    )
    data, model = digits(), build_model()
    pruner = InfoBatch(data, EPOCHS, **(prune or {}))
    loader = DataLoader(data, batch, sampler=pruner.sampler, num_workers=workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = OneCycleLR(optimizer, 0.2, total_steps=EPOCHS * -(-16 // accumulate))
    model, optimizer, loader, schedule = prepare(
        accelerator, pruner, model, optimizer, loader, schedule
    )
    if load:
        accelerator.load_state(load)
    rates, gathered, batches = [], [], 0
    for _ in range(pruner.epoch, EPOCHS):
        gathered.append(0)
        for x, y in loader:
            with accelerator.accumulate(model):
                losses = F.cross_entropy(model(x), y, reduction="none")
                accelerator.backward(pruner.update(losses))
                if accelerator.sync_gradients:
                    rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            gathered[-1] += len(accelerator.gather_for_metrics(losses.detach()))
            batches += 1
            if save and batches == save[0]:
                accelerator.save_state(save[1])
    weights = [p.detach().clone() for p in accelerator.unwrap_model(model).parameters()]
    run = Run(len(rates), rates, pruner.scores, pruner.history, weights, pruner.saved_fraction)
    return run, pruner, accelerator, gathered


# What is run in two processes, and resumed.
TASKS = {
    "plain": {"batch": BATCH // 2},
    "split": {"split_batches": True},
    "uneven": {"batch": BATCH // 2, "even_batches": False},
    "accumulated": {"batch": BATCH // 2, "accumulate": 3},
}


def train_and_resume(folder, **settings):
    """One rank's run, and the same resumed within a pruned epoch, where no gradient is pending."""
    run, *_, gathered = train(save=(16 + 9, folder), **settings)
    resumed, *_ = train(load=folder, **settings)
    before = run.steps - resumed.steps
    resumed.rates = run.rates[:before] + resumed.rates
    resumed.steps += before
    return run, resumed, gathered


def evaluate(prepare_all):
    """How many samples gather_for_metrics gives of an evaluation loader beside a train loader."""
    accelerator, data, pruner = Accelerator(cpu=True), digits(), InfoBatch(digits(), EPOCHS)
    train_loader = DataLoader(data, BATCH, sampler=pruner.sampler)
    loader = prepare_all(accelerator, pruner, train_loader, DataLoader(data, 33))[1]
    return sum(len(accelerator.gather_for_metrics(y)) for _, y in loader)


def refusal(function, *arguments):
    try:
        function(*arguments)
    except MisalignedUpdateError as error:
        return str(error)
    return ""


def first_batch_of_a_loader_that_accelerate_alone_has_prepared():
    pruner = InfoBatch(digits(), EPOCHS)
    next(iter(Accelerator(cpu=True).prepare(DataLoader(digits(), 16, sampler=pruner.sampler))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, results = sys.argv[1], {}
    for task, settings in TASKS.items():
        AcceleratorState._reset_state()
        GradientState._reset_state()
        results[task] = train_and_resume(f"{folder}/{task}", **settings)
    results["evaluated"] = evaluate(prepare)
    results["alone"] = refusal(first_batch_of_a_loader_that_accelerate_alone_has_prepared)
    torch.save(results, f"{folder}/{torch.distributed.get_rank()}.pt")
