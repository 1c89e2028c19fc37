"""Ultralytics YOLO detection (`pip install "infobatch[ultralytics]"`; Ultralytics is AGPL-3.0).

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from infobatch.errors import MisalignedUpdateError, StateError
from infobatch.loaders import planned_loader
from infobatch.pruner import DataPruner, InfoBatch

STATE_FILE = "infobatch.pt"


class PrunedDetectionTrainer(DetectionTrainer):
    """Ultralytics' detection trainer with a pruner.

        class Trainer(PrunedDetectionTrainer):
            pruning = {"budget": 0.7}

        YOLO("yolov8n.yaml").train(data="coco8.yaml", epochs=100, trainer=Trainer)

    An image's loss, which is its score too, is its part of the batch's loss: box, class and dfl
    with their gains, gradients kept in all three. The parts add up to the stock loss. A mosaic is
    credited to the image that was drawn; the others in it were chosen by the data set.

    Attributes:
        pruning: settings for `InfoBatch`, beside data set and number of epochs.
        pruner: the run's pruner.

    Raises:
        MisalignedUpdateError: several devices, `rect=True`, or `time=` instead of epochs.
        StateError: a checkpoint to resume from that was not saved by this trainer.
    """

    pruning: ClassVar[Mapping[str, Any]] = {}
    pruner: DataPruner

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for is_set, what, remedy in (
            (self.world_size > 1, "several devices", "one device"),
            (self.args.rect, "rect=True, which groups images by shape", "rect=False"),
            (self.args.time, "time=, which changes the number of epochs", "epochs="),
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
            self.pruner = InfoBatch(loader.dataset, self.epochs, **self.pruning)
        # Workers live on between epochs, until mosaic closes: what the stock loader is for.
        planned: Any = planned_loader(loader, self.pruner, persistent_workers=True)
        planned.reset = lambda: setattr(planned, "_iterator", None)
        return planned

    def _setup_train(self) -> None:
        super()._setup_train()
        model = unwrap_model(self.model)
        criterion = getattr(model, "criterion", None) or model.init_criterion()
        model.criterion = _PrunedCriterion(criterion, self.pruner, model)

    def _do_train(self) -> None:
        """With a progress bar that knows how long each epoch is."""
        bar = engine.TQDM

        def bar_of_epoch(iterable: Any, **kwargs: Any) -> Any:
            return bar(iterable, **{**kwargs, "total": len(self.train_loader)})

        engine.TQDM = bar_of_epoch
        try:
            super()._do_train()
        finally:
            engine.TQDM = bar

    def _begin_epoch(self) -> None:
        """Make an epoch again where the trainer does: after NaN, or out of memory."""
        pruner = self.pruner
        if pruner.is_within_epoch or pruner.epoch != self.epoch:
            saved = self._at_epoch_start
            if saved is None or self.epoch + 1 < pruner.epoch:
                raise StateError(
                    f"the pruner stands at epoch {pruner.epoch}, the trainer at {self.epoch} (both "
                    "0-based); start a new run, or resume one that this trainer has saved"
                )
            pruner.load_state_dict(saved)
        self._at_epoch_start = pruner.state_dict()

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write what the run has saved so far into results.csv, beside the metrics."""
        own = self.pruner.metrics()
        names = ("infobatch/saved_fraction", "infobatch/kept_fraction")
        super().save_metrics({**metrics, **{name: own[name] for name in names}})

    def save_model(self) -> Any:
        """The stock checkpoints, and the pruner's state beside them."""
        torch.save(self.pruner.state_dict(), Path(self.wdir) / STATE_FILE)
        return super().save_model()

    def resume_training(self, ckpt: Any) -> None:
        """Go on where the checkpoint stood."""
        super().resume_training(ckpt)
        if ckpt is None or not self.resume:
            return
        file = Path(str(self.resume if isinstance(self.resume, str) else self.args.model))
        file = file.with_name(STATE_FILE)
        if not file.exists():
            raise StateError(
                f"there is no {file}: the run to resume was not trained with "
                "PrunedDetectionTrainer; resume it with the stock trainer"
            )
        self.pruner.load_state_dict(torch.load(file, weights_only=True))


class _PrunedCriterion:
    """A detection criterion whose images are weighted, and their losses taken in."""

    def __init__(self, criterion: Any, pruner: DataPruner, model: nn.Module) -> None:
        self.criterion, self.pruner, self.model = criterion, pruner, model
        self.losses: list[Tensor] = []  # of the images, one entry a head
        self.weights: Tensor | None = None
        if hasattr(criterion, "one2many"):  # an end-to-end head beside the usual one
            criterion.one2many = _PerImage(criterion.one2many, self)
            criterion.one2one = _PerImage(criterion.one2one, self)
        else:
            self.criterion = _PerImage(criterion, self)

    def __call__(self, preds: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """(3,) weighted loss, and the stock loss items."""
        self.losses, self.weights = [], None
        if not self.model.training:
            return self.criterion(preds, batch)  # type: ignore[no-any-return]
        images = batch["img"]
        self.weights = self.pruner.coming_weights(len(images)).to(images.device, torch.float32)
        result: tuple[Tensor, Any] = self.criterion(preds, batch)
        factors = (self.criterion.o2m, self.criterion.o2o) if len(self.losses) > 1 else (1.0,)
        losses = sum(f * own for f, own in zip(factors, self.losses, strict=True))
        assert isinstance(losses, Tensor)
        self.pruner.update(losses)
        return result

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the model, such as the one that is averaged, makes a stock criterion itself."""

    def update(self) -> None:
        """What the trainer calls after an epoch, where the stock criterion has it."""
        if hasattr(self.criterion, "update"):
            self.criterion.update()


class _PerImage:
    """A `v8DetectionLoss` that keeps its three losses apart by image."""

    def __init__(self, stock: Any, owner: _PrunedCriterion) -> None:
        self.stock, self.owner = stock, owner
        stock.bce = self.bce = _KeepOutput(stock.bce)
        stock.bbox_loss = self.bbox = _BoxPerImage(stock.bbox_loss)

    def __call__(self, preds: Any, batch: Any) -> Any:
        return self.loss(self.stock.parse_output(preds), batch)

    def loss(self, preds: Any, batch: Any) -> Any:
        """The stock loss, or with the owner's weights: sum_i w_i * (box_i, cls_i, dfl_i)."""
        total, items = self.stock.loss(preds, batch)
        box, dfl = self.bbox.parts.unbind(1)
        assert self.bce.output is not None
        parts = torch.stack([box, self.bce.output.sum((1, 2)), dfl], dim=1)
        self.bce.output, self.bbox.parts = None, torch.empty(0, 2)
        # Gains, batch size and the batch's target score are the same for all images.
        sums = parts.detach().sum(0)
        parts = parts * torch.where(sums == 0, 0.0, total.detach() / sums)
        self.owner.losses.append(parts.detach().sum(1))
        if self.owner.weights is not None:
            total = (self.owner.weights[:, None] * parts).sum(0)
        return total, items

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)


class _KeepOutput(nn.Module):
    """The classification loss; what it returned, (B, anchors, classes), until it is taken."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock
        self.output: Tensor | None = None

    def forward(self, *args: Any) -> Tensor:
        self.output = self.stock(*args)
        return self.output


class _BoxPerImage(nn.Module):
    """The box losses, computed image by image; `parts` (B, 2) are those of the last call."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock
        self.parts = torch.empty(0, 2)

    def forward(
        self,
        pred_dist: Tensor,
        pred_bboxes: Tensor,
        anchor_points: Tensor,
        target_bboxes: Tensor,
        target_scores: Tensor,
        target_scores_sum: Tensor,
        fg_mask: Tensor,
        imgsz: Tensor,
        stride: Tensor,
    ) -> tuple[Tensor, Tensor]:
        losses = [
            self.stock(
                *(pred_dist[one], pred_bboxes[one], anchor_points, target_bboxes[one]),
                *(target_scores[one], target_scores_sum, fg_mask[one], imgsz, stride),
            )
            for one in (slice(i, i + 1) for i in range(len(pred_dist)))
        ]
        self.parts = torch.stack([torch.stack(pair) for pair in losses])
        box, dfl = self.parts.sum(0).unbind()
        return box, dfl
