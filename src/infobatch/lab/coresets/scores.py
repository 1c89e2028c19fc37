"""Methods that give each sample a score and keep the highest: of its error, or of its doubt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infobatch.lab.coresets.evidence import Coreset, Evidence


def random(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """A uniform draw within each class: the baseline of all static pruning."""
    return Coreset.of(
        [rng.choice(rows, size=quota, replace=False) for rows, quota in evidence.quotas(keep)]
    )


def highest(evidence: Evidence, scores: NDArray[np.floating], keep: int) -> Coreset:
    """The samples of each class with the highest scores (N,); the first among equals."""
    return Coreset.of(
        [
            rows[np.argsort(-scores[rows], kind="stable")[:quota]]
            for rows, quota in evidence.quotas(keep)
        ]
    )


def el2n(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The highest ||softmax - onehot||_2.

    Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021, arXiv 2107.07075.
    """
    return highest(evidence, np.linalg.norm(evidence.errors, axis=1), keep)


def grand(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The highest norms of the last layer's gradient, ||p - y|| * sqrt(||h||^2 + 1).

    The paper (arXiv 2107.07075) takes all layers; the last one needs no backward pass per sample.
    """
    inputs = (evidence.features.astype(np.float64) ** 2).sum(axis=1) + 1.0
    return highest(evidence, np.linalg.norm(evidence.errors, axis=1) * np.sqrt(inputs), keep)


def forgetting(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The most often learned and lost again; a sample never classified correctly counts as most.

    Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019, arXiv 1812.05159.
    """
    correct = evidence.correct
    events = (correct[:-1] & ~correct[1:]).sum(axis=0).astype(np.float64)
    events[~correct.any(axis=0)] = len(correct)
    ties = rng.random(len(events)) * 0.5  # many have equally many: in random order
    return highest(evidence, events + ties, keep)


def least_confidence(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The highest 1 - max p."""
    return highest(evidence, 1.0 - evidence.probabilities.max(axis=1), keep)


def entropy(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The highest -sum p log p."""
    p = evidence.probabilities.astype(np.float64)
    return highest(evidence, -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1), keep)


def margin(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The smallest difference between the two highest probabilities."""
    two = np.sort(evidence.probabilities.astype(np.float64), axis=1)[:, -2:]
    return highest(evidence, two[:, 0] - two[:, -1], keep)


def deepfool(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """The smallest distance to another class, min_k (f_c - f_k) / ||w_c - w_k||.

    Ducoffe and Precioso, Adversarial Active Learning for Deep Networks: a Margin Based Approach,
    2018, arXiv 1802.09841. Measured in the space of the features, where the model is linear and
    DeepFool (arXiv 1511.04599) exact after one step; the paper measures it in that of the images.
    """
    logits = np.log(np.maximum(evidence.probabilities.astype(np.float64), 1e-30))
    top = logits.argmax(axis=1)
    rows = np.arange(len(evidence))
    gaps = logits[rows, top][:, None] - logits
    heads = evidence.head.astype(np.float64)
    norms = np.linalg.norm(heads[top][:, None, :] - heads[None, :, :], axis=2)
    norms[rows, top] = 1.0
    distances = gaps / np.maximum(norms, 1e-12)
    distances[rows, top] = np.inf
    return highest(evidence, -distances.min(axis=1), keep)
