"""`update` in a graph of `torch.compile`: one operator that the compiler does not look into.

Losses go into it and weights come out; the product of both is left to the graph, with its
gradient. What the operator does on the host is just what `update` does outside of a graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from infobatch._step.rescale import Factors, Reduction


class Weigher(Protocol):
    """What has weights for losses: a pruner."""

    def _weigh(
        self, losses: Tensor, scores: Tensor | None, indices: Tensor | None, reduction: Reduction
    ) -> Factors: ...


_weighers: WeakValueDictionary[int, Weigher] = WeakValueDictionary()
_numbers = itertools.count()


def handle(weigher: Weigher) -> Tensor:
    """What stands for this pruner in graphs: a number. One pruner, one handle."""
    number = next(_numbers)
    _weighers[number] = weigher
    return torch.tensor(number, device="cpu")  # to read it must not wait for an accelerator


def update_in_graph(
    handle: Tensor,
    losses: Tensor,
    scores: Tensor | None,
    indices: Tensor | Sequence[int] | None,
    reduction: Reduction,
) -> Tensor:
    """`DataPruner.update` while it is being compiled; equal to it but for rounding."""
    if indices is not None:
        indices = torch.as_tensor(indices)
    known = None if scores is None else scores.detach()
    factors: Tensor = torch.ops.infobatch.weigh(handle, losses.detach(), known, indices, reduction)
    rescaled = losses * factors
    if reduction != "none":
        rescaled = rescaled.sum()
    return rescaled if rescaled.dtype == losses.dtype else rescaled.to(losses.dtype)


def _weigh(
    handle: Tensor,
    losses: Tensor,
    scores: Tensor | None,
    indices: Tensor | None,
    reduction: Reduction,
) -> Tensor:
    weights, divisor = _weighers[int(handle)]._weigh(losses, scores, indices, reduction)
    factors = _factors_like(losses)  # a new tensor: a graph may write to it
    factors.fill_(1.0) if weights is None else factors.copy_(weights)
    if reduction == "mean":
        factors /= losses.shape[0] if divisor is None else divisor
    return factors


def _factors_like(losses: Tensor) -> Tensor:
    dtype = torch.float64 if losses.dtype == torch.float64 else torch.float32
    return losses.new_empty(losses.shape, dtype=dtype)


# That the handle is written to is not so. It is said because compilers drop an operator whose
# result is not used, unless it writes to something; these losses would then be lost.
_library = torch.library.Library("infobatch", "DEF")
_library.define(
    "weigh(Tensor(a!) handle, Tensor losses, Tensor? scores, Tensor? indices, str reduction)"
    " -> Tensor",
    tags=tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)])),
)
_library.impl("weigh", _weigh, "CompositeExplicitAutograd")
torch.library.register_fake(
    "infobatch::weigh", lambda _, losses, *__: _factors_like(losses), lib=_library
)
