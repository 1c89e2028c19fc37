"""The paired difference is the textbook's, and the verdict follows from the interval alone."""

import numpy as np
import pytest
from scipy import stats

from infobatch.lab.report.stats import PairedDifference, paired_difference, sample_std


@pytest.mark.parametrize("pairs", [2, 3, 5, 30])
def test_the_interval_is_that_of_scipys_paired_t_test(pairs):
    rng = np.random.default_rng(pairs)
    arm, reference = rng.normal(94.8, 0.3, pairs), rng.normal(95.0, 0.3, pairs)
    ours = paired_difference(list(arm), list(reference))
    theirs = stats.ttest_rel(arm, reference).confidence_interval(0.95)
    assert ours.mean == pytest.approx(np.mean(arm - reference))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_a_case_worked_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653, half = t / sqrt(3) = 2.484138.
    ours = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (ours.mean, ours.low, ours.high) == pytest.approx((2.0, -0.484138, 4.484138))


def test_pairing_removes_what_a_seed_does_to_both_arms():
    seeds = np.array([0.0, 5.0, -5.0])
    ours = paired_difference(list(95 + seeds - 0.1), list(95 + seeds))
    assert ours.low == pytest.approx(-0.1)
    assert ours.high == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.49, 0.3, "non-inferior"),
        (0.1, 0.3, "non-inferior"),
        (-0.5, 0.3, "undecided"),  # the interval has to lie above the margin, not reach it
        (-0.6, 0.3, "undecided"),
        (-0.9, -0.5, "undecided"),
        (-0.9, -0.51, "inferior"),
        (None, None, "undecided (1 seed)"),
    ],
)
def test_the_verdict_follows_from_interval_and_margin(low, high, verdict):
    assert PairedDifference(0.0, low, high, 5).verdict(0.5) == verdict


def test_one_seed_gives_a_difference_but_no_interval():
    ours = paired_difference([94.0], [95.0])
    assert ours == PairedDifference(-1.0, None, None, 1)
    assert sample_std([94.0]) is None


def test_the_standard_deviation_is_that_of_a_sample():
    assert sample_std([1.0, 2.0, 3.0]) == pytest.approx(1.0)
