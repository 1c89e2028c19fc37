"""One training step: what `update` costs over `losses.mean()`, and that it never waits."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contestants import Ours
from timing import Effort, Samples, cpu_clock, interleave, wall_clock
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler

WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}


def step_costs(
    size: int, batch_size: int, *, requires_grad: bool, device: str, effort: Effort
) -> Samples:
    """Microseconds a step: one figure an epoch, the mean over its steps.

    `update` and `losses.mean()` take turns within the epoch. All that `update` does from time to
    time, such as bringing losses into the score table, is in its mean. Only the last update is
    left out: it ends the epoch.
    """
    ours = Ours(size, pruned=True)
    losses = torch.rand(batch_size, device=device, requires_grad=requires_grad)
    result: Samples = {"update": [], "losses.mean()": []}

    def epoch() -> float:
        update, mean = _one_epoch(ours, batch_size, losses)
        result["update"].append(update)
        result["losses.mean()"].append(mean)
        return 0.0

    interleave({"epoch": epoch}, effort)
    return {name: values[1:] for name, values in result.items()}  # the first round is a warm-up


def _one_epoch(ours: Ours, batch_size: int, losses: Tensor) -> tuple[float, float]:
    pruner = ours.rewind()
    clock = wall_clock if losses.is_cuda else cpu_clock
    update = mean = 0.0
    steps = len(pruner.plan) // batch_size - 1
    batches = iter(BatchSampler(pruner.sampler, batch_size, drop_last=False))
    for _ in range(steps):
        next(batches)
        start = clock()
        pruner.update(losses)
        middle = clock()
        losses.mean()
        end = clock()
        update += middle - start
        mean += end - middle
    return update / steps * 1e6, mean / steps * 1e6


def compiled_costs(size: int, batch_size: int, effort: Effort) -> Samples:
    """Microseconds of the loss of a step: one figure an epoch, the mean over its steps.

    The cross-entropies of ten classes are compiled, and reduced within the same graph by `mean` or
    by `update`, or by an `update` outside of it.
    """
    logits = torch.randn(batch_size, 10, requires_grad=True)
    labels = torch.randint(0, 10, (batch_size,))
    inside, outside = Ours(size, pruned=True), Ours(size, pruned=True)

    def losses(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    compile_ = functools.partial(torch.compile, fullgraph=True)
    one_graph = compile_(lambda logits: inside.pruner.update(losses(logits)))
    mean, only_losses = compile_(lambda logits: losses(logits).mean()), compile_(losses)
    steps = {
        "losses.mean()": mean,
        "update inside": one_graph,
        "update outside": lambda logits: outside.pruner.update(only_losses(logits)),
    }
    result: Samples = {name: [] for name in steps}

    def epoch() -> float:
        loops = [
            iter(BatchSampler(one.rewind().sampler, batch_size, drop_last=False))
            for one in (inside, outside)
        ]
        seconds = dict.fromkeys(steps, 0.0)
        count = min(len(one.pruner.plan) // batch_size - 1 for one in (inside, outside))
        for number in range(count + 1):
            for loop in loops:
                next(loop)
            for name, action in steps.items():
                start = cpu_clock()
                action(logits)
                seconds[name] += cpu_clock() - start if number else 0.0  # the first may compile
        for name in steps:
            result[name].append(seconds[name] / count * 1e6)
        return 0.0

    interleave({"epoch": epoch}, effort)
    return {name: values[1:] for name, values in result.items()}


def accelerator_costs(size: int, batch_size: int, effort: Effort) -> Samples:
    """Microseconds that the host takes for a step of an accelerator, here the meta device.

    A plain step; one of two batches with `scores=`; one of two batches left out with `skip`.
    """
    losses = torch.empty(batch_size, device="meta")
    ours = Ours(size, pruned=True)

    def epoch(scored: bool, skipped: bool) -> float:
        pruner = ours.rewind()
        batches = iter(BatchSampler(pruner.sampler, batch_size, drop_last=False))
        next(batches)
        pruner.update(losses)  # sends the epoch's weights
        steps = len(pruner.plan) // batch_size - 2
        seconds = 0.0
        for number in range(steps):
            next(batches)
            start = cpu_clock()
            if skipped and number % 2:
                pruner.skip(batch_size)
            else:
                pruner.update(losses, scores=losses if scored and number % 2 else None)
            seconds += cpu_clock() - start
        return seconds / steps * 1e6

    contestants = {
        "plain": lambda: epoch(scored=False, skipped=False),
        "scores": lambda: epoch(scored=True, skipped=False),
        "skip": lambda: epoch(scored=False, skipped=True),
    }
    return interleave(contestants, effort)


class Recorder(TorchDispatchMode):
    """Notes every operation that reaches a backend."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.views: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note one operation and run it."""
        name = func.name().removeprefix("aten::").partition(".")[0]
        (self.views if func.is_view else self.operations)[name] += 1
        return func(*args, **(kwargs or {}))


def operations(*, pruned: bool, requires_grad: bool) -> dict[str, Any]:
    """What a step in the middle of an epoch sends to its device, and proof that it waits for none.

    The losses live on torch's "meta" device: it has shapes and no values, so whatever would have
    to wait for a value (`.item()`, `.cpu()`, a comparison in Python) fails there. `update` treats
    it as it treats any accelerator. That the trap works is tried in the same run.
    """
    ours, batch_size = Ours(4096, pruned=pruned), 64
    pruner = ours.rewind()
    losses = torch.empty(batch_size, device="meta", requires_grad=requires_grad)
    batches = iter(BatchSampler(pruner.sampler, batch_size, drop_last=False))
    steps = len(pruner.plan) // batch_size - 1
    recorders = []
    for _ in range(steps):
        next(batches)
        with Recorder() as recorder:
            pruner.update(losses)
        recorders.append(recorder)
    every = sum((r.operations for r in recorders), start=Counter[str]())
    first, typical = recorders[0], recorders[1]
    assert all(r.operations == typical.operations for r in recorders[1:])
    return {
        "pruned": pruned,
        "requires_grad": requires_grad,
        "steps": steps,
        "operations": dict(typical.operations),
        "views": dict(typical.views),
        "first_step": dict(first.operations),
        "waiting": sorted(WAITING & set(every)),
        "trap_works": _fails(lambda: losses.mean().item()) and _fails(losses.cpu),
    }


def cuda_waits(size: int, batch_size: int) -> bool:
    """Whether any update within an epoch makes the host wait for the GPU, by CUDA's own account."""
    pruner = Ours(size, pruned=True).rewind()
    losses = torch.rand(batch_size, device="cuda", requires_grad=True)
    batches = iter(BatchSampler(pruner.sampler, batch_size, drop_last=False))
    next(batches)
    pruner.update(losses)  # sends the epoch's weights to the device
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(len(pruner.plan) // batch_size - 2):
            next(batches)
            pruner.update(losses)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except (RuntimeError, NotImplementedError):
        return True
    return False
