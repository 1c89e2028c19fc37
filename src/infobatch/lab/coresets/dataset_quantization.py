"""DQ, dataset quantization: bins of falling representativeness, and a uniform draw from each.

Zhou et al., Dataset Quantization, ICCV 2023, arXiv 2308.10524.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, squared_distances
from infobatch.lab.coresets.submodular import graph_cut
from infobatch.policies.groups import shares

BINS = 10


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Split each class into bins by the graph cut gain on features, and draw from all alike.

    The first bins hold what is representative of the class, the last what is left, so a draw
    from each is more diverse than either end. Patches are not dropped, as the paper does besides.
    """
    chosen = []
    for rows, quota in evidence.quotas(keep):
        x = evidence.features[rows]
        distance = squared_distances(x, x)
        ranking = graph_cut(distance.max() - distance, len(rows))
        bins = np.array_split(rows[ranking], min(BINS, quota))
        parts = shares(quota, np.array([len(part) for part in bins]))
        for part, count in zip(bins, parts.tolist(), strict=True):
            chosen.append(rng.choice(part, size=count, replace=False))
    return Coreset(np.sort(np.concatenate(chosen)).astype(np.int64))
