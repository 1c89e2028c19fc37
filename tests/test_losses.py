"""One loss per sample, shape (B,), from what models and criteria usually return."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import InfoBatchError, LossError
from infobatch.losses import batch_mean, el2n, per_sample

NAN, INF = float("nan"), float("inf")
SHAPES = [(4,), (4, 1), (1, 6), (4, 6), (3, 2, 5), (2, 3, 4, 5)]


def by_loop(loss_map, ignore_mask=None):
    """The mean over valid positions, one sample and one position at a time; 0 without any."""
    means = []
    for sample in range(len(loss_map)):
        values = loss_map[sample].flatten().tolist()
        ignored = [False] * len(values)
        if ignore_mask is not None:
            ignored = ignore_mask[sample].flatten().tolist()
        valid = [value for value, skip in zip(values, ignored, strict=True) if not skip]
        means.append(math.fsum(valid) / len(valid) if valid else 0.0)
    return torch.tensor(means, dtype=loss_map.dtype)


# ---------------------------------------------------------------- per_sample: values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_mask_it_is_the_mean_over_all_positions(shape, dtype):
    loss_map = torch.rand(shape, dtype=dtype)
    losses = per_sample(loss_map)
    assert losses.shape == (shape[0],)
    assert losses.dtype == dtype
    torch.testing.assert_close(losses, by_loop(loss_map))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_a_mask_it_is_the_mean_over_the_valid_positions(shape, dtype):
    loss_map, mask = torch.rand(shape, dtype=dtype), torch.rand(shape) < 0.4
    losses = per_sample(loss_map, mask)
    assert losses.shape == (shape[0],)
    assert losses.dtype == dtype
    torch.testing.assert_close(losses, by_loop(loss_map, mask))


@given(st.data())
def test_it_equals_the_loop_for_any_shape_and_mask(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    seed = data.draw(st.integers(0, 1000))
    part = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    loss_map = torch.randn(shape, dtype=torch.float64, generator=generator)
    mask = torch.rand(shape, generator=generator) < part
    torch.testing.assert_close(per_sample(loss_map, mask), by_loop(loss_map, mask))


def test_a_mask_of_samples_is_not_taken_for_one_of_positions():
    with pytest.raises(LossError, match=r"needs the same dimensions.*mask\[:, None\]"):
        per_sample(torch.rand(4, 4), torch.tensor([True, False, False, False]))


@pytest.mark.parametrize("mask_shape", [(1, 6), (4, 1), (1, 1), ()], ids=str)
def test_a_mask_may_broadcast_to_the_map(mask_shape):
    loss_map, mask = torch.rand(4, 6), torch.rand(mask_shape) < 0.5
    expected = by_loop(loss_map, mask.expand(4, 6))
    torch.testing.assert_close(per_sample(loss_map, mask), expected)


def test_an_all_false_mask_changes_nothing():
    loss_map = torch.rand(5, 7, dtype=torch.float64)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    torch.testing.assert_close(per_sample(loss_map, mask), per_sample(loss_map))


def test_a_sample_of_which_every_position_is_ignored_has_loss_zero_and_no_gradient():
    loss_map = torch.rand(3, 4, requires_grad=True)
    mask = torch.tensor([[False] * 4, [True] * 4, [False, True, True, True]])
    losses = per_sample(loss_map, mask)
    assert losses[1] == 0.0
    assert losses[2] == loss_map[2, 0]
    losses.sum().backward()
    assert loss_map.grad[1].tolist() == [0.0] * 4
    assert loss_map.grad[0].tolist() == [0.25] * 4


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_stands_at_ignored_positions_has_no_influence(bad):
    clean = torch.rand(3, 4)
    mask = torch.tensor([[False] * 4, [True] * 4, [False, True, True, False]])
    dirty = clean.masked_fill(mask, bad).requires_grad_()
    losses = per_sample(dirty, mask)
    assert torch.equal(losses, per_sample(clean, mask))
    losses.sum().backward()
    assert bool(dirty.grad.isfinite().all())
    assert bool((dirty.grad[mask] == 0.0).all())


def test_a_non_finite_loss_at_a_valid_position_shows():
    loss_map = torch.tensor([[1.0, NAN], [1.0, INF], [1.0, 2.0]])
    mask = torch.zeros(3, 2, dtype=torch.bool)
    for losses in (per_sample(loss_map), per_sample(loss_map, mask)):
        assert losses.isfinite().tolist() == [False, False, True]


def test_neither_the_map_nor_the_mask_is_written_to():
    loss_map, mask = torch.rand(3, 4), torch.rand(3, 4) < 0.5
    kept = loss_map.clone(), mask.clone()
    per_sample(loss_map, mask)
    assert torch.equal(loss_map, kept[0])
    assert torch.equal(mask, kept[1])


def test_any_memory_layout_will_do():
    loss_map, mask = torch.rand(5, 3, 4), torch.rand(5, 3, 4) < 0.5
    turned = loss_map.permute(2, 0, 1), mask.permute(2, 0, 1)
    torch.testing.assert_close(per_sample(*turned), by_loop(*turned))
    torch.testing.assert_close(per_sample(turned[0]), by_loop(turned[0]))


# ---------------------------------------------------------------- per_sample: gradients


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_exact(shape):
    loss_map = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(shape) < 0.4
    mask[0] = True
    assert torch.autograd.gradcheck(per_sample, (loss_map,))
    assert torch.autograd.gradcheck(lambda losses: per_sample(losses, mask), (loss_map,))


# ---------------------------------------------------------------- per_sample: real criteria


def test_token_losses_with_ignore_index_are_the_mean_over_each_sample_s_own_tokens():
    logits = torch.randn(3, 7, 11, dtype=torch.float64)  # (B, T, vocabulary)
    labels = torch.randint(0, 11, (3, 7))
    for sample, length in enumerate((7, 4, 1)):
        labels[sample, length:] = -100
    token_losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    losses = per_sample(token_losses, labels == -100)
    alone = [
        F.cross_entropy(logits[i, :length], labels[i, :length])
        for i, length in enumerate((7, 4, 1))
    ]
    torch.testing.assert_close(losses, torch.stack(alone))


def test_segmentation_maps_with_a_void_class():
    logits = torch.randn(2, 5, 6, 8, dtype=torch.float64)  # (B, classes, H, W)
    labels = torch.randint(0, 5, (2, 6, 8))
    labels[torch.rand(2, 6, 8) < 0.3] = 255
    loss_map = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    losses = per_sample(loss_map, labels == 255)
    alone = [
        F.cross_entropy(logits[i : i + 1], labels[i : i + 1], ignore_index=255) for i in (0, 1)
    ]
    torch.testing.assert_close(losses, torch.stack(alone))


def test_a_batch_whose_samples_have_equally_many_valid_tokens_has_the_criterion_s_own_mean():
    logits, labels = torch.randn(3, 6, 4), torch.randint(0, 4, (3, 6))
    labels[:, 4:] = -100
    token_losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    whole = F.cross_entropy(logits.transpose(1, 2), labels)
    torch.testing.assert_close(per_sample(token_losses, labels == -100).mean(), whole)


# ---------------------------------------------------------------- per_sample: half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_precision_and_does_not_overflow(dtype):
    # 100,000 positions of loss 2: the sum is beyond float16, and beyond what bfloat16 can count.
    loss_map = torch.full((2, 400, 250), 2.0, dtype=dtype)
    mask = torch.zeros(2, 400, 250, dtype=torch.bool)
    mask[1, :399] = True
    for losses in (per_sample(loss_map), per_sample(loss_map, mask)):
        assert losses.dtype == dtype
        assert losses.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_exact_as_its_result_can_be(dtype):
    loss_map, mask = torch.rand(5, 300).to(dtype), torch.rand(5, 300) < 0.5
    expected = by_loop(loss_map.double(), mask).to(dtype)
    torch.testing.assert_close(per_sample(loss_map, mask), expected)
    loss_map.requires_grad_()
    per_sample(loss_map, mask).sum().backward()
    assert loss_map.grad.dtype == dtype


# ---------------------------------------------------------------- batch_mean


def test_every_sample_of_the_batch_gets_the_batch_s_loss_without_a_copy():
    loss = torch.tensor(1.5)
    losses = batch_mean(loss, 4)
    assert losses.tolist() == [1.5] * 4
    assert losses.data_ptr() == loss.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_a_batch_mean_stays(dtype):
    assert batch_mean(torch.tensor(1.5, dtype=dtype), 3).dtype == dtype


def test_the_gradient_is_that_of_the_loss_times_the_batch_s_mean_weight():
    # A loss with no per-sample form: a variance over the batch.
    pruner = InfoBatch(24, 3, prune_ratio=0.5, delta=1.0, seed=1)
    inputs = torch.randn(24, 3, dtype=torch.float64)
    table = torch.rand(24, dtype=torch.float64)
    loader = DataLoader(range(24), batch_size=6, sampler=pruner.sampler)
    for samples in loader:
        pruner.update(table[samples])  # so that the second epoch prunes
    position, mixed = 0, 0
    for samples in loader:
        weights = pruner.plan.weights[position : position + len(samples)]
        position += len(samples)
        mixed += len(set(weights.tolist())) > 1
        theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
        loss = (inputs[samples] @ theta).var()
        updated = pruner.update(batch_mean(loss, len(samples)))
        torch.testing.assert_close(updated, loss * weights.mean())
        (found,) = torch.autograd.grad(updated, theta, retain_graph=True)
        (plain,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(found, plain * weights.mean())
        assert pruner.scores[samples].tolist() == [loss.float().item()] * len(samples)
    assert mixed > 0


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("loss_map", "received"),
    [
        (torch.tensor(1.0), r"float32 of shape \(\)"),
        (torch.ones(3, dtype=torch.int64), r"int64 of shape \(3,\)"),
        (torch.ones(3, 2, dtype=torch.bool), r"bool of shape \(3, 2\)"),
        (torch.ones(3, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_is_no_map_of_losses_is_refused_with_the_remedy(loss_map, received):
    with pytest.raises(LossError, match=rf"float tensor of shape \(B, ...\), got torch.{received}"):
        per_sample(loss_map)
    with pytest.raises(LossError, match='compute the loss with reduction="none"'):
        per_sample(loss_map)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_mask_that_is_not_bool_is_refused_with_the_remedy(dtype):
    with pytest.raises(LossError, match=rf"ignore_mask must be a bool .* {dtype}.*labels == -100"):
        per_sample(torch.rand(2, 3), torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 4), (1, 2, 3), (2, 3, 1)], ids=str)
def test_a_mask_that_does_not_fit_is_refused_with_both_shapes(shape):
    with pytest.raises(LossError) as caught:
        per_sample(torch.rand(2, 3), torch.zeros(shape, dtype=torch.bool))
    assert str(shape) in str(caught.value)
    assert "(2, 3)" in str(caught.value)


@pytest.mark.parametrize("loss", [torch.ones(1), torch.ones(4), torch.ones(4, 2)])
def test_a_batch_mean_that_is_no_scalar_is_refused_with_the_remedy(loss):
    with pytest.raises(LossError, match=r"scalar mean loss .* \(B,\) go straight into update"):
        batch_mean(loss, 4)


def test_a_batch_mean_that_is_no_float_is_refused():
    with pytest.raises(LossError, match=r"got torch.int64 of shape \(\)"):
        batch_mean(torch.tensor(3), 4)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_a_batch_size_that_is_no_positive_integer_is_refused(size, error):
    with pytest.raises(error, match="batch_size must be"):
        batch_mean(torch.tensor(1.0), size)


# ------------------------------------------------------------------ el2n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_el2n_is_the_norm_of_the_gradient_at_the_logits(dtype):
    logits = (3 * torch.randn(20, 7)).to(dtype).requires_grad_()
    labels = torch.randint(7, (20,))
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(logits.float(), labels, reduction="sum"), logits
    )
    score = el2n(logits, labels)
    assert score.dtype == torch.float32
    assert not score.requires_grad
    torch.testing.assert_close(score, gradient.float().norm(dim=1), rtol=1e-2, atol=1e-3)


def test_el2n_from_learned_to_sure_of_another_class():
    logits = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([0.0, 2.0, 2 / 3]).sqrt()
    torch.testing.assert_close(el2n(logits, torch.zeros(3, dtype=torch.long)), expected)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.rand(4, 3, 2), torch.zeros(4, dtype=torch.long)),
        (torch.rand(4, 3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)),
    ],
)
def test_el2n_of_other_shapes_is_refused_with_the_remedy(logits, labels):
    with pytest.raises(
        LossError, match=r"logits \(B, C\) and class numbers \(B,\), got .* for dense"
    ):
        el2n(logits, labels)


def test_a_loss_error_is_caught_as_value_error_and_as_the_library_s_own():
    assert issubclass(LossError, ValueError)
    assert issubclass(LossError, InfoBatchError)
