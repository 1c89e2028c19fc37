"""Whatever a training script does, in whatever order: the scores are those of the right samples.

The loader is a real one, and its items are their own numbers, so that a dict can keep the truth.
"""

import copy
import io
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import (
    EpochError,
    InfoBatchError,
    MisalignedUpdateError,
    MissingUpdateWarning,
    NothingPrunedWarning,
)


def loss_of(ids, visit):
    """A loss that names its sample and the visit, so that a mix-up of either would show."""
    return (ids * 7919 % 101).float() / 100 + 0.001 * visit + 0.01


class AnyScript(RuleBasedStateMachine):
    """A script that trains, leaves out, looks, leaves, saves, loads; and a dict with the truth.

    It knows of each call whether it has to be taken or has to be refused.

    Attributes:
        batches: the iterator of the loop over the loader; None: in no loop.
        delivered: how many batches that iteration has delivered.
        is_due: whether the batch that was delivered last has had no update and no skip.
        has_settled: whether an update or a skip has come in that iteration.
        is_proven: whether one has shown in this run that nothing reads ahead.
        is_dead: whether `end_epoch` has ended the epoch of that iteration.
        trained: how many losses have come in each epoch.
    """

    workers, persistent = 0, False

    @initialize(
        size=st.integers(24, 60),
        batch=st.integers(1, 12),
        epochs=st.integers(2, 6),
        ratio=st.sampled_from([0.0, 0.3, 0.5]),
        delta=st.sampled_from([0.5, 0.875, 1.0]),
        seed=st.integers(0, 3),
        drop_last=st.booleans(),
        declared=st.booleans(),
    )
    def begin(self, size, batch, epochs, ratio, delta, seed, drop_last, declared):
        self.settings = (size, epochs, ratio, delta, seed)
        self.drop_last, self.declared = drop_last, declared
        self.visit, self.truth, self.trained, self.saved = 0, {}, {}, None
        self.take(self.build(), batch)

    def build(self):
        size, epochs, ratio, delta, seed = self.settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingPrunedWarning)
            return InfoBatch(size, epochs, ratio, delta=delta, seed=seed)

    def take(self, pruner, batch):
        self.batches = self.loader = None
        self.pruner, self.batch = pruner, batch
        pruner.sampler.batches_ahead = 0 if self.declared else None
        self.loader = DataLoader(
            range(self.settings[0]),
            batch,
            sampler=pruner.sampler,
            drop_last=self.drop_last,
            num_workers=self.workers,
            persistent_workers=self.persistent,
            multiprocessing_context="fork" if self.workers else None,
        )
        self.is_proven = self.has_updated = False
        self.iterated()

    def iterated(self):
        self.delivered = 0
        self.is_due = self.has_settled = self.is_dead = False

    def iterate(self):
        """Make an iterator and draw a batch, as both together begin an epoch; None: there is none.

        An epoch that no update has come of is due again, and the library says so.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingUpdateWarning)
            batches = iter(self.loader)
            return batches, next(batches, None)

    def next_batch(self):
        """The next batch of the loop, or the first of a new one; None after the last."""
        if self.batches is None:
            self.iterated()
            self.batches, ids = self.iterate()
        else:
            ids = next(self.batches, None)
        if ids is None:
            self.batches = None
        else:
            self.delivered += 1
            self.is_due = True
        return ids

    @property
    def refusal(self):
        """The error that the next update or skip must end in; None: it has to be taken."""
        if self.pruner.epoch == self.pruner.num_epochs:
            return EpochError
        drew_all = 1 < self.delivered == len(self.loader)
        unclear = not self.declared and (drew_all or not self.is_proven)
        if self.is_dead or (unclear and not self.has_settled and self.delivered != 1):
            return MisalignedUpdateError
        return None

    def refused(self, error, call, *args):
        """Check that a call is refused and has written nothing."""
        before = self.pruner.scores, self.pruner.progress, repr(self.pruner.history)
        with pytest.raises(error):
            call(*args)
        assert torch.equal(self.pruner.scores.nan_to_num(-1.0), before[0].nan_to_num(-1.0))
        assert (self.pruner.progress, repr(self.pruner.history)) == before[1:]

    def settled(self, epoch):
        self.has_settled = self.has_updated = True
        self.is_due = False
        self.is_proven |= not (self.delivered == 1 and self.pruner.epoch != epoch)

    def update(self, ids):
        if self.refusal is not None:
            self.refused(self.refusal, self.pruner.update, loss_of(ids, self.visit))
            return
        epoch, plan = self.pruner.epoch, self.pruner.plan
        losses = loss_of(ids, self.visit)
        weights = dict(zip(plan.indices.tolist(), plan.weights.tolist(), strict=True))
        expected = torch.tensor([weights[i] for i in ids.tolist()]) * losses
        assert torch.allclose(self.pruner.update(losses, reduction="none"), expected)
        self.truth.update(zip(ids.tolist(), losses.tolist(), strict=True))
        self.trained[epoch] = self.trained.get(epoch, 0) + len(ids)
        self.visit += 1
        self.settled(epoch)

    # ------------------------------------------------------------------ what a script does

    @rule(count=st.integers(1, 4))
    def train_on_batches(self, count):
        for _ in range(count):
            ids = self.next_batch()
            if ids is not None:
                self.update(ids)

    @rule()
    def finish_the_epoch(self):
        while (ids := self.next_batch()) is not None:
            self.update(ids)

    @rule(count=st.integers(1, 2))
    def leave_batches_out(self, count):
        for _ in range(count):
            self.next_batch()

    @rule()
    def skip_a_batch(self):
        ids = self.next_batch()
        if ids is None:
            return
        if self.refusal is not None:
            self.refused(self.refusal, self.pruner.skip, len(ids))
            return
        epoch = self.pruner.epoch
        self.pruner.skip(len(ids))
        self.settled(epoch)

    @precondition(lambda self: self.batches is not None)
    @rule()
    def break_out_of_the_loop(self):
        self.batches = None

    @rule()
    def end_the_epoch(self):
        epoch = self.pruner.epoch
        self.pruner.end_epoch()
        assert not self.pruner.is_within_epoch
        self.is_dead |= self.pruner.epoch != epoch

    @precondition(lambda self: self.batches is None)
    @rule()
    def look_at_a_batch_between_epochs(self):
        self.iterate()
        self.iterated()
        assert not (self.pruner.is_within_epoch and self.has_updated)

    @precondition(lambda self: self.batches is not None and not (self.persistent or self.is_dead))
    @rule()
    def iterate_anew_within_the_loop(self):
        """A look before the first update, and an error afterwards."""
        under_way = self.pruner.is_within_epoch and self.has_updated
        if under_way and self.has_more():
            self.refused(MisalignedUpdateError, self.iterate)
        elif not under_way:
            self.iterate()
            self.is_due = True  # what was looked at may be trained on

    def has_more(self):
        return self.delivered < len(self.loader)

    @precondition(lambda self: self.batches is not None and self.persistent)
    @rule()
    def begin_anew_with_the_workers_that_are_there(self):
        """It is the same iterator, so that a loop within its epoch would not notice."""
        if self.pruner.is_within_epoch and self.has_updated and self.has_more():
            self.refused(MisalignedUpdateError, self.iterate)
            self.batches = None  # the loop is over: its iterator has lost its place
            return
        self.iterated()
        self.batches, ids = self.iterate()
        if ids is not None:
            self.delivered, self.is_due = 1, True
            self.update(ids)

    # ------------------------------------------------------------------ what is a mistake

    @precondition(lambda self: self.has_settled and not self.is_due)
    @rule()
    def update_once_more(self):
        losses = torch.full((self.batch,), 77.0)
        self.refused(InfoBatchError, self.pruner.update, losses)

    @rule()
    def update_with_a_part_of_a_batch(self):
        ids = self.next_batch()
        if ids is None or len(ids) == 1:
            return
        self.refused(InfoBatchError, self.pruner.update, loss_of(ids, self.visit)[1:])
        self.update(ids)

    # ------------------------------------------------------------------ what is only read

    @rule()
    def look(self):
        steps, size = len(self.loader), len(self.pruner.sampler)
        assert steps == (size // self.batch if self.drop_last else math.ceil(size / self.batch))
        assert str(self.pruner)
        assert self.pruner.summary()

    @rule()
    def save(self):
        within = self.pruner.is_within_epoch and self.is_in_loop()
        file = io.BytesIO()
        torch.save(self.pruner.state_dict(), file)
        self.saved = file.getvalue(), dict(self.truth), dict(self.trained), within

    def is_in_loop(self):
        """Whether the loop goes on; a run that has been loaded and not iterated is where it was."""
        return self.batches is not None or not self.has_updated

    @precondition(lambda self: self.saved is not None)
    @rule(fresh=st.booleans(), batch=st.integers(1, 12))
    def load(self, fresh, batch):
        state, truth, trained, within = self.saved
        self.truth, self.trained = dict(truth), dict(trained)
        pruner = self.build() if fresh else self.pruner
        pruner.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        assert pruner.is_within_epoch == within
        self.take(pruner, batch)

    @rule(batch=st.integers(1, 12))
    def go_on_with_a_copy(self, batch):
        is_proven = self.is_proven
        self.take(copy.deepcopy(self.pruner), batch)
        self.is_proven = is_proven

    # ------------------------------------------------------------------ what always holds

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
        assert 0.0 <= pruner.saved_fraction <= 1.0
        assert pruner.epoch / pruner.num_epochs <= pruner.progress <= 1.0
        assert [record.epoch for record in pruner.history] == list(range(pruner.epoch))

    @invariant()
    def the_history_tells_how_many_were_trained_on(self):
        for record in self.pruner.history:
            assert record.trained == self.trained.get(record.epoch, 0)
            assert record.trained + record.left_out <= record.kept

    def teardown(self):
        self.batches = self.loader = None


class WithWorkers(AnyScript):
    """Workers read ahead, and start anew in each epoch."""

    workers = 2


class WithPersistentWorkers(AnyScript):
    """The loader keeps its iterator, and begins it anew."""

    workers, persistent = 2, True


def case_of(machine, *, share, steps):
    """The test of a machine, with a share of the profile's examples."""
    machine.TestCase.settings = settings(
        max_examples=math.ceil(settings().max_examples * share), stateful_step_count=steps
    )
    return machine.TestCase


TestAnyScript = case_of(AnyScript, share=3.0, steps=40)
TestWithWorkers = case_of(WithWorkers, share=0.4, steps=20)
TestWithPersistentWorkers = case_of(WithPersistentWorkers, share=0.4, steps=25)


@pytest.mark.filterwarnings("ignore::infobatch.errors.NothingPrunedWarning")
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
    pruner = InfoBatch(size, epochs, ratio, delta=delta, seed=seed)
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


def test_a_look_past_the_end_of_the_run_is_no_epoch():
    pruner = InfoBatch(20, 3, 0.0)
    loader = DataLoader(range(20), 5, sampler=pruner.sampler)
    for _ in range(3):
        for ids in loader:
            pruner.update(loss_of(ids, 0))
    next(iter(loader))
    pruner.end_epoch()
    assert pruner.epoch == len(pruner.history) == 3
    assert pruner.progress == 1.0


def test_a_loop_that_was_left_without_an_update_does_not_count_after_a_look():
    pruner = InfoBatch(20, 3, 0.0)
    loader = DataLoader(range(20), 5, sampler=pruner.sampler)
    left = iter(loader)
    next(left)
    next(iter(loader))  # a look
    next(left)
    del left
    for ids in loader:
        pruner.update(loss_of(ids, 0))
    assert torch.equal(pruner.scores, loss_of(torch.arange(20), 0))
