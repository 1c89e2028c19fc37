"""Which samples to keep, and with what weight: one file per method.

A policy is a pure function of (scores, epoch, rng) that returns a `Selection`. It knows nothing
of loaders, devices or epoch plans, so a new method is one short file.
"""

from infobatch.policies.base import Policy, Selection, ShardedPolicy
from infobatch.policies.full import FullData
from infobatch.policies.infobatch import PAPER_QUANTILES, MeanThreshold, QuantileThresholds
from infobatch.policies.random import RandomSubset
from infobatch.policies.thinning import thin

__all__ = [
    "PAPER_QUANTILES",
    "FullData",
    "MeanThreshold",
    "Policy",
    "QuantileThresholds",
    "RandomSubset",
    "Selection",
    "ShardedPolicy",
    "thin",
]
