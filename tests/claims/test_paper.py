"""The paper's algorithm, written by hand, beside ours; and the savings that the paper reports.

Qin et al., InfoBatch, ICLR 2024, arXiv 2303.04947, section 3. The hand-written one is a plain loop
over samples that keeps books of its own: its own scores, threshold, pools, weights, window and
model. From ours it takes only what is chance: the order, and which of the easy samples are left
out. Everything else must come out the same, to the last bit.

Ours deviates from the paper in two points, on purpose. The number of easy samples kept is not left
to chance but is the nearest integer to (1 - r) M, and the weight is M over that number. Where
(1 - r) M is an integer this is the paper's 1 / (1 - r); elsewhere it is as near as an integer
allows, which `PaperByHand.weight` asserts. This is all with `batch_size=1`. Otherwise the number is
the one nearest to it with which the epoch is one of whole batches, and the weight still M over that
number, which `WholeBatchesByHand.weight` asserts.
"""

import math
from abc import ABC, abstractmethod
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.support import ask
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.policies import PAPER_QUANTILES, MeanThreshold, QuantileThresholds


def as_float32(number):
    """Scores are stored in float32, here as there."""
    return float(np.float32(number))


class PaperByHand(ABC):
    """Soft pruning, rescaling and annealing, one sample at a time."""

    def __init__(self, num_samples, num_epochs, delta):
        self.score = [None] * num_samples
        self.num_epochs, self.delta = num_epochs, delta

    @abstractmethod
    def pools(self):
        """(samples, prune ratio) of each pool; sets the threshold."""

    def begin_epoch(self, epoch, planned):
        """Work out the weight of every sample, given which samples this epoch trains on."""
        planned = set(planned)
        self.weight_of = dict.fromkeys(range(len(self.score)), 1.0)
        self.left_out = set()
        self.threshold = math.nan
        if epoch < self.delta * self.num_epochs and None not in self.score:
            for pool, ratio in self.pools():
                left_out = [z for z in pool if z not in planned]
                self.left_out.update(left_out)
                for z in pool:
                    self.weight_of[z] = self.weight(len(pool), len(left_out), ratio)
        # What is missing from the plan is missing from a pool of easy samples: no other is pruned.
        assert planned == set(range(len(self.score))) - self.left_out

    def weight(self, members, left_out, ratio):
        if members == 0:
            return 1.0
        kept, paper = members - left_out, 1 / (1 - ratio)
        assert abs(kept - (1 - ratio) * members) <= 0.5 + 1e-9 or kept == 1
        weight = members / kept
        if float((1 - ratio) * members).is_integer():
            assert weight == pytest.approx(paper, rel=1e-15)
        assert abs(weight - paper) <= max(0.5, abs(1 - (1 - ratio) * members)) * paper / kept
        return weight

    def end_batch(self, samples, losses):
        for z, loss in zip(samples, losses, strict=True):
            self.score[z] = as_float32(loss)  # a sample that was left out keeps its old score


class MeanByHand(PaperByHand):
    def __init__(self, *args, prune_ratio):
        super().__init__(*args)
        self.prune_ratio = prune_ratio

    def pools(self):
        self.threshold = sum(self.score) / len(self.score)
        easy = [z for z, score in enumerate(self.score) if score < self.threshold]
        return [(easy, self.prune_ratio)]


class WholeBatchesByHand(MeanByHand):
    """As many easy samples as make the epoch one of whole batches, or all, whichever is nearer."""

    def weight(self, members, left_out, ratio):
        paper = members - math.floor((1 - ratio) * members + 0.5)  # left out, by the paper
        numbers = [0, *(k for k in range(1, members) if (N - k) % BATCH == 0)]
        assert left_out == min(numbers, key=lambda k: (abs(k - paper), k))
        return members / (members - left_out)


class QuantilesByHand(PaperByHand):
    def pools(self):
        rising = sorted(self.score)
        edges = []
        for quantile, _ in PAPER_QUANTILES[:2]:
            place = quantile * (len(rising) - 1)
            low = rising[int(place)]
            edges.append(low + (place - int(place)) * (rising[int(place) + 1] - low))
        self.threshold = edges[1]
        lowest = [z for z, score in enumerate(self.score) if score < edges[0]]
        middle = [z for z, score in enumerate(self.score) if edges[0] <= score < edges[1]]
        return [(lowest, 0.75), (middle, 0.50)]


N, EPOCHS, BATCH = 301, 9, 32


def two_clouds():
    """A real small task: two overlapping clouds, with one label in ten turned round."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % 2
    inputs = torch.randn(N, 5, generator=generator) + 1.2 * labels[:, None]
    turned = torch.rand(N, generator=generator) < 0.1
    return TensorDataset(inputs, torch.where(turned, 1 - labels, labels), torch.arange(N))


def network():
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


METHODS = {
    "mean, r=0.3": (
        lambda: InfoBatch(N, EPOCHS, prune_ratio=0.3, seed=7, batch_size=1),
        lambda: MeanByHand(N, EPOCHS, 0.875, prune_ratio=0.3),
    ),
    "mean, r=0.5": (
        lambda: InfoBatch(N, EPOCHS, seed=7, batch_size=1),
        lambda: MeanByHand(N, EPOCHS, 0.875, prune_ratio=0.5),
    ),
    "mean, r=0.5, whole batches": (
        lambda: InfoBatch(N, EPOCHS, seed=7),
        lambda: WholeBatchesByHand(N, EPOCHS, 0.875, prune_ratio=0.5),
    ),
    "mean, r=0.3, whole batches": (
        lambda: InfoBatch(N, EPOCHS, prune_ratio=0.3, seed=6),
        lambda: WholeBatchesByHand(N, EPOCHS, 0.875, prune_ratio=0.3),
    ),
    "mean, r=0.75, delta=0.5": (
        lambda: InfoBatch(N, EPOCHS, prune_ratio=0.75, delta=0.5, seed=8, batch_size=1),
        lambda: MeanByHand(N, EPOCHS, 0.5, prune_ratio=0.75),
    ),
    "quantiles": (
        lambda: InfoBatch(N, EPOCHS, quantiles=PAPER_QUANTILES, seed=9, batch_size=1),
        lambda: QuantilesByHand(N, EPOCHS, 0.875),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_training_run_equals_the_paper_s_algorithm_done_by_hand(method):
    build_ours, build_theirs = METHODS[method]
    ours, theirs = build_ours(), build_theirs()
    data = two_clouds()
    loader = DataLoader(data, batch_size=BATCH, sampler=ours.sampler)
    (our_model, our_optimizer), (their_model, their_optimizer) = network(), network()

    left_out = []
    for epoch in range(EPOCHS):
        batches = iter(loader)  # before the plan is read: of whole batches of this loader
        plan = ours.plan
        planned = plan.indices.tolist()
        theirs.begin_epoch(epoch, planned)
        left_out.append(len(theirs.left_out))

        assert plan.epoch == epoch
        assert plan.threshold == pytest.approx(theirs.threshold, rel=1e-12, nan_ok=True)
        weights = [theirs.weight_of[z] for z in planned]
        rounding = 0.0 if ours.batch_size == 1 else 1e-15  # M / k and then k / k'
        assert plan.weights.tolist() == pytest.approx(weights, rel=rounding, abs=0.0)

        for inputs, labels, samples in batches:
            losses = F.cross_entropy(our_model(inputs), labels, reduction="none")
            step(our_optimizer, ours.update(losses))

            losses = F.cross_entropy(their_model(inputs), labels, reduction="none")
            theirs.end_batch(samples.tolist(), losses.tolist())
            weights = torch.tensor([theirs.weight_of[z] for z in samples.tolist()])
            step(their_optimizer, (losses * weights).mean())

        assert ours.scores.tolist() == theirs.score

    for mine, other in zip(our_model.parameters(), their_model.parameters(), strict=True):
        assert torch.equal(mine, other)
    # The run did prune: in every epoch of the window, and in none outside.
    window = [1 <= epoch < theirs.delta * EPOCHS for epoch in range(EPOCHS)]
    assert [count > N // 20 for count in left_out] == window
    assert [record.total - record.kept for record in ours.history] == left_out


def test_a_score_equal_to_the_mean_is_not_below_it():
    scores = np.array([1.0, 2.0, 3.0, 2.0], dtype=np.float32)
    for seed in range(20):
        selection = ask(MeanThreshold(0.9), scores, 1, np.random.default_rng(seed))
        assert selection.weights_of(np.arange(4)).tolist() == [1.0, 1.0, 1.0, 1.0]
        assert selection.threshold == 2.0


def train_on(pruner, scores_of, batch_size):
    """Run all epochs; the losses of a batch come from a table, `scores_of(epoch)`."""
    loader = DataLoader(range(pruner.num_samples), batch_size=batch_size, sampler=pruner.sampler)
    for epoch in range(pruner.num_epochs):
        table = scores_of(epoch)
        for samples in loader:
            pruner.update(table[samples])


@given(
    num_samples=st.integers(20, 3000),
    seed=st.integers(0, 2**32),
)
def test_the_quantile_variant_leaves_out_47_5_percent_whatever_the_distribution(num_samples, seed):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(num_samples).astype(np.float32) ** rng.choice([0.5, 1.0, 3.0])
    selection = ask(QuantileThresholds(), scores, 1, rng)
    left_out = num_samples - np.count_nonzero(selection.weights_of(np.arange(num_samples)))
    # The two edges lie within one sample of 20% and 85% (0.25 + 0.5 samples), and each of the two
    # counts is rounded to an integer (0.5 + 0.5).
    assert abs(left_out - 0.475 * num_samples) <= 1.75


def test_the_quantile_variant_leaves_out_exactly_475_of_1000():
    scores = np.random.default_rng(0).exponential(size=1000).astype(np.float32)
    selection = ask(QuantileThresholds(), scores, 1, np.random.default_rng(1))
    weights = selection.weights_of(np.arange(1000))[scores.argsort()]
    assert np.unique(weights, return_counts=True)[1].tolist() == [475, 150, 325, 50]
    assert np.unique(weights).tolist() == [0.0, 1.0, 2.0, 4.0]
    assert set(weights[:200]) == {0.0, 4.0}
    assert set(weights[200:850]) == {0.0, 2.0}
    assert set(weights[850:]) == {1.0}


def test_the_quantile_variant_saves_41_3_percent_of_200_epochs():
    # Pruning is on in epochs 1 to 174: 0.875 * 200 = 175 epochs, less the first, in which no score
    # is known yet and the paper prunes nothing either. So it is 174/200 * 47.5% = 41.325% of all
    # sample passes; with the first epoch it would be 175/200 * 47.5% = 41.5625%.
    pruner = InfoBatch(1000, 200, quantiles=PAPER_QUANTILES, seed=3, batch_size=1)
    generator = torch.Generator().manual_seed(4)
    train_on(pruner, lambda epoch: torch.rand(1000, generator=generator), batch_size=1000)
    kept = [record.kept for record in pruner.history]
    assert kept == [1000] + [525] * 174 + [1000] * 25
    assert pruner.saved_fraction == pytest.approx(float(Fraction(174, 200) * Fraction(475, 1000)))
    assert round(pruner.saved_fraction, 3) == 0.413


def test_the_mean_variant_saves_what_the_loss_distribution_gives():
    # Of an exponential distribution 1 - 1/e = 63.2% lie below the mean; r = 0.5 leaves out half of
    # them. The quantiles of that distribution, 2,000 of them, stand for its samples.
    table = -torch.log1p(-(torch.arange(2000) + 0.5) / 2000)
    pruner = InfoBatch(2000, 40, prune_ratio=0.5, delta=0.875, batch_size=1)
    train_on(pruner, lambda epoch: table, batch_size=500)
    below = int((table.double() < table.double().mean()).sum())
    assert below / 2000 == pytest.approx(1 - 1 / math.e, abs=1e-3)
    kept = 2000 - below + (below + 1) // 2
    assert [record.kept for record in pruner.history] == [2000] + [kept] * 34 + [2000] * 5
    assert pruner.saved_fraction == pytest.approx(0.316 * 34 / 40, abs=1e-3)


def test_the_mean_weight_makes_up_for_the_missing_steps():
    # Each step's expected gradient grows by |D| / |S_t|, the factor by which steps become fewer.
    pruner = InfoBatch(500, 10, prune_ratio=0.6, seed=2)
    generator = torch.Generator().manual_seed(6)
    train_on(pruner, lambda epoch: torch.rand(500, generator=generator), batch_size=64)
    assert {record.kept for record in pruner.history} != {500}
    for record in pruner.history:
        assert record.mean_weight == pytest.approx(record.total / record.kept, rel=1e-12)


def test_three_lines_are_enough_and_the_data_set_stays_the_user_s_own():
    data = two_clouds()
    before = [tensor.clone() for tensor in data.tensors]
    model, optimizer = network()

    pruner = InfoBatch(data, num_epochs=12, prune_ratio=0.5, delta=0.875)  # 1
    loader = DataLoader(data, batch_size=32, sampler=pruner.sampler)  # 2: was shuffle=True
    for _ in range(12):
        for inputs, labels, _ in loader:
            losses = F.cross_entropy(model(inputs), labels, reduction="none")
            step(optimizer, pruner.update(losses))  # 3: was losses.mean()

    assert loader.dataset is data
    assert all(torch.equal(a, b) for a, b in zip(before, data.tensors, strict=True))
    accuracy = (model(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean()
    assert accuracy > 0.75  # the clouds overlap, and one label in ten is turned round
    assert 0.2 < pruner.saved_fraction < 0.45
    assert pruner.progress == 1.0
