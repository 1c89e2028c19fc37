"""LossBuffer: weights out, losses in, for a stretch of the plan, without leaving the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from infobatch._core.scores import FloatArray
from infobatch._ranks.share import Share
from infobatch._step.rescale import Reduction, rescale

_CPU_CAPACITY = 32768
_CPU_FLOOR = 4096  # to empty a buffer costs as much as some steps


class LossBuffer:
    """The weights and the losses of a share's samples start to stop, on the losses' device.

    A step's weights are a slice of one tensor, and its losses are copied into a slice of
    another: no index, no transfer, no synchronisation. On an accelerator the buffer holds the
    whole epoch; on the CPU, where it would cost memory and a transfer costs nothing, a short
    stretch of it, cut into batches beforehand: there the calls are what a step costs.

    Args:
        share: what this rank trains on.
        start: position in it of the first sample.
        like: a loss vector; its device and dtype decide those of the buffer.
        has_scores: whether scores come along that are not the losses.
    """

    def __init__(self, share: Share, start: int, like: Tensor, *, has_scores: bool) -> None:
        if torch.is_inference_mode_enabled():  # later batches may come outside of it
            with torch.inference_mode(False):
                self._prepare(share, start, like, has_scores=has_scores)
        else:
            self._prepare(share, start, like, has_scores=has_scores)

    def _prepare(self, share: Share, start: int, like: Tensor, *, has_scores: bool) -> None:
        on_cpu, batch = like.device.type == "cpu", like.shape[0]
        capacity = len(share) - start
        if on_cpu:
            few = max(batch, _CPU_FLOOR, min(_CPU_CAPACITY, len(share) // 16))
            capacity = min(capacity, few - few % batch)
        self.start, self.position, self.stop = start, start, start + capacity
        self.device, self.has_scores = like.device, has_scores
        # float64 losses keep their precision; half-precision ones gain from float32 weights.
        self.weight_dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._weights: Tensor | None = None
        padded = self.stop > share.own
        if padded or not share.plan.selection.is_full:
            dtype = np.float64 if self.weight_dtype == torch.float64 else np.float32
            weights = share.weights(start, self.stop, dtype)
            if not (weights == 1.0).all():
                self._weights = torch.from_numpy(weights).to(self.device)
        self._losses = torch.empty(capacity, dtype=torch.float32, device=self.device)
        self._scores = torch.empty_like(self._losses) if has_scores else None
        self._batches: list[int] = []
        # On the CPU numpy copies in half the time of torch's dispatcher, and a dot product with
        # weights / B is a third of a product and a mean.
        self._array = self._losses.numpy() if on_cpu else None
        self._size = batch if on_cpu else 0
        self._places: list[FloatArray] = []
        self._shares: tuple[Tensor, ...] = ()
        if self._array is not None:
            whole = capacity - capacity % batch
            self._places = list(self._array[:whole].reshape(-1, batch))
            if self._weights is not None:
                shares = self._weights[:whole] * (1.0 / batch)
                self._shares = shares.view(-1, batch).unbind()

    def takes(self, position: int, losses: Tensor, *, has_scores: bool) -> bool:
        """Whether the next batch fits behind what is here."""
        return (
            position == self.position
            and position + losses.shape[0] <= self.stop
            and losses.device == self.device
            and (losses.dtype == torch.float64) == (self.weight_dtype == torch.float64)
            and has_scores == self.has_scores
        )

    def put(
        self, losses: Tensor, scores: Tensor | None, reduction: Reduction, divisor: float | None
    ) -> Tensor:
        """Store a batch's losses; return the rescaled loss, see `rescale`."""
        count = losses.shape[0]  # len() of a tensor is a slow Python function
        first = self.position - self.start
        last = first + count
        number, within = divmod(first, self._size) if count == self._size else (0, 1)
        if within == 0 and losses.dtype == torch.float32:
            np.copyto(self._places[number], losses.detach().numpy())
        else:
            self._losses[first:last].copy_(losses.detach())
        if self._scores is not None and scores is not None:
            self._scores[first:last].copy_(scores.detach())
        self._batches.append(count)
        self.position += count
        if self._weights is None:
            return rescale(losses, None, reduction, divisor)
        if (
            within == 0
            and reduction == "mean"
            and divisor is None
            and losses.dtype == self.weight_dtype
        ):
            return torch.dot(losses, self._shares[number])
        return rescale(losses, self._weights[first:last], reduction, divisor)

    def drain(self) -> tuple[FloatArray, FloatArray | None, list[int]]:
        """What has been stored: losses (M,), scores (M,) if any, sizes of the batches.

        The buffer is used up.
        """
        filled = self.position - self.start
        losses = self._losses[:filled].cpu().numpy()
        scores = None if self._scores is None else self._scores[:filled].cpu().numpy()
        return losses, scores, self._batches
