"""The k-th loss belongs to the k-th planned sample, under any loader; what breaks that is an error.

What a loader really delivered is known here: see tests/oracle.py.
"""

import inspect
import math
import multiprocessing
import random
from collections.abc import Iterator

import pytest
import torch
from tests.oracle import (
    WORKERS,
    B,
    Ids,
    IdsByTheBatch,
    IdsInDicts,
    N,
    Run,
    TextsOfUnequalLength,
    check_epochs,
    collate_texts,
    losses_of,
    read_ahead,
    workers,
)
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Subset, TensorDataset

from infobatch import InfoBatch
from infobatch.errors import (
    EpochError,
    InfoBatchError,
    LossError,
    MisalignedUpdateError,
    MissingUpdateWarning,
)

# --- order ----------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [N, 12 * B, B // 2 + 2 * B])
def test_losses_reach_their_samples_and_len_is_right_before_every_epoch(count, drop_last, size):
    run = Run(size, prune_ratio=0.3)
    loader = DataLoader(
        Ids(size), B, sampler=run.pruner.sampler, drop_last=drop_last, **workers(count)
    )
    check_epochs(run, loader, drop_last=drop_last)


@pytest.mark.parametrize(
    ("start", "count", "persistent"),
    [
        ("fork", 2, False),
        ("fork", 2, True),
        ("forkserver", 2, False),
        ("forkserver", 2, True),
        # Each spawned worker imports torch anew, which takes seconds.
        ("spawn", 2, True),
        pytest.param("spawn", 1, False, marks=pytest.mark.slow),
    ],
)
def test_any_way_to_start_workers_keeps_the_order(start, count, persistent):
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["torch"])  # imported once and not by every worker
    run = Run()
    loader = DataLoader(
        TensorDataset(torch.arange(N)),
        B,
        sampler=run.pruner.sampler,
        num_workers=count,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    check_epochs(run, loader, ids_of=lambda batch: batch[0], epochs=3 if persistent else 2)


DATA_SETS = {
    "tensors": (lambda: TensorDataset(torch.arange(N)), None, lambda batch: batch[0]),
    "dicts": (IdsInDicts, None, lambda batch: batch["meta"]["id"]),
    "__getitems__": (IdsByTheBatch, None, lambda batch: batch),
    "custom collate": (TextsOfUnequalLength, collate_texts, lambda batch: batch["ids"]),
    "Subset": (
        # Positions in the subset are what a pruner of the subset counts.
        lambda: Subset(Ids(1000), list(range(0, 5 * N, 5))),
        None,
        lambda batch: batch // 5,
    ),
    "Subset of a data set with __getitems__": (
        lambda: Subset(IdsByTheBatch(1000), list(range(0, 5 * N, 5))),
        None,
        lambda batch: batch // 5,
    ),
    "ConcatDataset": (lambda: ConcatDataset([Ids(70), Ids(N - 70, 70)]), None, lambda batch: batch),
    "a list": (lambda: list(range(N)), None, lambda batch: batch),
}


@WORKERS
@pytest.mark.parametrize("kind", DATA_SETS)
def test_any_data_set_and_collate_function_is_served(kind, count):
    build, collate, ids_of = DATA_SETS[kind]
    dataset = build()
    run = Run(dataset)
    loader = DataLoader(
        dataset, B, sampler=run.pruner.sampler, collate_fn=collate, **workers(count)
    )
    check_epochs(run, loader, ids_of=ids_of)


OVER_A_BATCH_SAMPLER = {
    "as batch sampler": lambda batches, options: DataLoader(
        Ids(), batch_sampler=batches, **options
    ),
    "as sampler, without batches": lambda batches, options: DataLoader(
        TensorOfIds(), batch_size=None, sampler=batches, **options
    ),
    "alone, for data that is one tensor": lambda batches, options: batches,
}


class TensorOfIds(Ids):
    """Indexed by a whole batch at once."""

    def __getitem__(self, index):
        return torch.arange(N)[index]


@WORKERS
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("kind", OVER_A_BATCH_SAMPLER)
def test_a_batch_sampler_over_it_serves(kind, drop_last, count):
    run = Run()
    batches = BatchSampler(run.pruner.sampler, B, drop_last)
    loader = OVER_A_BATCH_SAMPLER[kind](batches, workers(count))
    check_epochs(run, loader, drop_last=drop_last)


@WORKERS
def test_loaders_that_do_not_batch_deliver_one_sample_at_a_time(count):
    run = Run(40, num_epochs=3)
    loader = DataLoader(Ids(40), batch_size=None, sampler=run.pruner.sampler, **workers(count))
    for _ in range(2):
        planned = run.pruner.plan.indices
        assert len(loader) == len(planned)
        delivered = []
        for item in loader:
            delivered.append(item)
            run.step(item.reshape(1))
        assert torch.equal(torch.stack(delivered), planned)
        run.assert_scores_are_true()


def test_a_host_that_hides_the_loader_from_the_sampler_is_served_as_well():
    """No BatchSampler and no DataLoader to be seen: the order is checked all the same."""

    def host():
        batch = []
        for index in run.pruner.sampler:
            batch.append(index)
            if len(batch) == B:
                yield batch
                batch = []
        if batch:
            yield batch

    class Host:
        def __iter__(self):
            return host()

        def __len__(self):
            return math.ceil(len(run.pruner.sampler) / B)

    run = Run()
    check_epochs(run, Host())
    stream = host()
    run.step(next(stream))
    next(stream)
    with run.refusal(remedy=r"pruner\.skip\(batch_size\)"):
        run.step(next(stream))


def test_a_new_loader_in_every_epoch_serves_as_well_as_one_for_all():
    run = Run()
    for epoch, (batch_size, count) in enumerate([(16, 0), (7, 2), (200, 0), (1, 0), (32, 2)]):
        loader = DataLoader(Ids(), batch_size, sampler=run.pruner.sampler, **workers(count))
        run.train(loader)
        run.assert_scores_are_true()
        assert run.pruner.epoch == epoch + 1


def test_the_order_of_the_users_own_sampler_is_kept_with_repeats_and_without_the_pruned():
    own = [(7 * place) % 150 for place in range(N)]  # 50 samples come twice, 50 never
    run = Run(N, sampler=own, batch_size=1)
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler)
    for _ in range(3):
        planned = run.pruner.plan.indices
        kept = set(planned.tolist())
        assert planned.tolist() == [index for index in own if index in kept]
        run.train(loader)
        run.assert_scores_are_true()
    assert run.pruner.history[2].kept < run.pruner.history[2].total == N
    assert bool(run.pruner.scores[150:].isnan().all())


# --- misalignment ---------------------------------------------------------------------------------


def middle_of_the_second_epoch(count, size=N):
    """A run in its second epoch, three batches in, and the iterator that goes on from there."""
    run = Run(size)
    loader = DataLoader(Ids(size), B, sampler=run.pruner.sampler, **workers(count))
    run.train(loader)
    batches = iter(loader)
    for _ in range(3):
        run.step(next(batches))
    return run, batches


def start_of_the_first_epoch(count):
    run = Run()
    return run, iter(DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count)))


PLACES = {"start": start_of_the_first_epoch, "middle": middle_of_the_second_epoch}


@WORKERS
@pytest.mark.parametrize("place", ["start", "middle"])
def test_two_updates_for_one_batch_are_an_error_at_once(count, place):
    run, batches = PLACES[place](count)
    ids = next(batches)
    run.step(ids)
    with run.refusal(remedy=r"[Cc]all (it|update) once per batch"):
        run.step(ids)


@WORKERS
@pytest.mark.parametrize("size", [N, 3 * B, B, B // 2])
def test_two_updates_for_the_last_batch_are_an_error_at_once(count, size):
    """Also where one epoch is one batch, or fits into what the workers fetch ahead."""
    run = Run(size)
    loader = DataLoader(Ids(size), B, sampler=run.pruner.sampler, **workers(count))
    for ids in loader:
        last = ids
        run.step(ids)
    with run.refusal(remedy="once more than the epoch before had batches"):
        run.step(last)


@WORKERS
def test_two_updates_among_the_last_batches_are_an_error_by_the_end_of_the_epoch(count):
    """With all indices handed out the account is open only in its end."""
    run = Run(4 * B)
    run.pruner.sampler.batches_ahead = 3
    loader = DataLoader(Ids(4 * B), B, sampler=run.pruner.sampler, **workers(count))
    first, *rest = loader  # read ahead as a whole
    run.pruner.update(losses_of(first, 0))
    run.pruner.update(losses_of(first, 0))
    for ids in rest[:-1]:
        run.pruner.update(losses_of(ids, 0))
    with pytest.raises(MisalignedUpdateError, match="once more than the epoch before"):
        run.pruner.update(losses_of(rest[-1], 0))


@WORKERS
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("length", [1, B // 2, B - 1, B + 1, 2 * B])
def test_fewer_or_more_losses_than_the_batch_has_are_an_error(place, length, count):
    run, batches = PLACES[place](count)
    ids = next(batches)
    with run.refusal(remedy="losses of the whole batch"):
        run.step(torch.arange(length))
    run.step(ids)  # and the run can go on with the right ones


@WORKERS
def test_a_last_loss_vector_of_the_wrong_length_is_an_error(count):
    run = Run()
    for ids in DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count)):
        if len(ids) < B:
            for wrong in (ids[:-1], torch.cat([ids, ids])):
                with run.refusal(remedy="losses of the whole batch"):
                    run.step(wrong)
        run.step(ids)
    run.assert_scores_are_true()
    assert run.pruner.epoch == 1


def test_an_update_before_any_batch_is_an_error():
    run = Run()
    with run.refusal(remedy=r"before any batch was drawn.*sampler=pruner\.sampler"):
        run.step(torch.arange(B))
    DataLoader(Ids(), B, sampler=run.pruner.sampler)
    with run.refusal(remedy=r"sampler=pruner\.sampler"):
        run.pruner.skip(B)


def test_losses_of_a_loader_that_does_not_use_the_sampler_are_an_error():
    run = Run()
    with run.refusal(remedy=r"sampler=pruner\.sampler"):
        run.train(DataLoader(Ids(), B, shuffle=True))
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler)
    run.train(loader)
    batches = iter(loader)
    run.step(next(batches))
    with run.refusal(remedy="with the losses of another loader"):
        run.train(DataLoader(Ids(), B, shuffle=True))


@WORKERS
def test_a_new_loop_while_an_older_one_is_within_its_epoch_is_an_error(count):
    run, older = middle_of_the_second_epoch(count)
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count))
    with run.refusal(remedy=r"call pruner\.end_epoch\(\) first"):
        next(iter(loader))
    for ids in older:
        run.step(ids)
    run.assert_scores_are_true()


@WORKERS
def test_an_older_loop_that_goes_on_after_a_newer_one_has_begun_is_an_error(count):
    run = Run()
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count))
    older, newer = iter(loader), iter(loader)
    next(older), next(newer)
    next(older)
    with run.refusal(remedy="Finish one loop before starting the next"):
        run.step(next(older))


@WORKERS
def test_two_loops_in_lockstep_are_an_error(count):
    run = Run()
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count))
    pairs = zip(loader, loader, strict=True)
    left, right = next(pairs)
    if count == 0:  # the second loop has drawn last, so its first batch is the planned one
        run.step(left)
        with run.refusal(remedy="[Cc]all it once per batch"):
            run.step(right)
    else:  # both were there before either has delivered
        with run.refusal(remedy="Finish one loop before starting the next"):
            run.step(right)


needs_in_order = pytest.mark.skipif(
    "in_order" not in inspect.signature(DataLoader).parameters,
    reason="this torch has no in_order",
)


@needs_in_order
def test_a_loader_that_is_asked_not_to_keep_the_order_is_an_error():
    run = Run()
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, in_order=False, **workers(2))
    with run.refusal(remedy=r"leave in_order at True.*update\(losses, indices=indices\)"):
        run.train(loader)


@needs_in_order
def test_without_workers_there_is_no_order_to_lose():
    run = Run()
    check_epochs(run, DataLoader(Ids(), B, sampler=run.pruner.sampler, in_order=False))


# --- leaving early, leaving out, looking ----------------------------------------------------------


@pytest.mark.parametrize("size", [N, 12 * B], ids=["partial last batch", "whole batches only"])
@pytest.mark.parametrize(
    ("count", "drop_last", "stops"),
    [(0, False, range(1, 12)), (0, True, range(1, 12)), (2, False, [1, 5, 11])],
    ids=["no workers", "drop_last", "2 workers"],
)
def test_an_epoch_may_be_left_early_anywhere_by_a_host_that_reads_ahead(
    size, count, drop_last, stops
):
    for steps in stops:
        run = Run(size)
        run.pruner.sampler.batches_ahead = 1
        options = {"drop_last": drop_last, **workers(count)}
        loader = DataLoader(Ids(size), B, sampler=run.pruner.sampler, **options)
        for step, ids in enumerate(read_ahead(loader), start=1):
            run.step(ids)
            if step == steps:
                break
        run.train(read_ahead(loader))
        run.assert_scores_are_true()
        assert [record.trained for record in run.pruner.history[:1]] == [steps * B]


@WORKERS
@pytest.mark.parametrize("skipped", [{0}, {5}, {12}, {0, 1}, {3, 4, 11, 12}, set(range(13))])
def test_a_batch_left_out_by_skip_keeps_its_scores_and_its_place(count, skipped):
    run = Run()
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count))
    for step, ids in enumerate(loader):
        if step in skipped:
            run.pruner.skip(len(ids))
        else:
            run.step(ids)
    run.assert_scores_are_true()
    assert run.pruner.epoch == 1
    assert run.pruner.history[0].trained == int((~run.truth.isnan()).sum())
    run.train(loader)
    run.assert_scores_are_true()


def test_skip_is_checked_as_update_is():
    run, batches = middle_of_the_second_epoch(0)
    with run.refusal(remedy="once per batch"):
        run.pruner.skip(B)
    ids = next(batches)
    with run.refusal(remedy="losses of the whole batch"):
        run.pruner.skip(B - 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        run.pruner.skip(0)
    run.step(ids)
    run.assert_scores_are_true()


@pytest.mark.parametrize(("count", "persistent"), [(0, False), (2, False), (2, True)])
def test_looking_changes_nothing(count, persistent):
    options = workers(count, persistent_workers=persistent)
    quiet, curious = Run(), Run()
    straight = DataLoader(Ids(), B, sampler=quiet.pruner.sampler, **options)
    loader = DataLoader(Ids(), B, sampler=curious.pruner.sampler, **options)
    for _ in range(3):
        stood = curious.pruner.epoch, curious.pruner.progress
        assert len(loader) == len(straight)
        first = next(iter(loader))
        iter(loader)
        assert list(curious.pruner.sampler) == curious.pruner.plan.indices.tolist()
        list(loader)
        with pytest.warns(MissingUpdateWarning, match="update was never called"):
            iter(loader).__next__()
        assert torch.equal(first, next(iter(loader)))
        assert len(loader) == len(straight)
        assert (curious.pruner.epoch, curious.pruner.progress) == stood
        for left, right in zip(straight, loader, strict=True):
            assert torch.equal(left, right)
            assert torch.equal(quiet.step(left), curious.step(right))
            assert len(curious.pruner.sampler) == len(quiet.pruner.sampler)
        curious.assert_scores_are_true()
    assert torch.equal(quiet.pruner.scores, curious.pruner.scores)


def test_drop_last_with_less_than_a_batch_is_an_error_that_says_what_to_do():
    run = Run(B - 1)
    loader = DataLoader(Ids(B - 1), B, sampler=run.pruner.sampler, drop_last=True)
    with pytest.raises(InfoBatchError, match=r"use drop_last=False, a smaller batch_size"):
        run.train(loader)


def test_an_epoch_that_pruning_makes_smaller_than_a_dropped_batch_is_an_error():
    run = Run(B, prune_ratio=0.9)
    loader = DataLoader(Ids(B), B, sampler=run.pruner.sampler, drop_last=True)
    run.train(loader)
    assert len(run.pruner.sampler) < B
    assert len(loader) == 0
    with run.refusal(remedy="or a larger budget", error=InfoBatchError):
        run.train(loader)


# --- ids that travel with the batch ---------------------------------------------------------------


def shuffled_batches(pruner: InfoBatch) -> Iterator[list[int]]:
    """What a bucketing batch sampler does: it forms batches of its own out of the plan."""
    batches = list(BatchSampler(pruner.sampler, B, drop_last=False))
    random.Random(pruner.epoch).shuffle(batches)
    return iter(batches)


@pytest.mark.parametrize(
    "form", [torch.as_tensor, list, lambda ids: ids.int(), lambda ids: ids.numpy()]
)
def test_indices_put_losses_of_shuffled_batches_in_their_place(form):
    run = Run()
    pruner = run.pruner
    for epoch in range(3):
        weight_of = dict(zip(pruner.plan.indices.tolist(), pruner.plan.weights, strict=True))
        for batch in shuffled_batches(pruner):
            ids = torch.tensor(batch)
            weights = torch.stack([weight_of[index] for index in batch]).float()
            rescaled = run.step(ids, indices=form(ids), reduction="none")
            assert torch.equal(rescaled, losses_of(ids, epoch) * weights)
        run.assert_scores_are_true()
        assert pruner.epoch == epoch + 1
    assert pruner.history[2].kept < N


@needs_in_order
def test_indices_serve_a_loader_that_does_not_keep_the_order():
    run = Run()
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, in_order=False, **workers(2))
    for epoch in range(3):
        for ids in loader:
            run.step(ids, indices=ids)
        run.assert_scores_are_true()
        assert run.pruner.epoch == epoch + 1


def test_indices_need_no_loader_that_draws_from_the_sampler():
    run = Run()
    run.train(DataLoader(Ids(), B, sampler=run.pruner.sampler, drop_last=True))
    for epoch in (1, 2):
        for ids in run.pruner.plan.indices.flip(0).split(7):
            run.step(ids, indices=ids)
        assert run.pruner.epoch == epoch + 1
        run.assert_scores_are_true()


def test_indices_that_are_not_in_the_plan_are_an_error():
    run = Run()
    run.train(DataLoader(Ids(), B, sampler=run.pruner.sampler))
    kept = set(run.pruner.plan.indices.tolist())
    pruned = torch.tensor([index for index in range(N) if index not in kept])[:4]
    with run.refusal(remedy="not in the plan of epoch 1; draw batches from this pruner's sampler"):
        run.step(pruned, indices=pruned)


def test_more_losses_with_indices_than_the_epoch_has_are_an_error():
    run = Run()
    for ids in torch.arange(N - 3).split(B):
        run.step(ids, indices=ids)
    with run.refusal(remedy="have come twice"):
        run.step(torch.arange(4), indices=torch.arange(4))


@pytest.mark.parametrize(
    ("indices", "complaint"),
    [
        ([0, 1], r"one integer per loss, shape \(3,\)"),
        ([[0, 1, 2]], r"one integer per loss, shape \(3,\)"),
        ([0.0, 1.0, 2.0], "one integer per loss"),
        ([True, False, True], "one integer per loss"),
        ([0, 1, N], f"0 to {N - 1}, got 0 to {N}"),
        ([0, 1, -1], f"0 to {N - 1}, got -1 to 1"),
    ],
)
def test_indices_that_are_no_indices_are_an_error(indices, complaint):
    run = Run()
    with run.refusal(remedy=complaint, error=LossError):
        run.step(torch.arange(3), indices=indices)


# --- counting epochs ------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("drop_last", [False, True])
def test_set_epoch_changes_nothing_however_often_it_is_called(count, drop_last):
    silent, told = Run(), Run()
    options = {"drop_last": drop_last, **workers(count)}
    straight = DataLoader(Ids(), B, sampler=silent.pruner.sampler, **options)
    loader = DataLoader(Ids(), B, sampler=told.pruner.sampler, **options)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        loader.sampler.set_epoch(epoch)
        for step, (left, right) in enumerate(zip(straight, loader, strict=True)):
            assert torch.equal(left, right)
            silent.step(left)
            told.step(right)
            if step == 4:
                loader.sampler.set_epoch(epoch)
        told.assert_scores_are_true()


@WORKERS
def test_set_epoch_ends_an_epoch_that_was_left_early(count):
    run = Run()
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count))
    for epoch in range(4):
        run.pruner.sampler.set_epoch(epoch)
        assert run.pruner.epoch == epoch
        assert len(loader) == -(-len(run.pruner.plan) // B)
        for step, ids in enumerate(loader):
            run.step(ids)
            if step == 3:
                break
    run.assert_scores_are_true()


@pytest.mark.parametrize("wrong", [0, 2, 5])
def test_a_wrong_epoch_is_an_error(wrong):
    run = Run()
    run.train(DataLoader(Ids(), B, sampler=run.pruner.sampler))
    with run.refusal(remedy=r"epoch 1 \(0-based\) is due.*load_state_dict", error=EpochError):
        run.pruner.sampler.set_epoch(wrong)


def test_an_epoch_that_is_no_number_is_an_error():
    run = Run()
    with pytest.raises(TypeError, match="epoch must be an integer"):
        run.pruner.sampler.set_epoch(1.0)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        run.pruner.sampler.set_epoch(-1)


@WORKERS
def test_training_past_the_last_epoch_is_an_error(count):
    run = Run(num_epochs=2)
    loader = DataLoader(Ids(), B, sampler=run.pruner.sampler, **workers(count))
    run.train(loader, 2)
    assert run.pruner.progress == 1.0
    assert len(loader) == 13  # still answered: progress bars ask at the end
    with run.refusal(remedy="with the number of epochs that the run really has", error=EpochError):
        run.train(loader)
    with run.refusal(remedy="num_epochs=2", error=EpochError):
        run.step(torch.arange(3), indices=torch.arange(3))
    with run.refusal(remedy="num_epochs=2", error=EpochError):
        run.pruner.skip(B)
