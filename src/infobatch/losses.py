"""One loss per sample, shape (B,), from what models and criteria usually return."""

from __future__ import annotations

import torch
from torch import Tensor

from infobatch._core.validation import check_fraction, check_int
from infobatch.errors import LossError


def per_sample(loss_map: Tensor, ignore_mask: Tensor | None = None) -> Tensor:
    """Mean loss of each sample over its valid positions.

    For dense maps (B, H, W), token losses (B, T), and any other shape (B, ...), as criteria
    return them under `reduction="none"`. With m[i, p] = 0 at ignored positions and 1 elsewhere
    the result is sum_p m[i, p] * loss[i, p] / max(1, sum_p m[i, p]): a sample of which every
    position is ignored has loss 0 and no gradient. What stands at ignored positions, NaN
    included, has no influence.

    Note that the mean over samples of these means weighs each sample alike, where
    `reduction="mean"` on the map weighs each valid position alike.

    Args:
        loss_map: (B, ...) any float dtype.
        ignore_mask: True where a position does not count; bool, the same dimensions, each of
            the same size or 1. For a criterion with `ignore_index=i` it is `labels == i`.

    Returns:
        (B,) the dtype of `loss_map`.

    Raises:
        LossError: a scalar or integer map, or a mask that is not bool or does not fit.
    """
    if loss_map.dim() == 0 or not loss_map.is_floating_point():
        raise LossError(
            "per_sample needs a float tensor of shape (B, ...), got "
            f"{loss_map.dtype} of shape {tuple(loss_map.shape)}; "
            'compute the loss with reduction="none"'
        )
    if ignore_mask is None:
        return loss_map if loss_map.dim() == 1 else loss_map.flatten(1).mean(1)
    if ignore_mask.dtype != torch.bool:
        raise LossError(
            f"ignore_mask must be a bool tensor, True where a position is ignored, "
            f"got {ignore_mask.dtype}; write e.g. labels == -100"
        )
    try:
        ignored = ignore_mask.expand_as(loss_map)
    except RuntimeError:
        ignored = None
    if ignored is None or ignore_mask.dim() not in (0, loss_map.dim()):
        raise LossError(
            f"ignore_mask of shape {tuple(ignore_mask.shape)} does not fit the loss map's shape "
            f"{tuple(loss_map.shape)}: it needs the same dimensions, each of the same size or 1; "
            "write e.g. mask[:, None]"
        )
    batch = loss_map.shape[0]
    kept = loss_map.masked_fill(ignored, 0.0).reshape(batch, -1)
    valid = (~ignored).reshape(batch, -1).sum(1).clamp(min=1)
    # A half-precision sum over a large map would overflow.
    wide = torch.promote_types(loss_map.dtype, torch.float32)
    return (kept.sum(1, dtype=wide) / valid).to(loss_map.dtype)


def batch_mean(loss: Tensor, batch_size: int) -> Tensor:
    """Give every sample of a batch the batch's mean loss: for losses with no per-sample form.

    `pruner.update(batch_mean(loss, len(x)))` multiplies the batch loss by the batch's mean
    rescale weight and scores each of its samples with it. One such score says little about one
    sample; with `score_ema` of 0.7 to 0.9 a sample's score becomes the running mean over the
    batches that it was in (batch-level smoothing, BLS: arXiv 2604.04681).

    Args:
        loss: scalar, any float dtype: the mean loss of the batch.
        batch_size: number of samples in the batch.

    Returns:
        (batch_size,) view of the loss, for `update`.

    Raises:
        LossError: not a floating-point scalar.
    """
    if loss.dim() != 0 or not loss.is_floating_point():
        raise LossError(
            "batch_mean needs the scalar mean loss of a batch, got "
            f"{loss.dtype} of shape {tuple(loss.shape)}; losses of shape (B,) go straight into "
            "update, maps of shape (B, ...) through per_sample"
        )
    return loss.expand(check_int("batch_size", batch_size, at_least=1))


def class_weighted(losses: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Losses times the weights of their classes, on the scale of torch's weighted mean.

    `F.cross_entropy(..., weight=c)` divides by the sum of the batch's class weights, and not by
    the batch size as the mean of what it gives under `reduction="none"` does. Here sample i has
    c[labels[i]] * losses[i] * B / sum_j c[labels[j]], so that the mean over the batch is torch's,
    and `pruner.update` returns sum_i weight_i * c_i * losses_i / sum_j c_j. A batch of which every
    class weighs 0 has losses 0, where torch's mean is NaN.

        losses = F.cross_entropy(model(x), y, reduction="none")
        loss = pruner.update(class_weighted(losses, y, class_weights), scores=losses)

    With `scores=losses` samples are ranked by how well they are learned. Without, they are ranked
    by the weighted losses: rare classes are pruned less. These depend on the batch as well, and are
    no cross-entropies, so pass the scores under `DataPruner(budget=...)`.

    Args:
        losses: (B,) any float dtype, without class weights: of `reduction="none"`.
        labels: (B,) integers, 0 to C - 1. On an accelerator their check waits for the device.
        class_weights: (C,) any float dtype, finite and not negative; its scale does not matter.

    Returns:
        (B,) the dtype of `losses`, with exact gradients.

    Raises:
        LossError: other shapes or dtypes, a label that is no class, or a weight that is none.
    """
    _check_losses("class_weighted", losses)
    if labels.shape != losses.shape or not _holds_integers(labels):
        raise LossError(
            "class_weighted needs one class number per loss, integers of shape "
            f"{tuple(losses.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}; for "
            "targets that are probabilities torch's mean divides by the batch size, so pass what "
            'F.cross_entropy(..., weight=class_weights, reduction="none") gives to update'
        )
    if class_weights.dim() != 1 or not class_weights.is_floating_point():
        raise LossError(
            "class_weights must be one float per class, of shape (C,), got "
            f"{class_weights.dtype} of shape {tuple(class_weights.shape)}"
        )
    unusable = ~(class_weights.isfinite() & (class_weights >= 0))
    if bool(unusable.any()):
        raise LossError(
            "class_weights must be finite and not negative, got "
            f"{class_weights[unusable][:5].tolist()}"
        )
    classes = len(class_weights)
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        raise LossError(
            f"labels must be 0 to {classes - 1}, as there are {classes} class weights, got "
            f"{labels[outside][:5].tolist()}; leave samples without a class out of the data set"
        )
    # A half-precision sum over a large batch would lose its last digits.
    wide = torch.promote_types(losses.dtype, torch.float32)
    weights = class_weights.to(losses.device, wide)[labels.long()]
    total = weights.sum()
    scale = len(losses) / torch.where(total > 0, total, 1.0)
    return (losses * (weights * scale)).to(losses.dtype)


def mixed(own: Tensor, partner: Tensor, permutation: Tensor, lam: float | Tensor) -> Tensor:
    """Losses of mixed inputs (Mixup, CutMix), each part credited to the sample of its label.

    Input i is that of sample i mixed with that of sample j = permutation[i], and the usual loss
    lam * own[i] + (1 - lam) * partner[i] is that of two samples. Pruning may have given them
    different weights. Here the second part is moved to sample j: the result there is lam * own[j]
    + (1 - lam) * partner[i]. The sum stays the same, and `pruner.update` weighs every part, and
    scores every sample, by the label that it is the loss of.

        permutation = torch.randperm(len(x))
        output = model(lam * x + (1 - lam) * x[permutation])
        own = F.cross_entropy(output, y, reduction="none")
        partner = F.cross_entropy(output, y[permutation], reduction="none")
        loss = pruner.update(mixed(own, partner, permutation, lam))

    Sources: Mixup, Zhang et al., 2018, arXiv 1710.09412; CutMix, Yun et al., 2019,
    arXiv 1905.04899.

    Args:
        own: (B,) any float dtype: losses of the mixed inputs against their own labels.
        partner: (B,) the same dtype: against the labels of what was mixed in.
        permutation: (B,) integers: what was mixed into each input; every sample once. On an
            accelerator its check waits for the device.
        lam: part of each input that is its own, in [0, 1]: one for all, or (B,) floats.

    Returns:
        (B,) the dtype of `own`, with exact gradients.

    Raises:
        LossError: the losses are not two times (B,) floats, or the permutation is none.
        TypeError, ValueError: `lam` is no number, not (B,), or outside its range.
    """
    _check_losses("mixed", own)
    if partner.shape != own.shape or partner.dtype != own.dtype:
        raise LossError(
            f"partner must be like own, {own.dtype} of shape {tuple(own.shape)}, got "
            f"{partner.dtype} of shape {tuple(partner.shape)}; write F.cross_entropy(output, "
            'labels[permutation], reduction="none")'
        )
    if permutation.shape != own.shape or not _holds_integers(permutation):
        raise LossError(
            f"permutation must be integers of shape {tuple(own.shape)}, got {permutation.dtype} of "
            f"shape {tuple(permutation.shape)}; write torch.randperm(len(own))"
        )
    order = permutation.to(own.device).sort()
    if not torch.equal(order.values, torch.arange(len(own), device=own.device).to(order.values)):
        raise LossError(
            f"permutation must hold each of 0 to {len(own) - 1} once, so that every sample is "
            "mixed into one input; write torch.randperm(len(own)), or .flip(0) of an arange"
        )
    if isinstance(lam, Tensor) and lam.dim() > 0:
        if lam.shape != own.shape or not lam.is_floating_point():
            raise ValueError(
                f"lam must be one number, or floats of shape {tuple(own.shape)}, got {lam.dtype} "
                f"of shape {tuple(lam.shape)}"
            )
        if not bool(((lam >= 0) & (lam <= 1)).all()):
            raise ValueError(f"lam must be in [0, 1], got {lam.min():g} to {lam.max():g}")
        parts = lam.to(own.device, torch.promote_types(own.dtype, torch.float32))
        return (parts * own + ((1 - parts) * partner)[order.indices]).to(own.dtype)
    share = check_fraction("lam", lam)
    return share * own + ((1 - share) * partner)[order.indices]


def _check_losses(name: str, losses: Tensor) -> None:
    if losses.dim() != 1 or not losses.is_floating_point():
        raise LossError(
            f"{name} needs losses of shape (B,), one float per sample, got {losses.dtype} of shape "
            f'{tuple(losses.shape)}; compute the loss with reduction="none", and reduce maps '
            "(B, ...) with per_sample"
        )


def _holds_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


@torch.no_grad()
def el2n(logits: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Norm of the gradient of each sample's cross-entropy at its logits: the EL2N score.

    |softmax(logits) - one_hot(label)|, from 0 where a sample is learned to sqrt(2) where the model
    is sure of another class; of tokens and maps the root of its mean square over the positions that
    count, 0 where none does. For `pruner.update(losses, scores=el2n(logits, labels))`: a score that
    is a gradient norm, and does not depend on label smoothing or class weights. Source: Paul et
    al., 2021, arXiv 2107.07075, section 2.2, at any epoch and not averaged over models.

    Args:
        logits: (B, C) or (B, C, ...) any float dtype, as `F.cross_entropy` takes them.
        labels: (B) or (B, ...) int64 class numbers.
        ignore_index: the label of positions that do not count.

    Returns:
        (B,) float32, without gradient.

    Raises:
        LossError: the shapes are others.
    """
    fits = logits.dim() > 1 and labels.shape == (*logits.shape[:1], *logits.shape[2:])
    if not fits or not logits.is_floating_point():
        raise LossError(
            "el2n needs logits (B, C) and class numbers (B,), or (B, C, ...) and (B, ...), got "
            f"{logits.dtype} of shape {tuple(logits.shape)} and {tuple(labels.shape)}; of token "
            "logits (B, T, C) pass logits.transpose(1, 2)"
        )
    counts = labels != ignore_index
    errors = logits.float().softmax(dim=1)
    targets = torch.where(counts, labels, 0)[:, None]
    errors.scatter_add_(1, targets, errors.new_full((), -1.0).expand(targets.shape))
    squares = errors.square_().sum(dim=1).masked_fill_(~counts, 0.0)
    if squares.dim() > 1:
        squares = squares.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)
    norms: Tensor = squares.sqrt_()
    return norms


@torch.no_grad()
def soft_target_score(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """How far the model's probabilities are from their target, as a score like a cross-entropy.

    -log(1 - d), where d is half of the sum of |q - t| over the classes, with probabilities q and
    target t: the total variation distance, 0 to 1. For a class number it is the cross-entropy. With
    label smoothing, or a mixed target, no cross-entropy is near 0; this is, where the model gives
    just the target. So for `DataPruner` without a policy, which takes 1 - exp(-score) for what
    bounds a gradient, it is the score to pass: d bounds the gradient at the logits, q - t.

        logits = model(x)
        losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1)
        scores = soft_target_score(logits, y, label_smoothing=0.1)
        loss = pruner.update(losses, scores=scores)

    Args:
        logits: (B, C) any float dtype.
        targets: (B,) int64 class numbers, or (B, C) probabilities.
        label_smoothing: of the loss, in [0, 1].

    Returns:
        (B,) float32, without gradient, from 0 to 16.

    Raises:
        LossError: other shapes.
        ValueError: the smoothing is outside its range.
    """
    smoothing = check_fraction("label_smoothing", label_smoothing)
    is_soft = targets.is_floating_point()
    shape = logits.shape if is_soft else logits.shape[:1]
    if logits.dim() != 2 or targets.shape != shape or not logits.is_floating_point():
        raise LossError(
            "soft_target_score needs logits (B, C) and class numbers (B,) or probabilities (B, C), "
            f"got {logits.dtype} of shape {tuple(logits.shape)} and {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    away = logits.float().softmax(dim=1) - smoothing / logits.shape[1]
    if is_soft:
        away -= (1 - smoothing) * targets.float()
    else:
        away.scatter_add_(1, targets[:, None], away.new_full((len(away), 1), smoothing - 1))
    distance = away.abs_().sum(dim=1).mul_(0.5).clamp_(max=1 - 1e-7)
    scores: Tensor = distance.neg_().log1p_().neg_()
    return scores


def output_gradient_norms(losses: Tensor, outputs: Tensor) -> Tensor:
    """Norm of the gradient of each sample's loss at what the model gave for it.

    For losses of any kind, as a score that is a gradient norm:

        outputs = model(x)
        losses = F.multi_margin_loss(outputs, y, reduction="none")
        loss = pruner.update(losses, scores=output_gradient_norms(losses, outputs))

    It takes a backward pass from the losses to the outputs, and none through the model. For
    `ProportionalSampling(bound="loss", ceiling=float("inf"))`, which keeps samples in proportion
    to a power of it. For cross-entropies `el2n` is the same without that pass.

    Args:
        losses: (B,) any float dtype, each of its own sample's outputs alone.
        outputs: (B, ...) what they were computed from, with the graph that leads to them.

    Returns:
        (B,) float32, without gradient.

    Raises:
        LossError: other shapes, or the losses do not depend on these outputs.
    """
    _check_losses("output_gradient_norms", losses)
    if outputs.dim() == 0 or len(outputs) != len(losses):
        raise LossError(
            f"outputs must be those of {len(losses)} samples, (B, ...), got {tuple(outputs.shape)}"
        )
    if not (losses.requires_grad and outputs.requires_grad):
        raise LossError(
            "output_gradient_norms needs losses and outputs with their graph: call it in training, "
            "outside torch.no_grad() and before detach()"
        )
    (gradient,) = torch.autograd.grad(losses.sum(), outputs, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise LossError(
            "the losses do not depend on these outputs; pass the very tensor that the criterion "
            "was given"
        )
    norms: Tensor = torch.linalg.vector_norm(gradient.float().flatten(1), dim=1)
    return norms
