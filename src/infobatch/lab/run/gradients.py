"""The true gradients of some samples: whether the bound that scores give is a good one."""

from __future__ import annotations

import numpy as np
import torch

from infobatch._core.headroom import Headroom, rank_correlation
from infobatch.lab.run.train import TrainingRun
from infobatch.lab.tasks.base.data import call


def true_headroom(run: TrainingRun, samples: int) -> dict[str, float]:
    """Of the model as it is, by one backward pass for each of so many training samples.

    Samples are taken at equal distances, as the test set is: in evaluation mode and without
    augmentation.

    Returns:
        "gradient headroom": 1 - mean(g)^2 / mean(g^2) of the norms g over all parameters;
        "loss by gradient": rank correlation of losses and norms.
    """
    step = max(1, len(run.data) // samples)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    norms, losses = [], []
    run.model.eval()
    for row in range(0, len(run.data), step):
        indices = torch.tensor([row], device=run.device)
        generator = torch.Generator().manual_seed(row)
        inputs, targets = run.task.prepare(*run.data.samples(indices), generator, False)
        outputs = call(run.model, inputs)
        loss = run.task.loss(outputs, targets, run.settings.label_smoothing).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        squares = [g.double().square().sum() for g in gradients if g is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        losses.append(float(loss.detach()))
    found, by_loss = np.array(norms, np.float32), np.array(losses, np.float32)
    whole = Headroom.of(np.full_like(found, np.nan), found, lambda norms: norms)
    return {
        "gradient headroom": whole.headroom,
        "loss by gradient": rank_correlation(by_loss, found),
    }
