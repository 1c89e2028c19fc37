"""Noisy labels, unequal classes, strong augmentation, presets, and the curves of several costs."""

import numpy as np
import pytest
import torch
from tests.lab.support import DIGITS, digits, run_command, training_run

from infobatch.lab.arms import choose_arms
from infobatch.lab.command.presets import PRESETS
from infobatch.lab.errors import LabError
from infobatch.lab.report.summary import summarise
from infobatch.lab.run.results import read_results
from infobatch.lab.tasks.base.images import ImageInputs
from infobatch.lab.tasks.cifar.human_labels import NAMES, read_human_labels

SMALL = ("--limit-train", "200", "--batch-size", "50", "--seeds", "1", "--eval-every", "2")


# ------------------------------------------------------------------ labels and classes


@pytest.mark.parametrize("fraction", [0.0, 0.2, 1.0])
def test_random_labels_are_wrong_in_so_many_places_and_always_the_same(fraction):
    data = digits(300)
    noisy = data.with_random_labels(fraction)
    assert int((noisy.train_targets != data.train_targets).sum()) == round(fraction * 300)
    assert torch.equal(noisy.train_targets, digits(300).with_random_labels(fraction).train_targets)
    assert torch.equal(noisy.test_targets, data.test_targets)
    assert noisy.fingerprint() != data.fingerprint() or fraction == 0


@pytest.mark.parametrize("ratio", [10.0, 100.0])
def test_imbalanced_classes_fall_from_the_first_to_the_last(ratio):
    data = DIGITS.load(None).imbalanced(ratio)
    sizes = torch.bincount(data.train_targets)
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    assert int(sizes[0]) == int(torch.bincount(DIGITS.load(None).train_targets).min())
    assert int(sizes[-1]) == pytest.approx(int(sizes[0]) / ratio, abs=0.5)
    assert torch.equal(data.test_targets, DIGITS.load(None).test_targets)


def test_the_worst_class_is_the_one_with_the_lowest_metric():
    data = digits(200)
    run = training_run("full", data, epochs=2)
    run.run_epoch()
    run.model.eval()
    with torch.no_grad():
        outputs = run.model(DIGITS.prepare.inputs(data.test_inputs, None)).argmax(dim=1)
    right = (outputs == data.test_targets).double()
    worst = min(100 * float(right[data.test_targets == c].mean()) for c in range(10))
    outcome = DIGITS.evaluate(run)
    assert outcome.worst_class == pytest.approx(worst)
    assert outcome.metric == pytest.approx(100 * float(right.mean()))


@pytest.fixture
def human(tmp_path):
    labels = {
        name: np.random.default_rng(number).integers(0, 10, 50_000)
        for number, name in enumerate(NAMES.values())
    }
    return tmp_path, labels


@pytest.mark.parametrize("official", [True, False])
def test_human_labels_are_read_from_either_file(human, official):
    folder, labels = human
    if official:
        torch.save(labels, folder / "CIFAR-10_human.pt")
    else:
        small = {name: values.astype(np.uint8) for name, values in labels.items()}
        np.savez_compressed(folder / "cifar10n.npz", **small)
    for name, column in NAMES.items():
        assert read_human_labels(folder, name).tolist() == labels[column].tolist()
    assert read_human_labels(folder / "cifar10.npz", "worst").dtype == torch.int64


def test_human_labels_that_are_not_there_or_damaged_are_said_plainly(human):
    folder, labels = human
    with pytest.raises(LabError, match=r"needs CIFAR-10N: put data/CIFAR-10_human\.pt"):
        read_human_labels(folder, "worst")
    torch.save({"worse_label": labels["worse_label"][:9]}, folder / "CIFAR-10_human.pt")
    with pytest.raises(LabError, match="must be 50,000 labels"):
        read_human_labels(folder, "worst")
    with pytest.raises(LabError, match="is not CIFAR-10N's file"):
        read_human_labels(folder, "random1")
    (folder / "CIFAR-10_human.pt").write_bytes(b"rubbish")
    with pytest.raises(LabError, match="is not CIFAR-10N's file"):
        read_human_labels(folder, "worst")


# ------------------------------------------------------------------ augmentation


def test_strong_augmentation_erases_and_changes_contrast_in_training_alone():
    images = torch.full((64, 3, 16, 16), 128, dtype=torch.uint8)
    plain = ImageInputs((0.5,) * 3, (0.25,) * 3)
    strong = ImageInputs((0.5,) * 3, (0.25,) * 3, erase=6, contrast=0.4)
    assert torch.equal(strong.inputs(images, None), plain.inputs(images, None))
    changed = strong.inputs(images, torch.Generator().manual_seed(0))
    erased = (changed == 0.0).all(dim=1)
    assert erased.flatten(1).any(1).all()
    assert 9 <= int(erased.flatten(1).sum(1).min()) <= int(erased.flatten(1).sum(1).max()) <= 49
    kept = ~erased[:, None].expand_as(changed)
    means = (changed * kept).sum(dim=(1, 2, 3)) / kept.sum(dim=(1, 2, 3))
    brightness = (means * 0.25 + 0.5) / (128 / 255)
    assert 0.6 - 1e-5 <= float(brightness.min()) < 0.7
    assert 1.3 < float(brightness.max()) <= 1.4 + 1e-5
    again = strong.inputs(images, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("noise", {"label_noise": "0.4"}),
        ("imbalance-10", {"imbalance": 10.0}),
        ("imbalance-100", {"imbalance": 100.0}),
        ("strong", {"augmentation": "strong"}),
        ("short", {"epochs": 13}),
    ],
)
def test_a_preset_sets_what_is_asked(preset, settings):
    assert PRESETS[preset].variants(DIGITS) == {"": settings}
    assert choose_arms(PRESETS[preset].arms)


def test_the_command_line_goes_before_a_preset(tmp_path):
    arguments = ["--preset", "noise", "--arms", "full,random", "--cost", "0.8", *SMALL]
    arguments += ["--epochs", "3", "--imbalance", "2", "--augmentation", "strong"]
    result = run_command("compare", *arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    runs = read_results(tmp_path)
    assert [run.label for run in runs] == ["full", "random@0.8"]
    settings = runs[0].settings
    assert (settings.label_noise, settings.imbalance, settings.augmentation, settings.epochs) == (
        *("0.4", 2.0, "strong", 3),
    )
    assert all(run.worst_class is not None for run in runs)
    assert "worst class" in (tmp_path / "report.html").read_text()


def test_the_ablation_preset_has_all_corners_at_one_cost(tmp_path):
    arguments = ["--preset", "ablation", "--epochs", "4", "--cost", "0.8", *SMALL]
    result = run_command("compare", *arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    (part,) = summarise(read_results(tmp_path))
    corners = [row for row in part.rows if row.cost_target == 0.8 and row.arm != "fewer-epochs"]
    assert len(corners) == 8
    assert all(row.trained == 640 for row in corners)


def test_several_costs_make_curves_and_every_row_has_its_control(tmp_path):
    arguments = ["--arms", "full,fewer-epochs,random", "--cost", "0.9,0.6", "--epochs", "5", *SMALL]
    result = run_command("compare", *arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    (part,) = summarise(read_results(tmp_path))
    assert [row.label for row in part.rows] == [
        "full",
        "fewer-epochs@0.6",
        "random@0.6",
        "fewer-epochs@0.9",
        "random@0.9",
    ]
    assert part.costs == [0.6, 0.9]
    by_label = {row.label: row for row in part.rows}
    for cost in ("0.6", "0.9"):
        row, control = by_label[f"random@{cost}"], by_label[f"fewer-epochs@{cost}"]
        assert row.cost == control.cost == pytest.approx(float(cost))
        assert row.to_control.mean == pytest.approx(row.metric - control.metric)
    again = run_command("report", str(tmp_path))
    assert again.exit_code == 0
    assert "--cost 0.6,0.9" in (tmp_path / "report.html").read_text()


def test_time_to_target_is_the_first_time_within_the_margin(tmp_path):
    arguments = ["--arms", "full,random", "--cost", "0.9", "--epochs", "6", *SMALL]
    arguments += ["--eval-every", "1", "--margin", "30"]
    assert run_command("compare", *arguments, "--out", str(tmp_path)).exit_code == 0
    runs = {run.arm: run for run in read_results(tmp_path)}
    (part,) = summarise(list(runs.values()))
    target = runs["full"].metric - 30
    for row in part.rows:
        curves = runs[row.arm].curves
        first = next(e for e, metric in enumerate(curves.metric) if metric >= target)
        assert row.reached == 1
        assert row.cost_to_target == pytest.approx(curves.samples[first] / 1200)
        assert row.wall_to_target == pytest.approx(
            curves.seconds[first] / runs["full"].wall_seconds
        )
