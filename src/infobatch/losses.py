"""One loss per sample, shape (B,), from what models and criteria usually return."""

from __future__ import annotations

import torch
from torch import Tensor

from infobatch.errors import LossError
from infobatch.validation import check_int


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


@torch.no_grad()
def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Norm of the gradient of each sample's cross-entropy at its logits: the EL2N score.

    |softmax(logits) - one_hot(label)|, from 0 where a sample is learned to sqrt(2) where the model
    is sure of another class. For `pruner.update(losses, scores=el2n(logits, labels))`: a score
    that is a gradient norm, and does not depend on label smoothing or class weights. Source:
    Paul et al., 2021, arXiv 2107.07075, section 2.2, at any epoch and not averaged over models.

    Args:
        logits: (B, C) any float dtype.
        labels: (B,) int64 class numbers.

    Returns:
        (B,) float32, without gradient.

    Raises:
        LossError: the shapes are others.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not logits.is_floating_point():
        raise LossError(
            "el2n needs logits (B, C) and class numbers (B,), got "
            f"{logits.dtype} of shape {tuple(logits.shape)} and {tuple(labels.shape)}; for dense "
            "maps take the losses as scores"
        )
    errors = logits.float().softmax(dim=1)
    rows = torch.arange(len(labels), device=logits.device)
    errors[rows, labels] -= 1.0
    norms: Tensor = torch.linalg.vector_norm(errors, dim=1)
    return norms
