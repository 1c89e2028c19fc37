"""What integrations need of the core, without any host."""

import itertools
import math

import pytest
import torch
from tests.distributed.support import in_threads
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from infobatch import InfoBatch
from infobatch.errors import DistributedError, EpochError, MisalignedUpdateError, StateError
from infobatch.integrations.hosts import check_host, coming_divisor, planned_loader
from infobatch.schedule import ProgressScheduler, counts_steps

N, BATCH = 100, 8


def drawn_in_groups(pruner, loader, group):
    """The batches of an epoch, `group` of them drawn before the first is trained on."""
    iterator = iter(loader)
    while batches := list(itertools.islice(iterator, group)):
        yield from batches


def test_batches_that_are_drawn_a_step_at_a_time():
    pruner = InfoBatch(N, 3)
    pruner.sampler.batches_at_once = 3
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for _ in range(3):
        for batch in drawn_in_groups(pruner, loader, 3):
            pruner.update(batch.float())
    assert pruner.epoch == 3
    assert torch.equal(pruner.scores, torch.arange(N).float())


def test_without_being_told_they_are_refused_at_the_first():
    pruner = InfoBatch(N, 3)
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    batches = drawn_in_groups(pruner, loader, 3)
    with pytest.raises(MisalignedUpdateError, match="has delivered 3 batches before the first"):
        pruner.update(next(batches).float())
    assert pruner.scores.isnan().all()


@pytest.mark.parametrize("mistake", ["double", "skipped"])
def test_a_mistake_is_seen_although_batches_are_drawn_at_once(mistake):
    pruner = InfoBatch(N, 3)
    pruner.sampler.batches_at_once = 2
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    with pytest.raises(MisalignedUpdateError):
        for number, batch in enumerate(drawn_in_groups(pruner, loader, 2)):
            if number == 3 and mistake == "skipped":
                continue
            pruner.update(batch.float())
            if number == 3:
                pruner.update(batch.float())


def test_a_host_may_count_epochs_by_itself():
    pruner = InfoBatch(N, 3)
    with pytest.raises(EpochError):
        pruner.sampler.set_epoch(2)
    pruner.sampler.host_counts_epochs = False
    pruner.sampler.set_epoch(2)
    assert pruner.epoch == 0


def test_the_sampler_is_a_distributed_sampler():
    assert isinstance(InfoBatch(N, 3).sampler, DistributedSampler)


def test_the_sampler_tells_its_place_as_any_distributed_sampler_does():
    """Ignite's auto_dataloader compares it with its own, and fails where it is not told."""
    alone, of_several = InfoBatch(N, 3).sampler, InfoBatch(N, 3, rank=2, world_size=5).sampler
    assert (alone.rank, alone.num_replicas) == (0, 1)
    assert (of_several.rank, of_several.num_replicas) == (2, 5)
    assert len(of_several) == N // 5


def test_losses_of_a_loader_whose_sampler_a_host_has_replaced_are_refused():
    pruner = InfoBatch(N, 3)
    given = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    replaced = DataLoader(given.dataset, BATCH, sampler=DistributedSampler(range(N), 1, 0))
    with pytest.raises(MisalignedUpdateError, match=r"built with sampler=pruner\.sampler"):
        for batch in replaced:
            pruner.update(batch.float())
    assert pruner.scores.isnan().all()


class Resharded(BatchSampler):
    def __init__(self, batches, num_processes=2):
        self.batches, self.num_processes = batches, num_processes

    def __iter__(self):
        for index, batch in enumerate(self.batches):
            if index % self.num_processes == 0:
                yield batch

    def __len__(self):
        return len(self.batches) // self.num_processes


class Skipping(Resharded):
    skip_batches = 2

    def __init__(self, batches):
        super().__init__(batches, num_processes=1)


def test_a_second_sharding_and_skipped_batches_are_seen_before_the_first_batch():
    for wrapper, words in ((Resharded, "second time .by Resharded"), (Skipping, "skips batches")):
        pruner = InfoBatch(N, 3)
        wrapped = wrapper(BatchSampler(pruner.sampler, BATCH, drop_last=False))
        with pytest.raises(MisalignedUpdateError, match=words):
            next(iter(DataLoader(range(N), batch_sampler=wrapped)))


def test_a_batch_sampler_of_unknown_kind_is_refused_unless_the_pruner_notes_its_batches():
    pruner = InfoBatch(N, 3)
    own = Resharded(BatchSampler(pruner.sampler, BATCH, drop_last=False), num_processes=1)
    batches = iter(DataLoader(range(N), batch_sampler=own))
    with pytest.raises(MisalignedUpdateError, match=r"Resharded.*pruner\.batches\(batch_sampler\)"):
        pruner.update(next(batches).float())
    assert pruner.scores.isnan().all()
    del batches
    for batch in DataLoader(range(N), batch_sampler=pruner.batches(own)):
        pruner.update(batch.float())
    assert pruner.epoch == 1
    assert torch.equal(pruner.scores, torch.arange(N).float())


def test_a_loader_like_the_given_one():
    data = TensorDataset(torch.arange(N))
    pruner = InfoBatch(data, 3)
    given = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=1)
    planned = planned_loader(given, pruner, persistent_workers=True)
    assert planned.sampler is pruner.sampler
    assert (planned.batch_size, planned.drop_last, planned.num_workers) == (BATCH, True, 1)
    assert planned.persistent_workers
    assert not given.persistent_workers
    batches = BatchSampler(RandomSampler(data), 5, drop_last=True)
    assert len(planned_loader(DataLoader(data, batch_sampler=batches), pruner)) == N // 5
    assert planned_loader(DataLoader(data, batch_size=None), pruner).batch_size is None


def test_a_loader_that_cannot_be_planned():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(N))

    pruner = InfoBatch(N, 3)
    with pytest.raises(ValueError, match="stream_filter"):
        planned_loader(DataLoader(Stream()), pruner)
    with pytest.raises(ValueError, match="99 samples, the pruner was built for 100"):
        planned_loader(DataLoader(range(N - 1)), pruner)
    own = Resharded(BatchSampler(RandomSampler(range(N)), 5, drop_last=True), num_processes=1)
    with pytest.raises(ValueError, match="Resharded"):
        planned_loader(DataLoader(range(N), batch_sampler=own), pruner)


def test_coming_weights_are_those_that_update_uses():
    pruner = InfoBatch(N, 4)
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for _ in range(4):
        for batch in loader:
            weights = pruner.coming_weights(len(batch))
            assert coming_divisor(pruner, len(batch)) == len(batch)
            losses = torch.rand(len(batch))
            rescaled = pruner.update(losses, reduction="none")
            torch.testing.assert_close(rescaled, losses * weights.float())
    assert len(pruner.history) == 4


def test_coming_weights_and_divisor_with_padding():
    def rank(group):
        pruner = InfoBatch(9, 1, process_group=group)
        loader = DataLoader(range(9), 3, sampler=pruner.sampler)
        seen = []
        for batch in loader:
            seen.append((pruner.coming_weights(3).tolist(), coming_divisor(pruner, len(batch))))
            pruner.update(batch.float())
        return seen

    first, second = in_threads(2, rank)
    assert first == [([1.0, 1.0, 1.0], 3.0), ([1.0, 1.0], 1.5)]
    assert second == [([1.0, 1.0, 1.0], 3.0), ([1.0, 0.0], 1.5)]


def test_metrics_of_the_last_epoch():
    pruner = InfoBatch(N, 3)
    assert pruner.metrics() == {}
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for epoch in range(2):
        assert pruner.is_within_epoch is False
        for batch in loader:
            pruner.update(batch.float())
        record, metrics = pruner.history[epoch], pruner.metrics()
        assert metrics["infobatch/kept_fraction"] == record.kept / N
        assert metrics["infobatch/saved_fraction"] == pruner.saved_fraction
        assert metrics["infobatch/mean_weight"] == record.mean_weight
        assert ("infobatch/threshold" in metrics) == math.isfinite(record.threshold)


def test_optimizer_steps_where_gradients_are_accumulated():
    pruner = InfoBatch(N, 4, budget=0.8)
    sizes = []
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for _ in range(4):
        sizes.append(len(loader))
        for batch in loader:
            pruner.update(batch.float() / N)
    assert pruner.total_steps(BATCH) == sum(sizes)
    assert pruner.total_steps(BATCH, accumulate=3) == sum(math.ceil(n / 3) for n in sizes)
    assert len(loader) == math.ceil(N / BATCH)  # a look past the end of the run
    with pytest.raises(ValueError, match="accumulate"):
        pruner.total_steps(BATCH, accumulate=0)


def test_the_schedule_shows_its_optimizer():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    assert ProgressScheduler(one_cycle, InfoBatch(N, 2)).optimizer is optimizer


def test_what_does_not_fit_a_host_is_refused():
    pruner = InfoBatch(N, 3)
    check_host(pruner, num_epochs=3.0, place=(0, 1))
    with pytest.raises(EpochError, match=r"num_epochs=3, .* got 4"):
        check_host(pruner, num_epochs=4)
    with pytest.raises(DistributedError, match="rank 1 of 2, the pruner that of rank 0 of 1"):
        check_host(pruner, place=(1, 2))
    check_host(InfoBatch(N, 3, rank=1, world_size=2), place=(1, 2))
    with pytest.raises(StateError, match="sharded=False"):
        check_host(InfoBatch(N, 3, sharded=True))


def test_which_schedulers_have_to_follow_progress():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    counting = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    assert counts_steps(counting)
    assert not counts_steps(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
    assert not counts_steps(ProgressScheduler(counting, InfoBatch(N, 3)))
