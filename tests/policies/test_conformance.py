"""Every policy of the library goes through the suite that is offered for one's own."""

from dataclasses import dataclass

import numpy as np
import pytest

from infobatch import policies as p
from infobatch._core.policy import reads_probability
from infobatch.testing import check_batch_policy, check_policy

N = 120
GROUPS = np.arange(N) % 7

BIASED = [
    p.FullData(),
    p.RandomSubset(0.4, rescale=False),
    p.RepeatedRandomSampling(0.3),
    p.RepeatedRandomSampling(0.3, replacement=True),
    p.UpperConfidenceBound(0.4, every=2),
    p.EpsilonGreedy(0.4, every=2),
    p.Kakurenbo(0.3),
    p.Kakurenbo(0.3, num_epochs=9),
    p.CappedWeights(p.Kakurenbo(0.3), 2.0),
    p.SlidingWindow(),
    p.SlidingWindow(random_ratio=0.0, window=0.6, random_from=4),
    p.OrderedSubset(),
    p.LocalWindow(),
    p.EarlyStopping(0.05),
    p.FixedSubset(np.arange(0, N, 3)),
    p.FixedSubset(np.arange(5), np.array([0.5, 1.5, 1.0, 2.0, 0.1])),
    p.CappedWeights(p.RandomSubset(0.8), 2.0),
    p.ProtectedTail(p.BudgetThreshold(), tail=0.2),
    p.WithinGroups(p.EarlyStopping(0.05), GROUPS),
    p.ProportionalSampling(),
    p.ProportionalSampling("root", 2.0, 0.5, 0.5, 2.0),
    p.WithinGroups(p.ProportionalSampling(), GROUPS),
    p.AgedScores(p.ProportionalSampling(), 3.0),
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
    p.ProtectedTail(p.MeanThreshold(0.5)),
    p.ProportionalSampling(exponent=1.0),
    p.ProportionalSampling("loss", 0.5, 0.3, 1.0),
    p.AgedScores(p.ProportionalSampling(exponent=1.0), 2.0),
    p.AgedScores(p.MeanThreshold(0.5), 5.0),
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
    around = p.AgedScores(p.WithinGroups(policy, GROUPS))
    assert reads_probability(policy) == reads_probability(around) == reads


@pytest.mark.parametrize("policy", [p.SelectiveBackprop(), p.EvolvedSampling()], ids=repr)
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

    def select(self, scores, epoch, rng):
        if self.how == "random":
            rng = np.random.default_rng()
        if self.how == "writes":
            scores[:] = 0
        if self.how == "short":
            return p.Selection.full(max(1, len(scores) - 1))
        if self.how == "nothing":
            return p.Selection(np.zeros(len(scores)))
        if self.how == "biased":
            full = super().select(scores, epoch, rng)
            return p.Selection(np.minimum(full.weights, 1.5), full.level)
        return super().select(scores, epoch, rng)


@dataclass(frozen=True)
class BrokenCount(p.BudgetThreshold):
    def select_exactly(self, scores, keep, epoch, rng):
        return super().select_exactly(scores, max(keep - 1, self.min_keep(len(scores))), epoch, rng)


@dataclass(frozen=True)
class BrokenLeast(p.BudgetThreshold):
    def min_keep(self, num_samples):
        return 0


@dataclass(frozen=True)
class Forgetful(p.UpperConfidenceBound):
    def remember(self, memory, rows, scores, batches, *, trained):
        super().remember(memory, rows, scores, batches, trained=trained)
        memory["mean"][:] += len(rows)  # depends on how an epoch is cut


@dataclass(frozen=True)
class Moody(p.UpperConfidenceBound):
    def select_from(self, memory, scores, keep, epoch, rng):
        memory["mean"][:] = -memory["mean"]
        memory["chosen"][:] = 0
        return super().select_from(memory, scores, keep, epoch, rng)


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
        (object(), "has none of"),
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
