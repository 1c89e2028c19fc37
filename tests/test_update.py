"""What `update` gives back, what it takes in, and what it refuses."""

import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch.errors import InfoBatchError, LossError, NonFiniteLossWarning
from infobatch.policies import RandomSubset

N, B = 96, 16
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)


def batches(pruner):
    """The batches of the coming epoch, as index tensors."""
    for ids in BatchSampler(pruner.sampler, B, drop_last=False):
        yield torch.tensor(ids)


def train(pruner, losses_of):
    """One epoch in which sample i has the loss `losses_of[i]`."""
    for ids in batches(pruner):
        pruner.update(losses_of[ids])


def in_a_pruned_epoch(size=N, prune_ratio=0.3, **options):
    """A pruner in its second epoch, and the batches of that epoch with their weights."""
    pruner = InfoBatch(size, 10, prune_ratio, **options)
    train(pruner, torch.linspace(0.0, 1.0, size) ** 2)
    assert pruner.epoch == 1
    weights = pruner.plan.weights
    assert set(weights.unique().tolist()) == {1.0, weights.max().item()}
    assert 1.3 < weights.max() < 1.6, "prune_ratio=0.3 gives weights of about 1 / 0.7"
    return pruner, zip(batches(pruner), weights.split(B), strict=True)


# --- the rescaled loss ----------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("reduction", ["the default", "mean", "sum", "none"])
def test_each_loss_and_its_gradient_are_multiplied_by_the_weight(dtype, reduction):
    """Half precision gains from weights that are not rounded to it first."""
    pruner, steps = in_a_pruned_epoch()
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    reduce = {"none": torch.clone, "sum": torch.sum}.get(reduction, torch.mean)
    given = {} if reduction == "the default" else {"reduction": reduction}
    for ids, weights in steps:
        losses = torch.rand(len(ids), dtype=dtype, requires_grad=True)
        loss = pruner.update(losses, **given)
        leaf = losses.detach().clone().requires_grad_()
        expected = reduce(leaf.to(precision) * weights.to(precision)).to(dtype)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # a mean is summed otherwise
        loss.sum().backward()
        expected.sum().backward()
        assert torch.equal(losses.grad, leaf.grad)


@pytest.mark.parametrize(
    "last_operation",
    [torch.sqrt, torch.exp, torch.sigmoid, torch.tanh, torch.relu, lambda x: x.softmax(0)],
    ids=["sqrt", "exp", "sigmoid", "tanh", "relu", "softmax"],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_whose_value_is_needed_for_backward_have_exact_gradients(last_operation, reduction):
    pruner, steps = in_a_pruned_epoch()
    ids, weights = next(steps)
    ours = torch.rand(B, dtype=torch.float64, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    pruner.update(last_operation(ours), reduction=reduction).sum().backward()
    manual = last_operation(plain) * weights
    (manual.mean() if reduction == "mean" else manual.sum()).backward()
    assert torch.equal(ours.grad, plain.grad)


def test_second_derivatives_go_through():
    pruner, steps = in_a_pruned_epoch()
    ids, weights = next(steps)
    point = torch.rand(B, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(pruner.update(point**3), point, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), point)
    torch.testing.assert_close(curvature, 6 * point.detach() * weights / B)


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("epoch", [0, 1], ids=["full epoch", "pruned epoch"])
def test_losses_are_never_modified_and_share_no_memory_with_the_result(dtype, reduction, epoch):
    pruner, steps = in_a_pruned_epoch()
    if epoch == 0:
        pruner = InfoBatch(N, 2)
        steps = ((ids, None) for ids in batches(pruner))
    next(steps)
    losses = torch.rand(B, dtype=dtype)
    before, version = losses.clone(), losses._version
    loss = pruner.update(losses, scores=losses, reduction=reduction)
    assert loss is not losses
    loss.fill_(-1.0)
    assert torch.equal(losses, before)
    assert losses._version == version
    losses.fill_(-2.0)
    assert bool((pruner.scores.nan_to_num(0.0) >= 0).all()), "scores must not follow the tensor"


def test_the_graph_of_a_step_is_not_kept_alive():
    pruner, steps = in_a_pruned_epoch()
    next(steps)
    losses = torch.rand(B, requires_grad=True).exp()
    gone = weakref.ref(losses)
    pruner.update(losses).backward()
    del losses
    assert gone() is None


def test_losses_need_no_gradient_and_may_be_views():
    pruner, steps = in_a_pruned_epoch()
    ids, weights = next(steps)
    table = torch.rand(B, 3)
    with torch.no_grad():
        loss = pruner.update(table[:, 1])
    assert not loss.requires_grad
    assert torch.equal(loss, (table[:, 1] * weights.float()).mean())
    assert torch.equal(pruner.scores[ids], table[:, 1])
    ids, weights = next(steps)
    constant = torch.tensor(0.5).expand(B)  # one number in memory for all samples
    assert torch.equal(pruner.update(constant, reduction="none"), 0.5 * weights.float())


def test_dtypes_may_change_from_batch_to_batch():
    pruner, steps = in_a_pruned_epoch()
    kinds = [torch.float32, torch.float64, torch.float16, torch.float32, torch.bfloat16]
    for (ids, weights), dtype in zip(steps, kinds, strict=False):
        losses = torch.rand(len(ids), dtype=dtype)
        loss = pruner.update(losses, reduction="none")
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, losses * weights.to(dtype))
        assert torch.equal(pruner.scores[ids], losses.float())
    assert pruner.scores.dtype == torch.float32


def test_under_autocast_the_loss_stays_as_it_came():
    pruner, steps = in_a_pruned_epoch()
    ids, weights = next(steps)
    losses = torch.rand(B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pruner.update(losses)
    torch.testing.assert_close(loss, (losses * weights.float()).mean(), rtol=1e-6, atol=0)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "received", "remedy"),
    [
        (
            torch.tensor(0.5),
            r"torch\.float32 of shape \(\)",
            'compute the loss with reduction="none"',
        ),
        (torch.tensor(0.5), "", r"infobatch\.losses\.batch_mean\(loss, batch_size\)"),
        (torch.rand(B, 1), rf"shape \({B}, 1\)", r"write {}\.flatten\(\)"),
        (torch.rand(B, 7), rf"shape \({B}, 7\)", r"infobatch\.losses\.per_sample\({}"),
        (torch.rand(B, 7, 7), rf"shape \({B}, 7, 7\)", r"infobatch\.losses\.per_sample\({}"),
        (torch.ones(B, dtype=torch.long), r"torch\.int64", "one number per sample"),
        (torch.ones(B, dtype=torch.bool), r"torch\.bool", "one number per sample"),
        (torch.ones(B, dtype=torch.complex64), r"torch\.complex64", "one number per sample"),
        (torch.rand(0), r"shape \(0,\)", "one number per sample"),
        ([0.5] * B, "got list", r"float tensor of shape \(B,\)"),
        (np.ones(B), "got ndarray", r"float tensor of shape \(B,\)"),
        (0.5, "got float", r"float tensor of shape \(B,\)"),
    ],
)
@pytest.mark.parametrize("argument", ["losses", "scores"])
def test_what_is_not_one_float_per_sample_is_refused_with_the_remedy(
    wrong, received, remedy, argument
):
    pruner, steps = in_a_pruned_epoch()
    ids, weights = next(steps)
    before = pruner.scores
    given = {"losses": torch.rand(B), argument: wrong}
    with pytest.raises(LossError, match=remedy.format(argument)) as caught:
        pruner.update(**given)
    assert isinstance(caught.value, InfoBatchError)
    assert isinstance(caught.value, ValueError)
    caught.match(received)
    caught.match(f"{argument} must be")
    assert torch.equal(pruner.scores, before)
    assert pruner.progress == 0.1
    pruner.update(torch.rand(B))


@pytest.mark.parametrize("reduction", ["Mean", "avg", "", None, 0])
def test_a_reduction_that_does_not_exist_is_refused(reduction):
    pruner, steps = in_a_pruned_epoch()
    next(steps)
    before = pruner.scores
    with pytest.raises(ValueError, match='reduction must be "mean", "sum" or "none"'):
        pruner.update(torch.rand(B), reduction=reduction)
    assert torch.equal(pruner.scores, before)
    pruner.update(torch.rand(B))


@pytest.mark.parametrize("length", [1, B - 1, B + 1])
def test_scores_that_are_not_one_per_loss_are_refused(length):
    pruner, steps = in_a_pruned_epoch()
    next(steps)
    with pytest.raises(LossError, match=f"scores must be one per loss: got {length} for {B}"):
        pruner.update(torch.rand(B), scores=torch.rand(length))
    pruner.update(torch.rand(B))


# --- scores ---------------------------------------------------------------------------------------


def test_scores_rank_the_samples_and_losses_train_the_model():
    pruner = InfoBatch(N, 10, batch_size=1)
    scores, losses = torch.linspace(0, 1, N), torch.linspace(5, 4, N)
    for ids in batches(pruner):
        assert torch.equal(pruner.update(losses[ids], scores=scores[ids]), losses[ids].mean())
    assert torch.equal(pruner.scores, scores)
    assert pruner.history[0].mean_loss == pytest.approx(4.5)
    kept = set(pruner.plan.indices.tolist())
    assert pruner.plan.threshold == pytest.approx(0.5)
    assert set(range(N // 2, N)) <= kept, "samples of a high score are kept, whatever their loss"
    assert len(kept) == N // 2 + N // 4


def test_scores_may_come_with_some_batches_and_need_no_gradient():
    pruner = InfoBatch(N, 10)
    for step, ids in enumerate(batches(pruner)):
        losses = torch.rand(len(ids), requires_grad=True)
        scores = torch.rand(len(ids), dtype=torch.float64, requires_grad=True)
        if step % 2:
            pruner.update(losses, scores=scores).backward()
            assert scores.grad is None
            assert torch.equal(pruner.scores[ids], scores.detach().float())
        else:
            pruner.update(losses).backward()
            assert torch.equal(pruner.scores[ids], losses.detach())


def test_scores_given_out_are_a_copy():
    pruner, _ = in_a_pruned_epoch()
    given = pruner.scores
    given.fill_(100.0)
    assert pruner.scores.max() <= 1.0


def test_score_ema_keeps_a_running_mean_that_starts_at_the_first_loss():
    pruner = InfoBatch(N, 10, score_ema=0.8)
    truth = torch.full((N,), torch.nan, dtype=torch.float64)
    for _ in range(5):
        for ids in batches(pruner):
            losses = torch.rand(len(ids))
            pruner.update(losses)
            mixed = 0.8 * truth[ids] + 0.2 * losses.double()
            truth[ids] = torch.where(truth[ids].isnan(), losses.double(), mixed)
        torch.testing.assert_close(pruner.scores, truth.float())


# --- losses that are not finite -------------------------------------------------------------------


BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


@BAD
def test_samples_of_non_finite_loss_are_counted_kept_and_leave_the_threshold_alone(bad):
    losses = torch.linspace(0, 1, N)
    losses[[3, 50]] = bad
    pruner = InfoBatch(N, 10, batch_size=1)
    with pytest.warns(NonFiniteLossWarning, match=f"epoch 0: 2 of {N} samples") as warned:
        train(pruner, losses)
    assert len(warned) == 1, "one warning an epoch"
    record = pruner.history[0]
    finite = losses[losses.isfinite()].double()
    assert record.non_finite == 2
    assert record.mean_loss == pytest.approx(finite.mean().item(), rel=1e-12)
    assert pruner.plan.threshold == pytest.approx(finite.mean().item(), rel=1e-12)
    weight_of = dict(zip(pruner.plan.indices.tolist(), pruner.plan.weights.tolist(), strict=True))
    assert weight_of[3] == weight_of[50] == 1.0
    below = int((finite < finite.mean()).sum())
    assert len(pruner.plan) == N - (below - math.floor(below / 2 + 0.5))
    assert pruner.plan.weights.sum().item() == pytest.approx(N)


def test_each_epoch_with_non_finite_losses_warns_once_and_no_other_does():
    pruner = InfoBatch(N, 10)
    for bad_samples in (5, 0, 1):
        losses = torch.rand(N)
        losses[pruner.plan.indices[:bad_samples]] = math.nan
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(pruner, losses)
        assert [warning.category for warning in caught] == [NonFiniteLossWarning] * bool(
            bad_samples
        )
        assert pruner.history[-1].non_finite == bad_samples


def test_a_non_finite_sample_that_recovers_is_ranked_like_any_other():
    pruner = InfoBatch(N, 10, 0.9)
    losses = torch.linspace(0, 1, N)
    sick = losses.clone()
    sick[:20] = math.nan
    with pytest.warns(NonFiniteLossWarning):
        train(pruner, sick)
    assert set(range(20)) <= set(pruner.plan.indices.tolist())
    train(pruner, losses)
    assert not set(range(20)) <= set(pruner.plan.indices.tolist())


def test_an_epoch_of_nothing_but_nan_is_followed_by_a_full_one():
    pruner = InfoBatch(N, 10)
    with pytest.warns(NonFiniteLossWarning, match=f"{N} of {N}"):
        train(pruner, torch.full((N,), math.nan))
    assert math.isnan(pruner.history[0].mean_loss)
    assert len(pruner.plan) == N
    assert torch.equal(pruner.plan.weights, torch.ones(N, dtype=torch.float64))


def test_the_loss_given_back_is_as_non_finite_as_what_came():
    """Hiding it is not ours to decide: loss scalers look for it."""
    pruner, steps = in_a_pruned_epoch()
    next(steps)
    losses = torch.rand(B)
    losses[2] = math.nan
    assert pruner.update(losses).isnan()


def test_a_non_finite_score_counts_as_a_non_finite_loss_does():
    pruner = InfoBatch(N, 10)
    scores = torch.linspace(0, 1, N)
    scores[:7] = math.nan
    with pytest.warns(NonFiniteLossWarning, match=f"7 of {N}"):
        for ids in batches(pruner):
            pruner.update(torch.ones(len(ids)), scores=scores[ids])
    assert pruner.history[0].non_finite == 7
    assert pruner.history[0].mean_loss == 1.0
    assert set(range(7)) <= set(pruner.plan.indices.tolist())


def test_a_double_loss_too_large_for_a_float_counts_as_infinite():
    pruner = InfoBatch(N, 10)
    losses = torch.linspace(0, 1, N, dtype=torch.float64)
    losses[0] = 1e300
    with pytest.warns(NonFiniteLossWarning, match=f"1 of {N}"):
        train(pruner, losses)
    assert 0 in pruner.plan.indices


# --- the record of an epoch -----------------------------------------------------------------------


def test_history_tells_what_each_epoch_was():
    pruner = InfoBatch(N, 4, prune_ratio=0.5, delta=0.75)
    for epoch in range(4):
        plan, losses = pruner.plan, torch.rand(N) * 10
        threshold = pruner.scores.double().mean().item()
        train(pruner, losses)
        record = pruner.history[epoch]
        assert record.epoch == epoch
        assert record.total == N
        assert record.kept == record.trained == len(plan)
        assert record.non_finite == 0
        assert record.mean_loss == pytest.approx(
            losses[plan.indices].double().mean().item(), rel=1e-12
        )
        assert record.mean_weight == pytest.approx(plan.weights.mean().item(), rel=1e-12)
        if epoch in (1, 2):
            assert record.threshold == plan.threshold == pytest.approx(threshold, rel=1e-12)
            assert record.kept < N
        else:
            assert math.isnan(record.threshold)
            assert record.kept == N
    assert pruner.epoch == 4
    assert pruner.progress == 1.0
    passes = sum(record.kept for record in pruner.history)
    assert pruner.saved_fraction == pytest.approx(1 - passes / (4 * N))
    assert f"{4 * N:,}" in pruner.summary()


@pytest.mark.parametrize("rescale", [True, False])
def test_any_policys_weights_are_applied(rescale):
    pruner = DataPruner(N, 4, RandomSubset(0.25, rescale=rescale), batch_size=1)
    train(pruner, torch.rand(N))
    for ids in batches(pruner):
        losses = torch.rand(len(ids))
        expected = losses * np.float32(4 / 3) if rescale else losses
        assert torch.equal(pruner.update(losses, reduction="none"), expected)
    assert pruner.history[1].kept == 72


def test_a_transform_of_torch_func_is_refused_and_the_way_out_works():
    """What is computed inside it cannot be kept for later."""
    pruner = InfoBatch(64, 3)
    parameters = torch.rand(64)
    loader = DataLoader(range(64), 8, sampler=pruner.sampler)
    for ids in loader:
        with pytest.raises(LossError, match=r"torch\.func transform.*pruner\.coming_weights\(B\)"):
            torch.func.grad(lambda p, ids=ids: pruner.update(p[ids] ** 2))(parameters)
        weights = pruner.coming_weights(len(ids))

        def loss_of(p, ids=ids, weights=weights):
            losses = p[ids] ** 2
            return (weights * losses).mean(), losses

        gradient, losses = torch.func.grad(loss_of, has_aux=True)(parameters)
        pruner.update(losses)
        assert int(gradient.count_nonzero()) == 8
    assert torch.equal(pruner.scores, parameters**2)


def test_an_update_under_inference_mode_does_not_spoil_those_after_it():
    pruner = InfoBatch(4096, 3)
    for number, ids in enumerate(DataLoader(range(4096), 16, sampler=pruner.sampler)):
        with torch.inference_mode(number == 0):
            pruner.update(ids.float())
    assert torch.equal(pruner.scores, torch.arange(4096.0))
