"""Optimizers and learning-rate schedules by the names that the command line takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from infobatch.lab.settings import Settings

_WARMUP = 0.1  # of a cosine schedule's steps

_Build = Callable[[Iterable[nn.Parameter], Settings], Optimizer]


def _sgd(parameters: Iterable[nn.Parameter], settings: Settings) -> Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def _adamw(parameters: Iterable[nn.Parameter], settings: Settings) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _lars(parameters: Iterable[nn.Parameter], settings: Settings) -> Optimizer:
    from pytorch_optimizer import LARS  # takes a second to import

    return LARS(
        parameters,
        lr=settings.lr,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def _lamb(parameters: Iterable[nn.Parameter], settings: Settings) -> Optimizer:
    from pytorch_optimizer import Lamb

    # As published. By default the decay would come after the trust ratio, and a bias correction
    # too, which makes the first steps ten times as long; what turns it off is called adam_debias.
    return Lamb(
        parameters,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        weight_decouple=False,
        adam_debias=True,
    )


_OPTIMIZERS: dict[str, _Build] = {"sgd": _sgd, "adamw": _adamw, "lars": _lars, "lamb": _lamb}


def build_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """SGD and LARS with momentum 0.9, AdamW and LAMB with their usual betas.

    LARS: You et al., 2017, arXiv 1708.03888. LAMB: You et al., 2020, arXiv 1904.00962.
    """
    return _OPTIMIZERS[settings.optimizer](model.parameters(), settings)


def build_schedule(optimizer: Optimizer, settings: Settings, total_steps: int) -> LRScheduler:
    """From the first of `total_steps` to the last.

    "onecycle": up to the peak over 30% of the steps and down to nearly zero, both along a cosine,
    as the InfoBatch paper has it. "cosine": up along a line over 10%, down along a cosine.
    "constant": the peak.
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
