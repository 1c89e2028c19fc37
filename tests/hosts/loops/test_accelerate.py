import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from tests.hosts.loops import accelerate_run
from tests.hosts.loops.accelerate_run import train
from tests.hosts.support import (
    BATCH,
    EPOCHS,
    SAMPLES,
    assert_same,
    build_model,
    digits,
    plain_run,
    torchrun,
)
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import DistributedError, MisalignedUpdateError, StateError
from infobatch.integrations.accelerate import prepare


@pytest.fixture(autouse=True)
def _one_accelerator_at_a_time():
    from accelerate.state import AcceleratorState, GradientState

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()  # what tests in other files have left
    yield
    forget()


@pytest.mark.parametrize("prune", [{}, {"budget": 0.7}])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_is_that_of_a_plain_loop(prune, accumulate):
    run, *_, gathered = train(prune=prune, accumulate=accumulate)
    assert_same(run, plain_run(accumulate=accumulate, **prune))
    assert gathered == [record.kept for record in run.history]


@pytest.mark.parametrize(
    "settings", [{"workers": 2}, {"even_batches": False}, {"use_stateful_dataloader": True}]
)
def test_loader_settings(settings):
    run, *_ = train(**settings)
    assert_same(run, plain_run())


@pytest.mark.parametrize("step", [5, 16, 25, 60])
def test_resume_is_as_never_having_stopped(tmp_path, step):
    reference = plain_run()
    run, *_ = train(save=(step, tmp_path))
    assert_same(run, reference)
    resumed, *_ = train(load=tmp_path)
    resumed.rates = reference.rates[:step] + resumed.rates
    resumed.steps += step
    assert_same(resumed, reference)


def test_an_epoch_may_be_left_early():
    accelerator, pruner, model = Accelerator(cpu=True), InfoBatch(digits(), 3), build_model()
    loader = DataLoader(digits(), BATCH, sampler=pruner.sampler)
    loader = prepare(accelerator, pruner, loader)
    for _ in range(3):
        for index, (x, y) in enumerate(loader):
            pruner.update(F.cross_entropy(model(x), y, reduction="none"))
            if index == 3:
                break
    pruner.end_epoch()
    assert [record.trained for record in pruner.history] == [4 * BATCH] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_saved_after_an_epoch_was_left_early_resumes_with_the_next(workers):
    def start():
        accelerator, pruner = Accelerator(cpu=True), InfoBatch(digits(), 3)
        loader = DataLoader(digits(), BATCH, sampler=pruner.sampler, num_workers=workers)
        return pruner, prepare(accelerator, pruner, loader)

    def train(pruner, loader, epochs):
        seen = []
        for _ in range(epochs):
            for index, (_, y) in enumerate(loader):
                pruner.update(y.float() + index)
                seen.append(y.tolist())
                if index == 3:
                    break
        return seen

    whole, (pruner, loader) = train(*start(), 3), start()
    batches = train(pruner, loader, 1)
    resumed, loader = start()
    resumed.load_state_dict(pruner.state_dict())
    assert resumed.epoch == 1
    assert batches + train(resumed, loader, 2) == whole


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(accelerate_run.__file__, 2, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("task", accelerate_run.TASKS)
def test_two_processes_are_one_with_the_double_batch(two_processes, task):
    reference = plain_run(accumulate=accelerate_run.TASKS[task].get("accumulate", 1))
    for results in two_processes:
        run, resumed, gathered = results[task]
        assert_same(run, reference, exact=False)
        assert_same(resumed, run)
        # All that both ranks have trained on, padding included.
        assert gathered == [record.kept + record.kept % 2 for record in run.history]


def test_an_evaluation_loader_is_accelerates_own(two_processes):
    assert accelerate_run.evaluate(prepare) == SAMPLES
    assert [results["evaluated"] for results in two_processes] == [SAMPLES, SAMPLES]


def test_prepare_without_ours_is_refused_in_two_processes_and_right_in_one(two_processes):
    for results in two_processes:
        assert "a second time (by BatchSamplerShard)" in results["alone"]

    def prepare_alone(accelerator, pruner, *objects):
        return accelerator.prepare(*(accelerate_run.follow(item, pruner) for item in objects))

    with pytest.raises(MisalignedUpdateError, match=r"sampler\.batches_ahead = 1"):
        train(prepare=prepare_alone)

    def prepare_and_say(accelerator, pruner, *objects):
        pruner.sampler.batches_ahead = 1  # as the error says
        return prepare_alone(accelerator, pruner, *objects)

    run, *_ = train(prepare=prepare_and_say)
    reference = plain_run()
    assert run.steps == reference.steps
    torch.testing.assert_close(run.weights, reference.weights, rtol=0, atol=0)


def test_half_precision():
    run, *_ = train(mixed_precision="bf16")
    assert run.saved == pytest.approx(plain_run().saved, abs=0.02)


def test_several_train_loaders():
    accelerator, pruner, model = Accelerator(cpu=True), InfoBatch(digits(), 3), build_model()
    other = DataLoader(digits(100), BATCH, shuffle=True)
    loader = DataLoader(digits(), BATCH, sampler=pruner.sampler)
    model, loader, other = prepare(accelerator, pruner, model, loader, other)
    seen = []
    for _ in range(3):
        for x, y in loader:
            accelerator.backward(pruner.update(F.cross_entropy(model(x), y, reduction="none")))
        seen.append(sum(len(y) for _, y in other))
    assert pruner.epoch == 3
    assert seen == [100] * 3


def test_what_does_not_go_together_is_refused():
    dispatching = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
    )
    pruner = InfoBatch(digits(), EPOCHS)
    loader = DataLoader(digits(), BATCH, sampler=pruner.sampler)
    with pytest.raises(MisalignedUpdateError, match="dispatch_batches"):
        prepare(dispatching, pruner, loader)

    with pytest.raises(StateError, match="sharded"):
        prepare(dispatching, InfoBatch(digits(), EPOCHS, sharded=True), loader)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False)
    )
    with pytest.raises(MisalignedUpdateError, match=r"sampler=pruner\.sampler"):
        prepare(accelerator, pruner, DataLoader(digits(), BATCH, shuffle=True))
    elsewhere = InfoBatch(digits(), EPOCHS, rank=1, world_size=2)
    with pytest.raises(DistributedError, match="rank 0 of 1"):
        prepare(accelerator, elsewhere, DataLoader(digits(), BATCH, sampler=elsewhere.sampler))
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="total_steps is needed"):
        prepare(accelerator, pruner, model, optimizer, loader, LambdaLR(optimizer, lambda _: 1.0))
    prepared = prepare(accelerator, pruner, loader)
    with pytest.raises(MisalignedUpdateError, match="skip_first_batches"):
        next(iter(skip_first_batches(prepared, 2)))


def test_a_plateau_scheduler_is_left_to_accelerate():
    accelerator, pruner, model = Accelerator(cpu=True), InfoBatch(digits(), 3), build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(digits(), BATCH, sampler=pruner.sampler)
    plateau = ReduceLROnPlateau(optimizer)
    *_, scheduler = prepare(accelerator, pruner, model, optimizer, loader, plateau)
    assert scheduler.scheduler is plateau


def test_the_state_of_a_run_without_a_pruner_is_refused(tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.save_state(tmp_path)
    pruner = InfoBatch(digits(), 3)
    prepare(accelerator, pruner, DataLoader(digits(), BATCH, sampler=pruner.sampler))
    with pytest.raises((StateError, RuntimeError), match="custom"):
        accelerator.load_state(tmp_path)
