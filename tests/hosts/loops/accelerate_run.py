"""A plain loop with Accelerate; as a program, one rank of a run in several processes."""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from tests.hosts.support import BATCH, EPOCHS, Run, build_model, digits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.integrations.accelerate import prepare


def train(
    *, batch=BATCH, accumulate=1, prune=None, load=None, save=None, workers=0, **configuration
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, mode = sys.argv[1:3]
    if mode == "split":
        run, _, accelerator, gathered = train(split_batches=True)
    elif mode == "accumulate":
        run, _, accelerator, gathered = train(batch=BATCH // 2, accumulate=3)
    else:
        save = (25, f"{folder}/state")
        run, _, accelerator, gathered = train(batch=BATCH // 2, save=save)
        resumed, *_ = train(batch=BATCH // 2, load=save[1])
        resumed.rates = run.rates[:25] + resumed.rates
        resumed.steps += 25
        torch.save(resumed, f"{folder}/resumed-{accelerator.process_index}.pt")
    torch.save((run, gathered), f"{folder}/{accelerator.process_index}.pt")
