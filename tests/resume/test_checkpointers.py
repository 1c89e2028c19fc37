"""The state inside other checkpoints: torch.save, torch.distributed.checkpoint, torchdata."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from tests.distributed.support import results_of
from tests.distributed.test_equivalence import Points, model_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from infobatch import DataPruner, InfoBatch
from infobatch.errors import StateError
from infobatch.policies import PAPER_QUANTILES, Policy, Selection

N, EPOCHS, BATCH = 100, 5, 12

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:torch\.distributed is disabled, unavailable"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata calls it
]


class Proportional(Policy):
    """A weight of its own for each sample."""

    def select(self, request):
        scores, rng = request.scores, request.rng
        probability = (scores / scores.max()).clip(0.2, 1.0).astype(float)
        return Selection((rng.random(len(scores)) < probability) / probability)


PRUNERS = {
    "mean": lambda: InfoBatch(N, EPOCHS, seed=2),
    "quantiles": lambda: InfoBatch(N, EPOCHS, seed=2, quantiles=PAPER_QUANTILES),
    "own sampler": lambda: InfoBatch(N, EPOCHS, seed=2, sampler=range(N - 1, -1, -1)),
    "weights": lambda: DataPruner(N, EPOCHS, Proportional(), seed=2),
}


def train(pruner, stop=None, *, batch=BATCH, loader_type=DataLoader, load=None, **options):
    """Train to a step (epoch, step) or to the end; what was trained on, and the loader."""
    loader = loader_type(Points(N), batch, sampler=pruner.sampler, **options)
    if load is not None:
        loader.load_state_dict(load)
    steps = []
    for epoch in range(pruner.epoch, EPOCHS):
        loader.loop = iter(loader)  # kept: what is saved afterwards was saved inside the loop
        for step, (inputs, _, indices) in enumerate(loader.loop):
            if (epoch, step) == stop and loader_type is DataLoader:
                return steps, loader
            weighted = pruner.update(inputs[:, 0].square(), reduction="none")
            steps.append((indices.tolist(), weighted.tolist()))
            if (epoch, step + 1) == stop:
                return steps, loader
    return steps, loader


def assert_same(pruner, steps, expected, expected_steps):
    assert steps == expected_steps
    assert torch.equal(pruner.scores, expected.scores)
    assert repr(pruner.history) == repr(expected.history)


STOPS = [(0, 4), (1, 0), (2, 3), (4, 2)]


@pytest.mark.parametrize(
    ("kind", "stop"), [*(("mean", stop) for stop in STOPS), *((kind, (2, 3)) for kind in PRUNERS)]
)
def test_distributed_checkpoint_loads_into_a_fresh_pruner(kind, stop, tmp_path):
    expected, pruner, resumed = PRUNERS[kind](), PRUNERS[kind](), PRUNERS[kind]()
    whole, _ = train(expected)
    steps, _ = train(pruner, stop)
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dcp.save(
        {"pruner": pruner, "model": model.state_dict(), "optimizer": optimizer.state_dict()},
        checkpoint_id=tmp_path,
    )
    dcp.load({"pruner": resumed}, checkpoint_id=tmp_path)
    rest, _ = train(resumed)
    assert_same(resumed, steps + rest, expected, whole)


def test_distributed_checkpoint_refuses_a_state_of_other_settings(tmp_path):
    pruner = PRUNERS["mean"]()
    train(pruner, (1, 2))
    dcp.save({"pruner": pruner}, checkpoint_id=tmp_path)
    other = InfoBatch(N, EPOCHS, seed=3)
    with pytest.raises(StateError, match="seed=2"):
        dcp.load({"pruner": other}, checkpoint_id=tmp_path)
    assert other.epoch == 0


def ddp_stage(rank, folder, load, stop):
    """One stage of a run on some ranks: from the folder, to a step, into the folder."""
    world_size = dist.get_world_size()
    pruner, model = PRUNERS["mean"](), DistributedDataParallel(model_of())
    if load:
        state = {"pruner": pruner, "model": model.module.state_dict()}
        dcp.load(state, checkpoint_id=f"{folder}/1")
        model.module.load_state_dict(state["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Points(N), BATCH // world_size, sampler=pruner.sampler)
    for epoch in range(pruner.epoch, EPOCHS):
        batches = iter(loader)
        for step, (inputs, labels, _) in enumerate(batches):
            if (epoch, step) == stop:
                break
            losses = F.cross_entropy(model(inputs.double()), labels, reduction="none")
            optimizer.zero_grad()
            pruner.update(losses).backward()
            optimizer.step()
        else:
            continue
        break
    pruner.synchronize()
    if stop is not None:
        dcp.save(
            {"pruner": pruner, "model": model.module.state_dict()}, checkpoint_id=f"{folder}/1"
        )
    return pruner.scores, pruner.history, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("saved", "loaded", "stop"),
    [(2, 3, (1, 0)), (3, 1, (2, 2)), pytest.param(2, 2, (2, 2), marks=pytest.mark.slow)],
)
def test_distributed_checkpoint_carries_a_run_to_other_numbers_of_ranks(
    saved, loaded, stop, tmp_path
):
    results_of(saved, ddp_stage, str(tmp_path), False, stop)
    for scores, history, parameters in results_of(loaded, ddp_stage, str(tmp_path), True, None):
        expected = alone()
        torch.testing.assert_close(scores, expected[0])
        assert [(r.kept, r.trained) for r in history] == [(r.kept, r.trained) for r in expected[1]]
        for mine, other in zip(parameters, expected[2], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@functools.cache
def alone():
    return results_of(1, ddp_stage, "", False, None)[0]


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2, "persistent_workers": True}], ids=["none", "persistent"]
)
@pytest.mark.parametrize("stop", [*STOPS, (1, "last")])
def test_a_stateful_data_loader_goes_on_behind_the_last_trained_batch(options, stop):
    expected = PRUNERS["mean"]()
    whole, _ = train(expected)
    if stop[1] == "last":
        stop = (1, -(-expected.history[1].kept // BATCH))
    pruner, resumed = PRUNERS["mean"](), PRUNERS["mean"]()
    steps, loader = train(pruner, stop, loader_type=StatefulDataLoader, **options)
    state = {"loader": loader.state_dict(), "pruner": pruner.state_dict()}
    resumed.load_state_dict(state["pruner"])
    rest, _ = train(resumed, loader_type=StatefulDataLoader, load=state["loader"], **options)
    assert_same(resumed, steps + rest, expected, whole)


def test_a_stateful_data_loader_without_the_pruners_state_is_refused():
    pruner = PRUNERS["mean"]()
    _, loader = train(pruner, (1, 2), loader_type=StatefulDataLoader)
    with pytest.raises(StateError, match=r"call pruner\.load_state_dict\(\) before iterating"):
        train(PRUNERS["mean"](), loader_type=StatefulDataLoader, load=loader.state_dict())


@pytest.mark.parametrize("quantiles", [None, PAPER_QUANTILES])
@pytest.mark.parametrize("steps", [0, 3, 10], ids=["between", "within", "pruned"])
def test_on_disk_a_state_takes_five_bytes_a_sample(quantiles, steps, tmp_path):
    size = 200_000
    pruner = InfoBatch(size, 10, quantiles=quantiles)
    ids = iter(DataLoader(range(size), 40_000, sampler=pruner.sampler))
    for step in range(steps):
        if step == 5:
            ids = iter(DataLoader(range(size), 40_000, sampler=pruner.sampler))
        batch = next(ids, None)
        if batch is None:
            break
        pruner.update(batch.float())
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size <= 5 * size + 8192
    resumed = InfoBatch(size, 10, quantiles=quantiles)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(resumed.plan.indices, pruner.plan.indices)
    assert torch.equal(resumed.plan.weights, pruner.plan.weights)
