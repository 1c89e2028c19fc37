"""One loss per sample, shape (B,), from what models and criteria usually return."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import InfoBatchError, LossError
from infobatch.losses import (
    batch_mean,
    class_weighted,
    el2n,
    mixed,
    output_gradient_norms,
    per_sample,
    soft_target_score,
)

NAN, INF = float("nan"), float("inf")


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


@given(st.data())
def test_it_is_the_mean_over_the_valid_positions_for_any_shape_and_mask(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    part = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    loss_map, mask = torch.randn(shape, dtype=dtype), torch.rand(shape) < part
    losses = per_sample(loss_map, mask)
    assert (losses.dtype, losses.shape) == (dtype, (shape[0],))
    torch.testing.assert_close(losses, by_loop(loss_map, mask))
    torch.testing.assert_close(per_sample(loss_map), by_loop(loss_map))


def test_a_mask_of_samples_is_not_taken_for_one_of_positions():
    with pytest.raises(LossError, match=r"needs the same dimensions.*mask\[:, None\]"):
        per_sample(torch.rand(4, 4), torch.tensor([True, False, False, False]))


@pytest.mark.parametrize("mask_shape", [(1, 6), (4, 1), (1, 1), ()], ids=str)
def test_a_mask_may_broadcast_to_the_map(mask_shape):
    loss_map, mask = torch.rand(4, 6), torch.rand(mask_shape) < 0.5
    expected = by_loop(loss_map, mask.expand(4, 6))
    torch.testing.assert_close(per_sample(loss_map, mask), expected)


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


def test_any_memory_layout_will_do_and_none_is_written_to():
    loss_map, mask = torch.rand(5, 3, 4), torch.rand(5, 3, 4) < 0.5
    kept = loss_map.clone(), mask.clone()
    turned = loss_map.permute(2, 0, 1), mask.permute(2, 0, 1)
    torch.testing.assert_close(per_sample(*turned), by_loop(*turned))
    torch.testing.assert_close(per_sample(turned[0]), by_loop(turned[0]))
    assert torch.equal(loss_map, kept[0])
    assert torch.equal(mask, kept[1])


# ---------------------------------------------------------------- per_sample: gradients


@pytest.mark.parametrize("shape", [(4,), (1, 6), (2, 3, 4, 5)], ids=str)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_sample_of_the_batch_gets_the_batch_s_loss_without_a_copy(dtype):
    loss = torch.tensor(1.5, dtype=dtype)
    losses = batch_mean(loss, 4)
    assert losses.tolist() == [1.5] * 4
    assert losses.dtype == dtype
    assert losses.data_ptr() == loss.data_ptr()


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


# ---------------------------------------------------------------- class_weighted

CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 5.0, 0.0], dtype=torch.float64)


def batch_of(size, classes=4, dtype=torch.float64, seed=0):
    """Logits that want a gradient, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, dtype=dtype, generator=generator, requires_grad=True)
    return logits, torch.randint(classes, (size,), generator=generator)


@given(size=st.integers(1, 20), seed=st.integers(0, 100))
def test_the_mean_of_class_weighted_losses_is_torch_s_weighted_mean_and_so_is_its_gradient(
    size, seed
):
    logits, labels = batch_of(size, seed=seed)
    labels[0] = 1  # not all of weight 0
    expected = F.cross_entropy(logits, labels, weight=CLASS_WEIGHTS)
    losses = F.cross_entropy(logits, labels, reduction="none")
    found = class_weighted(losses, labels, CLASS_WEIGHTS).mean()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    (torch_s,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, torch_s)


def test_class_weighted_losses_are_on_another_scale_than_torch_s_without_reduction():
    logits, labels = batch_of(12)
    unreduced = F.cross_entropy(logits, labels, weight=CLASS_WEIGHTS, reduction="none")
    found = class_weighted(F.cross_entropy(logits, labels, reduction="none"), labels, CLASS_WEIGHTS)
    torch.testing.assert_close(found, unreduced * (12 / CLASS_WEIGHTS[labels].sum()))
    assert abs(found.mean() - unreduced.mean()) > 0.1


def test_update_gives_the_weighted_mean_in_which_each_sample_has_both_its_weights():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (24,), generator=generator)
    table = torch.rand(24, dtype=torch.float64, generator=generator)
    pruner = InfoBatch(24, 3, prune_ratio=0.5, delta=1.0, seed=1)
    loader = DataLoader(range(24), batch_size=6, sampler=pruner.sampler)
    for epoch in range(2):
        position, mixtures = 0, 0
        for ids in loader:
            c, w = CLASS_WEIGHTS[labels[ids]], pruner.plan.weights[position : position + len(ids)]
            position, mixtures = position + len(ids), mixtures + len(set(w.tolist())) - 1
            losses = class_weighted(table[ids], labels[ids], CLASS_WEIGHTS)
            found = pruner.update(losses, scores=table[ids])
            torch.testing.assert_close(found, (w * c * table[ids]).sum() / c.sum())
        assert (mixtures > 0) == (epoch == 1)
        trained = pruner.scores[~pruner.scores.isnan()]
        assert set(trained.tolist()) <= set(table.float().tolist())  # ranked without the weights


@pytest.mark.parametrize("scale", [0.25, 1.0, 1000.0])
def test_the_scale_of_class_weights_does_not_matter(scale):
    losses, labels = torch.rand(9), torch.randint(4, (9,))
    labels[0] = 2
    torch.testing.assert_close(
        class_weighted(losses, labels, scale * CLASS_WEIGHTS),
        class_weighted(losses, labels, CLASS_WEIGHTS),
    )
    torch.testing.assert_close(class_weighted(losses, labels, torch.full((4,), scale)), losses)


def test_a_batch_of_classes_that_weigh_nothing_has_loss_zero_and_no_gradient():
    losses = torch.rand(3, requires_grad=True)
    found = class_weighted(losses, torch.tensor([3, 3, 3]), CLASS_WEIGHTS)
    found.sum().backward()
    assert found.tolist() == losses.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights_dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_of_class_weighted_losses_stays_and_sums_do_not_overflow(dtype, weights_dtype):
    labels = torch.arange(3000) % 2
    losses = torch.full((3000,), 0.5, dtype=dtype, requires_grad=True)
    found = class_weighted(losses, labels, torch.tensor([32.0, 96.0], dtype=weights_dtype))
    assert found.dtype == dtype
    assert found[:2].tolist() == [0.25, 0.75]
    found.float().sum().backward()
    assert losses.grad[:2].tolist() == [0.5, 1.5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_may_be_integers_of_any_width(dtype):
    losses = torch.tensor([1.0, 1.0, 1.0])
    found = class_weighted(losses, torch.tensor([0, 1, 1], dtype=dtype), torch.tensor([2.0, 1.0]))
    assert found.tolist() == [1.5, 0.75, 0.75]


def test_class_weighted_writes_to_none_of_its_arguments():
    given_ = torch.rand(3), torch.tensor([0, 1, 2]), CLASS_WEIGHTS.clone()
    kept = [each.clone() for each in given_]
    class_weighted(*given_)
    assert all(torch.equal(a, b) for a, b in zip(given_, kept, strict=True))


@pytest.mark.parametrize("label", [-100, -1, 4, 255])
def test_a_label_that_is_no_class_is_refused_and_named(label):
    labels = torch.tensor([0, label, 3])
    with pytest.raises(LossError, match=rf"0 to 3, .* got \[{label}\]; leave samples without a c"):
        class_weighted(torch.rand(3), labels, CLASS_WEIGHTS)


@pytest.mark.parametrize("weight", [-0.5, NAN, INF])
def test_a_class_weight_that_is_none_is_refused(weight):
    with pytest.raises(LossError, match=rf"finite and not negative, got \[{weight}\]"):
        class_weighted(torch.rand(2), torch.tensor([0, 1]), torch.tensor([1.0, weight]))


@pytest.mark.parametrize(
    ("losses", "labels", "weights", "message"),
    [
        (torch.tensor(1.0), torch.tensor(0), torch.ones(2), "needs losses of shape.*reduction="),
        (torch.ones(3, 2), torch.zeros(3).long(), torch.ones(2), "reduce maps .* with per_sample"),
        (torch.ones(3).long(), torch.zeros(3).long(), torch.ones(2), "one float per sample"),
        (torch.ones(3), torch.zeros(2).long(), torch.ones(2), r"of shape \(3,\), got .*\(2,\)"),
        (torch.ones(3), torch.zeros(3), torch.ones(2), "torch's mean divides by the batch size"),
        (torch.ones(3), torch.zeros(3, 2), torch.ones(2), "targets that are probabilities"),
        (torch.ones(3), torch.zeros(3).bool(), torch.ones(2), "integers .* got torch.bool"),
        (torch.ones(3), torch.zeros(3).long(), torch.ones(3, 2), "one float per class"),
        (torch.ones(3), torch.zeros(3).long(), torch.tensor([1, 2]), "one float per class"),
    ],
)
def test_class_weighted_refuses_what_does_not_fit_with_the_remedy(losses, labels, weights, message):
    with pytest.raises(LossError, match=message):
        class_weighted(losses, labels, weights)


# ---------------------------------------------------------------- mixed


def mixture(size=8, dtype=torch.float64, seed=0):
    """Losses of mixed inputs against both their labels, and what was mixed into each."""
    generator = torch.Generator().manual_seed(seed)
    own, partner = torch.rand(2, size, dtype=torch.float64, generator=generator).to(dtype)
    return own, partner, torch.randperm(size, generator=generator)


@pytest.mark.parametrize("each", [False, True], ids=["one lam", "a lam each"])
@given(size=st.integers(1, 20), seed=st.integers(0, 100))
def test_every_part_is_credited_to_the_sample_of_its_label(each, size, seed):
    own, partner, permutation = mixture(size, seed=seed)
    lam = torch.rand(size, dtype=torch.float64) if each else 0.3
    shares = lam.tolist() if each else [lam] * size
    expected = [share * loss for share, loss in zip(shares, own.tolist(), strict=True)]
    for row, sample in enumerate(permutation.tolist()):
        expected[sample] += (1 - shares[row]) * partner[row].item()
    found = mixed(own, partner, permutation, lam)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    usual = lam * own + (1 - lam) * partner
    torch.testing.assert_close(found.sum(), usual.sum())


def test_every_part_of_a_mixture_is_weighted_by_its_owner():
    table = torch.rand(2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pruner = InfoBatch(24, 3, prune_ratio=0.5, delta=1.0, seed=1)
    loader = DataLoader(range(24), batch_size=6, sampler=pruner.sampler)
    for epoch in range(2):
        position, unlike = 0, 0
        for ids in loader:
            weights = pruner.plan.weights[position : position + len(ids)]
            position += len(ids)
            permutation = torch.randperm(len(ids))
            own, partner = table[0][ids], table[1][ids[permutation]]
            found = pruner.update(mixed(own, partner, permutation, 0.7), reduction="sum")
            by_owner = 0.7 * weights * own + 0.3 * weights[permutation] * partner
            torch.testing.assert_close(found, by_owner.sum())
            by_place = weights * (0.7 * own + 0.3 * partner)
            unlike += abs(float(by_place.sum() - found)) > 0.01
            expected = (0.7 * table[0] + 0.3 * table[1])[ids]
            torch.testing.assert_close(pruner.scores[ids], expected.float())
        assert (unlike > 0) == (epoch == 1)


def test_the_gradients_of_a_mixture_are_exact():
    own, partner, permutation = mixture()
    own.requires_grad_()
    partner.requires_grad_()
    for lam in (0.3, torch.rand(8, dtype=torch.float64)):
        assert torch.autograd.gradcheck(
            lambda a, b, lam=lam: mixed(a, b, permutation, lam), (own, partner)
        )


@pytest.mark.parametrize(("lam", "whose"), [(1.0, 0), (0.0, 1), (1, 0), (torch.ones(8), 0)])
def test_at_the_ends_of_lam_there_is_one_sample_in_each_input(lam, whose):
    own, partner, permutation = mixture()
    found = mixed(own, partner, permutation, lam)
    if whose == 0:
        assert torch.equal(found, own)
    else:
        assert torch.equal(found[permutation], partner)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "lam", [0.25, torch.tensor(0.25), torch.full((8,), 0.25), np.float64(0.25), np.float32(0.25)]
)
def test_the_dtype_of_a_mixture_s_losses_stays_whatever_lam_is(dtype, lam):
    own, partner, permutation = mixture(dtype=dtype)
    found = mixed(own.requires_grad_(), partner, permutation, lam)
    assert found.dtype == dtype
    expected = mixed(own.double(), partner.double(), permutation, 0.25)
    torch.testing.assert_close(found, expected.to(dtype))
    found.sum().backward()
    assert own.grad.tolist() == [0.25] * 8


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 1], "each of 0 to 2 once"),
        ([1, 2, 3], "each of 0 to 2 once"),
        ([-1, 0, 1], "each of 0 to 2 once"),
        ([0, 1], r"integers of shape \(3,\), got torch.int64 of shape \(2,\)"),
        ([0.0, 1.0, 2.0], r"got torch.float32.*torch.randperm"),
        ([True, False, True], "got torch.bool"),
    ],
)
def test_what_is_no_permutation_is_refused_with_the_remedy(order, message):
    with pytest.raises(LossError, match=f"permutation must .*{message}"):
        mixed(torch.rand(3), torch.rand(3), torch.tensor(order), 0.5)


@pytest.mark.parametrize(
    ("own", "partner", "message"),
    [
        (torch.tensor(1.0), torch.tensor(1.0), 'mixed needs losses of shape.*reduction="none"'),
        (torch.rand(3, 2), torch.rand(3, 2), "mixed needs losses of shape"),
        (torch.ones(3).long(), torch.ones(3).long(), "one float per sample, got torch.int64"),
        (torch.rand(3), torch.rand(2), r"partner must be like own, .*\(3,\), got .*\(2,\)"),
        (torch.rand(3), torch.rand(3).double(), r"like own.*labels\[permutation\]"),
    ],
)
def test_a_mixture_of_what_are_no_losses_is_refused_with_the_remedy(own, partner, message):
    with pytest.raises(LossError, match=message):
        mixed(own, partner, torch.arange(3), 0.5)


@pytest.mark.parametrize(
    ("lam", "error", "message"),
    [
        (1.5, ValueError, r"lam must be in \[0, 1\].* got 1.5"),
        (NAN, ValueError, r"lam must be in \[0, 1\]"),
        ("0.5", TypeError, "lam must be a number"),
        (torch.tensor([0.0, 0.5, 1.25]), ValueError, r"lam must be in \[0, 1\], got 0 to 1.25"),
        (torch.tensor([0.0, NAN, 1.0]), ValueError, r"lam must be in \[0, 1\]"),
        (torch.rand(2), ValueError, r"one number, or floats of shape \(3,\), got .*\(2,\)"),
        (torch.tensor([0, 1, 1]), ValueError, "floats of shape .* got torch.int64"),
    ],
)
def test_a_lam_that_is_none_is_refused(lam, error, message):
    with pytest.raises(error, match=message):
        mixed(torch.rand(3), torch.rand(3), torch.arange(3), lam)


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
        (torch.rand(4), torch.zeros(4, dtype=torch.long)),
        (torch.rand(4, 3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)),
    ],
)
def test_el2n_of_other_shapes_is_refused_with_the_remedy(logits, labels):
    with pytest.raises(
        LossError, match=r"logits \(B, C\) and class numbers \(B,\), .*transpose\(1, 2\)"
    ):
        el2n(logits, labels)


def test_el2n_of_maps_is_pooled_over_the_positions_that_count():
    logits, labels = 2 * torch.randn(5, 4, 6, 3), torch.randint(4, (5, 6, 3))
    labels[1, :3] = labels[2] = -100
    score = el2n(logits, labels)
    for row in range(5):
        counts = labels[row] != -100
        each = el2n(logits[row].movedim(0, -1)[counts], labels[row][counts])
        expected = each.square().mean().sqrt() if counts.any() else torch.tensor(0.0)
        torch.testing.assert_close(score[row], expected)
    again = el2n(logits, torch.where(labels == -100, 7, labels), ignore_index=7)
    torch.testing.assert_close(again, score)


# ------------------------------------------------------------------ soft_target_score


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_soft_target_score_of_a_class_is_its_cross_entropy(dtype):
    logits, labels = torch.randn(50, 7).to(dtype), torch.randint(7, (50,))
    score = soft_target_score(logits, labels)
    assert score.dtype == torch.float32
    plain = F.cross_entropy(logits.float(), labels, reduction="none")
    torch.testing.assert_close(score, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_soft_target_score_is_zero_where_the_model_gives_the_target(smoothing):
    targets = torch.rand(9, 4).softmax(1)
    learned = ((1 - smoothing) * targets + smoothing / 4).log() + 5.0
    score = soft_target_score(learned, targets, label_smoothing=smoothing)
    torch.testing.assert_close(score, torch.zeros(9), rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [True, False])
def test_the_soft_target_score_bounds_the_gradient_at_the_logits(smoothing, soft):
    logits = (3 * torch.randn(40, 6)).requires_grad_()
    targets = torch.rand(40, 6).softmax(1) if soft else torch.randint(6, (40,))
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    score = soft_target_score(logits, targets, label_smoothing=smoothing)
    distance = -torch.expm1(-score)
    torch.testing.assert_close(distance, gradient.abs().sum(1) / 2, rtol=1e-3, atol=1e-5)


def test_a_soft_target_score_is_finite_where_the_model_is_sure_of_another_class():
    score = soft_target_score(torch.tensor([[-200.0, 200.0]]), torch.tensor([0]))
    assert 15 < float(score) < 17


@pytest.mark.parametrize(
    ("logits", "targets", "complaint"),
    [
        (torch.rand(4, 3), torch.zeros(3, dtype=torch.long), r"logits \(B, C\)"),
        (torch.rand(4, 3), torch.rand(4, 2), r"logits \(B, C\)"),
        (torch.rand(4, 3, 2), torch.zeros(4, dtype=torch.long), r"logits \(B, C\)"),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long), "int64"),
    ],
)
def test_a_soft_target_score_of_other_shapes_is_refused(logits, targets, complaint):
    with pytest.raises(LossError, match=complaint):
        soft_target_score(logits, targets)
    with pytest.raises(ValueError, match="label_smoothing must be"):
        soft_target_score(torch.rand(4, 3), torch.zeros(4).long(), label_smoothing=1.5)


# ------------------------------------------------------------------ output_gradient_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_output_gradient_norms_are_those_of_each_sample_alone(dtype):
    model = torch.nn.Linear(6, 8).to(dtype)
    inputs, targets = torch.randn(5, 6, dtype=dtype), torch.randn(5, 8, dtype=dtype)
    outputs = model(inputs).unflatten(1, (2, 4))
    losses = (outputs.flatten(1) - targets).abs().pow(1.5).mean(1)
    norms = output_gradient_norms(losses, outputs)
    assert norms.dtype == torch.float32
    assert not norms.requires_grad
    for row in range(5):
        alone = outputs[row].detach().clone().requires_grad_()
        loss = (alone.flatten() - targets[row]).abs().pow(1.5).mean()
        (gradient,) = torch.autograd.grad(loss, alone)
        torch.testing.assert_close(norms[row], gradient.float().norm(), rtol=1e-2, atol=1e-3)
    losses.mean().backward()  # the graph is still there
    assert model.weight.grad is not None


def test_output_gradient_norms_of_cross_entropies_are_el2n():
    logits = torch.randn(9, 4).requires_grad_()
    labels = torch.randint(4, (9,))
    losses = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(output_gradient_norms(losses, logits), el2n(logits, labels))


def test_output_gradient_norms_without_a_graph_are_refused():
    outputs = torch.randn(4, 3, requires_grad=True)
    losses = outputs.square().mean(1)
    for arguments, complaint in (
        ((losses.detach(), outputs), "with their graph"),
        ((losses, outputs.detach()), "with their graph"),
        ((losses, torch.randn(4, 3, requires_grad=True)), "do not depend on these outputs"),
        ((losses, outputs[:2]), "those of 4 samples"),
        ((losses.mean(), outputs), r"losses of shape \(B,\)"),
    ):
        with pytest.raises(LossError, match=complaint):
            output_gradient_norms(*arguments)


def test_a_loss_error_is_caught_as_value_error_and_as_the_library_s_own():
    assert issubclass(LossError, ValueError)
    assert issubclass(LossError, InfoBatchError)
