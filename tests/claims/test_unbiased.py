"""The expected weighted gradient of an epoch is the gradient of the full data.

Three proofs, from exact to real. (1) Every sequence of draws that the code can make is walked
through, with its probability as a fraction. (2) The draws of a real generator hit every subset
equally often. (3) Real epochs through a real DataLoader, averaged over many seeds.
"""

import functools
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.policies.support import ask
from torch.nn import functional as F
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch._core.thinning import thin
from infobatch.policies import (
    PAPER_QUANTILES,
    MeanThreshold,
    QuantileThresholds,
    RandomSubset,
)


class EveryOutcome:
    """Stands where a policy has its generator, and takes every possible outcome of its draws.

    A coin (a number below 2**16) lands at either end of its range, with a chosen probability; so
    the proof holds for a coin of any bias. A choice takes each subset of the size asked for.
    """

    def __init__(self, coin=Fraction(1, 2)):
        self._coin = coin

    def outcomes(self, function):
        """Yield (function(self), its probability) for every sequence of draws."""
        self._path = []  # [branch taken, number of branches] of each draw
        while True:
            self._depth, self._probability = 0, Fraction(1)
            result = function(self)
            yield result, self._probability
            while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
                self._path.pop()
            if not self._path:
                return
            self._path[-1][0] += 1

    def _branch(self, branches):
        if self._depth == len(self._path):
            self._path.append([0, branches])
        self._depth += 1
        return self._path[self._depth - 1][0]

    def integers(self, low, high, *, size, dtype):
        assert (low, high) == (0, 1 << 16)
        coins = np.empty(size, dtype=dtype)
        for place in range(size):
            heads = self._branch(2) == 0
            coins[place] = low if heads else high - 1
            self._probability *= self._coin if heads else 1 - self._coin
        return coins

    def choice(self, number, *, size, replace, shuffle):
        assert not replace
        subsets = list(itertools.combinations(range(number), size))
        self._probability /= len(subsets)
        return np.array(subsets[self._branch(len(subsets))], dtype=np.int64)


def subset_probabilities(function, coin=Fraction(1, 2)):
    """The exact probability of each thing that `function(rng)` can return."""
    table = Counter()
    for outcome, probability in EveryOutcome(coin).outcomes(function):
        table[outcome] += probability
    assert sum(table.values()) == 1
    return table


@pytest.mark.parametrize("coin", [Fraction(1, 9), Fraction(1, 2), Fraction(4, 5)], ids=str)
@pytest.mark.parametrize("keep_ratio", [0.1, 0.4, 0.5, 0.7])
def test_every_subset_of_the_right_size_has_exactly_the_same_probability(keep_ratio, coin):
    pool = np.array([True, False, True, True, True, True])
    members, keep = np.flatnonzero(pool).tolist(), max(1, int(keep_ratio * 5 + 0.5))
    found = subset_probabilities(
        lambda rng: frozenset(np.flatnonzero(pool & ~thin(pool, keep_ratio, rng)[0]).tolist()),
        coin,
    )
    every_subset = {frozenset(kept) for kept in itertools.combinations(members, keep)}
    assert found == dict.fromkeys(every_subset, Fraction(1, math.comb(5, keep)))


SCORES = {  # of each policy: scores small enough for every outcome to be walked through
    MeanThreshold(0.5): [0.3, 2.5, 0.1, 0.7, 0.2],  # 4 below the mean, 2 kept
    MeanThreshold(0.3): [0.3, 2.5, 0.1, 0.7, 0.2],  # 4 below, 3 kept: not 1 / (1 - r)
    MeanThreshold(0.9): [0.3, 2.5, 0.1, 0.7, 0.2],  # 4 below, 1 kept
    MeanThreshold(0.4): [float("nan"), 2.5, 0.1, 0.7, float("inf"), 0.2],  # 3 below, 2 kept
    QuantileThresholds(((0.5, 0.5), (0.9, 0.3))): [0.4, 9.0, 0.1, 0.9, 0.2],
    QuantileThresholds(((0.6, 0.4), (1.0, 0.5))): [0.4, 9.0, 0.1, 0.9, 0.2],
    RandomSubset(0.5): [0.3, 2.5, 0.1, 0.7, 3.0],
    RandomSubset(0.7): [0.3, 2.5, 0.1, 0.7, 3.0],
}
UNBIASED = list(SCORES)
SCORES[RandomSubset(0.5, rescale=False)] = [0.3, 2.5, 0.1, 0.7, 3.0]
by_policy = pytest.mark.parametrize("policy", UNBIASED, ids=repr)


@functools.cache
def weights_and_probabilities(policy):
    """Every selection that a policy can make: weights (R, N) and their probabilities (R,)."""
    scores = np.array(SCORES[policy], dtype=np.float32)
    everyone = np.arange(len(scores))
    table = subset_probabilities(
        lambda rng: tuple(ask(policy, scores, 3, rng).weights_of(everyone).tolist())
    )
    weights = torch.tensor(list(table), dtype=torch.float64)
    return weights, list(table.values())


def per_sample_gradients(num_samples):
    """Gradients (N, P) in float64 of the losses of a small network at each of N samples."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model.double()
    losses = F.cross_entropy(
        model(torch.randn(num_samples, 3, dtype=torch.float64)),
        torch.arange(num_samples) % 2,
        reduction="none",
    )
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    full = torch.autograd.grad(losses.sum(), parameters)
    return (
        torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]),
        torch.cat([part.flatten() for part in full]),
    )


@by_policy
def test_the_expected_weighted_gradient_is_the_full_gradient(policy):
    weights, probabilities = weights_and_probabilities(policy)
    gradients, full = per_sample_gradients(weights.shape[1])
    chances = torch.tensor([float(p) for p in probabilities], dtype=torch.float64)
    assert len(weights) > 1  # something is drawn at all
    expected = chances @ (weights @ gradients)
    torch.testing.assert_close(expected, full, rtol=0.0, atol=1e-13)


@by_policy
def test_every_selection_of_a_policy_is_equally_likely(policy):
    _, probabilities = weights_and_probabilities(policy)
    assert set(probabilities) == {Fraction(1, len(probabilities))}


@by_policy
def test_every_sample_counts_once_on_average_and_all_together_count_n_every_time(policy):
    weights, probabilities = weights_and_probabilities(policy)
    selections, num_samples = weights.shape
    for column in weights.T.tolist():
        once = sum(p * Fraction(w) for p, w in zip(probabilities, column, strict=True))
        assert float(once) == pytest.approx(1.0, abs=1e-15)
    total = torch.full((selections,), float(num_samples), dtype=torch.float64)
    torch.testing.assert_close(weights.sum(1), total, rtol=1e-15, atol=0.0)


def test_without_the_rescale_weights_the_expected_gradient_is_another():
    weights, probabilities = weights_and_probabilities(RandomSubset(0.5, rescale=False))
    gradients, full = per_sample_gradients(5)
    chances = torch.tensor([float(p) for p in probabilities], dtype=torch.float64)
    expected = chances @ (weights @ gradients)
    torch.testing.assert_close(expected, full * 3 / 5, rtol=0.0, atol=1e-13)  # 3 of 5 are kept


@given(
    pool=st.lists(st.booleans(), min_size=1, max_size=300),
    keep_ratio=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
)
@example(pool=[True] * 3, keep_ratio=0.5, seed=0)
@example(pool=[True] * 300, keep_ratio=0.0, seed=1)
@example(pool=[True] * 300, keep_ratio=1e-9, seed=2)
@example(pool=[True] * 300, keep_ratio=1.0, seed=3)
@example(pool=[False] * 5, keep_ratio=0.5, seed=4)
def test_thinning_is_exact_in_count_and_in_total_weight(pool, keep_ratio, seed):
    mask = np.array(pool)
    before = mask.copy()
    dropped, weight = thin(mask, keep_ratio, np.random.default_rng(seed))
    members, kept = int(mask.sum()), int((mask & ~dropped).sum())
    assert np.array_equal(mask, before)  # the pool is not written to
    assert not (dropped & ~mask).any()  # nobody outside it is dropped
    assert abs(kept - keep_ratio * members) <= 0.5 + 1e-9 or (kept == 1 and members > 0)
    assert kept >= min(1, members)
    assert weight * kept == pytest.approx(members, rel=1e-15)


def chi_square(counts, expected):
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("keep_ratio", [0.5, 1 / 3, 0.7])
def test_a_real_generator_draws_every_subset_equally_often(keep_ratio):
    # n = 6,000 draws of k of 6 members among 8 samples. Threshold: the 99.99% quantile of
    # chi-square with C(6, k) - 1 degrees of freedom, scipy.stats.chi2.isf(1e-4, df).
    n, bound = 6_000, {20: 50.795, 15: 42.579}
    pool = np.array([True, True, False, True, True, False, True, True])
    rng = np.random.default_rng(20240507)
    counts = Counter(thin(pool, keep_ratio, rng)[0].tobytes() for _ in range(n))
    subsets = math.comb(6, round(6 * keep_ratio))
    assert len(counts) == subsets
    assert chi_square(list(counts.values()), n / subsets) < bound[subsets]


@pytest.mark.parametrize("keep_ratio", [0.05, 0.5, 0.9])
def test_a_real_generator_treats_all_members_of_a_larger_pool_alike(keep_ratio):
    # n = 3,000 draws of k of 101 members. Each is dropped in n * (1 - k/101) of them; as k is
    # fixed, sum((count - expected)^2 / expected) * 100 / k is chi-square with 100 degrees of
    # freedom, of which 161.319 is the 99.99% quantile.
    n, members = 3_000, 101
    pool = np.zeros(150, dtype=bool)
    pool[np.arange(members) + np.arange(members) // 3] = True
    rng = np.random.default_rng(11)
    counts = sum(thin(pool, keep_ratio, rng)[0].astype(np.int64) for _ in range(n))
    assert not counts[~pool].any()
    keep = int(keep_ratio * members + 0.5)
    expected = n * (members - keep) / members
    assert chi_square(counts[pool], expected) * (members - 1) / keep < 161.319


N, BATCH = 80, 16


def regression():
    """Inputs, targets and a fixed linear model in float64, whose losses differ widely."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(N, 4, dtype=torch.float64, generator=generator)
    targets = inputs.sum(1) + 2.0 * torch.randn(N, dtype=torch.float64, generator=generator)
    return inputs, targets, torch.tensor([1.2, 0.9, 0.5, 1.0], dtype=torch.float64)


def epoch_gradients(pruner):
    """The summed weighted gradient of each of two epochs: the first full, the second pruned."""
    inputs, targets, values = regression()
    loader = DataLoader(range(N), batch_size=BATCH, sampler=pruner.sampler)
    gradients = []
    for _ in range(2):
        theta = values.clone().requires_grad_()
        for rows in loader:
            losses = (inputs[rows] @ theta - targets[rows]).square()
            pruner.update(losses, reduction="sum").backward()
        gradients.append(theta.grad)
    return gradients


ENGINES = {  # a pruner for a seed; and its pools as (from, to, kept) in rising order of loss
    "mean": (
        lambda seed: InfoBatch(N, 3, prune_ratio=0.5, delta=1.0, seed=seed),
        lambda losses: [(0, int((losses < losses.mean()).sum()), 0.5)],
    ),
    "quantiles": (
        lambda seed: InfoBatch(N, 3, delta=1.0, quantiles=PAPER_QUANTILES, seed=seed),
        lambda losses: [(0, 16, 0.25), (16, 68, 0.5)],
    ),
    "random": (
        lambda seed: DataPruner(N, 3, RandomSubset(0.4), delta=1.0, seed=seed),
        lambda losses: [(0, N, 0.6)],
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_real_epochs_through_a_dataloader_average_to_the_full_gradient(name):
    # n = 150 seeds. A pool of M samples of which k are drawn has, for one epoch, the variance
    # M^2 / k * (1 - k/M) * S^2 with S^2 the sample variance of its gradients. Threshold: 4.5
    # standard errors in each of the 4 coordinates, which chance exceeds in 3 of 100,000 runs.
    n, z = 150, 4.5
    build, pools = ENGINES[name]
    inputs, targets, values = regression()
    residuals = inputs @ values - targets
    rising = residuals.square().argsort()
    gradients = (2.0 * residuals[:, None] * inputs)[rising]
    full = gradients.sum(0)
    variance, missing = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for start, stop, keep_ratio in pools(residuals.square()):
        members = stop - start
        kept = int(keep_ratio * members + 0.5)
        variance += members**2 / kept * (1 - kept / members) * gradients[start:stop].var(0)
        missing += (1 - kept / members) * gradients[start:stop].sum(0)
    bound = z * (variance / n).sqrt()

    first, second = zip(*(epoch_gradients(build(seed)) for seed in range(n)), strict=True)

    for gradient in first:
        torch.testing.assert_close(gradient, full)
    assert len({tuple(gradient.tolist()) for gradient in second}) > n // 2  # the draws do differ
    assert bool(((torch.stack(second).mean(0) - full).abs() <= bound).all())
    assert bool((missing.abs() > 2 * bound).any())  # and left-out weights would be noticed
