"""What object detection shares: boxes beside images, mosaics, YOLO by Ultralytics, and its mAP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.data import Batch, Generators, Prepare, TensorData
from infobatch.lab.datasets.voc import BoxedImage
from infobatch.lab.errors import LabError
from infobatch.lab.extras import need
from infobatch.lab.images import ImageInputs
from infobatch.lab.registry import choose
from infobatch.lab.task import Outcome, Trained

_NO_BOX = -1.0  # in place of a class, where an image has fewer boxes than another
_GREY = 114  # around images, as Ultralytics has it
_STRIDE = 32  # sides of images are multiples of it
_LEAST_SIDE = 2.0  # pixels, and
_LEAST_PART = 0.1  # part of its area, of a box that a crop has cut


class BoxData(TensorData):
    """Images uint8 (N, 3, H, W), and targets float32 (N, M, 5): class, then the box.

    Boxes are left, top, right and bottom in pixels. Where an image has fewer than M, the class is
    -1. A training batch has for every sample three further ones beside it, drawn from the whole
    training set, pruned or not, for mosaics: rows (B, 4, 3, H, W) and targets (B, 4, M, 5).
    """

    def batches(
        self, numbers: Iterable[list[int]], prepare: Prepare, generators: Generators
    ) -> Iterator[Batch]:
        """Gathered from the tensors, with the three others from the batch's generator."""
        for place, batch in enumerate(numbers):
            indices = torch.tensor(batch, device=self.device)
            generator = generators(place)
            others = torch.randint(len(self), (len(batch), 3), generator=generator)
            four = torch.cat([indices[:, None], others.to(self.device)], dim=1)
            yield Batch(indices, *prepare(*self.samples(four), generator, True))


def box_data(train: Sequence[BoxedImage], test: Sequence[BoxedImage], longer_side: int) -> BoxData:
    """Images scaled to that longer side, in the middle of a canvas that all of them fit on.

    Classes are numbered in the alphabetical order of the names in the training set.

    Raises:
        LabError: a test image has a class that is not there, or there is no box.
    """
    names = sorted({label for one in train for label in one.classes})
    if not names:
        raise LabError("no training image has a box")
    if unknown := {label for one in test for label in one.classes} - set(names):
        raise LabError(
            f"the test set has boxes of {', '.join(sorted(unknown))}, the training set only of "
            f"{', '.join(names)}"
        )
    if not any(len(one.boxes) for one in test):
        raise LabError("no test image has a box")
    sizes = [_scaled(one.image.shape[:2], longer_side) for one in (*train, *test)]
    height, width = (-(-max(side) // _STRIDE) * _STRIDE for side in zip(*sizes, strict=True))
    most = max(len(one.boxes) for one in (*train, *test))

    def tensors(part: Sequence[BoxedImage]) -> tuple[Tensor, Tensor]:
        images = np.full((len(part), height, width, 3), _GREY, dtype=np.uint8)
        targets = np.full((len(part), most, 5), _NO_BOX, dtype=np.float32)
        for one, image, target in zip(part, images, targets, strict=True):
            rows, columns = _scaled(one.image.shape[:2], longer_side)
            top, left = (height - rows) // 2, (width - columns) // 2
            image[top : top + rows, left : left + columns] = _resized(one.image, rows, columns)
            scale = np.array([columns / one.image.shape[1], rows / one.image.shape[0]] * 2)
            target[: len(one.boxes), 0] = [names.index(label) for label in one.classes]
            target[: len(one.boxes), 1:] = one.boxes * scale + [left, top, left, top]
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(targets)

    return BoxData(*tensors(train), *tensors(test))


def _scaled(shape: tuple[int, ...], longer_side: int) -> tuple[int, int]:
    height, width = shape
    factor = longer_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resized(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    from PIL import Image  # needed by some formats alone

    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class BoxInputs:
    """Stored images and boxes to model inputs and boxes.

    In training an image is made a mosaic with the probability `mosaic`: it and the three beside it
    lie in the four quarters of a canvas of twice the size, from which a part of the original size
    is cut at a random place (Bochkovskiy et al., 2020, arXiv 2004.10934). Boxes are cut with it,
    and left out where less than a tenth of them, or than two pixels, remains. Then it is flipped
    in both directions, each with probability one half. Random numbers come from that generator
    alone.

    Attributes:
        colours: what is done to the images besides.
        mosaic: in [0, 1].
    """

    colours: ImageInputs
    mosaic: float

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Model inputs, float32 (B, 3, H, W), and boxes (B, M, 5) or (B, 4 * M, 5)."""
        if training:
            images, targets = self._augmented(images, targets, generator)
        return self.colours.inputs(images, generator if training else None), targets

    def _augmented(
        self, four: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        batch, _, channels, height, width = four.shape
        draws = torch.rand(5, batch, 1, generator=generator).to(four.device)
        # The part of the canvas that is seen: all of the first image, or what the offset says.
        is_mosaic = draws[0] < self.mosaic
        top = torch.where(is_mosaic, (draws[1] * (height + 1)).long(), 0)
        left = torch.where(is_mosaic, (draws[2] * (width + 1)).long(), 0)
        rows = torch.arange(height, device=four.device).expand(batch, -1)
        columns = torch.arange(width, device=four.device).expand(batch, -1)
        upside_down, mirrored = draws[3] < 0.5, draws[4] < 0.5
        rows = top + torch.where(upside_down, rows.flip(1), rows)
        columns = left + torch.where(mirrored, columns.flip(1), columns)
        quarter = 2 * (rows >= height)[:, :, None] + (columns >= width)[:, None, :]
        source = (quarter * height + (rows % height)[:, :, None]) * width
        source = (source + (columns % width)[:, None, :]).view(batch, 1, -1)
        pixels = four.transpose(1, 2).reshape(batch, channels, -1)
        images = pixels.gather(2, source.expand(-1, channels, -1))
        images = images.view(batch, channels, height, width)

        corner = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]])
        shift = corner.to(four.device)[None] - torch.stack([left, top], dim=2)
        boxes = targets[..., 1:] + shift.repeat(1, 1, 2)[:, :, None]
        boxes = torch.stack(
            [
                boxes[..., 0].clamp(0, width),
                boxes[..., 1].clamp(0, height),
                boxes[..., 2].clamp(0, width),
                boxes[..., 3].clamp(0, height),
            ],
            dim=-1,
        )
        sides, before = boxes[..., 2:] - boxes[..., :2], targets[..., 3:] - targets[..., 1:3]
        untouched = (sides - before).abs().amax(-1) < 1e-3
        enough = (sides >= _LEAST_SIDE).all(-1) & (sides.prod(-1) >= _LEAST_PART * before.prod(-1))
        there = (targets[..., 0] >= 0) & (untouched | enough)
        labels = torch.where(there, targets[..., 0], _NO_BOX)
        left_, top_, right, bottom = boxes.unbind(-1)
        turn, mirror = upside_down[:, :, None], mirrored[:, :, None]
        left_, right = (
            torch.where(mirror, width - right, left_),
            torch.where(mirror, width - left_, right),
        )
        top_, bottom = (
            torch.where(turn, height - bottom, top_),
            torch.where(turn, height - top_, bottom),
        )
        return images, torch.stack([labels, left_, top_, right, bottom], dim=-1).flatten(1, 2)


@dataclass(frozen=True)
class Detections:
    """What a detector returns.

    Attributes:
        preds: of Ultralytics' model; in evaluation with decoded boxes.
        losses: boxes (B, M, 5) -> the loss of every image, shape (B,).
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
        """Images (B, 3, H, W)."""
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
