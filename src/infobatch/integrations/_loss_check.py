"""Whether the loss of a host is what its samples' losses come to, and in which form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infobatch.errors import LossError

_TELLING = 8  # batches that could tell, after which comparing may wait
_TOGETHER = 32  # batches that an accelerator's are then compared in, as the host waits for it
_SPREAD = 0.1  # of the mean loss: by how much a batch's samples differ that can tell
_NOTHING = 1e-6  # losses below are 0: what float32 makes of a cross-entropy near it


@dataclass(frozen=True)
class Form:
    """How a batch's loss comes from its samples' losses.

    Attributes:
        by_items: whether their sum is divided by what a whole optimizer step counts, on all ranks,
            or by what the batch itself does.
        scale: what it is multiplied by then.
        extra: which of several things the part of the loss that is no sample's may be.
    """

    by_items: bool
    scale: float = 1.0
    extra: int = 0

    def loss(
        self, sums: Tensor, counts: Tensor, items: Tensor | float, extras: Sequence[Tensor]
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            sums: (B,) the losses of each sample, summed.
            counts: (B,) what each counts in the divisor.
            items: what the step counts.
            extras: what the part that is no sample's may be, scalars.
        """
        divisor = items if self.by_items else nonzero(counts.sum())
        return self.scale * sums.sum() / divisor + extras[self.extra]


class LossCheck:
    """Compares the loss of a host with its samples' losses, batch by batch.

    While samples' losses hardly differ, as those of an untrained head, a weighted mean of them is
    the plain one, which tells nothing. So each batch is compared at once until enough have been
    seen whose losses differ; from then on with the next batch, or on an accelerator, for which the
    host has to wait, 32 batches together. `look` compares those that are left.

    Args:
        forms: that the loss may have, the likeliest first.
        close: by how much of the loss it may differ from what its samples' losses come to.
    """

    def __init__(self, forms: Iterable[Form], close: float) -> None:
        self.forms = list(dict.fromkeys(forms))
        self._close = close
        self._told = 0
        self._unseen: list[tuple[Tensor, Tensor]] = []

    @property
    def form(self) -> Form:
        """That by which all batches so far can be explained."""
        return self.forms[0]

    def admits(
        self,
        loss: Tensor,
        sums: Tensor,
        counts: Tensor,
        items: Tensor | float,
        extras: Sequence[Tensor],
    ) -> bool:
        """Whether the loss of a batch has a form that those before it had; see `Form.loss`.

        Raises:
            LossError: that of a batch before had none.
        """
        if self._told >= _TELLING:
            if len(self._unseen) >= (_TOGETHER if self._puts_off(loss) else 1):
                self.look()
            self._unseen.append((loss, self.form.loss(sums, counts, items, extras)))
            return True
        values = [form.loss(sums, counts, items, extras) for form in self.forms]
        left = [
            form for form, value in zip(self.forms, values, strict=True) if self._agree(loss, value)
        ]
        if not left:
            return False
        self.forms = left
        losses = (sums / nonzero(counts))[counts > 0]
        if len(losses) > 1 and bool(losses.max() - losses.min() > _SPREAD * losses.mean().abs()):
            self._told += 1
        return True

    @staticmethod
    def _puts_off(loss: Tensor) -> bool:
        return loss.device.type != "cpu"

    def look(self) -> None:
        """Compare the batches that have not been yet.

        Raises:
            LossError: the loss of one is not what its samples' losses come to.
        """
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        losses, values = (
            torch.stack(tensors).float().cpu() for tensors in zip(*unseen, strict=True)
        )
        for loss, value in zip(losses, values, strict=True):
            if not self._agree(loss, value):
                raise refusal(loss, value)

    def _agree(self, loss: Tensor, value: Tensor) -> bool:
        if not bool(torch.isfinite(loss)):
            return True  # which tells nothing
        return bool((value - loss).abs() <= self._close * loss.abs() + _NOTHING)


def nonzero(counts: Tensor) -> Tensor:
    """Counts to divide by: 1 where they are 0."""
    return torch.where(counts > 0, counts, torch.ones_like(counts))


def refusal(loss: Tensor, value: Tensor) -> LossError:
    """The error for a loss that is not what its samples' losses come to."""
    return LossError(
        f"a batch's loss is {float(loss):.4g}, but its samples' losses come to {float(value):.4g}: "
        "the model, compute_loss or compute_loss_func has a loss of another kind, such as one with "
        "class weights. Override per_token_losses(outputs, labels) in your trainer; and "
        "extra_loss(outputs) where a part of the loss is no sample's own, such as a regulariser"
    )
