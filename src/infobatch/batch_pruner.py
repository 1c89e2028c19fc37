"""BatchPruner: choose within a batch, after a forward pass, what is worth a backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from infobatch._core.plan import selection_rng
from infobatch._core.policy import new_memory
from infobatch._core.scores import FloatArray
from infobatch._core.validation import check_int, length
from infobatch._settings import describe_policy
from infobatch._step.rescale import check_indices, check_losses, check_scores
from infobatch.errors import LossError, StateError
from infobatch.policies.batch import BatchPolicy

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class BatchChoice:
    """What of a batch to train on; both on the device of the losses.

    Attributes:
        positions: (K,) int64, places in the batch.
        weights: (K,) float32.
    """

    positions: Tensor
    weights: Tensor


class BatchPruner:
    """Runs an in-batch policy: forward everything, backward a part of it.

        pruner = BatchPruner(train_set, SelectiveBackprop())
        ...
        with torch.no_grad():
            losses = loss_of(model(x), y)
        chosen = pruner.select(losses, keep=32)
        losses = loss_of(model(x[chosen.positions]), y[chosen.positions])
        (chosen.weights * losses).mean().backward()

    The first pass is not free: on most models it costs about a third of a training step, and
    `forwarded` and `backpropagated` count both kinds. It can be left out by backpropagating
    through the first pass, at the price of its memory and of most of the saving.

    Args:
        dataset: anything with a length, or the length itself: for policies that remember samples.
        policy: such as `infobatch.policies.SelectiveBackprop()`.
        seed: of the policy's draws, 0 to 2**63 - 1.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    def __init__(
        self, dataset: Sized | SupportsIndex, policy: BatchPolicy, *, seed: int = 0
    ) -> None:
        self.num_samples = length(dataset)
        if not isinstance(policy, BatchPolicy) or isinstance(policy, type):
            raise TypeError(
                "policy must be an object with a method select_batch(scores, memory, keep, rng), "
                f"such as infobatch.policies.SelectiveBackprop(), got {policy!r}"
            )
        self.policy = policy
        self.seed = check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        self.steps = 0
        self.forwarded = 0
        self.backpropagated = 0
        self._memory = new_memory(policy.columns, self.num_samples)

    def select(
        self,
        losses: Tensor,
        *,
        keep: int,
        scores: Tensor | None = None,
        indices: Tensor | Sequence[int] | None = None,
    ) -> BatchChoice:
        """Choose from the batch that has just been passed forward.

        Args:
            losses: (B,) one loss per sample, any float dtype and device; no gradient is needed.
            keep: how many to choose, 1 to B.
            scores: (B,) what to rank by, if not the losses.
            indices: (B,) the samples' indices in the data set; needed where the policy remembers.

        Raises:
            LossError: `losses`, `scores` or `indices` are not one number per sample.
            ValueError: `keep` is not 1 to B.
        """
        check_losses("losses", losses)
        if scores is not None:
            check_scores(scores, losses)
        keep = check_int("keep", keep, at_least=1, at_most=len(losses))
        ranked = (losses if scores is None else scores).detach().float().cpu().numpy()
        memory: dict[str, FloatArray] = {}
        ids = None
        if self._memory:
            if indices is None:
                raise LossError(
                    f"{self.policy!r} remembers samples, so it needs to know which these are: "
                    "pass indices="
                )
            ids = check_indices(indices, len(losses), self.num_samples)
            memory = {name: values[ids] for name, values in self._memory.items()}
        finite = np.isfinite(ranked)
        if not finite.all():  # as hard as the hardest, so that the loss shows up in training
            highest = ranked[finite].max() if finite.any() else np.float32(1.0)
            ranked = np.where(finite, ranked, highest)
        rng = selection_rng(self.seed, self.steps)
        choice = self.policy.select_batch(ranked, memory, keep, rng)
        if ids is not None:
            for name, values in memory.items():
                self._memory[name][ids] = values
        self.steps += 1
        self.forwarded += len(losses)
        self.backpropagated += keep
        return BatchChoice(
            torch.from_numpy(choice.positions).to(losses.device),
            torch.from_numpy(choice.weights.astype(np.float32)).to(losses.device),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here; `torch.load(..., weights_only=True)` reads it."""
        return {
            "format": _FORMAT,
            "settings": self._settings(),
            "steps": self.steps,
            "forwarded": self.forwarded,
            "backpropagated": self.backpropagated,
            "memory": {name: torch.from_numpy(v.copy()) for name, v in self._memory.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateError: it does not fit; nothing has been changed.
        """
        settings = self._settings()
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            raise StateError("this is no state of a BatchPruner of this version of infobatch")
        if state.get("settings") != settings:
            raise StateError(
                f"the state was saved with {state.get('settings')!r}, this pruner has {settings!r}"
            )
        memory = state.get("memory")
        shapes = dict.fromkeys(self._memory, (self.num_samples,))
        if not isinstance(memory, dict) or shapes != {
            name: tuple(value.shape) for name, value in memory.items() if isinstance(value, Tensor)
        }:
            raise StateError(f"the state's memory must have the shapes {shapes}")
        counts: list[Any] = [state.get(name) for name in ("steps", "forwarded", "backpropagated")]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise StateError(f"the state's counts must be integers of at least 0, got {counts}")
        self.steps, self.forwarded, self.backpropagated = counts
        self._memory = {
            name: value.detach().float().cpu().numpy().copy() for name, value in memory.items()
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "seed": self.seed,
            "policy": describe_policy(self.policy),
        }
