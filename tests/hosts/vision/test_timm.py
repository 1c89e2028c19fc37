import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.hosts.support import BATCH, EPOCHS, Run, assert_same, torchrun
from tests.hosts.vision import timm_run
from tests.hosts.vision.timm_run import FULL, Pictures, build_net, timm_loader, train
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_naflex_loader
from timm.data.distributed_sampler import RepeatAugSampler
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.scheduler import create_scheduler_v2
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch.errors import EpochError, MisalignedUpdateError
from infobatch.integrations.timm import PrunedLoss, per_sample_criterion, prune_loader
from infobatch.losses import soft_target_score

PRUNE = [{}, {"budget": 0.7}]


def pruner_of(samples, epochs, **prune):
    """The paper's rule; under a budget the policy that reads probabilities from scores."""
    build = DataPruner if "budget" in prune else InfoBatch
    return build(samples, epochs, **prune)


def plain_run(epochs=EPOCHS, accumulate=1, **prune):
    """The three lines of the README in a loop of torch alone, with a cosine that ends at 0."""
    unpruned = timm_loader(prefetcher=False)
    pruner, model = pruner_of(500, EPOCHS, **prune), build_net()
    loader = DataLoader(
        unpruned.dataset,
        BATCH,
        sampler=pruner.sampler,
        drop_last=True,
        collate_fn=unpruned.collate_fn,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    total, rates = EPOCHS * math.ceil(FULL / accumulate), [0.05]
    for _ in range(epochs):
        batches = len(loader)
        for index, (x, y) in enumerate(loader):
            output = model(x)
            loss = F.cross_entropy(output, y, reduction="none", label_smoothing=0.1)
            scores = None
            if "budget" in prune:
                scores = soft_target_score(output, y, label_smoothing=0.1)
            left = batches - index // accumulate * accumulate
            (pruner.update(loss, scores=scores) / min(accumulate, left)).backward()
            if (index + 1) % accumulate and index + 1 < batches:
                continue
            optimizer.step()
            optimizer.zero_grad()
            reached = math.floor(pruner.progress * total + 1e-6)
            rates.append(0.05 * (1 + math.cos(math.pi * reached / total)) / 2)
            optimizer.param_groups[0]["lr"] = rates[-1]
    weights = [p.detach().clone() for p in model.parameters()]
    history = pruner.history
    return Run(len(rates) - 1, rates, pruner.scores, history, weights, pruner.saved_fraction)


def pruned(*, prefetcher=True, workers=0, **prune):
    pruner = pruner_of(500, EPOCHS, **prune)
    return prune_loader(timm_loader(prefetcher=prefetcher, workers=workers), pruner), pruner


# The prefetcher normalises in another order of operations, so nothing is exact.
@pytest.mark.parametrize("prune", PRUNE, ids=str)
@pytest.mark.parametrize(("prefetcher", "workers"), [(True, 0), (False, 0), (True, 2)])
def test_a_run_is_that_of_a_plain_loop(prefetcher, workers, prune):
    run = train(*pruned(prefetcher=prefetcher, workers=workers, **prune))
    assert_same(run, plain_run(**prune), exact=False)
    assert run.steps < FULL * EPOCHS
    assert run.saved > 0.2
    assert run.rates[-1] == 0.0  # the end of the cosine, although steps are missing


def test_scores_after_two_epochs(tmp_path):
    loader, pruner = pruned()
    run = train(loader, pruner, save=(1, tmp_path))
    assert_same(run, plain_run(epochs=2), exact=False)


def test_accumulated_gradients():
    run = train(*pruned(), accumulate=4)
    assert_same(run, plain_run(accumulate=4), exact=False)
    assert run.rates[-1] == 0.0


def test_without_pruning_a_run_is_that_of_timm_alone():
    """Also where the schedule ends, and with the order that a DistributedSampler would give."""
    loader, pruner = pruned(prune_ratio=0.0)
    run = train(loader, pruner, warmup_epochs=2, warmup_lr=1e-3)
    stock = stock_rates(EPOCHS * FULL, warmup_epochs=2, warmup_lr=1e-3)
    assert run.rates == stock


def stock_rates(updates, **settings):
    """timm's scheduler, stepped once an update."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=EPOCHS,
        updates_per_epoch=FULL,
        **{"sched": "cosine", "step_on_epochs": False, **settings},
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, updates + 1):
        scheduler.step_update(update)
        if update % FULL == 0:
            scheduler.step(update // FULL)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"sched": "cosine", "warmup_epochs": 2, "warmup_lr": 1e-3, "min_lr": 1e-4},
        {"sched": "cosine", "warmup_epochs": 2, "warmup_lr": 1e-3, "warmup_prefix": True},
        {"sched": "step", "decay_epochs": 3, "decay_rate": 0.5},
        {"sched": "poly", "warmup_epochs": 1, "warmup_lr": 1e-3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_schedules_stand_at_each_epochs_end_where_a_full_run_would(settings, by_epoch):
    epochs = EPOCHS + 2 * settings.get("warmup_prefix", False)
    pruner = InfoBatch(500, epochs, 0.75)  # no budget: every epoch moves the schedule by as much
    loader = prune_loader(timm_loader(prefetcher=True), pruner)
    run = train(loader, pruner, step_on_epochs=by_epoch, **settings)
    stock = stock_rates(epochs * FULL, step_on_epochs=by_epoch, **settings)
    ends = [0]
    for record in pruner.history:
        ends.append(ends[-1] + record.kept // BATCH)
    assert len(ends) == epochs + 1
    assert [run.rates[end] for end in ends] == stock[::FULL]
    assert run.saved > 0.25


def test_resume_from_timms_checkpoint_is_as_never_having_stopped(tmp_path):
    whole = train(*pruned())
    broken = train(*pruned(), save=(3, tmp_path))
    resumed = train(*pruned(), resume=tmp_path)
    resumed.steps += broken.steps
    resumed.rates = broken.rates[:-1] + resumed.rates
    assert_same(resumed, whole)

    loader, pruner = pruned()
    torch.save(pruner.state_dict(), tmp_path / "infobatch.pt")  # of another checkpoint
    with pytest.raises(EpochError, match=r"set_epoch\(4\)"):
        train(loader, pruner, resume=tmp_path)


@pytest.mark.slow
def test_two_processes_are_one_with_the_double_batch(tmp_path):
    torchrun(timm_run.__file__, 2, tmp_path)
    reference = plain_run()
    for rank in range(2):
        run, broken, resumed = (
            torch.load(tmp_path / f"{part}{rank}.pt", weights_only=False)
            for part in ("", "broken-", "resumed-")
        )
        assert_same(run, reference, exact=False)
        resumed.steps += broken.steps
        resumed.rates = broken.rates[:-1] + resumed.rates
        assert_same(resumed, run)


def test_the_given_loader_is_left_as_it_is():
    pruner = InfoBatch(500, EPOCHS)
    for prefetcher in (False, True):
        given = timm_loader(prefetcher=prefetcher, use_multi_epochs_loader=True)
        sampler = given.sampler
        loader = prune_loader(given, pruner)
        assert loader.sampler is pruner.sampler
        assert len(loader) == FULL
        assert given.sampler is sampler
        assert len(list(given)) == FULL


def test_loaders_that_choose_samples_themselves_are_refused():
    pruner = InfoBatch(500, EPOCHS)
    for prefetcher in (False, True):
        loader = timm_loader(prefetcher=prefetcher, input_size_choices=[8, 16])
        with pytest.raises(ValueError, match="ScheduledBatchSampler"):
            prune_loader(loader, pruner)
    data = Pictures()
    repeated = DataLoader(data, BATCH, sampler=RepeatAugSampler(data, num_replicas=1, rank=0))
    with pytest.raises(ValueError, match="num_aug_repeats"):
        prune_loader(repeated, pruner)
    sizes = {"patch_size": 4, "train_seq_lens": [4], "max_seq_len": 4}
    naflex = create_naflex_loader(
        data, batch_size=BATCH, is_training=True, num_workers=0, device=torch.device("cpu"), **sizes
    )
    with pytest.raises(ValueError, match="IterableDataset"):
        prune_loader(naflex, pruner)
    with pytest.raises(ValueError, match="500 samples, the pruner was built for 400"):
        prune_loader(timm_loader(prefetcher=False), InfoBatch(400, EPOCHS))


def test_augmentation_splits_are_refused_at_the_first_batch():
    data = AugMixDataset(Pictures(), num_splits=3)
    pruner = InfoBatch(500, EPOCHS)
    loader = timm_loader(prefetcher=True, dataset=data, num_aug_splits=3, no_aug=False)
    with pytest.raises(MisalignedUpdateError, match=f"update got {3 * BATCH} losses"):
        train(prune_loader(loader, pruner), pruner)


@pytest.mark.parametrize(
    ("criterion", "soft"),
    [
        (LabelSmoothingCrossEntropy(0.1), False),
        (SoftTargetCrossEntropy(), True),
        (BinaryCrossEntropy(0.1), False),
        (BinaryCrossEntropy(0.1, target_threshold=0.2), True),
        (BinaryCrossEntropy(0.0, sum_classes=True), True),
        (BinaryCrossEntropy(0.1, pos_weight=torch.linspace(0.5, 2, 10)), False),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), False),
    ],
    ids=lambda c: type(c).__name__,
)
def test_criteria_per_sample_have_the_mean_of_the_criterion(criterion, soft):
    output = torch.randn(16, 10, requires_grad=True)
    target = torch.randn(16, 10).softmax(1) if soft else torch.randint(0, 10, (16,))
    each = per_sample_criterion(criterion)(output, target)
    assert each.shape == (16,)
    double = copy.deepcopy(PrunedLoss(criterion, InfoBatch(16, 2))).double()
    in_double = double.per_sample(output.double(), target.double() if soft else target)
    torch.testing.assert_close(in_double, each.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(each.mean(), criterion(output, target))
    alone = torch.stack([criterion(output[i : i + 1], target[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(each, alone)


SOFT_LABELS = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
CLASSES = torch.tensor([0, 2, 1])


@pytest.mark.parametrize(
    ("criterion", "target", "learned", "likelihood"),
    [
        (LabelSmoothingCrossEntropy(0.1), CLASSES, 0.1, False),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES, 0.1, False),
        (torch.nn.CrossEntropyLoss(), CLASSES, None, True),
        (SoftTargetCrossEntropy(), SOFT_LABELS, 0.0, False),
        (SoftTargetCrossEntropy(), torch.eye(3)[CLASSES], None, True),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), SOFT_LABELS, 0.1, False),
        (BinaryCrossEntropy(0.1), CLASSES, None, False),
        (BinaryCrossEntropy(0.1), SOFT_LABELS, 0.0, False),
    ],
)
def test_a_budget_ranks_by_what_is_left_to_learn(criterion, target, learned, likelihood):
    """Whatever smoothing and mixing add to the loss of a sample that is learned.

    `learned`: the model gives just the target, smoothed by so much; None: it gives anything.
    """
    binary = isinstance(criterion, BinaryCrossEntropy)
    output = torch.randn(3, 3)
    if learned is not None:
        soft = target if target.is_floating_point() else torch.eye(3)[target]
        soft = (1 - learned) * soft + learned / 3
        output = torch.logit(soft).clamp(-30, 30) if binary else soft.clamp(min=1e-9).log()
    for prune in ({"budget": 0.6}, {}):
        pruner = pruner_of(3, 2, **prune)
        order = pruner.plan.indices
        assert len(list(pruner.sampler)) == 3
        PrunedLoss(criterion, pruner)(output, target)
        losses = per_sample_criterion(criterion)(output, target)
        scores = pruner.scores[order]
        if not prune:  # the paper's rule
            torch.testing.assert_close(scores, losses)
            continue
        if learned is not None:
            torch.testing.assert_close(scores, torch.zeros(3), atol=1e-5, rtol=0)
        if likelihood:
            right = output.softmax(1)[torch.arange(3), CLASSES]
            torch.testing.assert_close((-scores).exp(), right)
        elif binary and learned is None:  # of all classes together
            sure = torch.where(F.one_hot(CLASSES, 3).bool(), output, -output).sigmoid()
            torch.testing.assert_close((-scores).exp(), sure.prod(1))


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        (LabelSmoothingCrossEntropy(0.1), CLASSES),
        (SoftTargetCrossEntropy(), SOFT_LABELS),
        (BinaryCrossEntropy(0.1), CLASSES),
        (BinaryCrossEntropy(0.1), SOFT_LABELS),
    ],
)
def test_a_budget_works_within_cuda_autocast(criterion, target):
    """Which refuses some functions; its rules are in builds of torch without CUDA too."""
    key = torch._C.DispatchKey.AutocastCUDA
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    pruner = InfoBatch(3, 2, budget=0.6)
    assert len(list(pruner.sampler)) == 3
    loss_fn = PrunedLoss(criterion, pruner)
    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch._C._IncludeDispatchKeyGuard(key):
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                F.binary_cross_entropy(torch.rand(3), torch.rand(3))
            loss = loss_fn(torch.randn(3, 3), target)
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, excluded)
    assert torch.isfinite(loss)
    assert not torch.isnan(pruner.scores).any()


@pytest.mark.parametrize(
    "criterion",
    [
        JsdCrossEntropy(num_splits=3),
        torch.nn.CrossEntropyLoss(weight=torch.rand(10)),
        torch.nn.CrossEntropyLoss(reduction="sum"),
        torch.nn.CrossEntropyLoss(ignore_index=255),
        BinaryCrossEntropy(reduction="sum"),
    ],
    ids=str,
)
def test_a_criterion_that_is_no_mean_over_samples_is_refused(criterion):
    with pytest.raises(
        TypeError, match=rf"(?s){type(criterion).__name__}.*not.* mean over samples"
    ):
        PrunedLoss(criterion, InfoBatch(500, 2))


def test_a_function_of_ones_own_is_taken():
    pruner = InfoBatch(500, 2)
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
    run = train(loader, pruner, SoftTargetCrossEntropy(), mixup=mixup)
    assert pruner.epoch == EPOCHS
    assert 0.05 < run.saved < 0.5
    if prefetcher:
        loader.mixup_enabled = False  # as of --mixup-off-epoch
        assert not collate.mixup_enabled
        collate.mixup_enabled = True

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
