"""Each method against a naive reference: a loop over samples, written from its paper.

The reference and the policy share their draws: the same generator, asked in the same order.
"""

import itertools
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from tests.policies.support import ask

from infobatch import policies as p
from infobatch._core.policy import Request, Visits, new_memory
from infobatch._core.thinning import thin_to
from infobatch.errors import PolicyError
from infobatch.policies.rivals.seta import one_dimensional_k_means

N = 60


def rng(seed=0):
    return np.random.default_rng(seed)


def losses(seed=0, size=N):
    return rng(seed + 100).gamma(0.8, size=size).astype(np.float32)


def weights(selection):
    return selection.weights_of(np.arange(len(selection)))


def kept(selection):
    return set(np.flatnonzero(weights(selection)).tolist())


def memory_of(policy, size=N):
    return {name: np.full(size, value, np.float32) for name, value in policy.columns.items()}


def hardest_first(values):
    """Indices by falling value; distinct values are assumed."""
    return sorted(range(len(values)), key=lambda i: -values[i])


# ------------------------------------------------------------------ InfoBatch under a budget


@pytest.mark.parametrize("keep", [20, 33, 45, 59, 60])
@pytest.mark.parametrize("seed", range(3))
def test_budget_threshold(keep, seed):
    scores = losses(seed)
    policy = p.BudgetThreshold(max_weight=4.0)
    selection = ask(policy, scores, 3, rng(seed), keep=keep)
    pool = [i for i in range(N) if scores[i] < fmean(map(float, scores))]
    needed = math.ceil((N - keep) * 4 / 3)  # so many, to drop so many at a weight of at most 4
    if len(pool) < needed:
        pool = sorted(range(N), key=lambda i: scores[i])[:needed]
    dropped = set(range(N)) - kept(selection)
    assert len(dropped) == N - keep
    assert dropped <= set(pool)
    weight = len(pool) / (len(pool) - len(dropped)) if dropped else 1.0
    assert weight <= 4.0 + 1e-9
    expected = [0.0 if i in dropped else weight if i in pool else 1.0 for i in range(N)]
    np.testing.assert_allclose(weights(selection), expected)
    assert weights(selection).sum() == pytest.approx(N)


def test_budget_threshold_prunes_unknown_samples_only_when_nothing_else_is_left():
    scores = losses()
    scores[:20] = np.nan
    policy = p.BudgetThreshold()
    assert set(range(20)) <= kept(ask(policy, scores, 1, rng(), keep=31))
    assert not set(range(20)) <= kept(ask(policy, scores, 1, rng(), keep=15))


def test_budget_threshold_draws_boundary_ties_at_random():
    scores = np.array([0.0] * 2 + [5.0] * 58, np.float32)
    drops = np.zeros(N)
    for seed in range(400):
        selection = ask(p.BudgetThreshold(), scores, 1, rng(seed), keep=40)
        drops += weights(selection) == 0
    assert drops[2:].min() > 0.6 * drops[2:].mean()  # nobody among equals is spared


@pytest.mark.parametrize("keep", [4, 20, 31, 40, 55])
def test_quantiles_under_a_budget_scale_all_prune_ratios_alike(keep):
    scores = losses()
    policy = p.QuantileThresholds(((0.2, 0.25), (0.8, 0.5), (1.0, 1.0)))
    selection = ask(policy, scores, 1, rng(), keep=keep)
    order = sorted(range(N), key=lambda i: scores[i])
    ranges = [order[:12], order[12:48], order[48:]]
    dropped = [sum(weights(selection)[i] == 0 for i in members) for members in ranges]
    assert sum(dropped) == N - keep
    wish = [12 * 0.75, 36 * 0.5, 0.0]
    scale = (N - keep) / sum(wish)
    if scale * 0.75 <= 11 / 12:  # no range would be dropped whole
        assert dropped == pytest.approx([scale * w for w in wish], abs=1.0)
    for members, count in zip(ranges, dropped, strict=True):
        weight = len(members) / (len(members) - count)
        got = {round(float(weights(selection)[i]), 9) for i in members} - {0.0}
        assert got == {round(weight, 9)}


# ------------------------------------------------------------------ in proportion to a bound

SCORES = [0.01, 0.04, 0.2, 0.5, 0.9, 1.6, 3.0, 7.0]


def middles(values):
    """The nearest float32 to each with 1 in the upper of its lower 16 bits: middles of bins."""
    bits = np.array(values, np.float32).view(np.uint32)
    return ((bits >> 16 << 16) | 0x8000).astype(np.uint32).view(np.float32)


def naive_probabilities(bounds, keep, floor):
    """clip(c * bound, floor, 1) for each sample, by trying c: the sum must be `keep`."""
    low, high = 1e-20, 1e20
    for _ in range(300):
        c = math.sqrt(low * high)
        if sum(min(1.0, max(floor, c * bound)) for bound in bounds) > keep:
            high = c
        else:
            low = c
    return [min(1.0, max(floor, high * bound)) for bound in bounds]


@pytest.mark.parametrize(
    ("bound", "of"),
    [
        ("probability", lambda loss: 1 - math.exp(-loss)),
        ("loss", lambda loss: loss),
        ("root", math.sqrt),
    ],
)
@pytest.mark.parametrize(
    ("power", "floor", "exponent", "ceiling"),
    [(1, 0.15, 1, math.inf), (0.5, 0.3, 0.5, 0.3), (2, 0.1, 0, math.inf), (4, 0.05, 0, 0.5)],
)
@pytest.mark.parametrize("keep", [25, 40, 59])
def test_proportional_sampling(bound, of, power, floor, exponent, ceiling, keep):
    scores = middles(rng().choice(SCORES, N))
    policy = p.ProportionalSampling(bound, power, floor, exponent, ceiling)
    selection = ask(policy, scores, 3, rng(keep), keep=keep)
    bounds = [of(float(s)) for s in scores]
    claims = [min(each, ceiling) ** power for each in bounds]
    expected = naive_probabilities(claims, keep, floor)
    # Of the samples with one score their expected number is kept, rounded up or down by one draw
    # for all scores, and a random part of them.
    draws = rng(keep)
    shift = (draws.integers(1 << 16) + 0.5) / (1 << 16)
    by_probability = sorted(range(N), key=lambda i: (round(expected[i], 9), i))
    border, left_out = 0.0, set()
    for _, group in itertools.groupby(by_probability, key=lambda i: round(expected[i], 9)):
        members = list(group)
        after = border + sum(expected[i] for i in members)
        number = math.floor(round(after, 6) + shift) - math.floor(round(border, 6) + shift)
        border = after
        if number < len(members):
            out = draws.choice(len(members), len(members) - number, replace=False, shuffle=False)
            left_out |= {members[i] for i in out}
    assert kept(selection) == set(range(N)) - left_out
    assert len(kept(selection)) == keep
    for i in kept(selection):
        assert weights(selection)[i] == pytest.approx(expected[i] ** -exponent, rel=1e-6)
    rescaled = ask(replace(policy, rescale=True), scores, 3, rng(keep), keep=keep)
    assert kept(rescaled) == kept(selection)
    whole = N / sum(each ** (1 - exponent) for each in expected)  # the sum that is expected
    for i in kept(rescaled):
        assert weights(rescaled)[i] == pytest.approx(whole * weights(selection)[i], rel=1e-6)
    mass_left_out = sum((1 - expected[i]) * bounds[i] for i in range(N))
    assert selection.mass_left_out == pytest.approx(mass_left_out / sum(bounds), rel=1e-6)


def test_proportional_sampling_in_its_extremes():
    policy = p.ProportionalSampling(floor=0.2, exponent=1.0)
    zero = ask(policy, np.zeros(N, np.float32), 1, rng(), keep=40)
    assert set(weights(zero).round(9)) == {0.0, 1.5}  # nothing tells them apart: at random
    scores = losses()
    scores[:20] = np.nan
    some = ask(policy, scores, 1, rng(), keep=30)
    assert set(range(20)) <= kept(some)  # what is not known is kept while that is possible
    few = ask(policy, scores, 1, rng(), keep=20)
    assert len(kept(few) & set(range(20))) == 12  # the others are kept with probability 0.2
    assert policy.min_keep(N) == 12


def test_the_mass_of_what_is_not_known_is_the_mean_of_the_others():
    """So that it tells of the choice, and not of how much is known."""
    policy = p.ProportionalSampling()
    unknown = ask(policy, np.full(1000, np.nan, np.float32), 1, rng(), keep=600)
    assert unknown.mass_left_out == pytest.approx(0.4)
    scores = np.full(1000, np.nan, np.float32)
    scores[:100] = 3.0
    assert ask(policy, scores, 1, rng(), keep=600).mass_left_out == pytest.approx(0.4)
    scores[100:500] = 0.001  # these are what can be left out
    assert ask(policy, scores, 1, rng(), keep=620).mass_left_out < 0.01


@pytest.mark.parametrize("unknown", [1, 500])
def test_what_is_not_known_is_always_kept_beside_the_floor_of_the_others(unknown):
    scores = np.full(1000, 0.3, np.float32)  # that all are kept with nearly the same probability
    scores[:unknown] = np.nan
    floor = p.ProportionalSampling().floor
    for keep in (998, 750, math.ceil(unknown + floor * (1000 - unknown))):
        for seed in range(50):
            selection = ask(p.ProportionalSampling(), scores, 1, rng(seed), keep=keep)
            assert (weights(selection)[:unknown] > 0).all()
            assert np.count_nonzero(weights(selection)) == keep


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1])
def test_what_is_left_out_without_a_budget_holds_no_more_than_the_tolerance(tolerance):
    scores = np.random.default_rng(0).gamma(0.3, 2.0, 5000).astype(np.float32)
    bounds = 1 - np.exp(-scores.astype(float))
    policy, masses = p.ProportionalSampling(tolerance=tolerance), []
    for seed in range(20):
        selection = ask(policy, scores, 1, rng(seed))
        masses.append(bounds[weights(selection) == 0].sum() / bounds.sum())
        assert (weights(selection)[bounds > policy.ceiling] == 1).all()
        assert selection.mass_left_out <= tolerance + 1e-9
    assert np.mean(masses) <= 1.01 * tolerance
    assert np.mean(masses) >= 0.8 * tolerance
    saved = np.mean(weights(selection) == 0)
    assert saved > 5 * tolerance or tolerance == 0.0  # what is left out is worth little


def test_without_a_budget_nothing_is_left_out_where_nothing_is_learned():
    negative = np.linspace(-3.0, 2.0, 1000)  # logarithms of densities: 0 is no end
    for scores in (np.full(1000, 2.3), np.full(1000, np.nan), np.linspace(0.7, 9, 1000), negative):
        assert ask(p.ProportionalSampling(), scores.astype(np.float32), 1, rng()).is_full


def test_without_a_budget_what_is_learned_is_left_out_but_for_the_floor():
    scores = np.where(np.arange(1000) < 600, 1e-5, 1.0).astype(np.float32)
    scores[:9], scores[9:20] = -0.0, -1e-7  # what rounding makes of cross-entropies
    selection = ask(p.ProportionalSampling(floor=0.1), scores, 1, rng())
    assert np.count_nonzero(weights(selection)[:600]) == 60
    assert (weights(selection)[600:] == 1).all()


def test_the_threshold_lies_above_what_may_be_left_out():
    scores = np.full(N, 0.1005, np.float32)
    scores[:10] = 2.0
    selection = ask(p.ProportionalSampling(), scores, 1, rng(), keep=30)
    assert 0.1005 < selection.threshold < 0.102


def test_one_of_each_quantile_range_remains():
    scores = np.array([1, 2, 3, 4], np.float32)
    policy = p.QuantileThresholds()
    assert len(kept(ask(policy, scores, 0, rng(), keep=3))) == 3
    with pytest.raises(PolicyError, match=r"4 samples in 3 score ranges.* 2 cannot be kept"):
        ask(policy, scores, 0, rng(), keep=2)


# ------------------------------------------------------------------ the peers


def test_data_dropout_keeps_what_the_model_is_not_sure_of():
    scores = np.array([0.1, 1.0, 1.3, 5.0, np.nan, np.inf], np.float32)
    least = -math.log(0.3)  # 1.204
    selection = ask(p.DataDropout(), scores, 1, rng())
    assert kept(selection) == {2, 3, 4, 5}
    assert selection.threshold == pytest.approx(least)
    assert len(kept(ask(p.DataDropout(at_random=True), scores, 1, rng()))) == 4
    drawn = [
        frozenset(kept(ask(p.DataDropout(at_random=True), scores, 1, rng(s)))) for s in range(9)
    ]
    assert len(set(drawn)) > 3
    assert kept(ask(p.DataDropout(), np.array([0.1, 0.3, 0.2], np.float32), 1, rng())) == {1}


def of_trajectories(policy, trajectories):
    """The memory of a policy that has seen these losses (N, T) one epoch after the other."""
    memory = new_memory(policy.columns, len(trajectories))
    for losses in trajectories.T:
        rows = np.arange(len(losses))
        policy.remember(memory, Visits(rows, losses.astype(np.float32), [len(losses)]))
    return memory


@pytest.mark.parametrize("clean", [None, np.arange(5)])
def test_align_prune_prunes_what_goes_its_own_way(clean):
    falling = np.linspace(3.0, 0.5, 14) + np.random.default_rng(0).normal(0, 0.1, (60, 14))
    wandering = np.random.default_rng(1).normal(3.0, 0.3, (40, 14))
    policy = p.AlignPrune(p.BudgetThreshold(), clean=clean)
    memory = of_trajectories(policy, np.concatenate([falling, wandering]))
    alignment = policy.alignment(memory)
    assert alignment[:60].min() > 0.9
    assert alignment[60:].max() < 0.8
    request = Request(np.zeros(100, np.float32), 14, 30, rng(), 75, memory)
    assert set(range(60)) <= kept(policy.select(request))


def test_the_alignment_is_pearson_s_of_the_last_losses():
    trajectories = np.random.default_rng(0).normal(size=(20, 9))
    policy = p.AlignPrune(clean=np.arange(20), window=4)
    found = policy.alignment(of_trajectories(policy, trajectories))
    last = trajectories[:, -4:].astype(np.float32)
    expected = [np.corrcoef(row, last.mean(0))[0, 1] for row in last]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    too_few = policy.alignment(of_trajectories(policy, trajectories[:, :3]))
    assert np.isnan(too_few).all()


def test_rs2_without_replacement_sees_all_before_any_twice():
    policy = p.RS2(keep_ratio=0.35)
    memory, times = memory_of(policy), np.zeros(N)
    for epoch in range(20):
        chosen = kept(ask(policy, losses(), epoch, rng(epoch), memory=memory))
        assert len(chosen) == 21
        for i in chosen:
            assert times[i] == times.min() or all(
                j in chosen for j in range(N) if times[j] == times.min()
            )
        rows = np.array(sorted(chosen))
        policy.remember(memory, p.Visits(rows, losses()[rows], [len(rows)]))
        times[rows] += 1
    assert times.max() - times.min() <= 1


def test_rs2_with_replacement_draws_each_epoch_afresh():
    policy = p.RS2(keep_ratio=0.5, replacement=True)
    counts = np.zeros(N)
    for epoch in range(600):
        counts[list(kept(ask(policy, losses(), epoch, rng(epoch))))] += 1
    assert counts.sum() == 600 * 30
    assert abs(counts - 300).max() < 75  # six standard deviations of a binomial


def naive_bandit(history, a):
    """Running mean and variance of one sample's losses."""
    mean, variance = None, 0.0
    for loss in history:
        before = loss if mean is None else mean
        variance = a * variance + (1 - a) * (loss - before) ** 2
        mean = a * before + (1 - a) * loss
    return mean, variance


@pytest.fixture
def told():
    """Four epochs of losses, some samples seen in all of them and some in the first alone."""
    epochs = [(np.arange(N), losses(0))]
    for epoch in range(1, 4):
        rows = rng(epoch).permutation(40)
        epochs.append((rows, losses(epoch)[rows]))
    histories = [[float(v[rows == i][0]) for rows, v in epochs if i in rows] for i in range(N)]
    return epochs, histories


def tell(policy, epochs):
    memory = memory_of(policy)
    for rows, values in epochs:
        policy.remember(memory, p.Visits(rows, values, [10] * (len(rows) // 10)))
    return memory


@pytest.mark.parametrize("c", [0.0, 1.0, 3.0])
def test_ucb(told, c):
    epochs, histories = told
    policy = p.UCB(keep_ratio=0.4, ema=0.8, every=5, c=c)
    memory = tell(policy, epochs)
    bounds = [m + c * math.sqrt(v) for m, v in (naive_bandit(h, 0.8) for h in histories)]
    chosen = kept(ask(policy, losses(), 5, rng(), memory=memory))
    assert chosen == set(hardest_first(bounds)[:24])


def test_epsilon_greedy(told):
    epochs, histories = told
    policy = p.EpsilonGreedy(keep_ratio=0.5, ema=0.8, every=1, epsilon=0.2)
    memory = tell(policy, epochs)
    means = [naive_bandit(h, 0.8)[0] for h in histories]
    top = set(hardest_first(means)[:24])
    others = np.array([i for i in range(N) if i not in top])
    explored = rng(4).choice(others, size=6, replace=False, shuffle=False)
    assert kept(ask(policy, losses(), 1, rng(4), memory=memory)) == top | set(explored.tolist())


def test_a_bandit_holds_its_choice_between_two_of_them(told):
    policy = p.UCB(keep_ratio=0.4, every=4)
    memory = tell(policy, told[0])
    first = kept(ask(policy, losses(), 4, rng(), memory=memory))
    policy.remember(memory, p.Visits(np.arange(N), losses(9)[::-1].copy(), [N]))
    assert kept(ask(policy, losses(), 5, rng(), memory=memory)) == first
    assert len(kept(ask(policy, losses(), 6, rng(), keep=25, memory=memory)) ^ first) == 1
    assert len(kept(ask(policy, losses(), 7, rng(), keep=22, memory=memory)) - first) <= 1
    assert kept(ask(policy, losses(), 8, rng(), memory=memory)) != first


def test_kakurenbo():
    scores = losses()
    policy = p.Kakurenbo(max_fraction=0.5, confidence=0.7)
    for epoch, part in ((0, 1.0), (29, 1.0), (30, 0.8), (60, 0.6), (80, 0.4), (99, 0.4)):
        selection = ask(policy, scores, epoch, rng(), num_epochs=100)
        candidates = sorted(range(N), key=lambda i: scores[i])[: int(0.5 * part * N)]
        hidden = {i for i in candidates if math.exp(-scores[i]) >= 0.7}
        assert 0 < len(hidden) < len(candidates) or part < 1
        assert kept(selection) == set(range(N)) - hidden
        assert set(weights(selection)) == {0.0, N / (N - len(hidden))}


def test_kakurenbo_told_how_many_hides_the_lowest():
    scores = losses()
    selection = ask(p.Kakurenbo(), scores, 3, rng(), keep=25)
    assert kept(selection) == set(hardest_first(scores)[:25])
    assert weights(selection).sum() == pytest.approx(N)


def test_kakurenbo_falls_at_the_same_parts_of_a_run_of_any_length():
    scores = np.zeros(N, dtype=np.float32)  # all are classified surely
    for num_epochs in (10, 200):
        policy = p.Kakurenbo(max_fraction=0.5)
        for part, expected in ((0, 0.5), (0.2, 0.5), (0.3, 0.4), (0.6, 0.3), (0.8, 0.2), (1, 0.2)):
            epoch = min(round(part * num_epochs), num_epochs - 1)
            chosen = kept(ask(policy, scores, epoch, rng(), num_epochs=num_epochs))
            assert len(chosen) == N - int(expected * N)


def naive_k_means(values, k):
    """Lloyd's algorithm, with the quantiles as first centres."""
    centres = [float(np.quantile(values, (j + 0.5) / k)) for j in range(k)]
    for _ in range(50):
        groups = [min(range(k), key=lambda j: (abs(v - centres[j]), -j)) for v in values]
        moved = []
        for j in range(k):
            members = [v for v, g in zip(values, groups, strict=True) if g == j]
            moved.append(sum(members) / len(members) if members else centres[j])
        if moved == pytest.approx(centres, rel=1e-12):
            break
        centres = moved
    return groups


@pytest.mark.parametrize("seed", range(4))
def test_k_means_in_one_dimension(seed):
    values = losses(seed).astype(np.float64)
    scores = values.astype(np.float32)
    assert one_dimensional_k_means(scores, 5).tolist() == naive_k_means(values.tolist(), 5)


def test_k_means_of_equal_and_unknown_scores():
    assert len(set(one_dimensional_k_means(np.full(9, 0.5, np.float32), 5))) == 1
    scores = np.array([np.nan, 1.0, np.inf, 2.0], np.float32)
    assert one_dimensional_k_means(scores, 2).tolist() == [-1, 0, -1, 1]


@pytest.mark.parametrize("epoch", range(1, 8))
def test_seta(epoch):
    scores = losses()
    policy = p.SeTa(random_ratio=0.1, groups=5, window=0.6, random_from=7)
    dropped, _ = thin_to(np.ones(N, bool), 54, rng(epoch))
    groups = naive_k_means(scores.astype(np.float64).tolist(), 5)
    start = epoch % 3  # a window of 3 of 5 groups has 3 places
    inside = [start <= g < start + 3 or epoch >= 7 for g in groups]
    expected = {i for i in range(N) if inside[i] and not dropped[i]}
    assert kept(ask(policy, scores, epoch, rng(epoch))) == expected


def test_seta_told_how_many_takes_the_window_first_and_then_outward():
    scores = losses()
    policy = p.SeTa(groups=5, window=0.6)
    groups = naive_k_means(scores.astype(np.float64).tolist(), 5)
    window = {i for i in range(N) if 1 <= groups[i] < 4}  # epoch 1
    few = kept(ask(policy, scores, 1, rng(), keep=len(window) - 5))
    assert few < window
    above = {i for i in range(N) if groups[i] == 4}
    more = kept(ask(policy, scores, 1, rng(), keep=len(window) + len(above)))
    assert more == window | above
    most = kept(ask(policy, scores, 1, rng(), keep=len(window) + len(above) + 1))
    assert window | above < most


def test_orderdp():
    scores = losses()
    outside, _ = thin_to(np.ones(N, bool), 30, rng(2))
    pool = [i for i in range(N) if not outside[i]]
    top = sorted(pool, key=lambda i: -scores[i])[:18]
    policy = p.OrderDP(pool_ratio=0.5, top_ratio=0.6)
    assert kept(ask(policy, scores, 3, rng(2))) == set(top)
    assert kept(ask(policy, scores, 3, rng(2), keep=18)) == set(top)


def test_repb():
    policy = p.RePB(drop_probability=0.6)
    memory = memory_of(policy)
    order, values = rng(1).permutation(N), losses(1)
    sizes = [16, 16, 16, 12]
    policy.remember(memory, p.Visits(order, values[order], sizes))
    again = np.arange(10)
    policy.remember(memory, p.Visits(again, values[again], [10]))
    below, times = {}, dict.fromkeys(range(N), 1)
    ends = np.cumsum([0, *sizes])
    for start, end in itertools.pairwise(ends):
        mean = fmean(float(values[i]) for i in order[start:end])
        below.update({int(i): values[i] < mean for i in order[start:end]})
    mean = fmean(float(values[i]) for i in again)
    below.update({int(i): values[i] < mean for i in again})
    times.update(dict.fromkeys(range(10), 2))
    draws = rng(3).random(N)
    expected = [0.0 if below[i] and draws[i] < 0.6 else 5 / (times[i] + 1) for i in range(N)]
    selection = ask(policy, values, 4, rng(3), memory=memory)
    np.testing.assert_allclose(weights(selection), expected)
    exact = ask(policy, values, 4, rng(3), keep=40, memory=memory)
    assert {i for i in range(N) if i not in kept(exact)} <= {i for i in below if below[i]}


def test_repb_counts_only_training():
    policy = p.RePB()
    memory = memory_of(policy)
    policy.remember(memory, p.Visits(np.arange(N), losses(), [N], trained=False))
    assert not memory["times"].any()
    assert np.isfinite(memory["above"]).all()


def test_ies():
    policy = p.IES(tolerance=0.05)
    memory = memory_of(policy)
    curves = np.stack([losses(seed) * 0.02 for seed in range(6)])
    curves[:, ::2] = np.linspace(1.0, 0.5, 6, dtype=np.float32)[:, None]  # straight lines
    for values in curves:
        policy.remember(memory, p.Visits(np.arange(N), values, [N]))
    mean_change = [
        fmean(
            abs(float(curves[t, i]) - 2 * float(curves[t - 1, i]) + float(curves[t - 2, i]))
            for t in (3, 4, 5)
        )
        for i in range(N)
    ]
    expected = {i for i in range(N) if mean_change[i] >= 0.05}
    assert 0 < len(expected) < N // 2 + 1
    assert kept(ask(policy, curves[-1], 6, rng(), memory=memory)) == expected
    exact = kept(ask(policy, curves[-1], 6, rng(), keep=20, memory=memory))
    assert exact == set(hardest_first(mean_change)[:20])


def test_ies_needs_five_looks_before_it_stops_anyone():
    policy = p.IES(tolerance=1.0)
    memory = memory_of(policy)
    for look in range(5):
        trained = look % 2 == 0
        ones = np.ones(N, np.float32)
        policy.remember(memory, p.Visits(np.arange(N), ones, [N], trained))
        stopped = N - len(kept(ask(policy, losses(), look, rng(), memory=memory)))
        assert stopped == (0 if look < 4 else N - 1)  # one always remains


# ------------------------------------------------------------------ what goes around a policy


def test_groups_thin_each_class_by_its_own_threshold():
    groups = np.repeat([3, -1, 8], [30, 20, 10])
    scores = losses() + 10.0 * groups.astype(np.float32)  # class means far apart
    policy = p.WithinGroups(p.MeanThreshold(0.5), groups)
    selection = weights(ask(policy, scores, 1, rng()))
    for group in set(groups.tolist()):
        members = np.flatnonzero(groups == group)
        low = members[scores[members] < fmean(map(float, scores[members]))]
        dropped = members[selection[members] == 0]
        assert set(dropped) <= set(low)
        assert len(dropped) == len(low) - int(0.5 * len(low) + 0.5)
        assert selection[members].sum() == pytest.approx(len(members))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_groups_ask_the_policy_for_the_epoch_that_it_is(epoch):
    groups = np.repeat([0, 1], 30)
    window = p.SeTa(random_ratio=0.0, groups=5, window=0.6)
    chosen = kept(ask(p.WithinGroups(window, groups), losses(), epoch, rng()))
    first = kept(ask(window, losses()[:30], epoch, rng()))
    second = kept(ask(window, losses()[30:], epoch, rng()))
    assert chosen == first | {30 + i for i in second}


@pytest.mark.parametrize("keep", [18, 30, 47, 60])
def test_groups_share_a_number_out_by_size(keep):
    groups = np.repeat([0, 1, 2], [30, 20, 10])
    policy = p.WithinGroups(p.RandomSubset(), groups)
    chosen = kept(ask(policy, losses(), 1, rng(), keep=keep))
    sizes = np.bincount(groups[list(chosen)], minlength=3)
    assert sizes.sum() == keep
    np.testing.assert_allclose(sizes, keep * np.array([30, 20, 10]) / N, atol=1.0)


def test_groups_keep_the_memory_of_the_policy_inside():
    groups = np.arange(N) % 4
    policy = p.WithinGroups(p.UCB(0.5, every=1), groups)
    memory = memory_of(policy)
    policy.remember(memory, p.Visits(np.arange(N), losses(), [N]))
    chosen = kept(ask(policy, losses(), 1, rng(), memory=memory))
    for group in range(4):
        members = [i for i in range(N) if groups[i] == group]
        top = sorted(members, key=lambda i: -losses()[i])[: int(0.5 * len(members) + 0.5)]
        assert {i for i in chosen if groups[i] == group} == set(top)
    assert set(np.flatnonzero(memory["chosen"])) == chosen


def test_capped_weights():
    policy = p.CappedWeights(p.MeanThreshold(0.75), 2.5)
    plain = weights(ask(p.MeanThreshold(0.75), losses(), 1, rng()))
    capped = weights(ask(policy, losses(), 1, rng()))
    np.testing.assert_array_equal(capped, [min(w, 2.5) for w in plain])
    assert plain.max() > 3.5


def test_a_fixed_subset_is_always_the_same():
    policy = p.FixedSubset(np.array([7, 3, 20]), np.array([0.5, 1.0, 2.0]))
    expected = np.zeros(N)
    expected[[7, 3, 20]] = 0.5, 1.0, 2.0
    for epoch in range(3):
        np.testing.assert_array_equal(weights(ask(policy, losses(), epoch, rng())), expected)


# ------------------------------------------------------------------ in-batch


def test_selective_backprop_draws_by_rank():
    scores = losses(0, 32)
    ranks = {i: place + 1 for place, i in enumerate(sorted(range(32), key=lambda i: scores[i]))}
    chances = np.array([(ranks[i] / 32) ** (32 / 8 - 1) for i in range(32)])
    drawn = rng(5).choice(32, size=8, replace=False, p=chances / chances.sum())
    choice = p.SelectiveBackprop().select_batch(scores, {}, 8, rng(5))
    assert choice.positions.tolist() == sorted(drawn.tolist())
    assert choice.weights.tolist() == [1.0] * 8


def test_importance_sampling_draws_by_norm_and_weighs_by_its_inverse():
    scores = losses(1, 32)
    chances = [float(s) / sum(map(float, scores)) for s in scores]
    drawn = sorted(rng(5).choice(32, size=8, replace=True, p=chances).tolist())
    choice = p.ImportanceSampling().select_batch(scores, {}, 8, rng(5))
    assert choice.positions.tolist() == drawn
    np.testing.assert_allclose(choice.weights, [1 / (32 * chances[i]) for i in drawn])


def test_importance_sampling_with_a_uniform_part_bounds_the_weights():
    scores = np.array([0.0] * 31 + [9.0], np.float32)
    policy = p.ImportanceSampling(uniform=0.25)
    drawn = [policy.select_batch(scores, {}, 8, rng(seed)).weights.max() for seed in range(50)]
    assert max(drawn) == pytest.approx(4.0)


def test_evolved_sampling():
    scores, s = losses(2, 32), losses(3, 32)
    memory = {"s": s.copy()}
    weight = [0.2 * float(a) + 0.8 * float(b) for a, b in zip(s, scores, strict=True)]
    drawn = rng(5).choice(32, size=8, replace=False, p=np.array(weight) / sum(weight))
    choice = p.ES(0.2, 0.9).select_batch(scores, memory, 8, rng(5))
    assert choice.positions.tolist() == sorted(drawn.tolist())
    expected = [0.9 * a + 0.1 * b for a, b in zip(s, scores, strict=True)]
    np.testing.assert_allclose(memory["s"], expected, rtol=1e-5)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: p.BudgetThreshold(max_weight=1.0), "max_weight must be a finite number above 1"),
        (lambda: p.BudgetThreshold(max_weight="4"), "max_weight must be a number"),
        (lambda: p.UCB(1.5), "keep_ratio must be in"),
        (lambda: p.UCB(c=-1), "c must be a finite number at least 0"),
        (lambda: p.UCB(every=0), "every must be at least 1"),
        (lambda: p.EpsilonGreedy(epsilon=2), "epsilon must be in"),
        (lambda: p.Kakurenbo(max_fraction=1.0), "max_fraction must be in"),
        (lambda: p.SeTa(groups=0), "groups must be at least 1"),
        (lambda: p.OrderDP(pool_ratio=0.0), "pool_ratio must be above 0"),
        (lambda: p.RePB(1.0), "drop_probability must be in"),
        (lambda: p.DataDropout(1.5), "threshold must be in"),
        (lambda: p.AlignPrune(window=2), "window must be at least 3"),
        (lambda: p.AlignPrune(clean=np.ones(3)), "clean must be indices of samples"),
        (lambda: p.ProportionalSampling("odds"), "bound must be one of"),
        (lambda: p.ProportionalSampling(power=-1), "power must be"),
        (lambda: p.ProportionalSampling(floor=0), "floor must be above 0"),
        (lambda: p.ProportionalSampling(exponent=2), "exponent must be in"),
        (lambda: p.ProportionalSampling(ceiling=0), "ceiling must be"),
        (lambda: p.ProportionalSampling(tolerance=1), "tolerance must be"),
        (lambda: p.IES(-1e-3), "tolerance must be a finite number at least 0"),
        (lambda: p.FixedSubset(np.array([1, 1])), "distinct"),
        (lambda: p.FixedSubset(np.array([0.5])), "1-D array"),
        (lambda: p.FixedSubset(np.array([1]), np.array([0.0])), "positive"),
        (lambda: p.WithinGroups(p.MeanThreshold(), np.array([0.5])), "one integer per sample"),
        (lambda: p.CappedWeights(p.MeanThreshold(), 0.5), "max_weight must be"),
        (lambda: p.ImportanceSampling(uniform=2), "uniform must be in"),
        (lambda: p.ES(beta1=2), "beta1 must be in"),
        (lambda: p.RS2(2), "keep_ratio must be in"),
    ],
)
def test_settings_outside_their_range_are_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_a_fixed_subset_outside_the_data_set_is_refused():
    with pytest.raises(ValueError, match="index 99"):
        ask(p.FixedSubset(np.array([99])), losses(), 0, rng())
