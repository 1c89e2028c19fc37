"""GLISTER: samples whose gradient step lowers the validation loss most.

Killamsetty et al., GLISTER: Generalization based Data Subset Selection for Efficient and Robust
Learning, AAAI 2021, arXiv 2012.10630.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence

ROUNDS = 10
STEP = 0.1


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Greedy by the first-order gain, of the last layer; the training set validates itself.

    The gain of a sample is the product of its gradient with the validation gradient. After each
    tenth of the choice the validation gradient is taken anew, at where one step along the mean
    gradient of what has been chosen leads. Chosen within each class.
    """
    size, labels = len(evidence), evidence.labels
    inputs = np.concatenate([evidence.features, np.ones((size, 1), np.float32)], axis=1)
    inputs = inputs.astype(np.float64)
    logits = np.log(np.maximum(evidence.probabilities.astype(np.float64), 1e-30))
    onehot = np.zeros_like(logits)
    onehot[np.arange(size), labels] = 1.0
    errors = evidence.errors.astype(np.float64)
    quotas = list(evidence.quotas(keep))
    taken = np.zeros(size, dtype=bool)
    moved = np.zeros((logits.shape[1], inputs.shape[1]))  # how far the layer has come
    for number in range(1, ROUNDS + 1):
        shifted = logits + inputs @ moved.T
        p = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        validation = (p - onehot).T @ inputs / size
        gains = ((errors @ validation) * inputs).sum(axis=1)
        gains[taken] = -np.inf
        for rows, quota in quotas:
            wanted = quota * number // ROUNDS - int(taken[rows].sum())
            taken[rows[np.argsort(-gains[rows], kind="stable")[: max(wanted, 0)]]] = True
        if taken.any():
            moved = -STEP * (errors[taken].T @ inputs[taken]) / int(taken.sum())
    return Coreset(np.flatnonzero(taken).astype(np.int64))
