"""Which samples to keep, and with what weight: one file per method.

A policy is a pure function of (scores, epoch, rng) that returns a `Selection`. It knows nothing
of loaders, devices or epoch plans, so a new method is one short file. What more a policy may be:
`ExactPolicy` (it can be told how many to keep), `MemoryPolicy` (it remembers more of a sample
than its last score), `ShardedPolicy` (it works where each rank has the scores of its own samples).
`BatchPolicy` is for methods that choose within a batch, after a forward pass.
"""

from infobatch._core.policy import (
    AnyPolicy,
    ExactPolicy,
    Memory,
    MemoryPolicy,
    Policy,
    Remembering,
    Selection,
    ShardedPolicy,
    is_exact,
    is_native,
)
from infobatch._core.thinning import occurrences, thin, thin_to
from infobatch.policies.aged import AgedScores
from infobatch.policies.caps import CappedWeights, ProtectedTail
from infobatch.policies.fixed import FixedSubset
from infobatch.policies.full import FullData
from infobatch.policies.groups import WithinGroups
from infobatch.policies.infobatch import (
    PAPER_QUANTILES,
    BudgetThreshold,
    MeanThreshold,
    QuantileThresholds,
)
from infobatch.policies.proportional import ProportionalSampling
from infobatch.policies.random import RandomSubset
from infobatch.policies.rivals.batch import (
    BatchPolicy,
    BatchSelection,
    EvolvedSampling,
    ImportanceSampling,
    SelectiveBackprop,
)
from infobatch.policies.rivals.epsilon_greedy import EpsilonGreedy
from infobatch.policies.rivals.ies import EarlyStopping
from infobatch.policies.rivals.kakurenbo import Kakurenbo
from infobatch.policies.rivals.orderdp import OrderedSubset
from infobatch.policies.rivals.repb import LocalWindow
from infobatch.policies.rivals.rs2 import RepeatedRandomSampling
from infobatch.policies.rivals.seta import SlidingWindow
from infobatch.policies.rivals.ucb import UpperConfidenceBound

__all__ = [
    "PAPER_QUANTILES",
    "AgedScores",
    "AnyPolicy",
    "BatchPolicy",
    "BatchSelection",
    "BudgetThreshold",
    "CappedWeights",
    "EarlyStopping",
    "EpsilonGreedy",
    "EvolvedSampling",
    "ExactPolicy",
    "FixedSubset",
    "FullData",
    "ImportanceSampling",
    "Kakurenbo",
    "LocalWindow",
    "MeanThreshold",
    "Memory",
    "MemoryPolicy",
    "OrderedSubset",
    "Policy",
    "ProportionalSampling",
    "ProtectedTail",
    "QuantileThresholds",
    "RandomSubset",
    "Remembering",
    "RepeatedRandomSampling",
    "Selection",
    "SelectiveBackprop",
    "ShardedPolicy",
    "SlidingWindow",
    "UpperConfidenceBound",
    "WithinGroups",
    "is_exact",
    "is_native",
    "occurrences",
    "thin",
    "thin_to",
]
