"""Streams: pruned samples are left out before they are decoded, losses come back by id."""

import gc
import io
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from tests.distributed.support import in_threads, results_of
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from infobatch import InfoBatch
from infobatch.errors import EpochError, LossError, MisalignedUpdateError

N, EPOCHS = 240, 4


def loss_of(ids):
    return ((ids * 31 % 97).float() / 97) ** 2


class Stream(IterableDataset):
    """Reads samples one after the other; what is decoded is counted in shared memory."""

    def __init__(self, keeps, rank=0, world_size=1, cut=0):
        self.keeps = keeps
        self.decoded = torch.zeros(N, dtype=torch.int64).share_memory_()
        self.rank, self.world_size, self.cut = rank, world_size, cut

    def __iter__(self):
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        first, step = self.rank + number * self.world_size, count * self.world_size
        for sample_id in range(first, N - self.cut, step):
            if self.keeps(sample_id):
                self.decoded[sample_id] += 1
                yield sample_id


def train(pruner, loader, epochs=EPOCHS):
    seen = []
    for _ in range(epochs):
        came = []
        for ids in loader:
            weighted = pruner.update(loss_of(ids) + 1, indices=ids, reduction="none")
            came += zip(ids.tolist(), (weighted / (loss_of(ids) + 1)).tolist(), strict=True)
        pruner.end_epoch()
        seen.append(came)
    return seen


@pytest.mark.parametrize(
    "workers",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"},
    ],
    ids=["none", "two", "persistent", "spawned"],
)
def test_pruned_samples_are_not_decoded_and_the_others_weigh_what_the_plan_says(workers):
    pruner = InfoBatch(N, EPOCHS, delta=0.75)
    stream = Stream(pruner.stream_filter())
    loader = DataLoader(stream, 16, **workers)
    expected = []
    for epoch in range(EPOCHS):
        plan = pruner.plan
        expected.append(dict(zip(plan.indices.tolist(), plan.weights.tolist(), strict=True)))
        before = stream.decoded.clone()
        (came,) = train(pruner, loader, epochs=1)
        assert len(came) == len(plan)
        assert dict(came) == pytest.approx(expected[epoch])
        assert sorted(expected[epoch]) == (stream.decoded - before).nonzero().flatten().tolist()
    assert torch.equal(pruner.scores, loss_of(torch.arange(N)) + 1)
    assert [record.kept for record in pruner.history] == [len(plan) for plan in expected]
    assert [record.trained for record in pruner.history] == [len(plan) for plan in expected]
    assert 0.1 < pruner.saved_fraction < 0.5


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_a_webdataset_pipeline_decodes_only_what_is_kept(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for sample_id in range(shard * 80, (shard + 1) * 80):
                data = io.BytesIO()
                np.save(data, np.full(4, sample_id, dtype=np.float32))
                entry = tarfile.TarInfo(f"{sample_id:06d}.npy")
                entry.size = data.tell()
                tar.addfile(entry, io.BytesIO(data.getvalue()))

    pruner = InfoBatch(N, EPOCHS, delta=0.75)
    keeps = pruner.stream_filter()
    stream = (
        webdataset.WebDataset(
            [str(tmp_path / f"{shard}.tar") for shard in range(3)], shardshuffle=False
        )
        .select(lambda sample: keeps(int(sample["__key__"])))
        .shuffle(20)
        .decode()
        .map(lambda sample: (torch.from_numpy(sample["npy"]), int(sample["__key__"])))
    )
    loader = DataLoader(stream, 16)
    for _ in range(EPOCHS):
        planned, came = sorted(pruner.plan.indices.tolist()), []
        for values, ids in loader:
            assert torch.equal(values[:, 0].long(), ids)
            pruner.update(loss_of(ids), indices=ids)
            came += ids.tolist()
        pruner.end_epoch()
        assert sorted(came) == planned
    assert pruner.saved_fraction > 0.1
    del loader, stream
    gc.collect()  # here, where the warning is not an error


class SampleIdStream(IterableDataset):
    """As MosaicML's StreamingDataset: decides on ids first, then reads them one by one.

    With the real class the same two methods are there: override `_each_sample_id`.
    """

    def __init__(self, keeps):
        self.keeps = keeps

    def each_sample_id(self, sample_ids):
        yield from filter(self.keeps, sample_ids)

    def __getitem__(self, sample_id):
        return sample_id

    def __iter__(self):
        order = np.random.default_rng(0).permutation(N)
        worker = get_worker_info()
        if worker:
            order = order[worker.id :: worker.num_workers]
        yield from map(self.__getitem__, self.each_sample_id(order.tolist()))


def test_a_dataset_that_streams_by_sample_id_skips_ids():
    pruner = InfoBatch(N, EPOCHS)
    loader = DataLoader(SampleIdStream(pruner.stream_filter()), 16, num_workers=2)
    for epoch, came in enumerate(train(pruner, loader)):
        assert len(came) == pruner.history[epoch].kept


def one_rank(rank):
    pruner = InfoBatch(N, EPOCHS, delta=0.75)
    loader = DataLoader(Stream(pruner.stream_filter(), rank, 2, cut=30), 16)
    return train(pruner, loader), pruner.scores, pruner.history


def test_ranks_with_unlike_numbers_of_samples_come_to_the_same_scores():
    (seen, scores, history), (other_seen, others, other_history) = results_of(2, one_rank)
    assert torch.equal(scores.nan_to_num(-1), others.nan_to_num(-1))
    assert repr(history) == repr(other_history)
    ids = torch.arange(N - 30)
    assert torch.equal(scores[: N - 30], loss_of(ids) + 1)
    assert scores[N - 30 :].isnan().all()
    for record, one, other in zip(history, seen, other_seen, strict=True):
        assert record.trained == len(one) + len(other) == record.kept - 30


def one_joining_rank(rank):
    """Under DDP, ranks with unlike numbers of batches need torch's Join."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    pruner = InfoBatch(N, EPOCHS, delta=0.75)
    loader = DataLoader(Stream(pruner.stream_filter(), rank, 2, cut=80 * rank), 8)
    for _ in range(EPOCHS):
        with Join([model]):
            for ids in loader:
                losses = (model(loss_of(ids)[:, None])[:, 0] - 1).square()
                pruner.update(losses, indices=ids).backward()
        pruner.end_epoch()
    return pruner.scores, pruner.history


def test_a_rank_with_nothing_to_read_takes_part_all_the_same():
    def train(group):
        pruner = InfoBatch(40, 4, process_group=group)
        keeps = pruner.stream_filter()
        for _ in range(4):
            read = range(40) if group.rank == 1 else ()
            ids = torch.tensor([number for number in read if keeps(number)], dtype=torch.long)
            for part in ids.split(8) if len(ids) else ():
                pruner.update(part.float(), indices=part)
            pruner.end_epoch()
        return pruner.scores, repr(pruner.history), pruner.epoch

    empty, full, other = in_threads(3, train)
    assert torch.equal(full[0], torch.arange(40.0))
    assert full[1:] == empty[1:] == other[1:]
    assert torch.equal(empty[0], full[0])


def test_join_takes_streams_of_unlike_length():
    (scores, history), (others, other_history) = results_of(2, one_joining_rank)
    assert torch.equal(scores.nan_to_num(-1), others.nan_to_num(-1))
    assert repr(history) == repr(other_history)
    assert len(history) == EPOCHS


def test_a_stream_goes_on_from_a_state():
    pruner = InfoBatch(N, EPOCHS, delta=0.75)
    train(pruner, DataLoader(Stream(pruner.stream_filter()), 16), epochs=2)
    state = pruner.state_dict()
    expected = train(pruner, DataLoader(Stream(pruner.stream_filter()), 16), epochs=2)
    resumed = InfoBatch(N, EPOCHS, delta=0.75)
    keeps = resumed.stream_filter()
    resumed.load_state_dict(state)
    assert train(resumed, DataLoader(Stream(keeps), 16), epochs=2) == expected
    assert repr(resumed.history) == repr(pruner.history)


def test_samples_that_a_stream_repeats_are_trained_and_the_last_loss_counts():
    pruner = InfoBatch(4, 2)
    keeps = pruner.stream_filter()
    assert all(keeps(sample_id) for sample_id in range(4))
    pruner.update(torch.tensor([1.0, 2.0, 3.0]), indices=[0, 1, 2])
    pruner.update(torch.tensor([4.0, 5.0, 6.0]), indices=[2, 1, 3])
    pruner.end_epoch()
    assert pruner.scores.tolist() == [1.0, 5.0, 4.0, 6.0]
    assert pruner.history[0].trained == 6
    assert pruner.history[0].kept == 4


def test_misuse_of_a_stream_is_told():
    pruner = InfoBatch(8, 2)
    keeps = pruner.stream_filter()
    for wrong in (-1, 8):
        with pytest.raises(LossError, match="sample ids must be 0 to 7"):
            keeps(wrong)
    with pytest.raises(MisalignedUpdateError, match="its sampler is not used"):
        next(iter(pruner.sampler))
    ids = torch.arange(8)
    for _ in range(3):
        pruner.update(ids.float(), indices=ids)
    with pytest.raises(MisalignedUpdateError, match=r"call pruner\.end_epoch"):
        pruner.update(ids.float(), indices=ids)
    pruner.end_epoch()
    pruned = next(sample_id for sample_id in range(8) if not keeps(sample_id))
    with pytest.raises(MisalignedUpdateError, match=rf"samples \[{pruned}\] are not in the plan"):
        pruner.update(torch.ones(1), indices=[pruned])
    pruner.end_epoch()
    with pytest.raises(EpochError, match="all num_epochs=2 epochs are over"):
        pruner.end_epoch()

    pruner = InfoBatch(8, 2)
    for ids in DataLoader(torch.arange(8), 4, sampler=pruner.sampler):
        pruner.update(ids.float())
        with pytest.raises(MisalignedUpdateError, match="call it before training"):
            pruner.stream_filter()
        break
    pruner.end_epoch()
    assert pruner.epoch == 1
    pruner.end_epoch()  # nothing has come since
    assert pruner.epoch == 1
