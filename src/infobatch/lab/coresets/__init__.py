"""Static pruning: a coreset, chosen once from what a short proxy run has shown.

    coreset = coresets.choose("el2n", evidence, keep=25_000)
    pruner = DataPruner(train_set, num_epochs, coreset.policy, warmup_epochs=0, delta=1.0)

One file per method. All choose within classes, in proportion to their sizes. Numpy alone, but for
GradMatch, which uses scikit-learn's matching pursuit. The proxy run is a cost: count it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infobatch.lab.coresets import (
    contextual_diversity,
    craig,
    dataset_quantization,
    deepfool,
    el2n,
    entropy,
    forgetting,
    glister,
    grad_match,
    grand,
    herding,
    k_center,
    least_confidence,
    margin,
    random,
)
from infobatch.lab.coresets.evidence import Coreset, Evidence, Method, check_keep

METHODS: Mapping[str, Method] = {
    "random": random.select,
    "el2n": el2n.select,
    "grand": grand.select,
    "forgetting": forgetting.select,
    "least-confidence": least_confidence.select,
    "entropy": entropy.select,
    "margin": margin.select,
    "deepfool": deepfool.select,
    "herding": herding.select,
    "k-center": k_center.select,
    "contextual-diversity": contextual_diversity.select,
    "craig": craig.select,
    "grad-match": grad_match.select,
    "glister": glister.select,
    "dq": dataset_quantization.select,
}
"""Every method by name."""

__all__ = ["METHODS", "Coreset", "Evidence", "choose"]


def choose(method: str, evidence: Evidence, keep: int, *, seed: int = 0) -> Coreset:
    """Choose a coreset.

    Args:
        method: a name of `METHODS`.
        evidence: of a proxy run.
        keep: how many samples, at least one of each class.
        seed: of the draws, where the method makes any.

    Raises:
        ValueError: no such method, or so many samples cannot be chosen.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method](evidence, check_keep(evidence, keep), np.random.default_rng(seed))
