"""Masked autoencoders as a task: the loss of an image, the metric after fine-tuning, every arm."""

import copy
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
from infobatch.lab.tasks.mae.masked import (
    Classifier,
    build_autoencoder,
    fine_tuned,
    masked_error,
    sine_positions,
)

TASK = all_tasks()["mae"]
TASK = replace(TASK, evaluate=replace(TASK.evaluate, scale=replace(TASK.evaluate.scale, epochs=2)))
SMALL = {"width": 16, "epochs": 4, "batch_size": 20, "device": "cpu", "data": ""}
ARMS = ("full", "fewer-epochs", "infobatch", "infobatch-quantile", "random", "kakurenbo", "es")
DATA = TASK.load(None).limit_train(60)
FEW = replace(DATA, test_inputs=DATA.test_inputs[:50], test_targets=DATA.test_targets[:50])


def started(arm="full", seed=0, data=FEW, **changes) -> TrainingRun:
    settings = Settings.of_task(TASK, {**SMALL, **changes})
    chosen = all_arms()[arm]
    context = ArmContext(
        dataset_size=len(data),
        epochs=settings.epochs,
        prune_ratio=0.5,
        delta=0.9,
        seed=seed,
        labels=data.labels.numpy(),
        cost=0.8 if chosen.cost == "told" else None,
    )
    return TrainingRun(TASK, data, chosen.start(context), settings, seed=seed)


def finish(run):
    while not run.finished:
        run.run_epoch()
    return run


def model_of(**changes):
    given = {"channels": 1, "height": 8, "side": 8, "patch": 2, "width": 16, **changes}
    return build_autoencoder("vit-small", **given)


# ------------------------------------------------------------------ inputs and loss


@pytest.mark.parametrize(("channels", "side", "patch"), [(1, 8, 2), (3, 16, 4)])
def test_the_losses_of_a_batch_have_the_mean_that_transformers_computes(channels, side, patch):
    model = model_of(channels=channels, height=side, side=side, patch=patch)
    images = torch.rand(6, channels, side, side)
    outputs = model(images, noise=torch.rand(6, (side // patch) ** 2))
    losses = masked_error(outputs, images)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), outputs.loss)


def test_the_loss_of_an_image_depends_on_no_other_and_on_masked_patches_alone():
    model = model_of().eval()
    images, noise = torch.rand(4, 1, 8, 8), torch.rand(4, 16)
    outputs = model(images, noise=noise)
    alone = model(images[2:3], noise=noise[2:3])
    together = masked_error(outputs, images)
    torch.testing.assert_close(together[2:3], masked_error(alone, images[2:3]))
    assert outputs.mask.sum(1).tolist() == [12] * 4
    seen = (outputs.mask == 0).nonzero()[0]
    row, column = divmod(int(seen[1]), 4)
    images[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 5
    torch.testing.assert_close(masked_error(outputs, images), together)


def test_masks_come_from_the_generator_alone():
    rows, targets = FEW.samples(torch.arange(5))

    def draw(seed, training=True):
        inputs, _ = TASK.prepare(rows, targets, torch.Generator().manual_seed(seed), training)
        return inputs

    torch.manual_seed(0)
    one, other = draw(1), draw(2)
    torch.manual_seed(5)
    assert torch.equal(one["noise"], draw(1)["noise"])
    assert torch.equal(one["noise"], draw(1, training=False)["noise"])
    assert not torch.equal(one["noise"], other["noise"])
    model = started().model
    assert not torch.equal(model(**one).mask, model(**other).mask)


def test_patches_can_be_told_from_one_another():
    model = model_of(width=64)
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        apart = torch.cdist(positions[0, 1:], positions[0, 1:]) + torch.eye(16)
        assert apart.min() > 0.5
        assert not positions.requires_grad


@pytest.mark.parametrize(("across", "width"), [(2, 8), (4, 64)])
def test_positions_are_sines_and_cosines_of_column_and_row(across, width):
    found = sine_positions(across, width)[0]
    quarter = width // 4
    assert not found[0].any()
    for row in range(across):
        for column in range(across):
            place = found[1 + row * across + column]
            for number in range(quarter):
                frequency = 10_000 ** (-number / quarter)
                for part, at in ((0, column), (2, row)):
                    sine, cosine = (
                        place[part * quarter + number],
                        place[(part + 1) * quarter + number],
                    )
                    assert float(sine) == pytest.approx(math.sin(at * frequency), abs=1e-6)
                    assert float(cosine) == pytest.approx(math.cos(at * frequency), abs=1e-6)


# ------------------------------------------------------------------ the metric


def test_the_classifier_sees_all_patches_whatever_their_order():
    classifier = Classifier(model_of(), 10).eval()
    torch.nn.init.normal_(classifier.weight)
    images = torch.rand(3, 1, 8, 8)
    for row in range(4):
        for column in range(4):
            changed = images.clone()
            changed[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 1
            assert (classifier(changed) != classifier(images)).any()
    torch.manual_seed(1)
    torch.testing.assert_close(classifier(images), classifier(images))


def test_fine_tuning_leaves_the_run_and_the_global_generator_alone():
    run = started()
    run.run_epoch()
    before = copy.deepcopy(run.model.state_dict())
    state = torch.get_rng_state()
    one = TASK.evaluate(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert run.model.config.mask_ratio == 0.75
    after = run.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.manual_seed(7)
    assert TASK.evaluate(run) == one


def test_a_metric_is_also_found_where_gradients_are_off():
    run = started()
    expected = TASK.evaluate(run)
    with torch.no_grad():
        assert TASK.evaluate(run) == expected


def test_all_weights_are_fine_tuned_and_the_order_is_that_of_the_seed():
    pretrained = model_of()
    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    one, same, other = (
        fine_tuned(pretrained, images, labels, classes=10, epochs=2, seed=seed)
        for seed in (0, 0, 1)
    )
    rows = zip(one.parameters(), same.parameters(), other.parameters(), strict=True)
    for first, second, third in rows:
        assert torch.equal(first, second)
        if first.requires_grad:
            assert not torch.equal(first, third)
    changed = dict(one.encoder.named_parameters())
    for name, weight in pretrained.vit.named_parameters():
        assert torch.equal(weight, changed[name]) != weight.requires_grad, name


def test_which_samples_have_labels_does_not_depend_on_the_run(monkeypatch):
    asked = []
    samples = type(FEW).samples

    def watched(self, indices):
        asked.append(indices.clone())
        return samples(self, indices)

    monkeypatch.setattr(type(FEW), "samples", watched)
    runs = [started(seed=0), started("random", seed=3)]
    asked.clear()
    for run in runs:
        TASK.evaluate(run)
    assert torch.equal(*asked)
    assert len(asked[0].unique()) == 60  # of 200: all that there are


@pytest.mark.slow
def test_pretraining_learns_where_a_patch_is():
    data = TASK.load(None)
    data = replace(data, test_inputs=data.test_inputs[:200], test_targets=data.test_targets[:200])
    pixels, _ = TASK.prepare(data.test_inputs, data.test_targets, torch.Generator(), False)
    anywhere = float(pixels["pixel_values"].var())
    run = finish(started(data=data, epochs=5))
    assert run.outcome.more["reconstruction loss"] < 0.65 * anywhere


# ------------------------------------------------------------------ arms, checkpoints


@pytest.mark.parametrize("arm", ARMS)
def test_every_kind_of_arm_trains(arm):
    run = finish(started(arm))
    assert run.curves.metric[:-1] == [None] * (run.epochs - 1)
    assert 0 <= run.outcome.worst_class <= run.outcome.metric <= 100
    assert 0 < run.outcome.more["reconstruction loss"] < 1
    assert (run.cost.passes < 4 * 60) == (arm != "full")


def test_a_resumed_run_ends_with_the_same_numbers():
    whole, first, second = (started("infobatch") for _ in range(3))
    first.run_epoch()
    first.run_epoch()
    second.load_state_dict(first.state_dict())
    torch.manual_seed(99)  # a global generator that nothing may read
    assert finish(second).outcome == finish(whole).outcome


# ------------------------------------------------------------------ data and options


def photographs(folder, side=32):
    draw = np.random.default_rng(0).integers
    arrays = {}
    for part, size in (("train", 24), ("test", 12)):
        arrays[f"x_{part}"] = draw(0, 256, (size, side, side, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = draw(0, 10, size)
    np.savez(folder / "cifar10.npz", **arrays)
    return str(folder / "cifar10.npz")


def on_photographs(path, out):
    return run_command(
        *("compare", "--task", "mae", "--data-dir", path, "--option", "images=cifar10"),
        *("--width", "16", "--arms", "full,infobatch", "--seeds", "1", "--epochs", "2"),
        *("--batch-size", "8", "--out", str(out)),
    )


def test_cifar10_is_trained_on_from_the_command_line(tmp_path):
    result = on_photographs(photographs(tmp_path), tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = read_results(tmp_path / "out")
    assert [run.settings.options for run in found] == [{"images": "cifar10"}] * 2
    assert [run.curves.metric[0] for run in found] == [None] * 2


def test_sizes_that_are_no_multiple_of_a_patch_are_refused(tmp_path):
    result = on_photographs(photographs(tmp_path, side=30), tmp_path / "out")
    assert result.exit_code == 2
    assert "images must be square and a multiple of 4 pixels wide, got 30x30" in result.output


def test_widths_that_do_not_fit_are_refused():
    for width in (4, 12, 18):
        with pytest.raises(LabError, match=f"multiple of 8 for vit-small, got {width}"):
            model_of(width=width)
    model_of(width=8)


def test_the_large_model_is_vit_base():
    model = build_autoencoder("vit-base", channels=3, height=32, side=32, patch=4, width=None)
    layers = model.vit.encoder if hasattr(model.vit, "encoder") else model.vit
    assert sum(p.numel() for p in layers.parameters()) == pytest.approx(85e6, rel=0.01)
