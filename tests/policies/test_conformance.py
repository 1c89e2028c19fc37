"""Every policy of the library goes through the suite that is offered for one's own."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from infobatch import policies as p
from infobatch.testing import check_batch_policy, check_policy

N = 120
GROUPS = np.arange(N) % 7

BIASED = [
    p.FullData(),
    p.RandomSubset(0.4, rescale=False),
    p.RS2(0.3),
    p.RS2(0.3, replacement=True),
    p.UCB(0.4, every=2),
    p.EpsilonGreedy(0.4, every=2),
    p.Kakurenbo(0.3),
    p.CappedWeights(p.Kakurenbo(0.3), 2.0),
    p.SeTa(),
    p.SeTa(random_ratio=0.0, window=0.6, random_from=4),
    p.OrderDP(),
    p.RePB(),
    p.IES(0.05),
    p.DataDropout(),
    p.DataDropout(0.1, at_random=True),
    p.AlignPrune(window=3),
    p.AlignPrune(p.SeTa(), clean=np.arange(9), window=4),
    p.FixedSubset(np.arange(0, N, 3)),
    p.FixedSubset(np.arange(5), np.array([0.5, 1.5, 1.0, 2.0, 0.1])),
    p.CappedWeights(p.RandomSubset(0.8), 2.0),
    p.WithinGroups(p.IES(0.05), GROUPS),
    p.ProportionalSampling(),
    p.ProportionalSampling("root", 2.0, 0.5, 0.5, 2.0),
    p.WithinGroups(p.ProportionalSampling(), GROUPS),
]
UNBIASED = [
    p.MeanThreshold(0.5),
    p.MeanThreshold(0.9),
    p.QuantileThresholds(),
    p.QuantileThresholds(((0.5, 0.3), (0.9, 0.6))),
    p.BudgetThreshold(),
    p.BudgetThreshold(max_weight=1.5),
    p.RandomSubset(0.7),
    p.WithinGroups(p.MeanThreshold(0.5), GROUPS),
    p.WithinGroups(p.BudgetThreshold(), GROUPS),
    p.CappedWeights(p.BudgetThreshold(), 4.0),
    p.ProportionalSampling(exponent=1.0),
    p.ProportionalSampling("loss", 0.5, 0.3, 1.0),
]


@pytest.mark.parametrize("policy", BIASED, ids=repr)
def test_a_biased_policy_keeps_its_other_promises(policy):
    check_policy(policy, num_samples=N)


@pytest.mark.parametrize("policy", UNBIASED, ids=repr)
def test_an_unbiased_policy_is_unbiased(policy):
    check_policy(policy, unbiased=True, num_samples=N)


@pytest.mark.parametrize(
    ("policy", "reads"),
    [
        (p.ProportionalSampling(), True),
        (p.ProportionalSampling("loss"), False),
        (p.Kakurenbo(), True),
        (p.BudgetThreshold(), False),
    ],
    ids=repr,
)
def test_a_policy_around_another_says_what_that_takes_scores_for(policy, reads):
    around = p.CappedWeights(p.WithinGroups(policy, GROUPS), 2.0)
    assert policy.reads_probability == around.reads_probability == reads


@pytest.mark.parametrize("policy", [p.SelectiveBackprop(), p.ES()], ids=repr)
def test_an_in_batch_policy_keeps_its_promises(policy):
    check_batch_policy(policy)


@pytest.mark.parametrize(
    "policy", [p.ImportanceSampling(), p.ImportanceSampling(uniform=0.2)], ids=repr
)
def test_importance_sampling_is_unbiased(policy):
    check_batch_policy(policy, unbiased=True)


# The suite itself: each promise, broken.


@dataclass(frozen=True)
class Broken(p.MeanThreshold):
    how: str = ""

    def select(self, request):
        if self.how == "random":
            request = replace(request, rng=np.random.default_rng())
        if self.how == "writes":
            request.scores[:] = 0
        if self.how == "short":
            return p.Selection.full(max(1, len(request) - 1))
        if self.how == "nothing":
            return p.Selection(np.zeros(len(request)))
        if self.how == "biased":
            full = super().select(request)
            return p.Selection(np.minimum(full.weights, 1.5), full.level)
        return super().select(request)


@dataclass(frozen=True)
class BrokenCount(p.BudgetThreshold):
    def select(self, request):
        fewer = max(request.keep - 1, self.min_keep(len(request)))
        return super().select(replace(request, keep=fewer))


@dataclass(frozen=True)
class BrokenLeast(p.BudgetThreshold):
    def min_keep(self, num_samples):
        return 0


@dataclass(frozen=True)
class Forgetful(p.UCB):
    def remember(self, memory, visits):
        super().remember(memory, visits)
        memory["mean"][:] += len(visits.rows)  # depends on how an epoch is cut


@dataclass(frozen=True)
class Moody(p.UCB):
    def select(self, request):
        request.memory["mean"][:] = -request.memory["mean"]
        request.memory["chosen"][:] = 0
        return super().select(request)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Broken(how="random"), "not deterministic"),
        (Broken(how="short"), "the selection is of"),
        (Broken(how="nothing"), "nothing is kept"),
        (Broken(how="biased"), "is not unbiased"),
        (BrokenCount(), "samples are kept"),
        (BrokenLeast(), "min_keep"),
        (Forgetful(), "depends on how the losses"),
        (Moody(), "asked twice"),
        (object(), "is no infobatch.policies.Policy"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_suite_finds_what_is_broken(policy, message):
    with pytest.raises(AssertionError, match=message):
        check_policy(policy, unbiased="unbiased" in message, num_samples=N)


def test_the_suite_lets_no_policy_write_to_the_scores():
    with pytest.raises(ValueError, match="read-only"):
        check_policy(Broken(how="writes"), num_samples=N)


class BrokenBatch(p.SelectiveBackprop):
    def __init__(self, how):
        object.__setattr__(self, "how", how)

    def select_batch(self, scores, memory, keep, rng):
        if self.how == "random":
            rng = np.random.default_rng()
        choice = super().select_batch(scores, memory, keep, rng)
        if self.how == "zero":
            return p.BatchSelection(choice.positions, choice.weights * 0)
        if self.how == "many":
            return p.BatchSelection(choice.positions[:-1], choice.weights[:-1])
        if self.how == "outside":
            return p.BatchSelection(choice.positions + len(scores), choice.weights)
        return choice


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("random", "not deterministic"),
        ("zero", "positive"),
        ("many", "must be"),
        ("outside", "positions must be"),
        ("biased", "not unbiased"),
    ],
)
def test_the_suite_finds_a_broken_in_batch_policy(how, message):
    with pytest.raises(AssertionError, match=message):
        check_batch_policy(BrokenBatch(how), unbiased=True)
