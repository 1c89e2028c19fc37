"""Optimizers and learning-rate schedules by the names that the command line takes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from infobatch.lab.run.settings import Settings

_WARMUP = 0.1  # of a cosine schedule's steps


def build_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """SGD and LARS with momentum 0.9, AdamW and LAMB with their usual betas.

    LARS: You et al., 2017, arXiv 1708.03888. LAMB: You et al., 2020, arXiv 1904.00962.
    """
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    momentum: dict[str, Any] = {"momentum": 0.9, "nesterov": settings.nesterov}
    parameters = model.parameters()
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, **common, **momentum)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **common)
    import pytorch_optimizer  # takes a second

    if settings.optimizer == "lars":
        return pytorch_optimizer.LARS(parameters, **common, **momentum)
    # LAMB as published. By default the decay would come after the trust ratio, and a bias
    # correction too, which makes the first steps ten times as long: adam_debias turns it off.
    return pytorch_optimizer.Lamb(parameters, **common, weight_decouple=False, adam_debias=True)


def build_schedule(optimizer: Optimizer, settings: Settings, total_steps: int) -> LRScheduler:
    """The learning rate of each of `total_steps`.

    "onecycle": up to the peak over 30% of the steps and down to nearly zero, both along a cosine,
    as in the InfoBatch paper. "cosine": up along a line over 10%, down along a cosine. "constant":
    the peak.
    """
    if settings.schedule == "onecycle":
        return OneCycleLR(
            optimizer,
            max_lr=settings.lr,
            total_steps=total_steps,
            pct_start=0.3,
            div_factor=25,
            final_div_factor=1e4,
            cycle_momentum=False,
        )
    if settings.schedule == "cosine":
        return LambdaLR(optimizer, partial(_cosine, total_steps=total_steps))
    return LambdaLR(optimizer, lambda _: 1.0)


def _cosine(step: int, total_steps: int) -> float:
    warmup = max(1, round(_WARMUP * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
