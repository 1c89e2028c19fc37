"""The loss of one step: what may come in, and the rescaled loss that goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infobatch.errors import LossError

Reduction = Literal["mean", "sum", "none"]


class Factors(NamedTuple):
    """By what the losses of a batch are multiplied, and their sum divided.

    Attributes:
        weights: (B,) float32 or float64, on the losses' device; None where all are 1.
        divisor: of the mean; None: B. Where it is 1, the weights have been divided already.
    """

    weights: Tensor | None
    divisor: float | None = None


def check_losses(name: str, losses: Tensor) -> None:
    """Check that a tensor is (B,) floating-point numbers with B >= 1.

    Args:
        name: what to call it in the message.
        losses: the tensor.

    Raises:
        LossError: it is not; the message says how to get there from what came.
    """
    if not isinstance(losses, Tensor):
        raise LossError(f"{name} must be a float tensor of shape (B,), got {type(losses).__name__}")
    if torch._C._functorch.is_functorch_wrapped_tensor(losses):
        raise LossError(
            f"{name} belong to a torch.func transform (grad, vmap, ...), out of which they cannot "
            "be kept. Take weights = pruner.coming_weights(B) before it, return "
            "(weights * losses).mean() and the losses with has_aux=True, and call update with "
            "these losses after it"
        )
    if losses.dim() == 1 and losses.is_floating_point() and losses.shape[0]:
        return
    remedy = "one number per sample of the batch"
    if losses.dim() == 0:
        remedy = (
            'compute the loss with reduction="none"; if it exists only as a batch mean, pass '
            "infobatch.losses.batch_mean(loss, batch_size)"
        )
    elif losses.dim() > 1 and losses.numel() == losses.shape[0]:
        remedy = f"write {name}.flatten()"
    elif losses.dim() > 1:
        remedy = f"reduce it to one per sample: infobatch.losses.per_sample({name}, ignore_mask)"
    raise LossError(
        f"{name} must be floating-point numbers of shape (B,), got {losses.dtype} of shape "
        f"{tuple(losses.shape)}; {remedy}"
    )


def check_scores(scores: Tensor, losses: Tensor) -> None:
    """Check that scores are (B,) floating-point numbers, one per loss.

    Raises:
        LossError: they are not.
    """
    check_losses("scores", scores)
    if scores.shape != losses.shape:
        raise LossError(f"scores must be one per loss: got {len(scores)} for {len(losses)}")


def check_indices(
    indices: Tensor | Sequence[int], length: int, num_samples: int
) -> NDArray[np.int64]:
    """Sample indices as an int64 array (length,), each 0 to num_samples - 1.

    Raises:
        LossError: wrong shape, not integers, or out of range.
    """
    given = torch.as_tensor(indices).detach().cpu()
    integral = not (given.is_floating_point() or given.is_complex()) or given.numel() == 0
    if tuple(given.shape) != (length,) or not integral or given.dtype == torch.bool:
        raise LossError(
            f"indices must be one integer per loss, shape ({length},), got {given.dtype} of "
            f"shape {tuple(given.shape)}"
        )
    rows: NDArray[np.int64] = given.numpy().astype(np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= num_samples):
        raise LossError(f"indices must be 0 to {num_samples - 1}, got {rows.min()} to {rows.max()}")
    return rows


def rescale(losses: Tensor, factors: Factors, reduction: Reduction) -> Tensor:
    """Multiply each loss by its weight and reduce: sum(weight * loss) / B under "mean".

    The mean divides by the batch size and not by the sum of the weights, which is what keeps
    the expected gradient that of the full data (arXiv 2303.04947, equations 4 and 5).

    Args:
        losses: (B,) any float dtype.
        factors: of these losses.
        reduction: "mean", "sum" or "none".

    Returns:
        A new tensor of the losses' dtype; half-precision losses are multiplied and reduced in
        the weights' precision.
    """
    weights, divisor = factors
    if weights is None:
        if reduction == "mean":
            return losses.mean() if divisor is None else losses.sum() / divisor
        return losses.sum() if reduction == "sum" else losses.clone()
    if divisor == 1.0 and reduction == "mean" and losses.dtype == weights.dtype:
        return torch.dot(losses, weights)  # a third of the time of a product and a mean
    rescaled = losses * weights
    if reduction == "mean":
        rescaled = rescaled.mean() if divisor is None else rescaled.sum() / divisor
    elif reduction == "sum":
        rescaled = rescaled.sum()
    return rescaled if rescaled.dtype == losses.dtype else rescaled.to(losses.dtype)
