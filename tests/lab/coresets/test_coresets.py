"""Static pruning: each method against a naive reference, or against what it must bring about."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infobatch import DataPruner
from infobatch.lab.coresets import METHODS, Coreset, Evidence, choose
from infobatch.lab.coresets.geometry import graph_cut
from infobatch.lab.coresets.gradients import facility_location

N, CLASSES, DIM, EPOCHS = 90, 3, 4, 6
SCORED = ["el2n", "grand", "least-confidence", "entropy", "margin", "deepfool"]


def evidence(seed=0, size=N):
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, CLASSES, size=size))
    centres = rng.normal(size=(CLASSES, DIM))
    features = (centres[labels] + rng.normal(size=(size, DIM))).astype(np.float32)
    head = (centres + 0.3 * rng.normal(size=centres.shape)).astype(np.float32)
    logits = features @ head.T
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return Evidence(labels, p, features, head, rng.random((EPOCHS, size)) < 0.7)


def quotas(given, keep):
    sizes = np.bincount(given.labels, minlength=CLASSES)
    return {c: keep * sizes[c] / len(given) for c in range(CLASSES)}


# ------------------------------------------------------------------ what all have in common


@pytest.mark.parametrize("keep", [3, 10, 37, 80, N])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_so_many_in_proportion_to_the_classes(method, keep):
    given = evidence()
    coreset = choose(method, given, keep)
    assert coreset.indices.shape == (keep,)
    assert coreset.indices.dtype == np.int64
    assert len(set(coreset.indices.tolist())) == keep
    kept = np.bincount(given.labels[coreset.indices], minlength=CLASSES)
    assert kept.min() >= 1
    for label, quota in quotas(given, keep).items():
        assert abs(kept[label] - quota) < 2
    if coreset.weights is not None:
        assert coreset.weights.mean() == pytest.approx(1.0)
        assert coreset.weights.min() > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_deterministic_given_the_seed(method):
    one, other = (choose(method, evidence(), 40, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.indices, other.indices)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_copes_with_samples_that_are_all_alike(method):
    flat = np.full((12, 2), 0.5, np.float32)
    features, head = np.ones((12, 3), np.float32), np.zeros((2, 3), np.float32)
    given = Evidence(np.arange(12) % 2, flat, features, head, np.ones((3, 12), bool))
    assert len(set(choose(method, given, 7).indices.tolist())) == 7


# ------------------------------------------------------------------ scores


def naive_score(given, i, method):
    p = given.probabilities[i].astype(np.float64)
    error = p - np.eye(CLASSES)[given.labels[i]]
    if method == "el2n":
        return math.sqrt(sum(e * e for e in error))
    if method == "grand":  # by autograd, of the last layer's weight and bias
        weight = torch.tensor(given.head, requires_grad=True)
        bias = torch.zeros(CLASSES, requires_grad=True)
        logits = torch.tensor(given.features[i]) @ weight.T + bias
        F.cross_entropy(logits[None], torch.tensor([given.labels[i]])).backward()
        return math.sqrt(float((weight.grad**2).sum() + (bias.grad**2).sum()))
    if method == "least-confidence":
        return 1 - max(p)
    if method == "entropy":
        return -sum(q * math.log(q) for q in p)
    if method == "margin":
        first, second = sorted(p, reverse=True)[:2]
        return -(first - second)
    top = int(np.argmax(p))
    logits = given.head.astype(np.float64) @ given.features[i].astype(np.float64)
    return -min(
        (logits[top] - logits[k]) / np.linalg.norm(given.head[top] - given.head[k])
        for k in range(CLASSES)
        if k != top
    )


@pytest.mark.parametrize("method", SCORED)
def test_scores(method):
    given = evidence()
    scores = np.array([naive_score(given, i, method) for i in range(N)])
    chosen = set(choose(method, given, 30).indices.tolist())
    for label in range(CLASSES):
        members = [i for i in range(N) if given.labels[i] == label]
        inside = [scores[i] for i in members if i in chosen]
        outside = [scores[i] for i in members if i not in chosen]
        assert min(inside) >= max(outside) - 1e-4


def test_forgetting_counts_what_was_learned_and_lost():
    given = evidence()
    events = []
    for i in range(N):
        seen = given.correct[:, i].tolist()
        lost = sum(a and not b for a, b in itertools.pairwise(seen))
        events.append(lost if any(seen) else EPOCHS)
    chosen = set(choose("forgetting", given, 30).indices.tolist())
    for label in range(CLASSES):
        members = [i for i in range(N) if given.labels[i] == label]
        inside = [events[i] for i in members if i in chosen]
        assert min(inside) >= max(events[i] for i in members if i not in chosen)


# ------------------------------------------------------------------ greedy methods


def by_class(given, coreset):
    for label in range(CLASSES):
        members = np.flatnonzero(given.labels == label)
        yield members, [i for i in coreset.indices.tolist() if given.labels[i] == label]


def test_herding():
    given = evidence()
    for members, chosen in by_class(given, choose("herding", given, 30)):
        x = given.features.astype(np.float64)
        mean = x[members].mean(axis=0)
        naive = []
        while len(naive) < len(chosen):
            rest = [i for i in members if i not in naive]
            naive.append(
                min(rest, key=lambda i: np.linalg.norm(mean - x[[*naive, i]].mean(axis=0)))
            )
        assert set(chosen) == set(naive)


@pytest.mark.parametrize("method", ["k-center", "contextual-diversity"])
def test_greedy_covers(method):
    given = evidence()
    p = given.probabilities.astype(np.float64)

    def distance(i, j):
        if method == "k-center":
            return float(np.linalg.norm(given.features[i] - given.features[j]))
        pairs = zip(p[i], p[j], strict=True)
        return sum(a * math.log(a / b) + b * math.log(b / a) for a, b in pairs)

    draws = np.random.default_rng(5)
    for members, chosen in by_class(given, choose(method, given, 30, seed=5)):
        naive = [int(members[draws.integers(len(members))])]
        while len(naive) < len(chosen):
            rest = [i for i in members.tolist() if i not in naive]
            naive.append(max(rest, key=lambda i: min(distance(i, j) for j in naive)))
        assert set(chosen) == set(naive)


@pytest.mark.parametrize("seed", range(5))
def test_facility_location_is_what_the_plain_greedy_gives(seed):
    x = np.random.default_rng(seed).normal(size=(40, 3)).astype(np.float32)
    similarity = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1)).astype(np.float32)
    naive = []
    while len(naive) < 12:
        rest = [j for j in range(40) if j not in naive]
        naive.append(max(rest, key=lambda j: similarity[:, [*naive, j]].max(axis=1).sum()))
    chosen = facility_location(similarity, 12).tolist()
    for size in range(1, 13):  # the value, as gains can tie to the last bit
        values = [similarity[:, some[:size]].max(axis=1).sum() for some in (chosen, naive)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_graph_cut_is_what_the_plain_greedy_gives(seed):
    x = np.random.default_rng(seed).normal(size=(30, 3))
    similarity = (10 - ((x[:, None] - x[None]) ** 2).sum(-1)).astype(np.float32)
    naive = []
    while len(naive) < 30:
        rest = [j for j in range(30) if j not in naive]
        naive.append(
            max(rest, key=lambda j: similarity[:, j].sum() - 2 * similarity[naive, j].sum())
        )
    assert graph_cut(similarity, 30).tolist() == naive


def test_craig_weighs_each_sample_by_its_cluster():
    given = evidence()
    coreset = choose("craig", given, 30)
    errors = given.errors
    sizes = dict.fromkeys(coreset.indices.tolist(), 0)
    for members, chosen in by_class(given, coreset):
        for i in members:
            sizes[min(chosen, key=lambda j: np.linalg.norm(errors[i] - errors[j]))] += 1
    expected = np.array([sizes[i] for i in coreset.indices.tolist()]) * 30 / N
    assert np.abs(coreset.weights - expected).sum() <= 0.05 * 30  # but for near ties


def gradient_error(given, coreset, weights=None):
    """How the direction of a coreset's gradient differs from that of all, class by class."""
    total = 0.0
    for members, chosen in by_class(given, coreset):
        whole = given.gradients(members).mean(axis=0)
        place = [coreset.indices.tolist().index(i) for i in chosen]
        weight = np.ones(len(chosen)) if weights is None else weights[place]
        part = (weight[:, None] * given.gradients(np.array(chosen))).sum(axis=0)
        cosine = whole @ part / (np.linalg.norm(whole) * np.linalg.norm(part))
        total += math.sqrt(max(0.0, 1.0 - float(cosine) ** 2))
    return total / CLASSES


def test_grad_match_matches_the_gradient_better_than_chance():
    given = evidence(size=300)
    matched = choose("grad-match", given, 60)
    random = [choose("random", given, 60, seed=seed) for seed in range(20)]
    chance = np.mean([gradient_error(given, coreset) for coreset in random])
    assert gradient_error(given, matched, matched.weights) < 0.5 * chance


def test_glister_is_the_greedy_by_first_order_gain():
    given = evidence()
    x = np.concatenate([given.features, np.ones((N, 1), np.float32)], axis=1).astype(np.float64)
    onehot = np.eye(CLASSES)[given.labels]
    gradient = [np.outer(given.errors[i], x[i]) for i in range(N)]
    chosen: list[int] = []
    found = choose("glister", given, 60).indices
    sizes = {c: int((given.labels[found] == c).sum()) for c in range(CLASSES)}
    for number in range(1, 11):
        step = 0.1 * sum((gradient[i] for i in chosen), 0 * gradient[0]) / max(1, len(chosen))
        logits = np.log(given.probabilities.astype(np.float64)) - x @ step.T
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        validation = (p - onehot).T @ x / N
        gains = [float((g * validation).sum()) for g in gradient]
        for c, size in sizes.items():
            members = [i for i in range(N) if given.labels[i] == c]
            free = [i for i in members if i not in chosen]
            wanted = size * number // 10 - (len(members) - len(free))
            chosen += sorted(free, key=lambda i: -gains[i])[:wanted]
    assert set(found.tolist()) == set(chosen)


def test_glister_lowers_the_loss_more_than_chance():
    given = evidence(size=300)
    features = np.concatenate([given.features, np.ones((300, 1), np.float32)], axis=1)

    def loss_after_a_step(coreset):
        rows = coreset.indices
        step = given.errors[rows].T @ features[rows] / len(rows)
        logits = np.log(given.probabilities) - 0.01 * features @ step.T
        return float(F.cross_entropy(torch.tensor(logits), torch.tensor(given.labels)))

    chance = [loss_after_a_step(choose("random", given, 60, seed=s)) for s in range(20)]
    assert loss_after_a_step(choose("glister", given, 60)) < min(chance)


def test_dq_draws_from_every_bin():
    given = evidence(size=300)
    coreset = choose("dq", given, 90)
    for members, chosen in by_class(given, coreset):
        x = given.features[members]
        distance = ((x[:, None] - x[None]) ** 2).sum(-1)
        ranking = graph_cut((distance.max() - distance).astype(np.float32), len(members))
        for part in np.array_split(members[ranking], 10):
            share = len(chosen) * len(part) / len(members)
            assert abs(len(set(part.tolist()) & set(chosen)) - share) <= 1.5


# ------------------------------------------------------------------ use, and misuse


def test_a_coreset_is_trained_on_in_every_epoch_and_nothing_else():
    coreset = choose("craig", evidence(), 30)
    pruner = DataPruner(N, 4, coreset.policy, warmup_epochs=0, delta=1.0)
    for _ in range(4):
        assert sorted(pruner.plan.indices.tolist()) == sorted(coreset.indices.tolist())
        weights = dict(zip(coreset.indices.tolist(), coreset.weights, strict=True))
        expected = [weights[i] for i in pruner.plan.indices.tolist()]
        np.testing.assert_allclose(pruner.plan.weights, expected)
        for batch in torch.utils.data.BatchSampler(pruner.sampler, 8, drop_last=False):
            pruner.update(torch.ones(len(batch)))
    assert Coreset(coreset.indices).policy.weights is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: choose("best", evidence(), 10), "method must be one of random, el2n"),
        (lambda: choose("el2n", evidence(), 2), "keep must be at least 3"),
        (lambda: choose("el2n", evidence(), N + 1), "at most 90"),
        (
            lambda: Evidence(
                evidence().labels,
                evidence().probabilities[:-1],
                evidence().features,
                evidence().head,
                evidence().correct,
            ),
            "probabilities must be",
        ),
        (
            lambda: Evidence(
                evidence().labels + 1,
                evidence().probabilities,
                evidence().features,
                evidence().head,
                evidence().correct,
            ),
            "labels must be 0 to 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
