"""timm's training loop on digits; as a program, one rank of a run in several processes."""

import sys

if __name__ == "__main__":
    import tests.hosts.vision.conftest  # noqa: F401

import numpy as np
import torch
from PIL import Image
from tests.hosts.support import BATCH, EPOCHS, Run, digits
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver
from torch.nn.parallel import DistributedDataParallel

from infobatch import InfoBatch
from infobatch.integrations.timm import ProgressUpdates, PrunedLoss, prune_loader

FULL = 500 // BATCH  # batches of a full epoch; timm's loader drops the last one


class Pictures(torch.utils.data.Dataset):
    """Digits as pictures, in the form that timm's loader wants."""

    def __init__(self):
        self.data, self.transform = digits(), None

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, label = self.data[index]
        grey = np.uint8(x.numpy().reshape(8, 8) * 255)
        picture = Image.fromarray(np.stack([grey] * 3, axis=-1))
        return (self.transform(picture) if self.transform else picture), int(label)


def timm_loader(*, prefetcher, batch=BATCH, workers=0, dataset=None, **settings):
    return create_loader(
        dataset or Pictures(),
        (3, 8, 8),
        batch,
        is_training=True,
        use_prefetcher=prefetcher,
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
        **{"no_aug": True, **settings},
    )


def build_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))


def train(
    loader,
    pruner,
    criterion=None,
    *,
    mixup=None,
    accumulate=1,
    save=None,
    resume=None,
    **schedule_settings,
):
    """The loop of timm's script.

    Args:
        save: (epoch, folder): after which epoch to stop, and where to save it, or None.
        resume: folder of what was saved.

    Returns:
        a Run; its rates are those of the steps, and that which was set at the end.
    """
    model = build_net()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        num_epochs=EPOCHS,
        updates_per_epoch=-(-FULL // accumulate),
        **{"sched": "cosine", "step_on_epochs": False, **schedule_settings},
    )
    scheduler = ProgressUpdates(scheduler, pruner, epochs * -(-FULL // accumulate))
    start = 0
    if resume:
        start = resume_checkpoint(model, f"{resume}/last.pth.tar", optimizer)
        pruner.load_state_dict(torch.load(f"{resume}/infobatch.pt", weights_only=True))
        scheduler.step_update(start * FULL)
        scheduler.step(start)
    wrapped = DistributedDataParallel(model) if torch.distributed.is_initialized() else model
    loss_fn = PrunedLoss(criterion or LabelSmoothingCrossEntropy(0.1), pruner)
    rates, updates = [], start * FULL
    for epoch in range(start, epochs):
        loader.sampler.set_epoch(epoch)
        last = len(loader) - 1
        for index, batch in enumerate(loader):
            x, y = mixup(*batch) if mixup else batch
            rest = index > last - (last + 1) % accumulate
            loss = loss_fn(wrapped(x), y)
            (loss / ((last + 1) % accumulate if rest else accumulate)).backward()
            if (index + 1) % accumulate == 0 or index == last:
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
                scheduler.step_update(updates)
        scheduler.step(epoch + 1, None)
        if save and epoch == save[0]:
            if save[1]:
                saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(save[1]))
                saver.save_checkpoint(epoch)
                torch.save(pruner.state_dict(), f"{save[1]}/infobatch.pt")
            break
    weights = [p.detach().clone() for p in model.parameters()]
    steps, rates = len(rates), [*rates, optimizer.param_groups[0]["lr"]]
    return Run(steps, rates, pruner.scores, pruner.history, weights, pruner.saved_fraction)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    folder, rank = sys.argv[1], torch.distributed.get_rank()

    def loader_for(pruner):
        loader = timm_loader(prefetcher=True, batch=BATCH // 2, distributed=True)
        return prune_loader(loader, pruner)

    pruner = InfoBatch(500, EPOCHS)
    torch.save(train(loader_for(pruner), pruner), f"{folder}/{rank}.pt")
    pruner = InfoBatch(500, EPOCHS)
    save = (3, folder if rank == 0 else None)
    torch.save(train(loader_for(pruner), pruner, save=save), f"{folder}/broken-{rank}.pt")
    torch.distributed.barrier()
    pruner = InfoBatch(500, EPOCHS)
    torch.save(train(loader_for(pruner), pruner, resume=folder), f"{folder}/resumed-{rank}.pt")
    torch.distributed.destroy_process_group()
