"""Ultralytics YOLO detection (`pip install "infobatch[ultralytics]"`; Ultralytics is AGPL-3.0).

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
from ultralytics.utils.torch_utils import unwrap_model

from infobatch.errors import MisalignedUpdateError, StateError
from infobatch.infobatch import InfoBatch
from infobatch.integrations.hosts import planned_loader
from infobatch.pruner import DataPruner

STATE_FILE = "infobatch.pt"


class PrunedDetectionTrainer(DetectionTrainer):
    """Ultralytics' detection trainer with a pruner.

        class Trainer(PrunedDetectionTrainer):
            pruning = {"prune_ratio": 0.5}

        YOLO("yolov8n.yaml").train(data="coco8.yaml", epochs=100, trainer=Trainer)

    An image's loss, which is its score too, is its part of the batch's loss: box, class and dfl
    with their gains, gradients kept in all three. The parts add up to the stock loss. A mosaic is
    credited to the image that was drawn; the others in it were chosen by the data set. The losses
    that the trainer logs are the weighted ones.

    Attributes:
        pruning: settings for `InfoBatch`, beside data set and number of epochs; with "policy"
            among them, for `DataPruner`.
        pruner: the run's pruner.

    Raises:
        MisalignedUpdateError: another task than detection, several devices, `rect=True`, `time=`
            instead of epochs, `distill_model=`, or a model with a loss of its own.
        StateError: a checkpoint to resume from that was not saved by this trainer, or is not the
            last one.
    """

    pruning: ClassVar[Mapping[str, Any]] = {}
    pruner: DataPruner
    metrics: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for is_set, what, remedy in (
            (self.args.task != "detect", f"task={self.args.task!r}", "a detection model"),
            (self.world_size > 1, "several devices", "one device"),
            (self.args.rect, "rect=True, which groups images by shape", "rect=False"),
            (self.args.time, "time=, which changes the number of epochs", "epochs="),
            (
                getattr(self.args, "distill_model", None),
                "distill_model=, whose loss is not one per image",
                "no teacher",
            ),
        ):
            if is_set:
                raise MisalignedUpdateError(
                    f"PrunedDetectionTrainer does not work with {what}; use {remedy}"
                )
        self._at_epoch_start: dict[str, Any] | None = None
        self.add_callback("on_train_epoch_start", PrunedDetectionTrainer._begin_epoch)

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """The stock loader; for training, one like it that draws from the pruner."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode != "train":
            return loader
        if not hasattr(self, "pruner"):
            build = DataPruner if "policy" in self.pruning else InfoBatch
            self.pruner = build(loader.dataset, self.epochs, **self.pruning)
        return _TrainLoader(loader, self.pruner)

    def _setup_train(self) -> None:
        super()._setup_train()
        model = unwrap_model(self.model)
        criterion = getattr(model, "criterion", None) or model.init_criterion()
        model.criterion = _PrunedCriterion(criterion, self.pruner, model)

    def _do_train(self) -> None:
        """With a progress bar that knows how long each epoch is.

        The trainer gives its bar the first epoch's length, and has no hook for another.
        """
        bar = engine.TQDM

        def bar_of_epoch(iterable: Any, **kwargs: Any) -> Any:
            return bar(iterable, **{**kwargs, "total": len(self.train_loader.loader)})

        engine.TQDM = bar_of_epoch
        try:
            super()._do_train()
        finally:
            engine.TQDM = bar

    def _begin_epoch(self) -> None:
        """Make an epoch again where the trainer does: after NaN, or out of memory."""
        pruner = self.pruner
        if self._at_epoch_start and (pruner.is_within_epoch or pruner.epoch != self.epoch):
            pruner.load_state_dict(self._at_epoch_start)
        self._at_epoch_start = pruner.state_dict()

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write what the run has saved so far into results.csv, and give it to the loggers."""
        values = self.pruner.metrics()
        own = {
            name: values[name] for name in ("infobatch/saved_fraction", "infobatch/kept_fraction")
        }
        self.metrics = {**self.metrics, **own}  # where the loggers of on_fit_epoch_end look
        # Always last: the columns of the file are those of the first epoch.
        super().save_metrics({**{k: v for k, v in metrics.items() if k not in own}, **own})

    def save_model(self) -> Any:
        """The stock checkpoints, and the pruner's state beside them."""
        torch.save(self.pruner.state_dict(), Path(self.wdir) / STATE_FILE)
        return super().save_model()

    def resume_training(self, ckpt: Any) -> None:
        """Go on where the checkpoint stood."""
        super().resume_training(ckpt)
        if ckpt is None or not self.resume:
            return
        file = Path(self.args.resume).with_name(STATE_FILE)
        if not file.exists():
            raise StateError(
                f"there is no {file}: the run to resume was not trained with "
                "PrunedDetectionTrainer; resume it with the stock trainer"
            )
        self.pruner.load_state_dict(torch.load(file, weights_only=True))
        if self.pruner.epoch != self.start_epoch:
            raise StateError(
                f"{file} was saved after {self.pruner.epoch} epochs, the checkpoint after "
                f"{self.start_epoch}; resume from last.pt, to which it belongs"
            )


class _TrainLoader:
    """A planned loader in the place of Ultralytics' own.

    Its length is that of a full epoch, in which the trainer counts warm-up, and does so too where
    it resumes in shorter ones. Iterating starts at the first `next`: each epoch the trainer makes
    an iterator that it does not use, for which workers would load batches.
    """

    def __init__(self, stock: Any, pruner: DataPruner) -> None:
        self._batches, self._pruner = len(stock), pruner
        # Workers live on between epochs, until mosaic closes: what the stock loader is for.
        self.loader: DataLoader[Any] = planned_loader(stock, pruner, persistent_workers=True)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader

    def __len__(self) -> int:
        return self._batches

    def reset(self) -> None:
        """Let the workers go; new ones see what has changed in the data set."""
        self.loader = planned_loader(self.loader, self._pruner)

    close = reset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def per_image_losses(criterion: Any, preds: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of each image, for a loop of one's own: `pruner.update(per_image_losses(...))`.

    Args:
        criterion: what a detection model's `init_criterion()` returns; it stays as it is.
        preds: what the model has returned for the images.
        batch: with "batch_idx", "cls" and "bboxes", as Ultralytics' collate function makes it.

    Returns:
        (B,) float32, box, class and dfl with their gains. Their sum is that of the stock loss,
        which Ultralytics makes B times as large as the loss of the batch. Terms are divided by what
        the batch has in common, the sum of its target scores.

    Raises:
        MisalignedUpdateError: a loss of another kind than detection's.
    """
    criterion = copy(criterion)
    if type(criterion) is E2ELoss:
        criterion.one2many, criterion.one2one = copy(criterion.one2many), copy(criterion.one2one)
    outputs = preds[1] if isinstance(preds, tuple) else preds
    boxes = outputs.get("one2many", outputs)["boxes"]
    weights = torch.ones(len(boxes), device=boxes.device, requires_grad=True)
    with torch.enable_grad():
        loss, _ = _WeightedCriterion(criterion).weighted(preds, batch, weights)
        (losses,) = torch.autograd.grad(loss.sum(), weights, create_graph=boxes.requires_grad)
    return losses


class _WeightedCriterion:
    """A detection criterion, changed so that its images can be weighted.

    The batch's loss is linear in its images' weights w, sum_i w_i * l_i, as all terms of an image
    are divided by what the batch has in common. So l_i is the derivative by w_i: gains, class
    weights and both heads of an end-to-end model are in it, and at weight 1 the loss is the stock
    one.
    """

    def __init__(self, criterion: Any) -> None:
        self.criterion = criterion
        self._weights: Tensor | None = None  # of the images of the batch; (B,)
        heads: tuple[Any, ...] = (criterion,)
        if type(criterion) is E2ELoss:
            heads = (criterion.one2many, criterion.one2one)
        for head in heads:
            if type(head) is not v8DetectionLoss:
                raise MisalignedUpdateError(
                    "PrunedDetectionTrainer knows how to split Ultralytics' detection loss by "
                    f"image, and the model's is a {type(head).__name__}; use a detection model"
                )
            head.bce = self._weighted_classes(head.bce)
            head.bbox_loss = self._weighted_boxes(head.bbox_loss)

    def weighted(
        self, preds: Any, batch: Mapping[str, Tensor], weights: Tensor
    ) -> tuple[Tensor, Any]:
        """(3,) weighted loss and its items."""
        self._weights = weights
        try:
            return self.criterion(preds, batch)  # type: ignore[no-any-return]
        finally:
            self._weights = None

    def _weighted_classes(self, stock: Any) -> Any:
        """With a loss (B, anchors, classes) that is weighted by image."""

        def loss(*args: Any) -> Tensor:
            value: Tensor = stock(*args)
            return value if self._weights is None else value * self._weights[:, None, None]

        return loss

    def _weighted_boxes(self, stock: Any) -> Any:
        """With the target scores, by which the stock loss weights anchors, weighted by image.

        It gets the anchors that have a target alone, as those of one image, which costs less.
        """

        def loss(
            pred_dist: Tensor,
            pred_bboxes: Tensor,
            anchor_points: Tensor,
            target_bboxes: Tensor,
            target_scores: Tensor,
            target_scores_sum: Tensor,
            fg_mask: Tensor,
            imgsz: Tensor,
            stride: Tensor,
        ) -> Any:
            if self._weights is None:
                anchors = (pred_dist, pred_bboxes, anchor_points, target_bboxes, target_scores)
                return stock(*anchors, target_scores_sum, fg_mask, imgsz, stride)
            image, anchor = fg_mask.nonzero(as_tuple=True)
            return stock(
                pred_dist[image, anchor][None],
                pred_bboxes[image, anchor][None],
                anchor_points[anchor],
                target_bboxes[image, anchor][None],
                (target_scores[image, anchor] * self._weights[image, None])[None],
                target_scores_sum,
                torch.ones_like(image, dtype=torch.bool)[None],
                imgsz,
                stride[anchor],
            )

        return loss


class _PrunedCriterion(_WeightedCriterion):
    """A detection criterion that weights images and takes in the loss of each."""

    def __init__(self, criterion: Any, pruner: DataPruner, model: nn.Module) -> None:
        super().__init__(criterion)
        self.pruner, self.model = pruner, model

    def __call__(self, preds: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """(3,) weighted loss and its items."""
        if not self.model.training:
            return self.criterion(preds, batch)  # type: ignore[no-any-return]
        images = batch["img"]
        weights = self.pruner.coming_weights(len(images)).to(images.device, torch.float32)
        loss, items = self.weighted(preds, batch, weights.requires_grad_())
        (losses,) = torch.autograd.grad(loss.sum(), weights, retain_graph=True)
        self.pruner.update(losses)
        return loss, items

    def __reduce__(self) -> Any:
        """None: a copy of the model, to be averaged or saved, makes a stock criterion itself."""
        return type(None), ()

    def update(self) -> None:
        """What the trainer calls after an epoch, where the stock criterion has it."""
        if hasattr(self.criterion, "update"):
            self.criterion.update()
