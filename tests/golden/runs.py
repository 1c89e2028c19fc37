"""Runs whose plans, weights, scores and states are written down, bit for bit.

    python tests/golden/runs.py    # writes them anew: only for a change that is meant

A run trains on made-up losses, is saved within its third epoch and goes on.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

from infobatch import DataPruner, InfoBatch, policies

FOLDER = Path(__file__).parent
SIZE, EPOCHS, BATCH = 403, 6, 16
GROUPS = np.arange(SIZE) % 3


class Repeats(Sampler[int]):
    """Draws with replacement, from a generator of its own."""

    def __init__(self) -> None:
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self._epoch)
        weights = torch.linspace(1.0, 3.0, SIZE)
        return iter(WeightedRandomSampler(weights, SIZE, generator=generator))

    def __len__(self) -> int:
        return SIZE


def _pruner(policy: Any = None, **settings: Any) -> DataPruner:
    return DataPruner(SIZE, EPOCHS, policy, seed=5, delta=0.85, **settings)


P = policies
RUNS: dict[str, Callable[[], DataPruner]] = {
    "infobatch": lambda: InfoBatch(SIZE, EPOCHS, seed=5, delta=0.85),
    "infobatch-quantiles": lambda: InfoBatch(SIZE, EPOCHS, quantiles=P.PAPER_QUANTILES),
    "infobatch-budget": lambda: InfoBatch(SIZE, EPOCHS, budget=0.6),
    "infobatch-groups": lambda: InfoBatch(SIZE, EPOCHS, groups=GROUPS),
    "infobatch-repeats": lambda: InfoBatch(SIZE, EPOCHS, sampler=Repeats()),
    "infobatch-ema": lambda: InfoBatch(SIZE, EPOCHS, score_ema=0.7, warmup_epochs=2),
    "infobatch-sharded": lambda: InfoBatch(SIZE, EPOCHS, sharded=True),
    "quantiles-sharded": lambda: _pruner(P.QuantileThresholds(), sharded=True),
    "quantiles-budget": lambda: _pruner(P.QuantileThresholds(), budget=0.7),
    "adaptive": _pruner,
    "adaptive-groups": lambda: _pruner(groups=GROUPS),
    "adaptive-sharded": lambda: _pruner(sharded=True),
    "budget": lambda: _pruner(budget=0.6),
    "budget-rising": lambda: _pruner(budget=0.6, ratio_schedule="rising", batch_size=BATCH),
    "budget-groups": lambda: _pruner(budget=0.7, groups=GROUPS),
    "budget-sharded": lambda: _pruner(budget=0.7, sharded=True),
    "proportional-unbiased": lambda: _pruner(
        P.ProportionalSampling(power=1.0, exponent=1.0), budget=0.7
    ),
    "capped": lambda: _pruner(P.CappedWeights(P.QuantileThresholds(), 1.5)),
    "fixed": lambda: _pruner(P.FixedSubset(np.arange(0, SIZE, 3))),
    "random": lambda: _pruner(P.RandomSubset(0.4)),
    "full": lambda: _pruner(P.FullData()),
}
for _name, _make in {
    "rs2": P.RS2,
    "ucb": P.UCB,
    "epsilon-greedy": P.EpsilonGreedy,
    "kakurenbo": P.Kakurenbo,
    "seta": P.SeTa,
    "orderdp": P.OrderDP,
    "repb": P.RePB,
    "ies": P.IES,
}.items():
    RUNS[_name] = lambda make=_make: _pruner(make())
    RUNS[f"{_name}-budget"] = lambda make=_make: _pruner(make(), budget=0.65)


def losses_of(rows: torch.Tensor, epoch: int) -> torch.Tensor:
    """Made-up losses of some samples, that fall at different speeds; one is not a number."""
    hardness = 0.05 + 3.0 * ((rows * 7919) % 1009).double() / 1009.0
    losses = (hardness / (1.0 + epoch * ((rows % 5) + 1) / 5.0)).float()
    losses[rows == 17] = float("nan") if epoch == 1 else 0.5
    return losses


def digest(*tensors: Any) -> int:
    """Of their bytes."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(np.ascontiguousarray(np.asarray(tensor)).tobytes(), found)
    return found


def train(
    pruner: DataPruner, *, save: Callable[[dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Train to the end; what each epoch was."""
    loader = DataLoader(torch.arange(SIZE), BATCH, sampler=pruner.sampler)
    epochs = []
    while pruner.epoch < EPOCHS:
        epoch, weights = pruner.epoch, []
        for place, rows in enumerate(loader):
            weights.append(pruner.update(losses_of(rows, epoch), reduction="none"))
            if place == 0:
                plan = pruner.plan
                seen = {
                    "order": digest(plan.indices),
                    "weights": digest(plan.weights),
                    "pruned": digest(plan.pruned),
                    "threshold": repr(plan.threshold),
                    "size": len(plan),
                }
            if save is not None and epoch == 2 and place == 4:
                save(pruner.state_dict())
        epochs.append(
            {**seen, "losses": digest(torch.cat(weights)), "scores": digest(pruner.scores)}
        )
    history = "".join(map(repr, pruner.history)).encode()
    return [*epochs, {"history": zlib.crc32(history), "state": pruner.state_dict()["checksum"]}]


def main() -> None:
    """Write all down."""
    found, states = {}, {}
    for name, make in RUNS.items():
        found[name] = train(make(), save=lambda state, name=name: states.update({name: state}))
    torch.save(states, FOLDER / "states.pt")
    lines = (f"{json.dumps(name)}: {json.dumps(epochs)}" for name, epochs in found.items())
    (FOLDER / "runs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
