import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.hosts.support import BATCH, EPOCHS, digits
from timm.data import FastCollateMixup, Mixup, create_loader
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.integrations.timm import (
    ProgressUpdates,
    PrunedLoss,
    per_sample_criterion,
    prune_loader,
)


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


def timm_loader(*, prefetcher, **settings):
    return create_loader(
        Pictures(),
        (3, 8, 8),
        BATCH,
        is_training=True,
        no_aug=True,
        use_prefetcher=prefetcher,
        num_workers=0,
        device=torch.device("cpu"),
        persistent_workers=False,
        **settings,
    )


def build_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))


def train(loader, pruner, criterion, mixup=None, epochs=EPOCHS):
    """The loop of timm's script; steps, learning rates and weights."""
    model = build_net()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05)
    full = len(loader)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        step_on_epochs=False,
        updates_per_epoch=full,
    )
    schedule = ProgressUpdates(schedule, pruner, epochs * full)
    loss_fn, rates, updates = PrunedLoss(criterion, pruner), [], 0
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            x, y = mixup(*batch) if mixup else batch
            rates.append(optimizer.param_groups[0]["lr"])
            loss_fn(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            schedule.step_update(updates)
        schedule.step(epoch + 1, None)
    pruner.end_epoch()
    return rates, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("prune", [{}, {"budget": 0.7}])
def test_the_prefetcher_is_as_a_plain_loader(prune):
    plain_pruner, pruner = (InfoBatch(500, EPOCHS, **prune) for _ in range(2))
    unpruned = timm_loader(prefetcher=False)
    plain = DataLoader(
        unpruned.dataset,
        BATCH,
        sampler=plain_pruner.sampler,
        drop_last=True,
        collate_fn=unpruned.collate_fn,
    )
    reference = train(plain, plain_pruner, LabelSmoothingCrossEntropy(0.1))
    prefetched = prune_loader(timm_loader(prefetcher=True), pruner)
    run = train(prefetched, pruner, LabelSmoothingCrossEntropy(0.1))
    assert len(run[0]) == len(reference[0]) < 15 * EPOCHS
    assert run[0] == pytest.approx(reference[0])
    assert run[0][-1] < 0.01 * run[0][0]  # to the end of the cosine, although steps are missing
    # The prefetcher normalises in another order of operations.
    torch.testing.assert_close(run[1], reference[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pruner.scores, plain_pruner.scores, rtol=1e-3, atol=1e-4)
    assert pruner.saved_fraction == plain_pruner.saved_fraction > 0.1


def test_loaders_of_timm():
    pruner = InfoBatch(500, EPOCHS)
    for prefetcher in (False, True):
        loader = prune_loader(
            timm_loader(prefetcher=prefetcher, use_multi_epochs_loader=True), pruner
        )
        assert loader.sampler is pruner.sampler
        assert len(loader) == 500 // BATCH
    with pytest.raises(ValueError, match="ScheduledBatchSampler"):
        prune_loader(timm_loader(prefetcher=False, input_size_choices=[8, 16]), pruner)
    with pytest.raises(ValueError, match="500 samples, the pruner was built for 400"):
        prune_loader(timm_loader(prefetcher=False), InfoBatch(400, EPOCHS))


@pytest.mark.parametrize(
    ("criterion", "soft"),
    [
        (LabelSmoothingCrossEntropy(0.1), False),
        (SoftTargetCrossEntropy(), True),
        (BinaryCrossEntropy(0.1), False),
        (BinaryCrossEntropy(0.1, target_threshold=0.2), True),
        (BinaryCrossEntropy(0.0, sum_classes=True), True),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), False),
    ],
    ids=lambda c: type(c).__name__,
)
def test_criteria_per_sample_have_the_mean_of_the_criterion(criterion, soft):
    output = torch.randn(16, 10, requires_grad=True)
    target = torch.randn(16, 10).softmax(1) if soft else torch.randint(0, 10, (16,))
    each = per_sample_criterion(criterion)(output, target)
    assert each.shape == (16,)
    torch.testing.assert_close(each.mean(), criterion(output, target))
    alone = torch.stack([criterion(output[i : i + 1], target[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(each, alone)


def test_a_criterion_that_does_not_split_is_refused_and_a_function_is_taken():
    pruner = InfoBatch(500, 2)
    with pytest.raises(TypeError, match="JsdCrossEntropy"):
        PrunedLoss(JsdCrossEntropy(num_splits=3), pruner)
    loss_fn = PrunedLoss(
        lambda output, target: F.mse_loss(output, target, reduction="none"), pruner
    )
    for indices in DataLoader(range(500), 50, sampler=pruner.sampler):
        values = indices.float() / 500
        torch.testing.assert_close(loss_fn(values, torch.zeros(50)), values.square().mean())
    torch.testing.assert_close(pruner.scores, (torch.arange(500) / 500).square())


@pytest.mark.parametrize("prefetcher", [False, True])
def test_mixed_samples_are_scored_by_their_own_mixture(prefetcher):
    settings = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": 10}
    pruner = InfoBatch(500, EPOCHS)
    mixup, collate = None, None
    if prefetcher:
        collate = FastCollateMixup(**settings)
    else:
        mixup = Mixup(**settings)
    loader = prune_loader(timm_loader(prefetcher=prefetcher, collate_fn=collate), pruner)
    train(loader, pruner, SoftTargetCrossEntropy(), mixup)
    assert pruner.epoch == EPOCHS
    assert 0.05 < pruner.saved_fraction < 0.5

    pruner, model = InfoBatch(500, EPOCHS), build_net()
    loader = prune_loader(timm_loader(prefetcher=prefetcher, collate_fn=collate), pruner)
    order = pruner.plan.indices
    loss_fn = PrunedLoss(SoftTargetCrossEntropy(), pruner)
    losses = []
    for batch in loader:
        x, y = mixup(*batch) if mixup else batch
        output = model(x).detach()
        losses.append(torch.sum(-y * F.log_softmax(output, -1), -1))
        loss_fn(output, y)
    losses = torch.cat(losses)
    torch.testing.assert_close(pruner.scores[order[: len(losses)]], losses)
