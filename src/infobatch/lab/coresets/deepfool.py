"""DeepFool margin: the samples nearest to the decision boundary.

Ducoffe and Precioso, Adversarial Active Learning for Deep Networks: a Margin Based Approach, 2018,
arXiv 1802.09841; DeepFool: Moosavi-Dezfooli et al., CVPR 2016, arXiv 1511.04599.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the smallest distance to another class, min_k (f_c - f_k) / ||w_c - w_k||.

    Measured in the space of the features, where the model is linear, so that DeepFool needs one
    step and is exact. The paper measures it in the space of the images, with one backward pass
    per class, step and sample.
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
