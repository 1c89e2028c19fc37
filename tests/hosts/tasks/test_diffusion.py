"""Diffusion as a task: the loss, its score by level of noise, what is generated, every arm."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.lab.support import run_command

from infobatch.lab.arms import all_arms
from infobatch.lab.arms.base import ArmContext
from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import TrainingRun
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks import diffusion as module
from infobatch.lab.tasks.base.data import TensorData
from infobatch.lab.tasks.diffusion import denoising
from infobatch.lab.tasks.diffusion.denoising import (
    LEVELS,
    TIMESTEPS,
    build_denoiser,
    frechet_distance,
    level_of,
)

TASK = all_tasks()["diffusion"]
SMALL = {"width": 8, "epochs": 4, "batch_size": 20, "eval_every": 0, "device": "cpu", "data": ""}
ARMS = ("full", "fewer-epochs", "infobatch", "infobatch-quantile", "random", "kakurenbo", "es")


def few_digits() -> TensorData:
    data = TASK.load(None)
    images = data.test_inputs.view(10, -1, 1, 8, 8)[:, :20].reshape(-1, 1, 8, 8)
    timesteps = data.test_targets.view(10, -1)[:, :20].reshape(-1)
    return replace(data.limit_train(60), test_inputs=images, test_targets=timesteps)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "_GENERATED", 12)
    monkeypatch.setattr(denoising, "_GENERATION_STEPS", 3)


def started(task=TASK, arm="full", seed=0, **changes) -> TrainingRun:
    data = few_digits()
    settings = Settings.of_task(task, {**SMALL, **changes})
    chosen = all_arms()[arm]
    context = ArmContext(
        dataset_size=len(data),
        epochs=settings.epochs,
        prune_ratio=0.5,
        delta=0.9,
        seed=seed,
        labels=None,
        cost=0.8 if chosen.cost == "told" else None,
    )
    return TrainingRun(task, data, chosen.start(context), settings, seed=seed)


def finish(run):
    while not run.finished:
        run.run_epoch()
    return run


def of_score(score):
    return TASK.with_options({"score": score})[0]


# ------------------------------------------------------------------ inputs and loss


def test_noise_and_timesteps_of_training_come_from_the_generator_alone():
    rows, targets = few_digits().samples(torch.arange(5))

    def draw(seed):
        return TASK.prepare(rows, targets, torch.Generator().manual_seed(seed), True)

    torch.manual_seed(0)
    (one, noise), (other, _) = draw(1), draw(2)
    torch.manual_seed(5)
    (again, _) = draw(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["timesteps"], other["timesteps"])
    assert torch.equal(one["noise"], noise)
    assert one["images"].min() == -1
    assert one["images"].max() <= 1


def test_every_timestep_is_drawn_with_the_same_probability():
    rows = torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8)
    targets = torch.full((20_000,), -1)
    inputs, _ = TASK.prepare(rows, targets, torch.Generator().manual_seed(0), True)
    counts = torch.bincount(inputs["timesteps"] // 100, minlength=10)
    assert inputs["timesteps"].min() >= 0
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 4 * math.sqrt(2000 * 0.9)


def test_each_test_image_is_denoised_at_each_of_the_same_timesteps():
    data = TASK.load(None)
    assert len(data.test_inputs) == 10 * 599
    pairs = {
        (image.numpy().tobytes(), int(t))
        for image, t in zip(data.test_inputs, data.test_targets, strict=True)
    }
    images = {image for image, _ in pairs}
    assert len(pairs) == 10 * len(images)
    inputs, _ = TASK.prepare(
        data.test_inputs[:7], data.test_targets[590:597], torch.Generator(), False
    )
    assert inputs["timesteps"].tolist() == data.test_targets[590:597].tolist()


def test_the_loss_of_an_image_is_that_of_predicting_its_own_noise():
    run = started()
    rows, targets = run.data.samples(torch.arange(6))
    inputs, noise = TASK.prepare(rows, targets, torch.Generator().manual_seed(0), True)
    model = run.model.eval()
    losses = TASK.loss(model(**inputs), noise, 0.0).detach()
    signal = model.noising.alphas_cumprod
    for number in range(6):
        t = inputs["timesteps"][number]
        noisy = signal[t].sqrt() * inputs["images"][number] + (1 - signal[t]).sqrt() * noise[number]
        predicted = model.unet(noisy[None], t[None]).sample[0]
        assert losses[number] == pytest.approx(
            float((predicted - noise[number]).square().mean()), rel=1e-5
        )


# ------------------------------------------------------------------ the score by timestep


def test_levels_cover_all_timesteps_and_are_narrow_where_there_is_little_noise():
    levels = level_of(torch.arange(1000))
    sizes = torch.bincount(levels)
    assert len(sizes) == LEVELS
    assert (levels.diff() >= 0).all()
    assert (sizes.diff() > 0).all()


def test_what_is_usual_is_the_mean_of_recent_losses_at_that_level():
    run = started()
    model = run.model
    assert (
        model.eval()(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.tensor([3]))["usual"]
        == 1
    )
    levels = torch.tensor([2, 2, 5])
    for _ in range(60):
        model._remember(levels, torch.tensor([9.0, 9.0, 9.0]))
    usual = model.level_loss / model.level_weight
    torch.testing.assert_close(usual[[2, 5]], torch.tensor([9.0, 9.0]))
    for _ in range(60):
        model._remember(levels, torch.tensor([1.0, 3.0, 4.0]))
    usual = model.level_loss / model.level_weight
    torch.testing.assert_close(usual[[2, 5]], torch.tensor([2.0, 4.0]), atol=0.3, rtol=0)
    assert model.level_weight.count_nonzero() == 2


def test_a_single_loss_is_at_once_what_is_usual():
    model = started().model
    model._remember(torch.tensor([4]), torch.tensor([0.25]))
    assert float(model.level_loss[4] / model.level_weight[4]) == pytest.approx(0.25)


def test_only_training_changes_what_is_usual():
    run = started()
    before = run.model.level_weight.clone()
    TASK.evaluate(run)
    assert torch.equal(run.model.level_weight, before)
    run.run_epoch()
    assert (run.model.level_weight > 0).sum() > LEVELS // 2


def noise_explains(score):
    """How much of the variance of scores the noise drawn for the samples explains."""
    task = of_score(score)
    seen = []

    def loss(outputs, noise, smoothing):
        seen.append(task.rank(outputs, noise) if task.rank else TASK.loss(outputs, noise, 0.0))
        return TASK.loss(outputs, noise, smoothing)

    drawn = []

    def prepare(rows, targets, generator, training):
        inputs, noise = task.prepare(rows, targets, generator, training)
        drawn.append(inputs["timesteps"])
        return inputs, noise

    run = started(replace(task, loss=loss, prepare=prepare, evaluate=lambda _: None), epochs=15)
    for _ in range(14):
        run.run_epoch()
    scores = torch.cat(seen).detach()[-300:].double()
    levels = level_of(torch.cat(drawn))[-300:]
    within = sum(
        ((part := scores[levels == level]) - part.mean()).square().sum()
        for level in levels.unique()
    )
    return float(1 - within / (scores - scores.mean()).square().sum())


def test_the_timestep_explains_most_of_a_raw_score_and_little_of_the_other():
    assert noise_explains("raw") > 0.5
    assert noise_explains("timestep") < 0.25


def test_samples_are_ranked_by_the_score_that_is_asked_for():
    outputs = {"noise": torch.zeros(2, 1, 1, 2), "usual": torch.tensor([0.5, 4.0])}
    noise = torch.tensor([[[[1.0, 1.0]]], [[[2.0, 2.0]]]])
    assert TASK.rank is None
    assert of_score("raw").rank is None
    assert of_score("timestep").rank(outputs, noise).tolist() == [2.0, 1.0]


# ------------------------------------------------------------------ arms, checkpoints


@pytest.mark.parametrize("arm", ARMS)
def test_every_kind_of_arm_trains_by_either_score(arm):
    for score in ("raw", "timestep"):
        run = finish(started(of_score(score), arm))
        assert 0.1 < run.outcome.metric < 1.5
        assert run.outcome.more["Fréchet distance of pixels"] > 0
        assert (run.cost.passes < 4 * 60) == (arm != "full")


def test_a_resumed_run_ends_with_the_same_numbers():
    whole = started(of_score("timestep"), "infobatch")
    first = started(of_score("timestep"), "infobatch")
    first.run_epoch()
    first.run_epoch()
    state = first.state_dict()
    assert state["model"]["level_weight"].sum() > 0
    second = started(of_score("timestep"), "infobatch", seed=0)
    second.load_state_dict(state)
    torch.manual_seed(99)  # a global generator that nothing may read
    assert finish(second).outcome == finish(whole).outcome


@pytest.mark.slow
def test_noise_is_learned():
    run = finish(started(epochs=20, batch_size=10))
    assert run.outcome.metric < 0.45  # no noise at all as prediction: 1


# ------------------------------------------------------------------ what is generated


def test_images_are_generated_from_noise_alone():
    model = started().model.eval()
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    one = model.generate(start)
    torch.manual_seed(1)
    assert torch.equal(one, model.generate(start))
    assert one.shape == start.shape
    assert one.abs().max() <= 1


def test_the_frechet_distance_is_that_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5000, 1, 8, 8, generator=generator)
    assert frechet_distance(images, images) == pytest.approx(0, abs=1e-9)
    # of N(m, s^2) and N(0, 1) in each of 64 dimensions: m^2 + (s - 1)^2
    assert frechet_distance(3 * images + 2, images) == pytest.approx(64 * (4 + 4), rel=0.01)


def test_larger_images_are_compared_by_averages_over_8x8():
    images = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(images, 2)
    assert frechet_distance(images + 1, images) == pytest.approx(frechet_distance(small + 1, small))


# ------------------------------------------------------------------ data and options


@pytest.fixture
def photographs(tmp_path):
    draw = np.random.default_rng(0).integers
    arrays = {}
    for part, size in (("train", 24), ("test", 12)):
        arrays[f"x_{part}"] = draw(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = draw(0, 10, size)
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.slow
def test_cifar10_is_trained_on_from_the_command_line(photographs, tmp_path):
    result = run_command(
        *("compare", "--task", "diffusion", "--data-dir", str(photographs), "--width", "8"),
        *("--option", "images=cifar10", "--option", "score=timestep", "--arms", "full,infobatch"),
        *("--seeds", "1", "--epochs", "2", "--batch-size", "8", "--out", str(tmp_path / "out")),
    )
    assert result.exit_code == 0, result.output
    found = read_results(tmp_path / "out")
    assert {run.settings.options["images"] for run in found} == {"cifar10"}
    assert not found[0].judged_by.higher_is_better
    assert 0 < found[0].metric < 2


def test_photographs_are_flipped_in_training_alone(photographs):
    task, _ = TASK.with_options({"images": "cifar10"})
    data = task.load(photographs)
    rows, targets = data.samples(torch.arange(24))
    trained, _ = task.prepare(rows, targets, torch.Generator().manual_seed(0), True)
    judged, _ = task.prepare(rows, targets, torch.Generator().manual_seed(0), False)
    same = (trained["images"] == judged["images"]).flatten(1).all(dim=1)
    flipped = (trained["images"] == judged["images"].flip(3)).flatten(1).all(dim=1)
    assert (same | flipped).all()
    assert 0 < flipped.sum() < 24


def test_a_folder_that_digits_would_not_read_is_refused(tmp_path):
    with pytest.raises(LabError, match=r"--data-dir is not read for digits.*images=cifar10"):
        TASK.load(tmp_path)


def test_missing_photographs_are_named_with_where_to_get_them():
    task, _ = TASK.with_options({"images": "cifar10"})
    with pytest.raises(LabError, match="needs --data-dir"):
        task.load(None)


def test_widths_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(LabError, match="--width must be a multiple of 8 for unet-small, got 12"):
        build_denoiser("unet-small", channels=1, side=8, width=12)
    with pytest.raises(LabError, match="a multiple of 2 wide, got 9"):
        build_denoiser("unet-small", channels=1, side=9, width=8)


def test_the_large_model_is_that_of_ho_et_al():
    model = build_denoiser("unet-ddpm", channels=3, side=32, width=None)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(35.7e6, rel=0.01)


def denoiser(sampling):
    torch.manual_seed(0)
    return build_denoiser("unet-small", channels=1, side=8, width=8, sampling=sampling).double()


def drawn(model, monkeypatch):
    """What each evenly drawn timestep becomes in training, and its weight."""
    seen = []
    monkeypatch.setattr(
        model.noising, "add_noise", lambda images, noise, t: seen.append(t) or images
    )
    images = torch.zeros(TIMESTEPS, 1, 8, 8).double()
    outputs = model(images, images, torch.arange(TIMESTEPS))
    return seen[0], outputs["importance"]


def test_importance_draws_timesteps_by_their_losses_and_makes_good_for_it(monkeypatch):
    model = denoiser("importance").train()
    timesteps, importance = drawn(model, monkeypatch)
    assert torch.equal(timesteps, torch.arange(TIMESTEPS))  # nothing is known yet
    assert (importance == 1).all()
    size = torch.linspace(1.0, 0.1, LEVELS)
    model.level_square.copy_(size.square())
    model.level_weight.fill_(1.0)
    timesteps, importance = drawn(model, monkeypatch)
    values = torch.rand(TIMESTEPS, generator=torch.Generator().manual_seed(0))
    smooth = values.sort().values
    assert float((importance * smooth[timesteps]).mean()) == pytest.approx(
        float(smooth.mean()), rel=0.02
    )
    counts = torch.bincount(level_of(timesteps), minlength=LEVELS)
    even = torch.bincount(level_of(torch.arange(TIMESTEPS)), minlength=LEVELS)
    often = counts / even / size
    assert float(often.max() / often.min()) < 1.3


def test_speed_draws_more_where_the_noise_changes_fast_and_weighs_all_alike(monkeypatch):
    model = denoiser("speed").train()
    timesteps, importance = drawn(model, monkeypatch)
    assert (importance == 1).all()
    early = int((timesteps < 500).sum())
    assert 520 < early < 900
    model.eval()
    assert torch.equal(drawn(model, monkeypatch)[0], torch.arange(TIMESTEPS))
