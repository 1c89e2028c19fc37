"""Cross-entropies of tokens beside a loss that has been computed already: in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 2**24  # logits at a time: what is needed beside them is 64 MiB in float32


def cross_entropies(
    logits: Tensor, labels: Tensor, *, ignore_index: int, smoothing: float = 0.0
) -> Tensor:
    """`F.cross_entropy(reduction="none")` over the last dimension, some rows at a time.

    With a vocabulary of 128 thousand, the logits of 16 thousand tokens take 8 GB in float32, and
    torch keeps their log-probabilities as well. This keeps one number per token, and computes the
    gradient from the logits as they are.

    Args:
        logits: (..., V) any float dtype.
        labels: (...) int64, 0 to V - 1, or `ignore_index`, where the loss is 0.
        ignore_index: see there.
        smoothing: of the labels, in [0, 1).

    Returns:
        (...) float32, or float64 if the logits are.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    losses: Tensor = _CrossEntropies.apply(  # type: ignore[no-untyped-call]
        rows, labels.reshape(-1), ignore_index, smoothing
    )
    return losses.view(labels.shape)


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, smoothing: float
    ) -> Tensor:
        """(M,) losses of (M, V) logits."""
        counted = labels != ignore_index
        targets = torch.where(counted, labels, 0)
        wide = torch.promote_types(logits.dtype, torch.float32)
        sums = torch.empty(len(logits), dtype=wide, device=logits.device)
        losses = torch.empty_like(sums)
        for rows in _chunks(logits):
            values = logits[rows].to(wide)
            sums[rows] = values.logsumexp(1)
            expected = values.gather(1, targets[rows, None]).squeeze(1)
            if smoothing:
                expected = (1 - smoothing) * expected + smoothing * values.mean(1)
            losses[rows] = sums[rows] - expected
        ctx.save_for_backward(logits, targets, counted, sums)
        ctx.smoothing = smoothing
        return losses.masked_fill_(~counted, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """(M, V): that of the losses times probability less target."""
        logits, targets, counted, sums = ctx.saved_tensors
        smoothing, factors = ctx.smoothing, torch.where(counted, gradients[0], 0.0)
        result = torch.empty_like(logits)
        for rows in _chunks(logits):
            away = (logits[rows].to(sums.dtype) - sums[rows, None]).exp_()
            if smoothing:
                away -= smoothing / away.shape[1]
            ones = torch.full_like(sums[rows, None], smoothing - 1.0)
            away.scatter_add_(1, targets[rows, None], ones)
            result[rows] = away.mul_(factors[rows, None])
        return result, None, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    count = max(1, _CHUNK // logits.shape[1])
    for start in range(0, len(logits), count):
        yield slice(start, start + count)
