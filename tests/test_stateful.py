"""Whatever a training script does, in whatever order: the scores are those of the right samples."""

import copy
import io
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch.utils.data import DataLoader

from infobatch import InfoBatch


def loss_of(ids, visit):
    """A loss that names its sample and the visit, so that a mix-up of either would show."""
    return (ids * 7919 % 101).float() / 100 + 0.001 * visit + 0.01


class AnyScript(RuleBasedStateMachine):
    """A script that trains, looks, skips, leaves, saves, loads; and a dict that knows the truth."""

    @initialize(
        size=st.integers(1, 60),
        batch=st.integers(1, 17),
        epochs=st.integers(1, 6),
        ratio=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
        delta=st.sampled_from([0.0, 0.5, 0.875, 1.0]),
        seed=st.integers(0, 3),
    )
    def begin(self, size, batch, epochs, ratio, delta, seed):
        self.settings = (size, epochs, ratio, delta, seed)
        self.batch = batch
        self.visit = 0
        self.truth = {}
        self.pruner = self.build()
        self.loader = DataLoader(range(size), batch, sampler=self.pruner.sampler)
        self.batches = None
        self.saved = None

    def build(self):
        size, epochs, ratio, delta, seed = self.settings
        return InfoBatch(size, epochs, ratio, delta, seed=seed)

    def take(self, pruner):
        self.pruner = pruner
        self.loader = DataLoader(range(self.settings[0]), self.batch, sampler=pruner.sampler)
        self.batches = None

    def going_on(self):
        return self.pruner.epoch < self.pruner.num_epochs

    def next_batch(self):
        """The next batch of the epoch under way, or of the next epoch; None after the last.

        That the last epoch is over shows, if it was left early, only when the next is asked for.
        """
        if self.batches is None:
            self.batches = iter(self.loader)
        batch = next(self.batches)
        if self.going_on():
            return batch
        self.batches = None
        return None

    def after_batch(self, epoch):
        if self.pruner.epoch != epoch:
            assert next(self.batches, None) is None  # committed with its last loss, not before
            self.batches = None

    @precondition(lambda self: self.going_on())
    @rule()
    def train_on_a_batch(self):
        ids = self.next_batch()
        if ids is None:
            return
        epoch = self.pruner.epoch
        losses = loss_of(ids, self.visit)
        place = self.pruner.plan.indices.tolist()
        weights = dict(zip(place, self.pruner.plan.weights.tolist(), strict=True))
        expected = torch.tensor([weights[i] for i in ids.tolist()]) * losses
        assert torch.allclose(self.pruner.update(losses, reduction="none"), expected)
        self.truth.update(zip(ids.tolist(), losses.tolist(), strict=True))
        self.visit += 1
        self.after_batch(epoch)

    @precondition(lambda self: self.going_on())
    @rule()
    def leave_a_batch_out(self):
        ids = self.next_batch()
        if ids is None:
            return
        epoch = self.pruner.epoch
        self.pruner.skip(len(ids))
        self.after_batch(epoch)

    @precondition(lambda self: self.batches is not None)
    @rule()
    def leave_the_epoch(self):
        self.batches = None

    @precondition(lambda self: self.batches is None)
    @rule()
    def look_at_the_first_batch_between_epochs(self):
        if self.pruner.progress * self.pruner.num_epochs == self.pruner.epoch:
            next(iter(self.loader))

    @rule()
    def look(self):
        assert len(self.loader) == math.ceil(len(self.pruner.sampler) / self.batch)
        assert str(self.pruner)

    @rule()
    def save(self):
        file = io.BytesIO()
        torch.save(self.pruner.state_dict(), file)
        self.saved = file.getvalue(), dict(self.truth)

    @precondition(lambda self: self.saved is not None)
    @rule(fresh=st.booleans())
    def load(self, fresh):
        state, self.truth = self.saved[0], dict(self.saved[1])
        pruner = self.build() if fresh else self.pruner
        pruner.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        self.take(pruner)

    @rule()
    def go_on_with_a_copy(self):
        self.take(copy.deepcopy(self.pruner))

    @invariant()
    def every_score_is_the_last_loss_of_its_sample(self):
        scores = self.pruner.scores
        for index, score in enumerate(scores.tolist()):
            assert (index in self.truth) == (not math.isnan(score))
            if index in self.truth:
                assert score == self.truth[index]

    @invariant()
    def the_weights_of_an_epoch_sum_to_the_data_set(self):
        plan = self.pruner.plan
        assert math.isclose(float(plan.weights.sum()), self.settings[0], rel_tol=1e-9)
        assert len(set(plan.indices.tolist())) == len(plan)

    @invariant()
    def what_can_be_read_is_in_range(self):
        pruner = self.pruner
        assert 0.0 <= pruner.saved_fraction < 1.0
        assert pruner.epoch / pruner.num_epochs <= pruner.progress <= 1.0
        assert [record.epoch for record in pruner.history] == list(range(pruner.epoch))


TestAnyScript = AnyScript.TestCase


@settings(max_examples=60)
@given(
    size=st.integers(1, 80),
    batch=st.integers(1, 20),
    drop_last=st.booleans(),
    ratio=st.floats(0.0, 0.95),
    delta=st.floats(0.0, 1.0),
    epochs=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_run_ends_with_its_account_closed(size, batch, drop_last, ratio, delta, epochs, seed):
    pruner = InfoBatch(size, epochs, ratio, delta, seed=seed)
    batch = min(batch, max(1, size // 25)) if drop_last else batch  # so that no epoch is too short
    loader = DataLoader(range(size), batch, sampler=pruner.sampler, drop_last=drop_last)
    for epoch in range(epochs):
        planned, steps = pruner.plan.indices.tolist(), 0
        announced = len(loader)
        for ids in loader:
            assert ids.tolist() == planned[steps * batch : steps * batch + len(ids)]
            pruner.update(loss_of(ids, epoch))
            steps += 1
        assert steps == announced
        assert pruner.epoch == epoch + 1
    assert pruner.progress == 1.0
    for record in pruner.history:
        if record.epoch == 0 or record.epoch >= delta * epochs:
            assert record.kept == size
