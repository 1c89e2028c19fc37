"""GradMatch: samples whose weighted gradients add up to that of all.

Killamsetty et al., GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep
Model Training, ICML 2021, arXiv 2103.00123.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from infobatch.lab.coresets.evidence import Coreset, Evidence

_MOST = 10.0


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Matching pursuit of each class's gradient sum, with weights that are not negative, in rounds.

    A round takes a support from orthogonal matching pursuit (scikit-learn) and refits it with
    non-negative least squares (scipy). A pursuit can only use as many samples as the gradient has
    dimensions before it fits. So it runs in rounds, each over the samples that are left, until the
    quota is full; what no round can use is filled up at random. Each round stands for the whole
    gradient, so its weights are brought to mean 1, and none may be above 10: pursuits give single
    samples hundreds of times the weight of others, with which no training converges.
    """
    indices, weights = [], []
    for rows, quota in evidence.quotas(keep):
        found, weight = _match(evidence.gradients(rows), quota, rng)
        indices.append(rows[found])
        weights.append(weight)
    weight = np.concatenate(weights)
    return Coreset(np.concatenate(indices).astype(np.int64), weight / weight.mean())


def _match(
    gradients: NDArray[np.float32], quota: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    try:
        from scipy.optimize import nnls
        from sklearn.linear_model import orthogonal_mp_gram
    except ImportError as error:
        raise ImportError(
            "grad-match needs scikit-learn and scipy: pip install 'infobatch[lab]'"
        ) from error

    atoms = gradients.astype(np.float64) / (float(np.abs(gradients).max()) or 1.0)
    target = atoms.sum(axis=0)
    free = np.arange(len(atoms))
    found: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    left = quota
    while left:
        part = atoms[free]
        at_once = int(min(left, len(free), max(1, np.linalg.matrix_rank(part))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it has fitted before it was full
            pursued = orthogonal_mp_gram(part @ part.T, part @ target, n_nonzero_coefs=at_once)
        support = np.flatnonzero(np.atleast_1d(np.asarray(pursued)))
        fitted = nnls(part[support].T, target, maxiter=30 * len(support))[0] if len(support) else []
        positive = np.asarray(fitted) > 1e-9
        if not positive.any():
            break
        taken, fitted = support[positive], np.asarray(fitted)[positive]
        found.append(free[taken])
        weights.append(np.minimum(fitted / fitted.mean(), _MOST))
        free = np.delete(free, taken)
        left -= len(taken)
    if left:
        found.append(rng.choice(free, size=left, replace=False))
        weights.append(np.ones(left))
    return np.concatenate(found), np.concatenate(weights)
