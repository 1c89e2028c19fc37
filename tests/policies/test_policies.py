"""What every policy promises, and what each promises of its own."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.policies.support import ask
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch._core.plan import selection_rng
from infobatch.errors import PolicyError
from infobatch.policies import (
    PAPER_QUANTILES,
    FullData,
    MeanThreshold,
    Policy,
    QuantileThresholds,
    RandomSubset,
    Selection,
)

BY_SCORE = [  # policies that look at scores
    MeanThreshold(0.5),
    MeanThreshold(0.9),
    QuantileThresholds(),
    QuantileThresholds(((0.3, 0.1), (0.9, 0.6))),
]
EVERY = [*BY_SCORE, FullData(), RandomSubset(0.5), RandomSubset(0.3, rescale=False)]
every_policy = pytest.mark.parametrize("policy", EVERY, ids=repr)
by_score = pytest.mark.parametrize("policy", BY_SCORE, ids=repr)
unbiased = pytest.mark.parametrize("policy", [*BY_SCORE, FullData(), RandomSubset(0.5)], ids=repr)

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
score_arrays = st.lists(
    st.one_of(float32s, st.sampled_from([float("nan"), float("inf"), float("-inf")])),
    min_size=1,
    max_size=60,
).map(lambda values: np.array(values, dtype=np.float32))


def select(policy, scores, seed=0, epoch=3):
    """The weights (N,) that a policy gives in one epoch; 0 where it prunes."""
    selection = ask(policy, scores, epoch, selection_rng(seed, epoch))
    assert len(selection) == len(scores)
    return selection.weights_of(np.arange(len(scores)))


def losses(num_samples, seed=0):
    return np.random.default_rng(seed).exponential(size=num_samples).astype(np.float32)


# ---------------------------------------------------------------- every policy


@every_policy
def test_the_same_draws_give_the_same_selection_and_other_draws_another(policy):
    scores = losses(200)
    first = select(policy, scores, seed=1)
    assert np.array_equal(first, select(policy, scores, seed=1))
    others = [select(policy, scores, seed=seed) for seed in (2, 3)]
    draws = not isinstance(policy, FullData)
    assert [not np.array_equal(first, other) for other in others] == [draws, draws]


@every_policy
def test_a_policy_is_known_by_its_settings_and_cannot_be_changed(policy):
    twin = type(policy)(**vars(policy))
    assert isinstance(policy, Policy)
    assert twin == policy
    assert hash(twin) == hash(policy)
    with pytest.raises(AttributeError):
        policy.prune_ratio = 0.1


@unbiased
@given(scores=score_arrays, seed=st.integers(0, 1000))
@example(scores=np.array([1.0], dtype=np.float32), seed=0)
@example(scores=np.array([1.0, 2.0], dtype=np.float32), seed=0)
@example(scores=np.array([1.0, 2.0, 3.0], dtype=np.float32), seed=0)
@example(scores=np.array([3.4e38, -3.4e38, 1.0], dtype=np.float32), seed=0)
@example(scores=np.array([1e-45, 0.0, -0.0], dtype=np.float32), seed=0)
def test_weights_are_finite_and_sum_to_the_number_of_samples(policy, scores, seed):
    weights = select(policy, scores, seed=seed)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (weights > 0).any()
    assert weights.sum() == pytest.approx(len(scores), rel=1e-12)


# ---------------------------------------------------------------- policies that look at scores


@by_score
@given(scores=score_arrays, seed=st.integers(0, 1000))
def test_samples_without_a_usable_score_are_kept_with_weight_one(policy, scores, seed):
    # Not so RandomSubset: it ignores scores and prunes what was never seen as readily as the rest.
    weights = select(policy, scores, seed=seed)
    assert (weights[~np.isfinite(scores)] == 1.0).all()


@by_score
@given(scores=score_arrays, seed=st.integers(0, 1000))
def test_samples_without_a_usable_score_do_not_move_the_thresholds(policy, scores, seed):
    known = scores[np.isfinite(scores)]
    alone = ask(policy, known, 1, selection_rng(seed, 1)) if len(known) else Selection.full(1)
    mixed = ask(policy, scores, 1, selection_rng(seed, 1))
    assert mixed.threshold == alone.threshold or math.isnan(mixed.threshold + alone.threshold)
    pruned = [
        np.count_nonzero(selection.weights_of(np.arange(len(selection))) == 0)
        for selection in (mixed, alone)
    ]
    assert pruned[0] == pruned[1]


@by_score
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_without_any_usable_score_everything_is_kept(policy, value):
    assert select(policy, np.full(30, value, dtype=np.float32)).tolist() == [1.0] * 30


def test_a_random_subset_ignores_scores_so_it_prunes_unseen_samples_too():
    unseen = np.full(100, np.nan, dtype=np.float32)
    assert np.array_equal(select(RandomSubset(0.5), unseen), select(RandomSubset(0.5), losses(100)))
    assert np.count_nonzero(select(RandomSubset(0.5), unseen)) == 50


@by_score
@given(constant=float32s, num_samples=st.integers(1, 2000))
@example(constant=float(np.float32(0.1)), num_samples=1999)
@example(constant=float(np.finfo(np.float32).max), num_samples=2000)
@example(constant=float(np.finfo(np.float32).smallest_subnormal), num_samples=1000)
@example(constant=-0.0, num_samples=7)
def test_all_equal_scores_prune_nothing_for_any_constant(policy, constant, num_samples):
    scores = np.full(num_samples, constant, dtype=np.float32)
    assert (select(policy, scores) == 1.0).all()


def test_a_float32_mean_as_the_reference_takes_it_would_prune_half_of_equal_scores():
    # It lies above the constant for about 400 of these 1,000; how many depends on the machine, so
    # at least 50 are asked for. All 1,000 samples are then "below the mean".
    above = 0
    for constant in losses(1000, seed=5):
        scores = np.full(1000, constant)
        above += bool((scores < scores.mean()).all())
    assert above >= 50


@by_score
@given(scores=score_arrays, seed=st.integers(0, 1000))
def test_only_samples_strictly_below_the_threshold_are_pruned(policy, scores, seed):
    selection = ask(policy, scores, 1, selection_rng(seed, 1))
    weights = selection.weights_of(np.arange(len(scores)))
    pruned = scores[weights == 0].astype(np.float64)
    assert (pruned < selection.threshold).all()
    at_or_above = scores.astype(np.float64) >= selection.threshold
    assert (weights[at_or_above] == 1.0).all()


# ---------------------------------------------------------------- the mean threshold


@given(
    scores=st.lists(float32s, min_size=1, max_size=100),
    prune_ratio=st.floats(0.0, 1.0, exclude_max=True),
    seed=st.integers(0, 1000),
)
@example(scores=[1.0], prune_ratio=0.5, seed=0)
@example(scores=[1.0, 2.0], prune_ratio=0.5, seed=0)
@example(scores=[1.0, 2.0], prune_ratio=0.999999, seed=0)
@example(scores=[1.0, 1.0, 1.0, 9.0], prune_ratio=0.5, seed=0)  # the reference keeps 0.67 of 3
@example(scores=[0.0] * 99 + [9.0], prune_ratio=1e-12, seed=0)
@example(scores=[0.0] * 99 + [9.0], prune_ratio=1.0 - 2**-53, seed=0)
@example(scores=[0.0] * 99 + [9.0], prune_ratio=5e-324, seed=0)
def test_of_m_samples_below_the_mean_the_nearest_number_is_kept(scores, prune_ratio, seed):
    scores = np.array(scores, dtype=np.float32)
    weights = select(MeanThreshold(prune_ratio), scores, seed=seed)
    below = scores < math.fsum(scores.tolist()) / len(scores)
    members, kept = int(below.sum()), int((weights[below] > 0).sum())
    if members:
        assert kept >= 1  # so that no part of the data goes unrepresented
        assert abs(kept - (1 - prune_ratio) * members) <= 0.5 + 1e-9 or kept == 1
        assert set(weights[below]) <= {0.0, members / kept}
    assert (weights[~below] == 1.0).all()


def test_a_prune_ratio_of_zero_is_the_full_data():
    selection = ask(MeanThreshold(0.0), losses(50), 1, selection_rng(0, 1))
    assert selection.is_full


@pytest.mark.parametrize("scores", [[5.0], [5.0, 1.0], [1.0, 5.0, 9.0], [1.0, 1.0, 9.0]], ids=str)
@by_score
def test_tiny_data_sets_work_and_never_lose_all_of_a_range(policy, scores):
    for seed in range(20):
        weights = select(policy, np.array(scores, dtype=np.float32), seed=seed)
        assert weights.sum() == pytest.approx(len(scores))
        assert weights[np.argmax(scores)] == 1.0


# ---------------------------------------------------------------- the quantile variant


def test_quantiles_are_taken_as_pairs_in_any_iterable_or_as_a_mapping():
    pairs = ((0.2, 0.25), (0.85, 0.5), (1.0, 1.0))
    forms = [
        pairs,
        list(pairs),
        [list(pair) for pair in pairs],
        dict(pairs),
        iter(pairs),
        np.array(pairs),
        ((0.2, 0.25), (0.85, 0.5), (1, 1)),
    ]
    for form in forms:
        assert QuantileThresholds(form) == QuantileThresholds(PAPER_QUANTILES)
    assert QuantileThresholds() == QuantileThresholds(PAPER_QUANTILES)


def test_what_lies_above_the_last_quantile_is_kept_whole():
    scores = np.arange(100, dtype=np.float32)
    weights = select(QuantileThresholds(((0.5, 0.5),)), scores)
    assert (weights[50:] == 1.0).all()
    assert np.count_nonzero(weights[:50]) == 25


def test_a_single_range_up_to_1_thins_all_known_samples():
    scores = np.arange(100, dtype=np.float32)
    scores[0] = np.nan
    selection = ask(QuantileThresholds(((1.0, 0.25),)), scores, 1, selection_rng(0, 1))
    weights = selection.weights_of(np.arange(100))
    assert weights[0] == 1.0
    assert np.unique(weights[1:]).tolist() == [0.0, 99 / 25]


@given(
    scores=st.lists(float32s, min_size=1, max_size=80, unique=True),
    edges=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5, unique=True).map(sorted),
    data=st.data(),
)
def test_each_range_is_thinned_by_its_own_ratio(scores, edges, data):
    scores = np.array(scores, dtype=np.float32)
    keeps = [data.draw(st.floats(0.01, 1.0)) for _ in edges]
    policy = QuantileThresholds(tuple(zip(edges, keeps, strict=True)))
    weights = select(policy, scores)
    bounds = [-np.inf, *np.quantile(scores.astype(np.float64), edges)]
    if edges[-1] == 1.0:
        bounds[-1] = np.inf
    for low, high, keep in zip(bounds[:-1], bounds[1:], keeps, strict=True):
        # numpy interpolates in another order of operations, so leave out scores on the very edge.
        inside = (scores >= low) & (scores < high)
        clear = not np.isclose(scores[:, None], [low, high], rtol=1e-9, atol=0).any()
        if clear and inside.any():
            kept = np.count_nonzero(weights[inside])
            assert abs(kept - keep * inside.sum()) <= 0.5 + 1e-9 or kept == 1
            assert weights[inside].sum() == pytest.approx(inside.sum())


def test_up_to_254_ranges_are_taken():
    pairs = [((step + 1) / 254, 0.5) for step in range(254)]
    weights = select(QuantileThresholds(pairs), np.arange(2000, dtype=np.float32))
    assert weights.sum() == pytest.approx(2000)
    with pytest.raises(ValueError, match="quantiles can be at most 254 ranges, got 255"):
        QuantileThresholds([((step + 1) / 255, 0.5) for step in range(255)])


@pytest.mark.parametrize(
    "quantiles",
    [
        (),
        {},
        0.5,
        "0.5",
        None,
        (0.2, 0.5),
        ((0.2,),),
        ((0.2, 0.5, 0.7),),
        ((0.2, "half"),),
        ((0.0, 0.5),),
        ((-0.1, 0.5),),
        ((1.1, 0.5),),
        ((20, 0.5),),
        ((0.5, 0.5), (0.5, 0.7)),
        ((0.5, 0.5), (0.2, 0.7)),
        ((0.5, 0.5), (1.0, 0.7), (1.2, 1.0)),
        ((float("nan"), 0.5),),
        ((0.5, float("nan")),),
        ((0.5, 0.0),),
        ((0.5, -0.5),),
        ((0.5, 1.5),),
        ((0.5, 50),),
    ],
    ids=repr,
)
def test_wrong_quantiles_are_refused_with_the_rule_and_what_came(quantiles):
    with pytest.raises(ValueError, match=r"quantiles must be \(upper quantile, keep ratio\)") as e:
        QuantileThresholds(quantiles)
    assert repr(quantiles) in str(e.value)


# ---------------------------------------------------------------- the random subset


@given(
    num_samples=st.integers(1, 300),
    prune_ratio=st.floats(0.0, 1.0, exclude_max=True),
    seed=st.integers(0, 1000),
)
@example(num_samples=1, prune_ratio=0.99, seed=0)
@example(num_samples=2, prune_ratio=0.5, seed=0)
@example(num_samples=3, prune_ratio=0.5, seed=0)
def test_a_random_subset_is_exact_in_count_and_scales_by_n_over_kept(
    num_samples, prune_ratio, seed
):
    scores = np.zeros(num_samples, dtype=np.float32)
    weights = select(RandomSubset(prune_ratio), scores, seed=seed)
    kept = np.count_nonzero(weights)
    assert abs(kept - (1 - prune_ratio) * num_samples) <= 0.5 + 1e-9 or kept == 1
    assert set(weights) <= {0.0, num_samples / kept}
    plain = select(RandomSubset(prune_ratio, rescale=False), scores, seed=seed)
    assert np.array_equal(plain, (weights > 0).astype(np.float64))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("policy", [MeanThreshold, RandomSubset])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, 50, float("nan"), float("inf")])
def test_a_prune_ratio_outside_its_range_is_refused(policy, value):
    with pytest.raises(ValueError, match=r"prune_ratio must be in \[0, 1\)"):
        policy(value)


@pytest.mark.parametrize("policy", [MeanThreshold, RandomSubset])
@pytest.mark.parametrize("value", ["0.5", b"0.5", None, [0.5], 0.5j])
def test_a_prune_ratio_that_is_no_number_is_refused(policy, value):
    with pytest.raises(TypeError, match="prune_ratio must be a number"):
        policy(value)


@pytest.mark.parametrize("policy", [MeanThreshold, RandomSubset])
@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), torch.tensor(0.5)])
def test_any_kind_of_number_makes_the_same_policy(policy, value):
    assert policy(value) == policy(0.5)
    assert repr(policy(value)) == repr(policy(0.5))


def test_states_fit_whatever_kind_of_number_the_ratio_was():
    InfoBatch(10, 3, prune_ratio=0).load_state_dict(InfoBatch(10, 3, prune_ratio=0.0).state_dict())


# ---------------------------------------------------------------- Selection


def test_a_selection_with_a_table_says_the_same_as_one_with_a_weight_per_sample():
    level = np.array([0, 1, 2, 1, 0], dtype=np.uint8)
    table = np.array([1.0, 2.5, 0.0])
    short, long = Selection(table, level, 0.3), Selection(table[level], threshold=0.3)
    indices = np.array([4, 2, 2, 1])
    assert len(short) == len(long) == 5
    assert short.weights_of(indices).tolist() == [1.0, 0.0, 0.0, 2.5]
    assert long.weights_of(indices).tolist() == [1.0, 0.0, 0.0, 2.5]
    assert short.threshold == long.threshold == 0.3


def test_a_full_selection_needs_no_memory_and_is_recognised():
    full = Selection.full(10**12)
    assert len(full) == 10**12
    assert full.is_full
    assert full.weights.base.nbytes == 8
    assert not Selection(np.ones(5)).is_full
    assert math.isnan(full.threshold)


def test_weights_are_given_out_in_float64():
    selection = Selection(np.array([0.1, 0.2], dtype=np.float32))
    assert selection.weights_of(np.array([0, 1])).dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 0.0],), "weights must be a numpy array, got list"),
        ((torch.ones(3),), "weights must be a numpy array, got Tensor"),
        ((None,), "weights must be a numpy array, got NoneType"),
        ((np.ones((2, 2)),), r"weights must be a 1-D float array, got float64 of shape \(2, 2\)"),
        ((np.float64(1.0),), "weights must be"),
        ((np.ones(3, dtype=np.int64),), "weights must be a 1-D float array, got int64"),
        ((np.ones(3, dtype=bool),), "weights must be a 1-D float array, got bool"),
        ((np.array([1.0, -0.5]),), "finite and not negative .* from -0.5 to 1.0"),
        ((np.array([1.0, np.nan]),), "finite and not negative"),
        ((np.array([1.0, np.inf]),), "finite and not negative"),
        ((np.ones(2), [0, 1]), "level must be a numpy array, got list"),
        ((np.ones(2), np.array([0, 1])), "level must be a 1-D uint8 array, got int64"),
        ((np.ones(2), np.zeros((2, 2), dtype=np.uint8)), "level must be a 1-D uint8 array"),
        ((np.ones(2), np.array([0, 2], dtype=np.uint8)), "level 2 points outside the table of 2"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(PolicyError, match=message):
        Selection(*arguments)


# ---------------------------------------------------------------- a user's own policy


@dataclass(frozen=True)
class ByLoss(Policy):
    """Keeps a sample with a probability that rises with its loss, and weighs it by the inverse."""

    floor: float = 0.2

    def select(self, request):
        known = np.nan_to_num(request.scores, nan=np.inf)
        chance = np.clip(known / 2.0, self.floor, 1.0)
        return Selection(np.where(request.rng.random(len(request)) < chance, 1.0 / chance, 0.0))


def run(policy, num_epochs=3):
    """Train without a model on 40 samples; returns the pruner, the losses and all steps.

    A step is (epoch, samples, what update returned).
    """
    table = torch.from_numpy(losses(40))
    pruner = DataPruner(40, num_epochs, policy, delta=1.0, seed=4, batch_size=1)
    loader = DataLoader(range(40), batch_size=8, sampler=pruner.sampler)
    steps = [
        (epoch, samples, pruner.update(table[samples]))
        for epoch in range(num_epochs)
        for samples in loader
    ]
    return pruner, table, steps


def test_a_policy_of_one_s_own_with_a_weight_per_sample_works():
    pruner, table, steps = run(ByLoss())
    assert pruner.epoch == 3
    assert pruner.history[0].kept == 40
    for epoch in (1, 2):
        selection = ask(ByLoss(), table.numpy(), epoch, selection_rng(4, epoch))
        weights = torch.from_numpy(selection.weights_of(np.arange(40)))
        mine = [(samples, loss) for number, samples, loss in steps if number == epoch]
        trained = torch.cat([samples for samples, _ in mine])
        assert sorted(trained.tolist()) == weights.nonzero().flatten().tolist()
        assert 10 < len(trained) < 40
        for samples, loss in mine:
            torch.testing.assert_close(loss, (table[samples] * weights[samples].float()).mean())


def test_a_policy_cannot_write_to_the_scores():
    class Scribbler(Policy):
        def select(self, request):
            request.scores[:] = 0.0
            return Selection.full(len(request))

    with pytest.raises(ValueError, match="read-only"):
        run(Scribbler())


class Returns(Policy):
    """A policy that returns what it is told to."""

    def __init__(self, selection):
        self.selection = selection

    def select(self, request):
        return self.selection


@pytest.mark.parametrize(
    "rubbish",
    [None, np.ones(40), [1.0] * 40, torch.ones(40), Selection(np.ones(39)), Selection.full(41)],
    ids=lambda value: type(value).__name__,
)
def test_a_policy_that_returns_rubbish_is_refused(rubbish):
    with pytest.raises(PolicyError, match=r"Returns must return a Selection of all 40"):
        run(Returns(rubbish))


@pytest.mark.parametrize(
    "begin",
    [lambda pruner: list(pruner.sampler), lambda pruner: len(pruner.sampler), lambda p: p.plan],
    ids=["iterate", "length", "plan"],
)
def test_a_policy_that_prunes_everything_is_refused_before_the_epoch_starts(begin):
    pruner = DataPruner(40, 3, Returns(Selection(np.zeros(40))), warmup_epochs=0)
    with pytest.raises(PolicyError, match="keeps none of the samples of epoch 0"):
        begin(pruner)
