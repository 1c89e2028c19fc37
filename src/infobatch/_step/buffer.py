"""LossBuffer: weights out, losses in, for a stretch of the plan, without leaving the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from infobatch._core.scores import FloatArray
from infobatch._ranks.share import Share
from infobatch._step.rescale import Factors, Reduction

_CPU_CAPACITY = 32768
_CPU_FLOOR = 8192  # to empty a buffer costs as much as some steps


class Stretch(NamedTuple):
    """Losses of samples that follow each other in the share.

    Attributes:
        start: position in the share of the first.
        losses: (M,).
        scores: (M,) what to rank by; None: the losses.
        batches: sizes of the batches that they came in.
    """

    start: int
    losses: FloatArray
    scores: FloatArray | None
    batches: list[int]


class LossBuffer:
    """The weights and the losses of a share's samples start to stop, on the losses' device.

    A step's weights are a slice of one tensor, and its losses are copied into a slice of
    another: no index, no transfer, no synchronisation. Batches may be left out in between. On an
    accelerator the buffer holds the whole epoch; on the CPU, where it would cost memory and a
    transfer costs nothing, a short stretch of it, cut into batches beforehand: there the calls are
    what a step costs.

    Args:
        share: what this rank trains on.
        start: position in it of the first sample.
        like: a loss vector; its device and dtype decide those of the buffer.
    """

    def __init__(self, share: Share, start: int, like: Tensor) -> None:
        if torch.is_inference_mode_enabled():  # later batches may come outside of it
            with torch.inference_mode(False):
                self._prepare(share, start, like)
        else:
            self._prepare(share, start, like)

    def _prepare(self, share: Share, start: int, like: Tensor) -> None:
        on_cpu, batch = like.device.type == "cpu", like.shape[0]
        capacity = len(share) - start
        if on_cpu:
            few = max(batch, _CPU_FLOOR, min(_CPU_CAPACITY, len(share) // 16))
            capacity = min(capacity, few - few % batch)
        self.start, self.stop = start, start + capacity
        self.device = like.device
        # float64 losses keep their precision; half-precision ones gain from float32 weights.
        self.weight_dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._weights: Tensor | None = None
        if self.stop > share.own or not share.plan.selection.is_full:
            dtype = np.float64 if self.weight_dtype == torch.float64 else np.float32
            weights = share.weights(start, self.stop, dtype)
            if not (weights == 1.0).all():
                self._weights = torch.from_numpy(weights).to(self.device)
        self._losses = torch.empty(capacity, dtype=torch.float32, device=self.device)
        self._scores: Tensor | None = None  # beside the losses, from the first scores on
        self._noted: list[tuple[int, int, bool]] = []  # first, size and whether it has scores
        # On the CPU numpy copies in half the time of torch's dispatcher, and a dot product with
        # weights / B is a third of a product and a mean.
        self._size = batch if on_cpu else 0
        self._places: list[FloatArray] = []
        self._shares: tuple[Tensor, ...] = ()
        if on_cpu:
            whole = capacity - capacity % batch
            self._places = list(self._losses[:whole].numpy().reshape(-1, batch))
            if self._weights is not None:
                shares = self._weights[:whole] * (1.0 / batch)
                self._shares = shares.view(-1, batch).unbind()

    def takes(self, position: int, losses: Tensor) -> bool:
        """Whether the losses from that position on fit in here."""
        return (
            position + losses.shape[0] <= self.stop
            and losses.device == self.device
            and (losses.dtype == torch.float64) == (self.weight_dtype == torch.float64)
        )

    def put(
        self,
        position: int,
        losses: Tensor,
        scores: Tensor | None,
        reduction: Reduction,
        divisor: float | None,
    ) -> Factors:
        """Store a batch's losses; what `rescale` multiplies them by for this reduction."""
        count = losses.shape[0]  # len() of a tensor is a slow Python function
        first = position - self.start
        last = first + count
        number, within = divmod(first, self._size) if count == self._size else (0, 1)
        if within == 0 and losses.dtype == torch.float32:
            np.copyto(self._places[number], losses.detach().numpy())
        else:
            self._losses[first:last].copy_(losses.detach())
        if scores is not None:
            if self._scores is None:
                with torch.inference_mode(False):
                    self._scores = torch.empty_like(self._losses)
            self._scores[first:last].copy_(scores.detach())
        self._noted.append((first, count, scores is not None))
        if self._weights is None:
            return Factors(None, divisor)
        if (
            within == 0
            and reduction == "mean"
            and divisor is None
            and losses.dtype == self.weight_dtype
        ):
            return Factors(self._shares[number], 1.0)
        return Factors(self._weights[first:last], divisor)

    def drain(self) -> Iterator[Stretch]:
        """What has been stored since this was last called, in order, as stretches."""
        noted, self._noted = self._noted, []
        if not noted:
            return
        begin, end = noted[0][0], noted[-1][0] + noted[-1][1]
        losses = self._losses[begin:end].cpu().numpy()
        scores = None
        if any(has_scores for _, _, has_scores in noted) and self._scores is not None:
            scores = self._scores[begin:end].cpu().numpy()
        while noted:
            first, _, scored = noted[0]
            last, batches = first, []
            for start, size, has_scores in noted:
                if start != last or has_scores != scored:
                    break
                last += size
                batches.append(size)
            del noted[: len(batches)]
            here = slice(first - begin, last - begin)
            ranked = scores[here] if scored and scores is not None else None
            yield Stretch(self.start + first, losses[here], ranked, batches)
