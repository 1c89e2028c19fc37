"""The training loop: runs pair by seed, cost what they say, and resume as if never stopped."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.lab.support import AUGMENTED, DIGITS, SETTINGS, digits, finish, run_compare, training_run
from torch import nn

from infobatch._core.plan import shuffled
from infobatch.lab.arms import all_arms
from infobatch.lab.arms.base import FORWARD_COST
from infobatch.lab.errors import LabError
from infobatch.lab.run.train import (
    even_sizes,
    initial_model,
    load_checkpoint,
    save_state,
)
from infobatch.lab.tasks.base.task import Outcome
from infobatch.losses import soft_target_score

DROPPED = replace(DIGITS, build=lambda *given: nn.Sequential(nn.Dropout(0.2), DIGITS.build(*given)))
ARMS = ("full", "fewer-epochs", "infobatch", "infobatch-quantile", "random")


@pytest.fixture(scope="module")
def data():
    return digits()


def parameters(run):
    return [p.detach() for p in run.model.parameters()]


@pytest.mark.parametrize("arm", ARMS)
def test_runs_of_one_seed_start_from_the_same_weights(arm, data):
    run = training_run(arm, data, seed=3)
    expected = initial_model(DIGITS, SETTINGS, data, 3)
    other = initial_model(DIGITS, SETTINGS, data, 4)
    for own, same, different in zip(
        run.model.state_dict().values(),
        expected.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(own, same)
        assert own.ndim < 2 or not torch.equal(own, different)


@pytest.mark.parametrize("arm", ARMS)
def test_runs_of_one_seed_take_their_samples_from_the_same_permutations(arm, data):
    run = training_run(arm, data, seed=3)
    for epoch in range(3):
        order = shuffled(200, 3, epoch).tolist()
        planned = run.pruner.plan.indices.tolist()
        kept = set(planned)
        assert planned == [index for index in order if index in kept]
        run.run_epoch()


def test_the_full_arm_is_a_plain_pytorch_loop_bit_for_bit(data):
    run = finish(training_run("full", data, seed=1))

    model = initial_model(DIGITS, SETTINGS, data, 1)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=SETTINGS.lr, momentum=0.9, weight_decay=SETTINGS.weight_decay
    )
    steps = SETTINGS.epochs * 5
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, SETTINGS.lr, total_steps=steps, cycle_momentum=False
    )
    for epoch in range(SETTINGS.epochs):
        for batch in torch.from_numpy(shuffled(200, 1, epoch)).long().split(40):
            outputs = model(DIGITS.prepare.inputs(data.train_inputs[batch], None))
            loss = F.cross_entropy(
                outputs, data.train_targets[batch], reduction="none", label_smoothing=0.1
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler.last_epoch < steps - 1:
                scheduler.step()

    assert run.cost.steps == steps
    for ours, plain in zip(parameters(run), model.parameters(), strict=True):
        assert torch.equal(ours, plain)


TOLD = [name for name, arm in all_arms().items() if arm.cost != "own"]


# Told how many to keep; that by class; fewer epochs; scored again; in batches; with a proxy.
KINDS = ["infobatch-quantile", "infobatch-groups", "fewer-epochs", "kakurenbo", "es", "static-el2n"]


def test_a_run_of_every_kind_costs_what_it_is_told(data, tmp_path):
    settings = replace(SETTINGS, epochs=12, eval_every=12)
    runs = run_compare(DIGITS, data, settings, KINDS, tmp_path, costs=[0.6, 0.85])
    assert [run.arm for run in runs] == KINDS * 2
    for run in runs:
        within_a_batch = pytest.approx(run.cost_target, abs=40 / (200 * 12))
        assert run.cost_fraction == within_a_batch, run.label
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize("cost", [0.6, 0.85])
@pytest.mark.parametrize("arm", TOLD)
def test_every_arm_plans_to_cost_what_it_is_told(arm, cost, data):
    run = training_run(arm, data, cost=cost, epochs=12)
    arm_run, planned = run.arm_run, 0.0
    if arm_run.proxy is not None:
        proxy = arm_run.proxy
        planned += proxy.epochs * 200 + (FORWARD_COST * 200 if proxy.epochs else 0)
        planned += proxy.keep * arm_run.epochs
    elif arm_run.in_batch is not None:
        part = arm_run.in_batch.keep_ratio + FORWARD_COST
        planned += 200 * (12 + (part - 1) * len(arm_run.in_batch.epochs))
    else:
        losses = torch.from_numpy(np.random.default_rng(0).exponential(size=200))
        for _ in range(arm_run.epochs):
            kept = list(run.pruner.sampler)
            left_out = 200 - len(set(kept))
            planned += len(kept) + (FORWARD_COST * left_out if arm_run.refresh else 0)
            run.pruner.update(losses[kept])
    assert planned / 2400 == pytest.approx(cost, abs=40 / 2400)


@pytest.mark.parametrize("count", [1, 39, 40, 41, 79, 81, 122, 1198, 40 * 60 + 1])
def test_batches_are_as_few_as_can_be_and_equal_but_for_one_sample(count):
    sizes = even_sizes(count, 40)
    assert len(sizes) == -(-count // 40)
    assert sum(sizes) == count
    assert max(sizes) <= 40
    assert max(sizes) - min(sizes) <= 1


def test_every_batch_of_an_epoch_has_that_size(data, monkeypatch):
    run = training_run("full", data, batch_size=3)  # 200 is 66 * 3 + 2
    seen, losses = [], run._losses
    monkeypatch.setattr(run, "_losses", lambda batch: seen.append(batch) or losses(batch))
    run.run_epoch()
    assert [len(batch.indices) for batch in seen] == even_sizes(200, 3)
    assert sorted(torch.cat([batch.indices for batch in seen]).tolist()) == list(range(200))


@pytest.mark.parametrize("arm", ["selective-backprop", "importance-sampling", "es"])
def test_in_batch_arms_train_on_whole_batches_chosen_from_larger_pools(arm, data, monkeypatch):
    run = training_run(arm, data, cost=0.8)
    trained = []
    losses = run._losses

    def recorded(batch):
        trained.append(len(batch.indices))
        return losses(batch)

    monkeypatch.setattr(run, "_losses", recorded)
    run.run_epoch()
    assert trained == [40] * 5  # warm-up: plain batches
    trained.clear()
    before = replace(run.cost)
    run.run_epoch()
    assert sum(trained) == run.cost.samples_backpropagated - before.samples_backpropagated
    assert run.cost.samples_forwarded - before.samples_forwarded == 200 + sum(trained)
    assert min(trained) >= 30
    assert max(trained) <= 40


def test_fewer_epochs_compresses_the_schedule(data):
    fewer = training_run("fewer-epochs", data, cost=0.75)
    times = torch.zeros(200, dtype=torch.int64)
    fewer.watch = lambda indices, _outputs, _targets: times.index_add_(0, indices, indices * 0 + 1)
    finish(fewer)
    assert fewer.curves.kept == [180] * 5  # 4.5 passes; a short epoch would distort the schedule
    assert set(times.tolist()) == {4, 5}
    assert fewer.scheduler.get_last_lr()[0] < 1e-3 * SETTINGS.lr


def test_random_prunes_when_infobatch_does(data):
    infobatch = finish(training_run("infobatch", data))
    random = finish(training_run("random", data))
    for kept in (infobatch.curves.kept, random.curves.kept):
        assert [count < 200 for count in kept] == [False, True, True, True, True, False]


def test_every_arm_that_leaves_samples_out_rescales_the_others_until_it_anneals(data):
    for arm in ("infobatch", "infobatch-quantile", "random"):
        run = training_run(arm, data)
        for epoch in range(SETTINGS.epochs):
            weights = run.pruner.plan.weights
            assert float(weights.sum()) == pytest.approx(200)
            assert (weights == 1).all() == (epoch in (0, 5))
            run.run_epoch()


@pytest.mark.parametrize("arm", ["infobatch-budget", "proportional", "kakurenbo", "full"])
def test_policies_that_read_probabilities_rank_by_the_distance_to_the_smoothed_target(arm, data):
    """So does the headroom of full data; other policies rank by the loss."""
    run = training_run(arm, data)
    expected = torch.zeros(200)

    def watch(indices, outputs, targets):
        outputs = outputs.detach()
        expected[indices] = (
            F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)
            if arm == "infobatch-budget"
            else soft_target_score(outputs, targets, label_smoothing=0.1)
        )

    run.watch = watch
    run.run_epoch()
    assert run.settings.label_smoothing == 0.1
    torch.testing.assert_close(run.pruner.scores, expected)


def test_every_step_of_every_epoch_and_seed_is_augmented_anew(data):
    draws = []

    def recorded_draws(rows, targets, generator, training):
        draws.append(torch.rand(1, generator=generator).item() if training else 0)
        return DIGITS.prepare.inputs(rows, None), targets

    recorded = replace(AUGMENTED, prepare=recorded_draws)
    for seed in (0, 1):
        finish(training_run("full", data, task=recorded, seed=seed, eval_every=6))
    drawn = [draw for draw in draws if draw]
    assert len(drawn) == len(set(drawn)) == 2 * 6 * 5


def test_what_a_model_draws_is_new_in_every_step_and_not_what_its_batch_is_augmented_with(data):
    draws = []

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = DIGITS.build("digits-cnn", 4, data)

        def forward(self, images):
            if self.training:
                draws.append(torch.rand(1).item())
            return self.inner(images)

    def recorded(rows, targets, generator, training):
        if training:
            draws.append(torch.rand(1, generator=generator).item())
        return DIGITS.prepare.inputs(rows, None), targets

    task = replace(DIGITS, build=lambda *_: Drawing(), prepare=recorded)
    for seed in (0, 1):
        finish(training_run("full", data, task=task, seed=seed, eval_every=6))
    assert len(draws) == len(set(draws)) == 2 * 2 * 6 * 5


def test_an_infobatch_run_that_saves_nothing_is_matched_too(data):
    run = training_run("random", data, cost=1.0)
    assert finish(run).cost.samples_forwarded == 1200
    assert training_run("fewer-epochs", data, cost=1.0).epochs == SETTINGS.epochs


@pytest.mark.parametrize("arm", ARMS)
def test_cost_is_counted_where_it_is_spent(arm, data):
    run = finish(training_run(arm, data))
    assert run.cost.samples_forwarded == sum(run.curves.kept) == run.curves.samples[-1]
    assert run.cost.samples_backpropagated == run.cost.samples_forwarded
    assert run.cost.steps == sum(-(-kept // 40) for kept in run.curves.kept)


@pytest.mark.parametrize(
    ("arm", "task", "stop"),
    [
        ("full", DIGITS, 1),
        ("infobatch", AUGMENTED, 3),
        ("infobatch", DROPPED, 5),
        ("infobatch-quantile", DIGITS, 3),
        ("ucb", AUGMENTED, 5),
        ("es", DROPPED, 3),
        ("ies", AUGMENTED, 3),
    ],
)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(
    task, arm, stop, data, tmp_path: Path
):
    path = tmp_path / "checkpoints" / "run.pt"
    straight = finish(training_run(arm, data, task=task, seed=2))

    interrupted = training_run(arm, data, task=task, seed=2)
    for _ in range(stop):
        interrupted.run_epoch()
    save_state(interrupted.state_dict(), path)
    interrupted.run_epoch()  # lost: it happens after the checkpoint

    resumed = training_run(arm, data, task=task, seed=2)
    assert load_checkpoint(resumed, path)
    assert len(resumed.curves.kept) == stop
    finish(resumed)

    for ours, theirs in zip(parameters(resumed), parameters(straight), strict=True):
        assert torch.equal(ours, theirs)
    assert replace(resumed.curves, seconds=[]) == replace(straight.curves, seconds=[])
    assert resumed.cost == straight.cost
    scores = [run.pruner.scores for run in (resumed, straight)]
    assert torch.equal(*scores)
    assert resumed.observer.observations(data, scores[0]) == straight.observer.observations(
        data, scores[1]
    )


def test_a_crash_while_saving_leaves_the_checkpoint_before_it(data, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    run = training_run("infobatch", data)
    run.run_epoch()
    save_state(run.state_dict(), path)
    run.run_epoch()

    def crash(_state, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_state(run.state_dict(), path)
    resumed = training_run("infobatch", data)
    assert load_checkpoint(resumed, path)
    assert len(resumed.curves.kept) == 1


def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path):
    run = training_run("infobatch", data)
    run.run_epoch()
    save_state(run.state_dict(), tmp_path / "run.pt")
    with pytest.raises(LabError, match="belongs to other settings; use another --out"):
        load_checkpoint(training_run("infobatch", data, lr=0.2), tmp_path / "run.pt")


def test_without_a_checkpoint_a_run_starts_afresh(data, tmp_path):
    assert not load_checkpoint(training_run("full", data), tmp_path / "none.pt")


@pytest.mark.parametrize("task", [DIGITS, DROPPED], ids=["plain", "dropout"])
def test_global_generators_do_not_matter_and_are_not_written(task, data):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what this is about
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        run = training_run("infobatch", data, task=task)
        run.run_epoch()
        run.run_epoch()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        states.append(parameters(run))
    for first, second in zip(*states, strict=True):
        assert torch.equal(first, second)


def test_selection_runs_inside_the_clock_and_evaluation_outside(data, monkeypatch):
    def slow_evaluation(_run):
        time.sleep(0.3)
        return Outcome(50.0)

    run = training_run("infobatch", data, task=replace(DIGITS, evaluate=slow_evaluation))
    run.run_epoch()
    select = type(run.pruner.policy).select

    def slow_select(*arguments):
        time.sleep(0.2)
        return select(*arguments)

    monkeypatch.setattr(type(run.pruner.policy), "select", slow_select)
    before, started = run.wall_seconds, time.perf_counter()
    run.run_epoch()
    elapsed = time.perf_counter() - started
    assert run.wall_seconds - before >= 0.2
    assert run.wall_seconds - before <= elapsed - 0.3


def test_evaluation_comes_every_few_epochs_and_after_the_last(data):
    metric = finish(training_run("full", data, eval_every=4)).curves.metric
    assert [value is not None for value in metric] == [False, False, False, True, False, True]


def test_the_digits_are_learned():
    run = finish(training_run("infobatch", digits(600), epochs=10, width=12, limit_train=600))
    assert run.curves.metric[-1] > 90


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}])
def test_other_precision_and_layout_train_too(changes, data):
    run = finish(training_run("infobatch", data, **changes))
    assert run.curves.mean_loss[-1] < run.curves.mean_loss[0]


def test_losses_are_observed_with_their_threshold(data):
    run = finish(training_run("infobatch", data))
    observed = run.observer.observations(data, run.pruner.scores)
    assert [histogram.epoch for histogram in observed.histograms] == [1, 2, 3, 4]
    for histogram in observed.histograms:
        assert sum(histogram.counts) == 200
        assert histogram.low < histogram.threshold < histogram.high
        assert histogram.threshold == run.curves.threshold[histogram.epoch]
    most, never = observed.most_pruned, observed.never_pruned
    assert len(most) == 24
    assert all(sample.times_pruned >= 1 for sample in most)
    assert all(sample.times_pruned == 0 for sample in never)
    scores = run.pruner.scores
    assert scores[[s.index for s in most]].mean() < scores[[s.index for s in never]].mean()
