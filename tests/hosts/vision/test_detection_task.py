"""Losses of images add up to YOLO's, its mAP is Ultralytics' own, and every kind of arm trains."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.lab.support import run_command
from tests.lab.tasks.voc_data import squares, write_voc
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import nms
from ultralytics.utils.loss import v8DetectionLoss

from infobatch.integrations.ultralytics import per_image_losses
from infobatch.lab.run.results import read_results
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.detection.yolo import (
    Detections,
    build_detector,
    image_loss,
    mean_average_precision,
)

DETECTION = all_tasks()["detection"]
ARMS = "full,infobatch,infobatch-quantile,random,kakurenbo,es,selective-backprop,bls"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parts = {"trainval": squares(24), "test": squares(12, seed=1)}
    return write_voc(tmp_path_factory.mktemp("voc"), parts)


def compare(folder, out, *arguments):
    given = ("--data-dir", str(folder), "--out", str(out), "--option", "size=64")
    return run_command("compare", "--task", "detection", *given, "--seeds", "1", *arguments)


def test_every_kind_of_arm_runs(folder, tmp_path):
    result = compare(folder, tmp_path, "--arms", ARMS, "--epochs", "3", "--batch-size", "6")
    assert result.exit_code == 0, result.output
    found = {run.arm: run for run in read_results(tmp_path)}
    assert set(found) == set(ARMS.split(","))
    for run in found.values():
        assert 0 <= run.worst_class <= run.metric <= run.more["mAP50"] <= 100
        assert np.isfinite(run.curves.mean_loss).all()
    assert found["infobatch"].cost_fraction < 1
    assert "mAP50-95" in result.output


@pytest.mark.slow
def test_it_learns(folder, tmp_path):
    small = ("--epochs", "25", "--batch-size", "6", "--lr", "0.005", "--eval-every", "0")
    result = compare(folder, tmp_path, "--arms", "full", *small)
    assert result.exit_code == 0, result.output
    (run,) = read_results(tmp_path)
    assert run.more["mAP50"] > 50


def detector_and_targets():
    torch.manual_seed(0)
    detector = build_detector("yolov8", classes=2, width=8)
    targets = torch.full((4, 3, 5), -1.0)
    targets[0, 0] = torch.tensor([0, 4, 4, 30, 40])
    targets[0, 1] = torch.tensor([1, 20, 30, 60, 60])
    targets[2, 2] = torch.tensor([1, 8, 30, 28, 50])  # nothing on images 1 and 3
    return detector, torch.rand(4, 3, 64, 64), targets


def test_images_losses_add_up_to_the_stock_loss_and_each_is_its_own():
    detector, images, targets = detector_and_targets()
    outputs = detector(images)
    losses = image_loss(outputs, targets, 0.0)
    batch = {
        "batch_idx": torch.tensor([0.0, 0, 2]),
        "cls": torch.tensor([[0.0], [1], [1]]),
        "bboxes": torch.tensor(
            [[17, 22, 26, 36], [40, 45, 40, 30], [18, 40, 20, 20]], dtype=torch.float32
        )
        / 64,  # centre and sides
    }
    stock, _ = detector.model.init_criterion()(outputs.preds, batch)
    torch.testing.assert_close(losses.sum(), stock.sum())
    boxes, scores = outputs.preds["boxes"], outputs.preds["scores"]
    for image in range(4):
        by_boxes, by_scores = torch.autograd.grad(losses[image], (boxes, scores), retain_graph=True)
        touched = by_scores.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [other == image for other in range(4)]
        touched = by_boxes.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [other == image and image in (0, 2) for other in range(4)]
    learned = [p for p in detector.parameters() if p.requires_grad]
    whole = torch.autograd.grad(stock.sum(), learned, retain_graph=True, allow_unused=True)
    ours = torch.autograd.grad(losses.sum(), learned, allow_unused=True)
    for one, other in zip(ours, whole, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_images_losses_leave_the_criterion_as_it_was():
    detector, images, targets = detector_and_targets()
    criterion = detector.model.init_criterion()
    before = dict(vars(criterion))
    preds = detector.model(images)
    empty = {
        "batch_idx": torch.zeros(0),
        "cls": torch.zeros(0, 1),
        "bboxes": torch.zeros(0, 4),
    }
    losses = per_image_losses(criterion, preds, empty)
    assert losses.shape == (4,)
    assert (losses > 0).all()
    assert type(criterion) is v8DetectionLoss
    assert all(vars(criterion)[name] is value for name, value in before.items())


def test_losses_are_found_without_gradients_too():
    detector, images, targets = detector_and_targets()
    detector.eval()
    with torch.no_grad():
        losses = image_loss(detector(images), targets, 0.0)
    assert losses.shape == (4,)
    assert not losses.requires_grad
    assert (losses[[0, 2]] > losses[[1, 3]]).all()


def test_losses_are_computed_in_float32_whatever_the_model_computes_in():
    detector, images, targets = detector_and_targets()
    exact = image_loss(detector(images), targets, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(images)
    losses = image_loss(outputs, targets, 0.0)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0)


def decoded(targets, seed=0):
    """Noisy detections of what is there and of what is not, as the model decodes them."""
    generator = torch.Generator().manual_seed(seed)
    batch, most = targets.shape[:2]
    boxes = targets[..., 1:].repeat(1, 6, 1)
    boxes = boxes + 3 * torch.randn(boxes.shape, generator=generator)
    boxes = torch.cat([boxes, 40 * torch.rand(batch, 5, 4, generator=generator)], dim=1)
    corner = torch.minimum(boxes[..., :2], boxes[..., 2:] - 1)
    opposite = torch.maximum(corner + 1, boxes[..., 2:])
    centre = torch.cat([(corner + opposite) / 2, opposite - corner], dim=-1)
    scores = torch.rand(batch, 6 * most + 5, 2, generator=generator)
    return torch.cat([centre, scores], dim=-1).transpose(1, 2).contiguous()


def evaluated(targets):
    losses = None
    parts = zip(decoded(targets).split(5), targets.split(5), strict=True)
    run = SimpleNamespace(
        test_outputs=lambda: ((Detections((preds, {}), losses), part) for preds, part in parts)
    )
    return mean_average_precision(run)


@pytest.fixture(scope="module")
def targets(folder):
    return DETECTION.with_options({"size": "64"})[0].load(folder).test_targets


def test_the_metric_is_that_of_ultralytics_own_validation(targets, tmp_path):
    found = evaluated(targets)
    validator = DetectionValidator(save_dir=tmp_path, args={"plots": False, "iou": 0.7})
    validator.device, validator.seen, validator.end2end = torch.device("cpu"), 0, False
    validator.is_custom_json = validator.build_gdict = False
    validator.nc, validator.metrics.names = 2, {0: "green", 1: "red"}
    image, place = (targets[..., 0] >= 0).nonzero(as_tuple=True)
    height, width = 64, 64
    boxes = targets[image, place, 1:]
    centre = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    batch = {
        "img": torch.zeros(len(targets), 3, height, width),
        "batch_idx": image,
        "cls": targets[image, place, :1],
        "bboxes": centre / 64,
        "ori_shape": [(height, width)] * len(targets),
        "ratio_pad": [None] * len(targets),
        "im_file": [f"{number}.jpg" for number in range(len(targets))],
    }
    validator.update_metrics(validator.postprocess(decoded(targets)), batch)
    validator.metrics.process()
    theirs = validator.metrics.results_dict
    assert 5 < found.metric < 95
    assert found.metric == pytest.approx(100 * theirs["metrics/mAP50-95(B)"])
    assert found.more["mAP50"] == pytest.approx(100 * theirs["metrics/mAP50(B)"])
    assert found.worst_class == pytest.approx(100 * validator.metrics.maps.min())


def test_the_metric_does_not_depend_on_how_fast_the_machine_is(targets, monkeypatch):
    expected = evaluated(targets)
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(nms.time, "time", lambda: next(clock))
    assert evaluated(targets) == expected


def test_nothing_found_is_a_metric_of_zero(targets):
    preds = torch.zeros(len(targets), 6, 10)
    run = SimpleNamespace(test_outputs=lambda: iter([(Detections((preds, {}), None), targets)]))
    outcome = mean_average_precision(run)
    assert outcome.metric == outcome.worst_class == outcome.more["mAP50"] == 0


def test_width_and_names_give_ultralytics_own_models():
    def count(name, width=None):
        return sum(p.numel() for p in build_detector(name, classes=80, width=width).parameters())

    assert count("yolov8n") == count("yolov8", 16) == 3_157_200
    assert count("yolov8s") == 11_166_560
    assert count("yolov8", 4) < count("yolov8") < 1_500_000
