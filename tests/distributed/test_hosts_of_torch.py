"""With what torch offers for distributed training: accumulation, AMP, compile, meshes, Join."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.distributed.support import in_threads, launch, results_of
from tests.distributed.test_equivalence import EPOCHS, Points, model_of
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import DistributedError

N, BATCH = 52, 8


def parameters_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_close(left, right, rtol=1e-9):
    for mine, other in zip(left, right, strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=rtol)


def train(model, pruner, *, batch=BATCH, accumulate=1, scaler=None, dtype=None):
    dataset = Points(N)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    loader = DataLoader(dataset, batch, sampler=pruner.sampler)

    def forward(inputs, labels):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = model(inputs.double() if dtype is None else inputs)
            losses = F.cross_entropy(outputs, labels, reduction="none")
        return pruner.update(losses)

    for _ in range(EPOCHS):
        length = len(loader)
        for number, (inputs, labels, _) in enumerate(loader, 1):
            last = number % accumulate == 0 or number == length
            if last or not hasattr(model, "no_sync"):
                loss = forward(inputs, labels) / accumulate
                (loss if scaler is None else scaler.scale(loss)).backward()
            else:
                with model.no_sync():
                    (forward(inputs, labels) / accumulate).backward()
            if last:
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                optimizer.zero_grad()
    return parameters_of(model), pruner.scores, pruner.history


def all_ways(rank):
    ways = (accumulate, mixed_precision, overflow, join, compiled_ddp)
    return {way.__name__: way(rank) for way in ways}


@functools.cache
def started_once():
    return results_of(2, all_ways)


def on_two_ranks(way):
    """What a way to train comes to on each rank; all share one start of the processes."""
    return [results[way] for results in started_once()]


def accumulate(rank):
    return train(DistributedDataParallel(model_of()), InfoBatch(N, EPOCHS), accumulate=3)


def test_accumulation_with_no_sync_is_that_of_one_process():
    expected = train(model_of(), InfoBatch(N, EPOCHS), batch=2 * BATCH, accumulate=3)
    for parameters, scores, history in on_two_ranks("accumulate"):
        assert_close(parameters, expected[0])
        torch.testing.assert_close(scores, expected[1])
        assert [record.trained for record in history] == [r.trained for r in expected[2]]


def mixed_precision(rank):
    model = DistributedDataParallel(model_of().float())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    return train(model, InfoBatch(N, EPOCHS), scaler=scaler, dtype=torch.bfloat16)


def test_amp_with_a_grad_scaler_is_that_of_one_process():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    model = model_of().float()
    expected = train(
        model, InfoBatch(N, EPOCHS), batch=2 * BATCH, scaler=scaler, dtype=torch.bfloat16
    )
    for parameters, _, _ in on_two_ranks("mixed_precision"):
        assert_close(parameters, expected[0], rtol=5e-3)


def overflow(rank):
    """A step that the scaler leaves out because a gradient is not finite."""
    model = DistributedDataParallel(model_of())
    pruner = InfoBatch(N, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    before = parameters_of(model)
    loader = DataLoader(Points(N), BATCH, sampler=pruner.sampler)
    inputs, labels, _ = next(iter(loader))
    for inputs, labels, _ in loader:
        losses = F.cross_entropy(model(inputs.double()), labels, reduction="none")
        if rank == 1:
            losses = losses * float("inf")
        scaler.scale(pruner.update(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        break
    pruner.synchronize()
    return before, parameters_of(model), scaler.get_scale(), pruner.scores


def test_a_step_that_the_grad_scaler_leaves_out_is_left_out_on_every_rank():
    for before, after, scale, scores in on_two_ranks("overflow"):
        assert_close(after, before, rtol=0)
        assert scale < 2.0**12
        assert int(torch.isinf(scores).sum()) == BATCH
        assert int(torch.isfinite(scores).sum()) == BATCH


def join(rank):
    model = DistributedDataParallel(model_of())
    pruner = InfoBatch(N, EPOCHS)
    with Join([model]):
        return train(model, pruner)


def test_join_has_nothing_to_do_as_all_ranks_have_equally_many_batches():
    expected = train(model_of(), InfoBatch(N, EPOCHS), batch=2 * BATCH)
    for parameters, scores, _ in on_two_ranks("join"):
        assert_close(parameters, expected[0])
        torch.testing.assert_close(scores, expected[1])


def compiled_ddp(rank):
    model = torch.compile(DistributedDataParallel(model_of()), backend="aot_eager")
    return train(model, InfoBatch(N, EPOCHS))


def test_a_compiled_ddp_model_is_that_of_one_process():
    expected = train(model_of(), InfoBatch(N, EPOCHS), batch=2 * BATCH)
    for parameters, scores, _ in on_two_ranks("compiled_ddp"):
        assert_close(parameters, expected[0])
        torch.testing.assert_close(scores, expected[1])


def on_a_mesh(rank, how):
    """Two data-parallel ranks of two processes each, which must see the same samples."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    replica = mesh["dp"].get_local_rank()
    given = {
        "mesh": {"process_group": mesh["dp"]},
        "group": {"process_group": mesh["dp"].get_group()},
        "numbers": {"rank": replica, "world_size": 2},
    }[how]
    pruner = InfoBatch(N, EPOCHS, **given)
    model = DistributedDataParallel(model_of(), process_group=mesh["dp"].get_group())
    seen = []
    loader = DataLoader(Points(N), BATCH, sampler=pruner.sampler)
    seen = [indices.tolist() for _, _, indices in loader]
    return replica, seen, train(model, pruner)


@pytest.mark.parametrize(
    "how", ["mesh", *(pytest.param(how, marks=pytest.mark.slow) for how in ("group", "numbers"))]
)
def test_processes_of_one_data_parallel_rank_see_the_same_samples(how):
    expected = train(model_of(), InfoBatch(N, EPOCHS), batch=2 * BATCH)
    results = results_of(4, on_a_mesh, how)
    assert [replica for replica, _, _ in results] == [0, 0, 1, 1]
    assert results[0][1] == results[1][1]
    assert results[2][1] == results[3][1]
    assert results[0][1] != results[2][1]
    for _, _, (parameters, scores, _) in results:
        assert_close(parameters, expected[0])
        torch.testing.assert_close(scores, expected[1])


def outside_its_group(rank):
    group = dist.new_group([0])
    InfoBatch(N, EPOCHS, process_group=group)
    pruner = InfoBatch(N, EPOCHS, process_group=group if rank == 0 else None, rank=0, world_size=1)
    return len(pruner.sampler)


def test_a_process_outside_a_group_is_told():
    with pytest.raises(TypeError, match=r"must be a torch\.distributed process group"):
        InfoBatch(N, EPOCHS, process_group="gloo")
    outcomes = launch(2, outside_its_group)
    assert outcomes[0] == ("ok", N)
    kind, error = outcomes[1]
    assert kind == "error", error


def test_numbers_without_any_group_are_an_error_at_the_first_update():
    pruner = InfoBatch(N, EPOCHS, rank=1, world_size=4)
    loader = DataLoader(Points(N), BATCH, sampler=pruner.sampler)
    assert len(pruner.sampler) == N // 4
    with pytest.raises(DistributedError, match=r"torch\.distributed is not initialised"):
        for _, labels, _ in loader:
            pruner.update(labels.double())


def test_a_communicator_of_ones_own_takes_the_place_of_torch_distributed():
    def run(group):
        pruner = InfoBatch(N, EPOCHS, process_group=group)
        return train(model_of(), pruner)[2]

    histories = in_threads(3, run)
    assert len({repr(history) for history in histories}) == 1
