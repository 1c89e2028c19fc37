"""Losses belong to the batch that was delivered, whatever a training loop does with its loader.

Programs as people write them, each held against an oracle (tests/oracle.py): scores and weights are
those of the samples that were really in the batch, or the program is refused before one is wrong.
"""

import io
import itertools
import math
import queue
import random
import threading

import pytest
import torch
from tests.oracle import (
    WORKERS,
    B,
    Ids,
    N,
    Run,
    check_epochs,
    read_ahead,
    weights_of,
    workers,
)
from torch.utils.data import BatchSampler, DataLoader, Sampler, Subset, TensorDataset

from infobatch import InfoBatch
from infobatch.errors import (
    MisalignedUpdateError,
    MissingUpdateWarning,
    SamplerError,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")

LOADERS = {
    "no workers": {},
    "4 workers, prefetch 2": workers(4) | {"prefetch_factor": 2},
    "persistent": workers(2) | {"persistent_workers": True},
}
loaders = pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)


def loader_of(run, size=B, **options):
    return DataLoader(Ids(run.pruner.num_samples), size, sampler=run.pruner.sampler, **options)


def saved(pruner):
    """The pruner's state after a way through a file."""
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- batches that the loop leaves out -------------------------------------------------------------


@loaders
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("left_out", [{0}, {3, 4, 9, 12}, {10, 11}, set(range(1, 13))])
def test_batches_left_out_are_seen_and_nothing_has_to_be_called(options, drop_last, left_out):
    run = Run()
    loader = loader_of(run, drop_last=drop_last, **options)
    for epoch in range(3):
        missed = 0
        for number, ids in enumerate(loader):
            if number in left_out and (epoch, number) != (0, 0):  # where it could be read-ahead
                missed += len(ids)
                continue
            run.step(ids)
        run.assert_scores_are_true()
        assert len(loader) > 0  # the coming epoch's; the loop is over
        assert run.pruner.epoch == epoch + 1
        record = run.pruner.history[epoch]
        assert record.left_out == missed
        assert record.trained + record.left_out == record.kept - (record.kept % B) * drop_last
    trained = sum(record.trained for record in run.pruner.history)
    total = sum(record.total for record in run.pruner.history)
    assert run.pruner.saved_fraction == pytest.approx(1 - trained / total)
    assert f"({trained:,} used)" in run.pruner.summary()


@loaders
def test_the_very_first_batch_left_out_is_refused_with_both_ways_out(options):
    """One read-ahead batch looks the same, and there the losses are another batch's."""
    run = Run()
    batches = iter(loader_of(run, **options))
    next(batches)
    ids = next(batches)
    with run.refusal(remedy=r"batches_ahead = 1.*batches_ahead = 0"):
        run.step(ids)
    run.pruner.sampler.batches_ahead = 0
    batches = iter(loader_of(run, **options))
    next(batches)
    for ids in batches:
        run.step(ids)
    run.assert_scores_are_true()
    assert run.pruner.history[0].left_out == B


class Unreadable(Ids):
    """A file of it is broken."""

    def __getitem__(self, index):
        if index == 77:
            raise OSError("broken file")
        return super().__getitem__(index)


@WORKERS
def test_a_batch_whose_loading_fails_is_left_out(count):
    """The iterator's own count of batches leaves it out, too: a count that goes wrong here."""
    run = Run()
    loader = DataLoader(Unreadable(), B, sampler=run.pruner.sampler, **workers(count))
    for _ in range(3):
        batches, failures = iter(loader), 0
        while True:
            try:
                ids = next(batches)
            except OSError:
                failures += 1
            except StopIteration:
                break
            else:
                run.step(ids)
        assert failures == 1  # a sample without a score is planned in every epoch
        del batches
        run.assert_scores_are_true()
    assert torch.isnan(run.pruner.scores[77])


def test_gaps_and_double_updates_are_told_apart():
    run = Run()
    batches = iter(loader_of(run))
    run.step(next(batches))
    next(batches)
    ids = next(batches)
    run.step(ids)
    with run.refusal(remedy=r"batch 2 of this epoch has got its losses already.*3 of 13 batches"):
        run.step(ids)
    run.step(next(batches))


# --- reading ahead --------------------------------------------------------------------------------


@loaders
@pytest.mark.parametrize(("ahead", "drop_last"), [(1, False), (1, True), (5, True), (20, False)])
def test_a_loop_that_reads_ahead_says_by_how_much(options, ahead, drop_last):
    run = Run()
    run.pruner.sampler.batches_ahead = ahead
    loader = loader_of(run, drop_last=drop_last, **options)
    check_epochs(run, loader, wrap=lambda loader: read_ahead(loader, ahead), drop_last=drop_last)


@loaders
@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_a_loop_that_reads_ahead_and_does_not_say_so_is_refused_at_its_first_update(options, ahead):
    run = Run()
    ids = next(batches := read_ahead(loader_of(run, **options), ahead))
    seen = min(ahead, 12)
    with run.refusal(remedy=rf"pruner\.sampler\.batches_ahead = {seen}\."):
        run.step(ids)
    batches.close()


@WORKERS
@pytest.mark.parametrize(("said", "done"), [(2, 1), (1, 2), (1, 0), (3, 0), (2, 13)])
def test_a_loop_that_says_something_else_than_it_does_is_refused(said, done, count):
    run = Run()
    run.pruner.sampler.batches_ahead = said
    batches = read_ahead(loader_of(run, **workers(count)), done)
    ids = next(batches)
    with run.refusal(remedy=f"batches_ahead is {said}.*set it to what the loop does"):
        run.step(ids)
    batches.close()


@WORKERS
def test_a_batch_may_be_left_out_by_a_loop_that_reads_ahead(count):
    run = Run()
    run.pruner.sampler.batches_ahead = 1
    for _ in range(2):
        for number, ids in enumerate(read_ahead(loader_of(run, **workers(count)))):
            if number not in (1, 4, 5):
                run.step(ids)
        run.assert_scores_are_true()


@WORKERS
def test_a_loader_that_another_thread_reads_is_refused(count):
    run, delivered = Run(), queue.Queue(4)

    def read():
        for ids in loader_of(run, **workers(count)):
            delivered.put(ids)
        delivered.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    ids = delivered.get()
    with run.refusal(remedy=r"another thread.*update\(losses, indices=indices\)"):
        run.step(ids)
    while ids is not None:  # with indices it is served
        run.step(ids, indices=ids)
        ids = delivered.get()
    reader.join()
    run.assert_scores_are_true()


# --- batches of one's own making ------------------------------------------------------------------


class ByLength:
    """Draws the whole epoch, sorts it, and forms batches of about the same number of tokens."""

    def __init__(self, sampler, tokens=60):
        self.sampler, self.tokens = sampler, tokens

    def __iter__(self):
        batch, longest = [], 0
        for index in sorted(self.sampler, key=self.length):
            longest = max(longest, self.length(index))
            if batch and longest * (len(batch) + 1) > self.tokens:
                yield batch
                batch, longest = [], self.length(index)
            batch.append(index)
        if batch:
            yield batch

    @staticmethod
    def length(index):
        return 1 + index * 389 % 29


class InBuckets(Sampler):
    """Forms batches within buckets while it draws."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return math.ceil(len(self.sampler) / B)

    def __iter__(self):
        buckets = {0: [], 1: [], 2: []}
        for index in self.sampler:
            bucket = buckets[index % 3]
            bucket.append(index)
            if len(bucket) == B:
                yield bucket.copy()
                bucket.clear()
        yield from filter(None, buckets.values())


class Shuffled(BatchSampler):
    """Shuffles whole batches."""

    def __iter__(self):
        return iter(list(super().__iter__())[::-1])


class Longest(Sampler):
    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return len(self.sampler)

    def __iter__(self):
        return iter(sorted(self.sampler, reverse=True))


class Forever:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches


OWN_MAKING = {
    "ByLength": ByLength,
    "InBuckets": InBuckets,
    "Shuffled": lambda sampler: Shuffled(sampler, B, drop_last=False),
}


@loaders
@pytest.mark.parametrize("kind", OWN_MAKING)
def test_batches_of_ones_own_making_are_refused_by_name(kind, options):
    run = Run()
    with run.refusal(remedy=rf"formed by {kind}.*batch_sampler=pruner\.batches"):
        run.train(DataLoader(Ids(), batch_sampler=OWN_MAKING[kind](run.pruner.sampler), **options))


@WORKERS
def test_a_sampler_around_the_pruners_is_refused_by_name(count):
    run = Run()
    with run.refusal(remedy="formed by Longest"):
        run.train(DataLoader(Ids(), B, sampler=Longest(run.pruner.sampler), **workers(count)))


def test_a_sampler_around_it_is_refused_where_no_loader_can_be_seen_either():
    run = Run()
    batches = BatchSampler(Longest(run.pruner.sampler), B, drop_last=False)
    with run.refusal(remedy="Longest stands around the pruner's sampler"):
        run.train(batches)


@WORKERS
def test_a_loader_that_repeats_its_batches_for_ever_is_refused(count):
    run = Run()
    batches = Forever(BatchSampler(run.pruner.sampler, B, drop_last=False))
    with run.refusal(remedy="formed by Forever"):
        run.train(DataLoader(Ids(), batch_sampler=batches, **workers(count)))


@WORKERS
def test_with_indices_any_order_is_served(count):
    run = Run()
    loader = DataLoader(Ids(), batch_sampler=ByLength(run.pruner.sampler), **workers(count))
    for epoch in range(3):
        for ids in loader:
            run.step(ids, indices=ids)
        run.assert_scores_are_true()
        assert run.pruner.epoch == epoch + 1


@loaders
@pytest.mark.parametrize("kind", OWN_MAKING)
def test_batches_that_the_pruner_notes_need_no_indices(kind, options):
    run = Run()
    batches = run.pruner.batches(OWN_MAKING[kind](run.pruner.sampler))
    loader = DataLoader(Ids(), batch_sampler=batches, **options)
    for epoch in range(3):
        planned, before = sorted(run.pruner.plan.indices.tolist()), len(run.trained)
        for ids in loader:
            run.step(ids)
            assert run.pruner.is_last_batch == (run.pruner.epoch == epoch + 1)
        run.assert_scores_are_true()
        assert sorted(itertools.chain(*run.trained[before:])) == planned
        assert run.pruner.epoch == epoch + 1
        assert run.pruner.history[epoch].left_out == 0
    assert run.pruner.history[2].kept < N


@loaders
def test_of_noted_batches_some_may_be_left_out(options):
    run = Run()
    loader = DataLoader(
        Ids(), batch_sampler=run.pruner.batches(ByLength(run.pruner.sampler)), **options
    )
    for epoch in range(3):
        for number, ids in enumerate(loader):
            if number not in (1, 5, 6):
                run.step(ids)
        run.assert_scores_are_true()
        assert run.pruner.epoch == epoch + 1
        assert 0 < run.pruner.history[epoch].left_out < 3 * 60


@WORKERS
def test_noted_batches_may_be_read_ahead_and_have_a_length(count):
    run = Run()
    run.pruner.sampler.batches_ahead = 2
    batches = run.pruner.batches(InBuckets(run.pruner.sampler))
    assert len(batches) == 13
    loader = DataLoader(Ids(), batch_sampler=batches, **workers(count))
    run.train(read_ahead(loader, 2))
    run.assert_scores_are_true()
    with pytest.raises(TypeError, match="ByLength has no length"):
        len(run.pruner.batches(ByLength(run.pruner.sampler)))


def test_noted_batches_need_no_loader():
    run = Run()
    for epoch in range(3):
        for number, ids in enumerate(run.pruner.batches(ByLength(run.pruner.sampler))):
            run.step(ids)
            if number == 3:  # what is saved here is within the epoch
                state = saved(run.pruner)
                assert state["epoch"] == epoch
                assert state["position"] > 0
        run.assert_scores_are_true()
        assert run.pruner.epoch == epoch + 1


@pytest.mark.parametrize("nonsense", [[["a"]], [3], [[]], [[0.5]]])
def test_what_is_no_batch_is_refused(nonsense):
    run = Run()

    class Nonsense:
        def __iter__(self):
            iter(run.pruner.sampler).__next__()
            return iter(nonsense)

    with pytest.raises(SamplerError, match="must yield lists of indices"):
        next(iter(DataLoader(Ids(), batch_sampler=run.pruner.batches(Nonsense()))))
    with pytest.raises(TypeError, match="batches needs a batch sampler"):
        run.pruner.batches(3)


def test_a_noted_batch_with_a_sample_that_is_not_planned_is_refused():
    run = Run()
    run.train(loader_of(run))
    pruned = run.pruner.plan.pruned[:4].tolist()

    class Adding:
        def __iter__(self):
            first, *rest = BatchSampler(run.pruner.sampler, B, drop_last=False)
            return iter([first[4:] + pruned, *rest])

    with run.refusal(remedy="not in the plan of epoch 1"):
        run.train(DataLoader(Ids(), batch_sampler=run.pruner.batches(Adding())))


# --- iterators ------------------------------------------------------------------------------------


@WORKERS
def test_an_iterator_made_before_the_last_update_is_refused(count):
    run = Run(prune_ratio=0.0)
    loader = loader_of(run, **workers(count))
    coming = iter(loader)
    for _ in range(12):
        run.step(next(coming))
    last, early = next(coming), iter(loader)
    if count:  # its workers have begun to draw the next epoch
        with run.refusal(remedy="after the last update of the epoch before"):
            run.step(last)
    else:  # without workers nothing happens before its first `next`
        run.step(last)
    del early
    run.assert_scores_are_true()


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_look_within_an_epoch_is_refused_or_changes_nothing(place):
    """With persistent workers it begins the running iterator anew."""
    run = Run()
    loader = loader_of(run, **workers(2), persistent_workers=True)
    with pytest.raises(MisalignedUpdateError, match=r"workers are persistent.*end_epoch\(\)"):
        for number, ids in enumerate(loader):
            run.step(ids)
            if number == place:
                next(iter(loader))
    run.assert_scores_are_true()


@pytest.mark.parametrize("size", [200, 192], ids=["a short last batch", "whole batches"])
@WORKERS
def test_a_look_while_the_last_batch_is_trained_is_refused(count, size):
    run = Run(size)
    loader = loader_of(run, **workers(count))
    run.train(loader)
    last = len(loader) - 1
    with pytest.raises(MisalignedUpdateError, match="after the last update of the epoch before"):
        for number, ids in enumerate(loader):
            if number == last:
                next(iter(loader))
            run.step(ids)
    run.assert_scores_are_true()


@WORKERS
def test_a_loader_with_other_batches_over_the_same_sampler_changes_no_plan(count):
    run = Run()
    loader = loader_of(run, **workers(count))
    other = loader_of(run, 50)
    for _ in range(3):
        steps = len(loader)
        for number, ids in enumerate(loader):
            if number == 0:
                next(iter(other))
            run.step(ids)
        assert number + 1 == steps
        run.assert_scores_are_true()
    assert [record.trained for record in run.pruner.history] == [
        record.kept for record in run.pruner.history
    ]


@WORKERS
def test_a_look_before_the_first_update_changes_nothing(count):
    run = Run()
    loader = loader_of(run, **workers(count))
    for number, ids in enumerate(loader):
        if number == 0:
            assert torch.equal(next(iter(loader)), ids)
        run.step(ids)
    run.assert_scores_are_true()
    assert run.pruner.epoch == 1


@loaders
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_an_epoch_left_by_break_ends_with_the_next_loop(options, steps):
    run = Run()
    loader = loader_of(run, **options)
    for epoch in range(3):
        for number, ids in enumerate(loader, start=1):
            run.step(ids)
            if number == min(steps, len(loader) - 1):
                break
        run.assert_scores_are_true()
        assert torch.equal(run.pruner.scores.isnan(), run.truth.isnan())
        if "persistent_workers" in options:  # whose iterator lives on
            with pytest.raises(MisalignedUpdateError, match=r"pruner\.end_epoch\(\)"):
                next(iter(loader))
            run.pruner.end_epoch()
        assert run.pruner.epoch == epoch + 1
        unseen = run.truth.isnan().nonzero().flatten().tolist()
        assert set(unseen) <= set(run.pruner.plan.indices.tolist())
    run.train(loader)
    assert run.pruner.epoch == 4


@loaders
def test_end_epoch_leaves_an_epoch_whose_iterator_is_held(options):
    run = Run()
    loader = loader_of(run, **options)
    for _ in range(3):
        batches = iter(loader)
        for _ in range(4):
            run.step(next(batches))
        run.pruner.end_epoch()
        with run.refusal(remedy="before any batch was drawn"):
            run.step(torch.arange(B))
    run.assert_scores_are_true()
    assert [record.trained for record in run.pruner.history] == [4 * B] * 3


# --- the end of an epoch --------------------------------------------------------------------------


@loaders
@pytest.mark.parametrize("drop_last", [False, True])
def test_len_is_that_of_the_running_epoch_until_its_loop_is_over(options, drop_last):
    run = Run(num_epochs=8)
    loader = loader_of(run, drop_last=drop_last, **options)
    for _ in range(4):
        steps = len(loader)
        assert steps == len(run.pruner.plan) // B if drop_last else -(-len(run.pruner.plan) // B)
        for number, ids in enumerate(loader):
            assert len(loader) == steps
            assert run.pruner.is_last_batch == (number + 1 == steps)
            run.step(ids)
            assert len(loader) == steps
            assert run.pruner.is_last_batch == (number + 1 == steps)
    assert len({record.kept for record in run.pruner.history}) > 1


def programs():
    """Loops of one epoch; each gets loader and step."""

    def whole(run, loader):
        run.train(loader)

    def left_by_break(run, loader):
        for number, ids in enumerate(loader):
            run.step(ids)
            if number == 4:
                break

    def without_short_batches(run, loader):
        for ids in loader:
            if len(ids) == B:
                run.step(ids)

    def without_the_last(run, loader):
        last = len(loader) - 1
        for number, ids in enumerate(loader):
            if number < last:
                run.step(ids)

    return [whole, left_by_break, without_short_batches, without_the_last]


def interrupted(program, stop, count=0):
    """Six epochs, the pruner saved and loaded before one of them."""
    run = Run(num_epochs=8)
    for epoch in range(6):
        if epoch == stop:
            state, run.pruner = saved(run.pruner), InfoBatch(N, 8, seed=3)
            run.pruner.load_state_dict(state)
            assert run.pruner.epoch == stop
        program(run, loader_of(run, **workers(count)))
    run.assert_scores_are_true()
    return run


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.__name__)
def test_a_run_saved_between_its_loops_goes_on_like_one_that_was_not(program):
    whole = interrupted(program, stop=None)
    for stop, count in [(1, 0), (3, 2)]:
        resumed = interrupted(program, stop, count)
        assert resumed.trained == whole.trained
        assert repr(resumed.pruner.history) == repr(whole.pruner.history)


BROKEN = (37, 90)


def readable(items):
    return torch.stack([item for item in items if int(item) not in BROKEN])


@WORKERS
@pytest.mark.parametrize("saves", ["inside", "between"])
def test_epochs_whose_collate_function_drops_samples_close_and_resume(saves, count):
    def run_all(stop):
        run = Run(num_epochs=8)
        for epoch in range(4):
            if stop == (epoch, 0):
                state, run.pruner = saved(run.pruner), InfoBatch(N, 8, seed=3)
                run.pruner.load_state_dict(state)
            loader = loader_of(run, collate_fn=readable, **workers(count))
            for number, ids in enumerate(loader, start=1):
                run.step(ids, indices=ids)
                if stop == (epoch, number):
                    state = saved(run.pruner)
                    break
            else:
                assert run.pruner.epoch == epoch + 1
                continue
            run.pruner = InfoBatch(N, 8, seed=3)
            run.pruner.load_state_dict(state)
            for ids in loader_of(run, collate_fn=readable, **workers(count)):
                run.step(ids, indices=ids)
        run.assert_scores_are_true()
        return run

    whole, resumed = run_all(None), run_all((2, 0) if saves == "between" else (2, 5))
    assert resumed.trained == whole.trained
    assert {index for batch in whole.trained for index in batch}.isdisjoint(BROKEN)


@pytest.mark.parametrize("noted", [False, True], ids=["indices", "noted batches"])
def test_batches_in_another_order_resume_with_exactly_what_was_not_trained(noted):
    run = Run(num_epochs=8)
    run.train(loader_of(run))

    def batches(run):
        sampler = ByLength(run.pruner.sampler)
        return DataLoader(Ids(), batch_sampler=run.pruner.batches(sampler) if noted else sampler)

    planned, before = sorted(run.pruner.plan.indices.tolist()), len(run.trained)
    for number, ids in enumerate(batches(run)):
        run.step(ids, **({} if noted else {"indices": ids}))
        if number == 3:
            state = saved(run.pruner)
            break
    run.pruner = InfoBatch(N, 8, seed=3)
    run.pruner.load_state_dict(state)
    for ids in batches(run):
        run.step(ids, **({} if noted else {"indices": ids}))
    assert sorted(itertools.chain(*run.trained[before:])) == planned
    run.assert_scores_are_true()
    assert run.pruner.epoch == 2


# --- what is accepted that should not be ----------------------------------------------------------


def test_a_loader_over_another_data_set_is_refused():
    part = Subset(Ids(N), range(N - 40))
    pruner = InfoBatch(part, 4)
    with pytest.raises(
        MisalignedUpdateError, match=r"has 200 samples.*built for 160.*one .*Subset"
    ):
        next(iter(DataLoader(Ids(N), B, sampler=pruner.sampler)))
    next(iter(DataLoader(part, B, sampler=pruner.sampler)))


@loaders
def test_an_epoch_without_update_is_warned_about_or_closed(options):
    run = Run()
    loader = loader_of(run, **options)
    first = torch.cat(list(loader))
    with pytest.warns(
        MissingUpdateWarning, match=r"update was never called.*pruner\.end_epoch\(\)"
    ):
        assert torch.equal(torch.cat(list(loader)), first)
    run.pruner.end_epoch()  # it is to count
    assert run.pruner.epoch == 1
    assert run.pruner.history[0].trained == 0
    assert run.pruner.history[0].left_out == N
    second = torch.cat(list(loader))
    assert not torch.equal(second, first)


def test_a_validation_loop_between_steps_disturbs_nothing():
    run = Run()
    validation = DataLoader(TensorDataset(torch.arange(50)), 10, num_workers=0)
    loader = loader_of(run, **workers(2))
    for _ in range(3):
        for number, ids in enumerate(loader):
            run.step(ids)
            if number % 5 == 0:
                list(validation)
        run.assert_scores_are_true()


# --- indices --------------------------------------------------------------------------------------


@loaders
def test_a_batch_may_be_trained_in_parts_with_indices(options):
    run = Run(192)
    loader = loader_of(run, **options)
    for epoch in range(3):
        for ids in loader:
            for part in ids.chunk(3):
                run.step(part, indices=part)
        assert run.pruner.epoch == epoch + 1
        run.assert_scores_are_true()
    assert [record.left_out for record in run.pruner.history] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_with_indices_batches_may_come_in_any_order(seed):
    run, draws = Run(192, num_epochs=8), random.Random(seed)
    loader = loader_of(run, **workers(2))
    for epoch in range(4):
        held = []
        for ids in loader:
            held.append(ids)
            if len(held) > 3:
                chosen = held.pop(draws.randrange(len(held)))
                run.step(chosen, indices=chosen)
        for ids in held:
            run.step(ids, indices=ids)
        assert run.pruner.epoch == epoch + 1
        run.assert_scores_are_true()
    assert [record.trained for record in run.pruner.history] == [
        record.kept for record in run.pruner.history
    ]


def test_a_batch_whose_samples_come_twice_is_refused():
    run = Run()

    class Padding(BatchSampler):
        def __iter__(self):
            for batch in super().__iter__():
                yield (batch + batch)[:B]

    batches = run.pruner.batches(Padding(run.pruner.sampler, B, drop_last=False))
    loader = DataLoader(Ids(), batch_sampler=batches)
    with pytest.raises(MisalignedUpdateError, match="have come twice"):
        run.train(loader)
    run.assert_scores_are_true()


def test_noted_batches_that_were_drawn_before_are_refused():
    """So it cannot be told of which epoch they are."""
    run = Run()

    class Cached:
        def __init__(self, sampler):
            self.sampler = sampler
            self.prepare()

        def prepare(self):
            self.batches = list(BatchSampler(self.sampler, B, drop_last=False))[::-1]

        def __iter__(self):
            return iter(self.batches)

    loader = DataLoader(Ids(), batch_sampler=run.pruner.batches(Cached(run.pruner.sampler)))
    with pytest.raises(SamplerError, match=r"Cached has not drawn from pruner\.sampler"):
        run.train(loader)


def test_batches_that_were_drawn_before_their_iteration_are_refused():
    run = Run()

    class Buckets:
        def __init__(self, sampler):
            self.sampler = sampler

        def set_epoch(self, epoch):
            order = sorted(self.sampler)
            self.batches = [order[start : start + B] for start in range(0, len(order), B)]

        def __iter__(self):
            return iter(self.batches)

    batches = Buckets(run.pruner.sampler)
    batches.set_epoch(0)
    with run.refusal(remedy="Buckets stands around the pruner's sampler"):
        run.train(DataLoader(Ids(), batch_sampler=batches))


def test_an_own_loader_that_draws_in_its_iteration_is_served():
    run = Run()

    class OwnLoader:
        def __init__(self, sampler):
            self.sampler = sampler

        def __iter__(self):
            yield from self.parts()

        def parts(self):
            order = torch.tensor(list(self.sampler))
            yield from order.split(B)

    for _ in range(3):
        run.train(OwnLoader(run.pruner.sampler))
        run.assert_scores_are_true()
    assert run.pruner.epoch == 3


def test_a_sampler_that_uses_one_list_for_all_batches_is_noted_right():
    run = Run()

    class Reusing:
        def __init__(self, sampler):
            self.sampler = sampler

        def __iter__(self):
            buffer = []
            for index in self.sampler:
                buffer.append(index)
                if len(buffer) == B:
                    yield buffer
                    buffer.clear()
            if buffer:
                yield buffer

    loader = DataLoader(Ids(), batch_sampler=run.pruner.batches(Reusing(run.pruner.sampler)))
    for _ in range(3):
        run.train(loader)
        run.assert_scores_are_true()
    assert [record.trained for record in run.pruner.history] == [
        record.kept for record in run.pruner.history
    ]


def test_coming_weights_are_those_of_noted_batches():
    run = Run()
    loader = DataLoader(Ids(), batch_sampler=run.pruner.batches(ByLength(run.pruner.sampler)))
    for _ in range(3):
        for ids in loader:
            coming, plan = run.pruner.coming_weights(len(ids)), run.pruner.plan
            torch.testing.assert_close(coming, weights_of(plan, ids))
            run.step(ids)


def test_a_loop_that_has_read_a_later_epoch_as_a_whole_is_refused():
    run = Run()
    loader = loader_of(run)
    run.train(loader)
    first, *_ = loader
    with run.refusal(remedy="batches_ahead"):
        run.step(first)


def test_is_last_batch_where_all_indices_are_drawn_beforehand():
    run = Run(192)
    loader = DataLoader(Ids(192), B, sampler=list(run.pruner.sampler))
    said = []
    for ids in loader:
        run.step(ids)
        said.append(run.pruner.is_last_batch)
    assert said == [False] * 11 + [True]


# --- what changes only at the edges ---------------------------------------------------------------


@WORKERS
def test_len_is_that_of_the_coming_epoch_once_a_held_iterator_is_used_up(count):
    run = Run(num_epochs=8)
    loader = loader_of(run, **workers(count))
    for _ in range(3):
        steps, held = len(loader), iter(loader)
        for ids in held:
            run.step(ids)
            assert len(loader) == steps
        assert len(loader) == -(-len(run.pruner.plan) // B)
    assert len({record.kept for record in run.pruner.history}) > 1
    del held


@WORKERS
def test_an_epoch_of_one_batch_does_not_show_whether_a_loop_reads_ahead(count):
    run = Run()
    run.train(loader_of(run, N))  # one batch: read ahead or not looks the same
    ids = next(batches := read_ahead(loader_of(run, **workers(count))))
    with run.refusal(remedy="batches_ahead = 1"):
        run.step(ids)
    batches.close()


@WORKERS
def test_the_last_batches_of_a_loop_that_reads_ahead_belong_to_the_epoch(count):
    """Its iterator is gone by then; looking at length, epoch or state must not close the epoch."""
    run = Run()
    run.pruner.sampler.batches_ahead = 2
    loader = loader_of(run, **workers(count))
    for epoch in range(3):
        steps = len(loader)
        for number, ids in enumerate(read_ahead(loader, 2)):
            assert run.pruner.epoch == epoch
            assert len(loader) == steps > number
            run.pruner.state_dict()
            run.step(ids)
        assert run.pruner.epoch == epoch + 1
        run.assert_scores_are_true()


def test_noted_batches_that_were_left_out_do_not_come_again_after_a_resume():
    run = Run(num_epochs=8)

    def loader():
        return DataLoader(Ids(), batch_sampler=run.pruner.batches(ByLength(run.pruner.sampler)))

    left_out = []
    for number, ids in enumerate(loader()):
        if number in (1, 2):
            left_out += ids.tolist()
            continue
        run.step(ids)
        if number == 4:
            state = saved(run.pruner)
            break
    run.pruner = InfoBatch(N, 8, seed=3)
    run.pruner.load_state_dict(state)
    for ids in loader():
        run.step(ids)
    assert sorted([*left_out, *itertools.chain(*run.trained)]) == list(range(N))
    assert run.pruner.history[0].left_out == len(left_out)


def test_with_indices_it_is_the_samples_that_count_and_not_the_batch_that_was_delivered():
    """A queue of one's own gives the second batch first; the state knows which is missing."""
    run = Run(num_epochs=8)
    batches = iter(loader_of(run))
    first, second = run.pruner.plan.indices[:B], run.pruner.plan.indices[B : 2 * B]
    next(batches)
    run.step(second, indices=second)
    state = saved(run.pruner)
    resumed = InfoBatch(N, 8, seed=3)
    resumed.load_state_dict(state)
    rest = list(resumed.sampler)
    assert set(first.tolist()) <= set(rest)
    assert not set(second.tolist()) & set(rest)
    del batches
