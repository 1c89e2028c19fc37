"""Scores: what is remembered of each sample, and the statistics taken of all."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from infobatch._core.histogram import NUM_BINS, bin_middles, bins_of, histogram
from infobatch._core.scores import ScoreTable, below, finite_quantiles, finite_sum

NAN, INF = float("nan"), float("inf")
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_float32s = st.floats(width=32)


def finite_mean(scores):
    total, count = finite_sum(scores)
    return total / count if count else NAN


def float32_array(values):
    return np.array(values, dtype=np.float32)


def table_of(values, ema=0.0):
    table = ScoreTable(len(values), ema=ema)
    table.record(np.arange(len(values)), float32_array(values))
    return table


# ---------------------------------------------------------------- the table


def test_before_training_no_sample_has_a_score():
    table = ScoreTable(5)
    assert len(table) == 5
    assert table.values.dtype == np.float32
    assert np.isnan(table.values).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_score_is_the_last_loss_and_a_sample_left_out_keeps_its_own(dtype):
    table = table_of([1.0, 2.0, 3.0, 4.0])
    table.record(np.array([3, 1], dtype=dtype), float32_array([0.5, 0.25]))
    assert table.values.tolist() == [1.0, 0.25, 3.0, 0.5]


@given(
    st.lists(st.tuples(st.integers(0, 4), any_float32s), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.3, 0.9]),
)
@example([(0, INF), (0, -INF), (0, 1.0)], 0.5)
@example([(0, 1.0), (0, NAN), (0, 2.0), (0, 4.0)], 0.5)
def test_many_losses_at_once_count_like_one_after_the_other(events, ema):
    indices = np.array([index for index, _ in events])
    losses = float32_array([loss for _, loss in events])
    with np.errstate(over="ignore"):
        at_once = ScoreTable(5, ema=ema)
        at_once.record(indices, losses)
        one_by_one = ScoreTable(5, ema=ema)
        for place in range(len(events)):
            one_by_one.record(indices[place : place + 1], losses[place : place + 1])
    assert np.array_equal(at_once.values, one_by_one.values, equal_nan=True)


def test_a_running_mean_is_a_times_score_plus_one_minus_a_times_loss():
    table = table_of([1.0, 2.0], ema=0.75)
    assert table.values.tolist() == [1.0, 2.0]  # the first loss is taken whole
    table.record(np.array([1]), float32_array([4.0]))
    table.record(np.array([1]), float32_array([0.5]))
    assert table.values.tolist() == [1.0, 0.75 * 2.5 + 0.25 * 0.5]


def test_a_repeated_sample_enters_the_running_mean_in_its_turn():
    table = table_of([8.0, 1.0], ema=0.5)
    table.record(np.array([0, 1, 0, 0]), float32_array([4.0, 3.0, 2.0, 0.0]))
    assert table.values.tolist() == [((8 + 4) / 2 + 2) / 2 / 2, 2.0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_after_a_non_finite_loss_a_sample_starts_afresh(ema, bad):
    table = table_of([1.0, 1.0], ema=ema)
    table.record(np.array([0]), float32_array([bad]))
    assert str(table.values[0]) == str(bad)
    table.record(np.array([0]), float32_array([3.0]))
    assert table.values.tolist() == [3.0, 1.0]


def test_infinities_of_both_signs_do_not_disturb_the_running_mean():
    table = table_of([INF, 1.0], ema=0.5)  # warnings are errors here
    table.record(np.array([0, 1]), float32_array([-INF, 3.0]))
    assert table.values.tolist() == [-INF, 2.0]


def test_what_is_handed_in_is_not_written_to():
    indices, losses = np.array([0, 1, 0]), float32_array([1.0, NAN, 2.0])
    kept = indices.copy(), losses.copy()
    for ema in (0.0, 0.5):
        ScoreTable(2, ema=ema).record(indices, losses)
    assert np.array_equal(indices, kept[0])
    assert np.array_equal(losses, kept[1], equal_nan=True)


# ---------------------------------------------------------------- the mean


@given(st.lists(float32s, min_size=1, max_size=200))
def test_the_mean_is_that_of_float64(values):
    scores = float32_array(values)
    exact = math.fsum(scores.tolist()) / len(scores)
    spread = math.fsum(abs(x) for x in scores.tolist()) / len(scores)
    assert abs(finite_mean(scores) - exact) <= 1e-14 * spread


@given(float32s, st.integers(1, 5000))
@example(float(np.float32(0.1)), 4999)
@example(float(np.finfo(np.float32).max), 5000)
@example(float(np.finfo(np.float32).smallest_subnormal), 5000)
def test_the_mean_of_equal_scores_is_that_score_exactly(constant, count):
    assert finite_mean(np.full(count, constant, dtype=np.float32)) == float(np.float32(constant))


@given(st.lists(any_float32s, min_size=1, max_size=60))
@example([INF, -INF])
@example([INF, -INF, 1.0])
@example([NAN, INF, 2.0, 4.0])
def test_non_finite_scores_leave_the_mean_untouched(values):
    scores = float32_array(values)
    known = scores[np.isfinite(scores)]
    expected = finite_mean(known) if len(known) else NAN
    assert finite_mean(scores) == pytest.approx(expected, rel=1e-14, nan_ok=True)


# ---------------------------------------------------------------- quantiles


@given(
    st.lists(any_float32s, min_size=1, max_size=60),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5),
)
def test_quantiles_interpolate_linearly_in_float64_as_numpy_does(values, fractions):
    scores = float32_array(values)
    before = scores.copy()
    ours = finite_quantiles(scores, fractions)
    assert np.array_equal(scores, before, equal_nan=True)
    known = scores[np.isfinite(scores)].astype(np.float64)
    if len(known) == 0:
        assert np.isnan(ours).all()
    else:
        spread = np.abs(known).max()
        np.testing.assert_allclose(ours, np.quantile(known, fractions), rtol=0, atol=1e-14 * spread)
        assert all(known.min() <= quantile <= known.max() for quantile in ours)


def test_the_quantiles_of_equal_scores_are_that_score_exactly():
    scores = np.full(777, 0.1, dtype=np.float32)
    assert finite_quantiles(scores, [0.2, 0.333, 0.85]) == [float(np.float32(0.1))] * 3


def test_no_fractions_give_no_quantiles():
    assert finite_quantiles(float32_array([1.0, 2.0]), []) == []
    assert finite_quantiles(float32_array([NAN]), []) == []


# ---------------------------------------------------------------- below


@given(st.lists(any_float32s, min_size=1, max_size=30), st.floats(-3e38, 3e38))
def test_below_compares_without_rounding(values, threshold):
    scores = float32_array(values)
    exact = [
        math.isfinite(score) and Fraction(score) < Fraction(threshold) for score in scores.tolist()
    ]
    assert below(scores, threshold).tolist() == exact


@given(float32s)
@example(float(np.finfo(np.float32).max))
@example(float(np.finfo(np.float32).min))
@example(0.0)
@example(-0.0)
def test_below_tells_a_threshold_from_the_scores_next_to_it(score):
    scores = float32_array([score])
    here = float(scores[0])
    assert not below(scores, here)[0]
    assert below(scores, math.nextafter(here, INF))[0]
    assert not below(scores, math.nextafter(here, -INF))[0]


def test_all_known_scores_lie_below_infinity():
    scores = float32_array([NAN, INF, -INF, 0.0, 3e38])
    assert below(scores, INF).tolist() == [False, False, False, True, True]


# ---------------------------------------------------------------- threads


def test_the_thread_count_changes_no_statistic():
    scores = np.random.default_rng(0).exponential(size=200_001).astype(np.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append((finite_mean(scores), finite_quantiles(scores, [0.2, 0.85])))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_bins_and_their_middles():
    values = np.concatenate(
        [-np.geomspace(1e-30, 1e30, 500), [0.0], np.geomspace(1e-30, 1e30, 500)]
    )
    scores = values.astype(np.float32)
    middles = bin_middles()[bins_of(scores)]
    np.testing.assert_allclose(middles[scores != 0], scores[scores != 0], rtol=2**-8)
    assert abs(middles[scores == 0][0]) < 1e-38
    counts = np.zeros(NUM_BINS)
    np.add.at(counts, bins_of(scores), 1)
    np.testing.assert_array_equal(counts, histogram(scores))
