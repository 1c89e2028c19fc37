"""Static pruning: a coreset, chosen once from what a short proxy run has shown.

    coreset = coresets.choose("el2n", evidence, keep=25_000)
    pruner = DataPruner(train_set, num_epochs, coreset.policy, warmup_epochs=0, delta=1.0)

All methods choose within classes, in proportion to their sizes. Most are described together in
DeepCore (Guo, Zhao and Bai, 2022, arXiv 2204.08499). The proxy run is a cost: count it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, Method, check_keep
from infobatch.lab.coresets.geometry import contextual_diversity, dq, herding, k_center
from infobatch.lab.coresets.gradients import craig, glister, grad_match
from infobatch.lab.coresets.scores import (
    deepfool,
    el2n,
    entropy,
    forgetting,
    grand,
    least_confidence,
    margin,
    random,
)

METHODS: Mapping[str, Method] = {
    "random": random,
    "el2n": el2n,
    "grand": grand,
    "forgetting": forgetting,
    "least-confidence": least_confidence,
    "entropy": entropy,
    "margin": margin,
    "deepfool": deepfool,
    "herding": herding,
    "k-center": k_center,
    "contextual-diversity": contextual_diversity,
    "craig": craig,
    "grad-match": grad_match,
    "glister": glister,
    "dq": dq,
}
"""Every method by name."""

__all__ = ["METHODS", "Coreset", "Evidence", "choose"]


def choose(method: str, evidence: Evidence, keep: int, *, seed: int = 0) -> Coreset:
    """Choose `keep` samples, at least one of each class, by one of `METHODS`.

    Raises:
        ValueError: no such method, or so many samples cannot be chosen.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method](evidence, check_keep(evidence, keep), np.random.default_rng(seed))
