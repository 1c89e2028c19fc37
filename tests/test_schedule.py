"""When pruning is on; and learning-rate schedules that follow a run of changing epoch length."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch._core.budget import pruned_epochs
from infobatch.schedule import ProgressScheduler

# torch's own SequentialLR passes an epoch to the schedulers in it, and warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")

# ---------------------------------------------------------------- when pruning is on


@pytest.mark.parametrize("warmup_epochs", [0, 1, 5])
@pytest.mark.parametrize("num_epochs", [10, 30, 90, 100, 300])
def test_pruning_is_on_from_warm_up_to_before_delta_times_num_epochs(num_epochs, warmup_epochs):
    for step in range(21):
        end = Fraction(step, 20) * num_epochs
        expected = [t for t in range(num_epochs) if warmup_epochs <= t < end]
        for delta in (step / 20, step * 0.05):  # 3 * 0.05 is 0.15000000000000002
            assert list(pruned_epochs(num_epochs, delta, warmup_epochs)) == expected


def test_the_usual_settings_in_plain_numbers():
    assert pruned_epochs(200, 0.875, 1) == range(1, 175)
    assert pruned_epochs(10, 0.875, 1) == range(1, 9)
    assert pruned_epochs(30, 0.875, 1) == range(1, 27)
    assert pruned_epochs(90, 0.875, 1) == range(1, 79)
    assert pruned_epochs(30, 0.1, 0) == range(3)  # as floats 0.1 * 30 is above 3
    assert list(pruned_epochs(10, 0.0, 0)) == []
    assert pruned_epochs(10, 1.0, 0) == range(10)


def test_a_run_of_2_to_7_epochs_is_pruned_to_its_end_by_default():
    assert [list(pruned_epochs(epochs, 0.875, 1)) for epochs in (1, 2, 3)] == [[], [1], [1, 2]]
    for epochs in range(2, 8):
        assert pruned_epochs(epochs, 0.875, 1) == range(1, epochs)
    for epochs in range(8, 300):
        assert pruned_epochs(epochs, 0.875, 1).stop < epochs


@pytest.mark.parametrize("num_epochs", range(2, 60))
def test_the_last_epoch_alone_can_be_annealed(num_epochs):
    delta = (num_epochs - 1) / num_epochs
    assert pruned_epochs(num_epochs, delta, 1) == range(1, num_epochs - 1)


@given(
    num_epochs=st.integers(1, 1000),
    delta=st.decimals(0, 1, places=4),
    warmup_epochs=st.integers(0, 1200),
)
def test_delta_is_the_decimal_number_that_was_written(num_epochs, delta, warmup_epochs):
    end = Fraction(Decimal(delta)) * num_epochs
    expected = [t for t in range(num_epochs) if warmup_epochs <= t < end]
    assert list(pruned_epochs(num_epochs, float(delta), warmup_epochs)) == expected


@pytest.mark.parametrize(("num_epochs", "delta"), [(10, 0.875), (30, 0.9), (9, 1 / 3), (8, 1.0)])
def test_a_run_prunes_in_these_epochs_and_has_weight_one_in_all_others(num_epochs, delta):
    run = Run(num_epochs=num_epochs, delta=delta, prune_ratio=0.5, batch_size=N)
    weights = []
    for _ in range(num_epochs):
        weights.append(set(run.pruner.plan.weights.tolist()))
        run.epoch()
    pruned = [epoch for epoch, found in enumerate(weights) if found != {1.0}]
    assert pruned == list(pruned_epochs(num_epochs, delta, 1))


# ---------------------------------------------------------------- learning rates

N, EPOCHS, BATCH = 45, 12, 8  # 6 steps to a full epoch, the last of them a partial batch
TOTAL = EPOCHS * math.ceil(N / BATCH)

SCHEDULERS = {
    "OneCycleLR": lambda optimizer, total: OneCycleLR(optimizer, max_lr=0.1, total_steps=total),
    "CosineAnnealingLR": lambda optimizer, total: CosineAnnealingLR(optimizer, T_max=total),
    "LambdaLR": lambda optimizer, total: LambdaLR(optimizer, lambda step: 1.0 - step / total),
    "SequentialLR": lambda optimizer, total: SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=0.1, total_iters=total // 10),
            CosineAnnealingLR(optimizer, T_max=total - total // 10),
        ],
        milestones=[total // 10],
    ),
    "ChainedScheduler": lambda optimizer, total: ChainedScheduler(
        [
            LinearLR(optimizer, start_factor=0.1, total_iters=total // 10),
            ChainedScheduler([ExponentialLR(optimizer, gamma=0.97)]),
        ]
    ),
    "MultiStepLR": lambda optimizer, total: MultiStepLR(optimizer, [total // 2, 3 * total // 4]),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def count_steps(optimizer, total):
    """A scheduler whose learning rate is the number of its steps."""
    return LambdaLR(optimizer, float)


class Run:
    """A training run whose losses come from a table; notes the learning rate of each step."""

    def __init__(
        self,
        scheduler=count_steps,
        *,
        num_epochs=EPOCHS,
        batch_size=BATCH,
        drop_last=False,
        accumulate=1,
        total=TOTAL,
        **settings,
    ):
        self.table = -torch.rand(N, generator=torch.Generator().manual_seed(3)).log()
        self.pruner = InfoBatch(N, num_epochs, **settings)
        self.loader = DataLoader(
            range(N), batch_size=batch_size, drop_last=drop_last, sampler=self.pruner.sampler
        )
        self.parameter = torch.nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.SGD([self.parameter], lr=1.0)
        self.scheduler = ProgressScheduler(
            scheduler(self.optimizer, total), self.pruner, total_steps=total
        )
        self.accumulate = accumulate
        self.rates, self.progress = [], []

    def epoch(self, batches=None):
        """Train one epoch, or its first `batches` batches, and stay within it."""
        self.iterator = iter(self.loader)
        for number, samples in enumerate(self.iterator, start=1):
            losses = self.table[samples] + 0.0 * self.parameter
            self.pruner.update(losses).backward()
            if number % self.accumulate == 0 or number == len(self.loader):
                self.rates.append(self.optimizer.param_groups[0]["lr"])
                self.progress.append(self.pruner.progress)
                self.optimizer.step()
                self.scheduler.step()
                assert self.scheduler.get_last_lr() == [self.optimizer.param_groups[0]["lr"]]
            if number == batches:
                break

    def all_epochs(self):
        while self.pruner.epoch < self.pruner.num_epochs:
            self.epoch()
        return self.rates

    def state_dict(self):
        parts = (self.pruner, self.scheduler, self.optimizer)
        return [part.state_dict() for part in parts]

    def load_state_dict(self, states):
        for part, state in zip((self.pruner, self.scheduler, self.optimizer), states, strict=True):
            part.load_state_dict(state)


def plain_rates(scheduler, total=TOTAL):
    """The learning rate at each step of an ordinary loop, which steps the scheduler each time."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler = scheduler(optimizer, total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@every_scheduler
def test_with_pruning_off_each_step_has_exactly_the_rate_of_plain_stepping(scheduler):
    run = Run(SCHEDULERS[scheduler], prune_ratio=0.0)
    assert run.all_epochs() == plain_rates(SCHEDULERS[scheduler])


@given(batch_size=st.integers(1, N), num_epochs=st.integers(1, 5), drop_last=st.booleans())
def test_with_pruning_off_every_step_is_one_step_at_any_batch_size(
    batch_size, num_epochs, drop_last
):
    total = num_epochs * (N // batch_size if drop_last else math.ceil(N / batch_size))
    given = {"batch_size": batch_size, "num_epochs": num_epochs, "drop_last": drop_last}
    run = Run(prune_ratio=0.0, total=total, **given)
    assert run.all_epochs() == [float(step) for step in range(total)]


@every_scheduler
@pytest.mark.parametrize("taken", [1, 20])
def test_steps_that_a_scheduler_has_taken_before_are_not_taken_again(scheduler, taken):
    class Progress:
        progress = 0.0

    optimizer, progress = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0), Progress()
    inner, plain = SCHEDULERS[scheduler](optimizer, TOTAL), plain_rates(SCHEDULERS[scheduler])
    optimizer.step()
    for _ in range(taken):
        inner.step()
    adapter = ProgressScheduler(inner, progress, total_steps=TOTAL)
    for step in range(TOTAL):
        progress.progress = step / TOTAL
        adapter.step()
        assert adapter.get_last_lr() == [plain[max(step, taken)]]


@every_scheduler
@pytest.mark.parametrize("delta", [0.5, 0.875, 1.0])
def test_with_pruning_on_each_step_has_the_rate_that_its_progress_calls_for(scheduler, delta):
    run = Run(SCHEDULERS[scheduler], prune_ratio=0.7, delta=delta)
    rates, plain = run.all_epochs(), plain_rates(SCHEDULERS[scheduler])
    before = [0.0, *run.progress[:-1]]  # progress when the step began
    assert rates == [plain[math.floor(part * TOTAL + 1e-6)] for part in before]
    assert len(rates) < TOTAL
    if delta < 1.0:  # the last step of a full epoch is trained at the schedule's last value
        assert rates[-1] == plain[-1]
    for _ in range(2):  # and it does not move on from there
        assert run.scheduler.get_last_lr() == [plain[-1]]
        run.scheduler.step()


@given(
    prune_ratio=st.floats(0.0, 0.95),
    delta=st.floats(0.0, 1.0),
    batch_size=st.integers(1, N),
    num_epochs=st.integers(1, 6),
    seed=st.integers(0, 100),
    drop_last=st.booleans(),
)
@pytest.mark.filterwarnings("ignore::infobatch.errors.NothingPrunedWarning")
def test_the_schedule_never_goes_back_never_overshoots_and_ends_at_its_end(
    prune_ratio, delta, batch_size, num_epochs, seed, drop_last
):
    if drop_last:
        batch_size = min(batch_size, 8)  # an epoch keeps more than that, whatever is pruned
    steps = N // batch_size if drop_last else math.ceil(N / batch_size)
    run = Run(
        prune_ratio=prune_ratio,
        delta=delta,
        seed=seed,
        batch_size=batch_size,
        drop_last=drop_last,
        num_epochs=num_epochs,
        total=num_epochs * steps,
    )
    places = [*run.all_epochs(), *run.scheduler.get_last_lr()]
    assert places == sorted(places)
    assert places[0] == 0.0
    assert places[-1] == num_epochs * steps - 1


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_with_gradient_accumulation_the_optimizer_s_steps_count(accumulate):
    total = EPOCHS * math.ceil(6 / accumulate)  # also where the epoch's last step has fewer batches
    one_cycle = SCHEDULERS["OneCycleLR"]
    plain = plain_rates(one_cycle, total)
    run = Run(one_cycle, accumulate=accumulate, total=total, prune_ratio=0.0)
    assert run.all_epochs() == plain
    pruned = Run(one_cycle, accumulate=accumulate, total=total, prune_ratio=0.5)
    assert pruned.all_epochs()[-1] == plain[-1]


def test_under_drop_last_every_epoch_starts_at_its_place_and_the_run_ends_at_its_end():
    total = EPOCHS * (N // BATCH)
    run = Run(drop_last=True, total=total, prune_ratio=0.5)
    for epoch in range(EPOCHS):
        assert run.scheduler.get_last_lr() == [epoch * (N // BATCH)]
        run.epoch()
    assert run.scheduler.get_last_lr() == [total - 1]


def test_leaving_epochs_early_does_not_make_the_schedule_go_back():
    run = Run(prune_ratio=0.5)
    for _ in range(EPOCHS):
        run.epoch(batches=2)
        run.iterator = None
    assert run.rates == sorted(run.rates)
    assert run.rates[-1] >= TOTAL - 6  # the last epoch began in its place


def test_progress_drives_a_lambda_schedule_without_the_adapter():
    pruner = InfoBatch(N, EPOCHS, prune_ratio=0.5)
    loader = DataLoader(range(N), batch_size=BATCH, sampler=pruner.sampler)
    table = -torch.rand(N, generator=torch.Generator().manual_seed(3)).log()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=2.0)
    scheduler = LambdaLR(optimizer, lambda _: 1.0 - pruner.progress)
    rates = [2.0]
    for epoch in range(EPOCHS):
        assert rates[-1] == pytest.approx(2.0 * (1 - epoch / EPOCHS))
        for samples in loader:
            pruner.update(table[samples])
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0


def test_an_adapter_follows_anything_that_has_progress():
    class Halfway:
        progress = 0.5

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    adapter = ProgressScheduler(count_steps(optimizer, 10), Halfway(), total_steps=10)
    optimizer.step()
    adapter.step()
    assert adapter.get_last_lr() == [5.0]


@every_scheduler
def test_saved_and_loaded_within_an_epoch_the_schedule_goes_on_as_if_never_stopped(scheduler):
    settings = {"prune_ratio": 0.5, "seed": 2}
    whole = Run(SCHEDULERS[scheduler], **settings)
    whole.all_epochs()

    first = Run(SCHEDULERS[scheduler], **settings)
    for _ in range(4):
        first.epoch()
    first.epoch(batches=2)
    second = Run(SCHEDULERS[scheduler], **settings)
    second.load_state_dict(first.state_dict())
    second.all_epochs()

    assert first.rates + second.rates == whole.rates
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_a_saved_schedule_survives_torch_save(tmp_path):
    run = Run(SCHEDULERS["OneCycleLR"], prune_ratio=0.5)
    run.epoch()
    torch.save(run.scheduler.state_dict(), tmp_path / "schedule.pt")
    state = torch.load(tmp_path / "schedule.pt", weights_only=True)
    again = Run(SCHEDULERS["OneCycleLR"], prune_ratio=0.5)
    again.scheduler.load_state_dict(state)
    assert again.scheduler.get_last_lr() == run.scheduler.get_last_lr()


# ---------------------------------------------------------------- errors


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)


def test_the_number_of_steps_is_taken_from_a_scheduler_that_knows_it():
    scheduler = OneCycleLR(optimizer(), max_lr=0.1, epochs=3, steps_per_epoch=5)
    assert ProgressScheduler(scheduler, InfoBatch(10, 3)).total_steps == 15


def test_a_scheduler_that_does_not_know_its_steps_must_be_told():
    with pytest.raises(ValueError, match="total_steps is needed: CosineAnnealingLR does not say"):
        ProgressScheduler(CosineAnnealingLR(optimizer(), T_max=10), InfoBatch(10, 3))


def test_a_scheduler_that_steps_on_a_metric_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"ReduceLROnPlateau steps on a metric.*call its step"):
        ProgressScheduler(ReduceLROnPlateau(optimizer()), InfoBatch(10, 3), total_steps=5)


@pytest.mark.parametrize(
    ("total_steps", "error"),
    [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)],
)
def test_a_total_that_is_no_positive_integer_is_refused(total_steps, error):
    scheduler = CosineAnnealingLR(optimizer(), T_max=10)
    with pytest.raises(error, match="total_steps must be"):
        ProgressScheduler(scheduler, InfoBatch(10, 3), total_steps=total_steps)
