"""YOLO by Ultralytics: the model beside its criterion, the loss of each image, and mAP."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.errors import need
from infobatch.lab.registry import choose
from infobatch.lab.tasks.base.task import Outcome, Trained


@dataclass(frozen=True)
class Detections:
    """Predictions of Ultralytics' model, in evaluation with decoded boxes, and their losses.

    `losses` takes boxes (B, M, 5) and returns the loss of every image, (B,).
    """

    preds: Any
    losses: Callable[[Tensor], Tensor]


class Detector(nn.Module):
    """Ultralytics' detection model beside its criterion."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._criterion: Any = None

    def forward(self, images: Tensor) -> Detections:
        if self._criterion is None:  # once the model is where it is to stay
            model: Any = self.model
            self._criterion = model.init_criterion()
        preds = _in_float32(self.model(images))
        height, width = images.shape[2:]
        scale = images.new_tensor([width, height, width, height])
        return Detections(preds, lambda targets: self._losses(preds, targets, scale))

    def _losses(self, preds: Any, targets: Tensor, scale: Tensor) -> Tensor:
        from infobatch.integrations.ultralytics import per_image_losses

        image, place = (targets[..., 0] >= 0).nonzero(as_tuple=True)
        labels, boxes = targets[image, place].split((1, 4), dim=1)
        corner, opposite = (boxes / scale).split(2, dim=1)
        batch = {
            "batch_idx": image.float(),
            "cls": labels,
            "bboxes": torch.cat([(corner + opposite) / 2, opposite - corner], dim=1),
        }
        return per_image_losses(self._criterion, preds, batch)


def _in_float32(preds: Any) -> Any:
    """Tensors of dicts, lists and tuples; a small loss from bfloat16 logits would be 0."""
    if isinstance(preds, Tensor):
        return preds.float()
    if isinstance(preds, dict):
        return {name: _in_float32(part) for name, part in preds.items()}
    return type(preds)(_in_float32(part) for part in preds)


def image_loss(outputs: Detections, targets: Tensor, _label_smoothing: float) -> Tensor:
    """Box, class and distribution focal loss of each image with YOLO's gains, shape (B,)."""
    return outputs.losses(targets)


def mean_average_precision(run: Trained) -> Outcome:
    """Ultralytics' mAP50-95 in percent, and that of the worst class; mAP50 besides.

    With the settings of its validation: detections of at least 0.001 in confidence, several
    classes at a place, suppression at an overlap of 0.7, 300 an image; but without its limit of
    time, after which it leaves images without a detection.
    """
    need("ultralytics", "ultralytics")
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import ap_per_class, box_iou
    from ultralytics.utils.nms import non_max_suppression

    thresholds = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))
    right, confidences, predicted, there = [], [], [], []
    for outputs, targets in run.test_outputs():
        found = non_max_suppression(
            outputs.preds, 0.001, 0.7, multi_label=True, max_det=300, max_time_img=1e9
        )
        for detections, target in zip(found, targets, strict=True):
            labels, boxes = target[target[:, 0] >= 0].split((1, 4), dim=1)
            overlap = box_iou(boxes, detections[:, :4])
            matched = BaseValidator.match_predictions(
                thresholds, detections[:, 5], labels[:, 0], overlap
            )
            right.append(matched.cpu().numpy())
            confidences.append(detections[:, 4].float().cpu().numpy())
            predicted.append(detections[:, 5].cpu().numpy())
            there.append(labels[:, 0].cpu().numpy())
    precisions = ap_per_class(*(np.concatenate(x) for x in (right, confidences, predicted, there)))
    by_class = 100 * precisions[5]
    return Outcome(
        float(by_class.mean()),
        worst_class=float(by_class.mean(axis=1).min()),
        more={"mAP50": float(by_class[:, 0].mean())},
    )


MODELS: dict[str, tuple[str, float, int]] = {
    "yolov8": ("yolov8n.yaml", 0.33, 8),
    "yolov8n": ("yolov8n.yaml", 0.33, 16),
    "yolov8s": ("yolov8s.yaml", 0.33, 32),
}
"""Every model by name: the file of Ultralytics, the part of its depth, and its own width."""


def build_detector(name: str, *, classes: int, width: int | None) -> nn.Module:
    """A freshly initialised detector; widths are rounded up to a multiple of 8."""
    file, depth, own_width = choose(name, MODELS, what="model")
    need("ultralytics", "ultralytics")
    from ultralytics.cfg import DEFAULT_CFG
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    layout = yaml_model_load(file)
    multiple = (own_width if width is None else width) / 64
    layout["scales"] = {layout["scale"]: [depth, multiple, 1024]}
    layout["nc"] = classes
    model = DetectionModel(layout, nc=classes, verbose=False)
    model.args = copy(DEFAULT_CFG)
    return Detector(model)
