"""Which samples to keep, and with what weight: one file per method.

A policy has one method, `select(request) -> Selection`: from the scores, and with `budget=` the
number to keep, to a weight for each sample. It knows nothing of loaders, devices or ranks, so a
new method is one short file. `BatchPolicy` is for methods that choose within a batch, after a
forward pass. The paper's own rules are in `infobatch.policies.infobatch`, other published methods
in `infobatch.policies.rivals`.
"""

from infobatch._core.policy import Policy, Request, Visits
from infobatch._core.selection import Selection
from infobatch.policies.batch import BatchPolicy, BatchSelection
from infobatch.policies.caps import CappedWeights
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
from infobatch.policies.rivals.align_prune import AlignPrune
from infobatch.policies.rivals.data_dropout import DataDropout
from infobatch.policies.rivals.epsilon_greedy import EpsilonGreedy
from infobatch.policies.rivals.es import ES
from infobatch.policies.rivals.ies import IES
from infobatch.policies.rivals.importance_sampling import ImportanceSampling
from infobatch.policies.rivals.kakurenbo import Kakurenbo
from infobatch.policies.rivals.orderdp import OrderDP
from infobatch.policies.rivals.repb import RePB
from infobatch.policies.rivals.rs2 import RS2
from infobatch.policies.rivals.selective_backprop import SelectiveBackprop
from infobatch.policies.rivals.seta import SeTa
from infobatch.policies.rivals.ucb import UCB

__all__ = [
    "ES",
    "IES",
    "PAPER_QUANTILES",
    "RS2",
    "UCB",
    "AlignPrune",
    "BatchPolicy",
    "BatchSelection",
    "BudgetThreshold",
    "CappedWeights",
    "DataDropout",
    "EpsilonGreedy",
    "FixedSubset",
    "FullData",
    "ImportanceSampling",
    "Kakurenbo",
    "MeanThreshold",
    "OrderDP",
    "Policy",
    "ProportionalSampling",
    "QuantileThresholds",
    "RandomSubset",
    "RePB",
    "Request",
    "SeTa",
    "Selection",
    "SelectiveBackprop",
    "Visits",
    "WithinGroups",
]
