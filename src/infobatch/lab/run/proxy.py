"""The proxy run of static pruning: a short training on full data, and what it shows."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.arms.base import ArmRun, Proxy
from infobatch.lab.coresets import Coreset, Evidence, choose
from infobatch.lab.run.results import Cost
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import TrainingRun, load_state, save_state
from infobatch.lab.tasks.base.data import TaskData, call
from infobatch.lab.tasks.base.task import Task

_BATCH = 1000


@dataclass(frozen=True)
class ProxyOutcome:
    """A coreset, and what finding it has cost."""

    coreset: Coreset
    cost: Cost
    seconds: float


def run_proxy(
    task: Task, data: TaskData, settings: Settings, arm_run: ArmRun, *, seed: int, path: Path
) -> ProxyOutcome:
    """Train the proxy, score every sample, and choose; `path` keeps the outcome for a next call."""
    proxy = arm_run.proxy
    assert proxy is not None
    if (state := load_state(path)) is not None:
        weights = None if state["weights"] is None else state["weights"].numpy()
        coreset = Coreset(state["indices"].numpy(), weights)
        return ProxyOutcome(coreset, Cost(**state["cost"]), state["seconds"])
    started = time.perf_counter()
    evidence, cost = _evidence(task, data, settings, arm_run, proxy, seed)
    coreset = choose(proxy.method, evidence, proxy.keep, seed=seed)
    outcome = ProxyOutcome(coreset, cost, time.perf_counter() - started)
    save_state(
        {
            "indices": torch.from_numpy(coreset.indices),
            "weights": None if coreset.weights is None else torch.from_numpy(coreset.weights),
            "cost": vars(outcome.cost),
            "seconds": outcome.seconds,
        },
        path,
    )
    return outcome


def _evidence(
    task: Task, data: TaskData, settings: Settings, arm_run: ArmRun, proxy: Proxy, seed: int
) -> tuple[Evidence, Cost]:
    assert data.labels is not None, "arms with a proxy are refused where there are no classes"
    size, classes = len(data), len(data.class_names)
    labels = data.labels.cpu().numpy()
    if proxy.epochs == 0:
        nothing = np.zeros((size, 1), np.float32)
        no_head = np.zeros((classes, 1), np.float32)
        flat = np.full((size, classes), 1 / classes, np.float32)
        return Evidence(labels, flat, nothing, no_head, np.zeros((1, size), bool)), Cost()
    # Its own epochs and schedule, and no evaluation but the one that every run ends with.
    own = replace(settings, epochs=proxy.epochs, eval_every=proxy.epochs)
    run = TrainingRun(task, data, replace(arm_run, epochs=proxy.epochs, proxy=None), own, seed=seed)
    correct = torch.zeros(proxy.epochs, size, dtype=torch.bool, device=run.device)

    def watch(indices: Tensor, outputs: Tensor, targets: Tensor) -> None:
        correct[len(run.curves.kept), indices] = outputs.argmax(dim=1) == targets

    run.watch = watch
    while not run.finished:
        run.run_epoch()
    features, logits, head = _outputs(run)
    run.cost.samples_forwarded += size
    evidence = Evidence(
        labels,
        logits.softmax(dim=1).numpy(),
        features.numpy(),
        head.numpy(),
        correct.cpu().numpy(),
    )
    return evidence, run.cost


@torch.no_grad()
def _outputs(run: TrainingRun) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, D), logits (N, C) and the last layer's weight (C, D), float32 on the host."""
    heads = [module for module in run.model.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].float().cpu())

    run.model.eval()
    hook = heads[-1].register_forward_pre_hook(keep)
    logits = []
    try:
        for part in torch.arange(len(run.data), device=run.device).split(_BATCH):
            inputs, _ = run.task.prepare(*run.data.samples(part), torch.Generator(), False)
            logits.append(call(run.model, inputs).float().cpu())
    finally:
        hook.remove()
    return torch.cat(seen), torch.cat(logits), heads[-1].weight.detach().float().cpu()
