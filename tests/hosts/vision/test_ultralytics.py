import copy
import csv
import math
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.hosts.support import ROOT
from tests.hosts.vision import tensorboard_run
from tests.hosts.vision.ultralytics_data import write_squares
from torch.utils.data import DataLoader
from ultralytics import YOLO
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG

from infobatch import InfoBatch
from infobatch.errors import MisalignedUpdateError, StateError
from infobatch.integrations.ultralytics import PrunedDetectionTrainer, _PrunedCriterion
from infobatch.policies import BudgetThreshold

EPOCHS, BATCH, IMAGES = 6, 4, 24  # 6 batches in a full epoch
HALF_BATCH = (BATCH / 2 + 0.5) / IMAGES  # of an epoch: within what a budget is met


class Budget(PrunedDetectionTrainer):
    pruning: ClassVar = {"budget": 0.7}


class Unpruned(PrunedDetectionTrainer):
    pruning: ClassVar = {"prune_ratio": 0.0}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"), train=IMAGES)


def train(squares, folder, trainer=Budget, model="yolov8n.yaml", callbacks=None, **settings):
    quiet = {"plots": False, "val": False, "amp": False, "verbose": False, "conf": 0.5}
    small = {"imgsz": 64, "batch": BATCH, "device": "cpu", "epochs": EPOCHS, "optimizer": "SGD"}
    yolo = YOLO(model)
    for event, function in (callbacks or {}).items():
        yolo.add_callback(event, function)
    given = {"data": str(squares), "project": str(folder), "name": "run", "exist_ok": True}
    yolo.train(trainer=trainer, **{**quiet, **small, **given, **settings})
    return yolo.trainer


def batches_of(pruner, batch=BATCH):
    return [math.ceil(record.kept / batch) for record in pruner.history]


# --- the loss of an image -----------------------------------------------------------------------


def losses_image_by_image(head, preds, batch):
    """(B, 3) the slow way: each image's boxes go through the stock loss on their own."""
    images, stock_bce, stock_boxes, seen = len(batch["img"]), head.bce, head.bbox_loss, {}

    def bce(*args):
        seen["classes"] = stock_bce(*args)
        return seen["classes"]

    def boxes(dist, pred, points, target, scores, scores_sum, mask, imgsz, stride):
        seen["sum"] = scores_sum
        seen["boxes"] = [
            stock_boxes(*(dist[i], pred[i], points, target[i], scores[i], scores_sum, mask[i]), *to)
            for i, to in ((slice(i, i + 1), (imgsz, stride)) for i in range(images))
        ]
        return [torch.stack(parts).sum() for parts in zip(*seen["boxes"], strict=True)]

    head.bce, head.bbox_loss = bce, boxes
    items = head.loss(preds, batch)[1]
    head.bce, head.bbox_loss = stock_bce, stock_boxes
    box, dfl = (torch.stack(parts) for parts in zip(*seen["boxes"], strict=True))
    classes = seen["classes"].sum((1, 2)) / seen["sum"]
    gains = torch.tensor([head.hyp.box, head.hyp.cls, head.hyp.dfl])
    return torch.stack([box, classes, dfl], 1) * gains * images, items


class ImageByImage:
    """A criterion that is plain about what it does."""

    def __init__(self, stock, pruner, model):
        self.stock, self.pruner, self.model = stock, pruner, model

    def __call__(self, preds, batch):
        if not self.model.training:
            return self.stock(preds, batch)
        if hasattr(self.stock, "one2one"):
            many, _ = losses_image_by_image(self.stock.one2many, preds["one2many"], batch)
            one, items = losses_image_by_image(self.stock.one2one, preds["one2one"], batch)
            parts = self.stock.o2m * many + self.stock.o2o * one
        else:
            parts, items = losses_image_by_image(self.stock, preds, batch)
        weights = self.pruner.coming_weights(len(parts)).float()
        self.pruner.update(parts.sum(1))
        return (weights[:, None] * parts).sum(0), items

    def __reduce__(self):
        return type(None), ()


def criterion_and_batch(name, class_weights):
    torch.manual_seed(0)
    model = DetectionModel(name, nc=2, verbose=False)
    model.args = copy.copy(DEFAULT_CFG)
    if class_weights:
        model.class_weights = torch.tensor([0.5, 1.5])
    model.train()
    batch = {
        "img": torch.rand(5, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 0, 1, 3, 4]),  # nothing on picture 2
        "cls": torch.tensor([[0.0], [1], [1], [0], [0]]),
        "bboxes": torch.rand(5, 4) * 0.2 + 0.3,
    }
    return model, batch


class FixedWeights:
    """What a criterion needs of a pruner."""

    def __init__(self, weights):
        self.weights = weights

    def coming_weights(self, count):
        assert count == len(self.weights)
        return self.weights.double()

    def update(self, losses):
        self.losses = losses.detach()


@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml"])
def test_the_images_losses_add_up_to_the_stock_loss_with_its_gradient(name, class_weights):
    model, batch = criterion_and_batch(name, class_weights)
    preds = model(batch["img"])
    learned = [p for p in model.parameters() if p.requires_grad]

    def gradients(loss):
        return torch.autograd.grad(loss.sum(), learned, retain_graph=True, allow_unused=True)

    stock, stock_items = model.init_criterion()(preds, batch)
    pruner = FixedWeights(torch.ones(5))
    loss, items = _PrunedCriterion(model.init_criterion(), pruner, model)(preds, batch)
    torch.testing.assert_close(loss, stock, rtol=0, atol=0)
    assert items == stock_items
    torch.testing.assert_close(pruner.losses.sum(), stock.sum().detach())
    for ours, theirs in zip(gradients(loss), gradients(stock), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    naive = FixedWeights(torch.tensor([2.0, 0.0, 1.0, 3.5, 1.0]))
    slow, _ = ImageByImage(model.init_criterion(), naive, model)(preds, batch)
    weighted = FixedWeights(naive.weights)
    loss, _ = _PrunedCriterion(model.init_criterion(), weighted, model)(preds, batch)
    torch.testing.assert_close(weighted.losses, naive.losses)
    torch.testing.assert_close(weighted.losses, pruner.losses)  # scores know nothing of weights
    torch.testing.assert_close(loss, slow)
    for ours, theirs in zip(gradients(loss), gradients(slow), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_mixed_precision():
    """Ultralytics has it on GPUs only; this is what it does there, on the CPU."""
    model, batch = criterion_and_batch("yolov8n.yaml", False)
    pruner = FixedWeights(torch.ones(5))
    with torch.autocast("cpu", torch.bfloat16):
        preds = model(batch["img"])
        assert preds["scores"].dtype == torch.bfloat16
        stock, _ = model.init_criterion()(preds, batch)
        loss, _ = _PrunedCriterion(model.init_criterion(), pruner, model)(preds, batch)
    torch.testing.assert_close(loss, stock, rtol=5e-3, atol=0)
    torch.testing.assert_close(pruner.losses.sum(), loss.sum().detach())
    (loss.sum() * 2**16).backward()  # as a scaler does; scores are not scaled
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_pictures_without_objects():
    model, batch = criterion_and_batch("yolov8n.yaml", False)
    batch.update(batch_idx=torch.zeros(0), cls=torch.zeros(0, 1), bboxes=torch.zeros(0, 4))
    preds, pruner = model(batch["img"]), FixedWeights(torch.ones(5))
    loss, _ = _PrunedCriterion(model.init_criterion(), pruner, model)(preds, batch)
    torch.testing.assert_close(loss, model.init_criterion()(preds, batch)[0], rtol=0, atol=0)
    loss.sum().backward()
    assert (pruner.losses > 0).all()


def test_a_copied_or_pickled_model_has_a_stock_criterion():
    model, batch = criterion_and_batch("yolov8n.yaml", False)
    model.criterion = _PrunedCriterion(model.init_criterion(), InfoBatch(5, 2), model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        loss, _ = other.loss(batch, other(batch["img"]))
        torch.testing.assert_close(loss, other.init_criterion()(other(batch["img"]), batch)[0])
    assert model.criterion.pruner.epoch == 0


# --- runs ---------------------------------------------------------------------------------------


class PlainLoop(DetectionTrainer):
    """The stock trainer with the three lines of the README, written out."""

    pruning: ClassVar = {"budget": 0.7}

    def get_dataloader(self, dataset_path, batch_size=16, rank=0, mode="train"):
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode != "train":
            return loader
        self.pruner = InfoBatch(loader.dataset, self.epochs, **self.pruning)
        planned = DataLoader(
            loader.dataset, BATCH, sampler=self.pruner.sampler, collate_fn=loader.collate_fn
        )
        planned.reset = lambda: None
        return planned

    def _setup_train(self):
        super()._setup_train()
        self.model.criterion = ImageByImage(self.model.init_criterion(), self.pruner, self.model)


class StockInThatOrder(PlainLoop):
    """The stock trainer with the stock loss; samples come in the order of an unpruned run."""

    pruning: ClassVar = {"prune_ratio": 0.0}

    def _setup_train(self):
        DetectionTrainer._setup_train(self)
        self.add_callback(
            "on_train_batch_end", lambda trainer: trainer.pruner.update(torch.ones(BATCH))
        )


def followed(scores_after=2):
    """Callbacks that note what a run did, and the notes."""
    notes = {"rates": [], "epochs": []}

    def on_train_batch_end(trainer):
        notes["rates"].append((trainer.epoch, trainer.optimizer.param_groups[0]["lr"]))

    def on_train_epoch_end(trainer):
        notes["epochs"].append(trainer.epoch)
        if trainer.epoch + 1 == scores_after:
            notes["scores"] = trainer.pruner.scores

    return notes, {f.__name__: f for f in (on_train_batch_end, on_train_epoch_end)}


# nbs=16: gradients of four batches are summed, and of one to four in the warm-up.
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"nbs": BATCH}, {"nbs": 16, "warmup_epochs": 2}])
def test_a_run_is_that_of_a_plain_loop(squares, tmp_path, settings):
    notes, callbacks = followed()
    # Small steps: in larger ones rounding changes which boxes are assigned to which anchors.
    settings = {**settings, "close_mosaic": 2, "lr0": 1e-3, "warmup_bias_lr": 1e-3}
    ours = train(squares, tmp_path / "ours", callbacks=callbacks, **settings)
    plain_notes, callbacks = followed()
    plain = train(squares, tmp_path / "plain", PlainLoop, callbacks=callbacks, **settings)
    assert ours.pruner.saved_fraction == plain.pruner.saved_fraction > 0.29
    assert ours.ema.updates == plain.ema.updates  # optimizer steps
    if settings["nbs"] == BATCH:
        assert ours.ema.updates == sum(batches_of(ours.pruner))
    assert notes["rates"] == plain_notes["rates"]
    torch.testing.assert_close(notes["scores"], plain_notes["scores"], rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for one, other in zip(ours.ema.ema.parameters(), plain.ema.ema.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_at_weight_one_a_run_is_that_of_the_stock_trainer(squares, tmp_path):
    ours = train(squares, tmp_path / "ours", Unpruned, epochs=3, close_mosaic=1)
    stock = train(squares, tmp_path / "stock", StockInThatOrder, epochs=3, close_mosaic=1)
    assert ours.ema.updates == stock.ema.updates
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_budget_is_met_and_shown(squares, tmp_path, monkeypatch):
    bars, logged = [], []
    stock_bar = engine.TQDM

    def bar(*args, **kwargs):
        bars.append(stock_bar(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(engine, "TQDM", bar)
    notes, callbacks = followed()
    callbacks["on_fit_epoch_end"] = lambda trainer: logged.append(
        trainer.metrics.get("infobatch/saved_fraction")
    )
    trainer = train(squares, tmp_path, callbacks=callbacks, plots=True, cos_lr=True)
    pruner = trainer.pruner
    saved = [1 - sum(r.kept for r in pruner.history[: n + 1]) / 24 / (n + 1) for n in range(EPOCHS)]
    assert pruner.saved_fraction == pytest.approx(0.3, abs=HALF_BATCH / EPOCHS)
    assert [record.trained for record in pruner.history] == [r.kept for r in pruner.history]
    assert [(b.n, b.total) for b in bars] == [(n, n) for n in batches_of(pruner)]
    assert engine.TQDM is bar
    # The last call is of the final validation of the best checkpoint, after training.
    assert logged[:-1] == pytest.approx(saved)
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["infobatch/saved_fraction"]) for row in rows] == pytest.approx(
        saved, abs=1e-5
    )
    kept = [record.kept / IMAGES for record in pruner.history]
    assert [float(row["infobatch/kept_fraction"]) for row in rows] == pytest.approx(kept, abs=1e-5)
    assert (tmp_path / "run" / "results.png").exists()
    at_end = dict(notes["rates"])  # the rate of each epoch's last batch
    args = trainer.args
    cosine = [(1 - math.cos(e * math.pi / EPOCHS)) / 2 * (args.lrf - 1) + 1 for e in range(EPOCHS)]
    assert at_end[EPOCHS - 1] == pytest.approx(args.lr0 * cosine[-1])
    assert at_end[3] == pytest.approx(args.lr0 * cosine[3])  # warm-up is over after 3 epochs


@pytest.mark.slow
def test_the_saving_is_in_tensorboard(squares, tmp_path):
    """In a process of its own: Ultralytics turns TensorBoard off where tests run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    tests = ("PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")
    environment = {name: v for name, v in os.environ.items() if name not in tests}
    done = subprocess.run(
        [sys.executable, tensorboard_run.__file__, str(squares), str(tmp_path)],
        env={**environment, "PYTHONPATH": paths, "YOLO_CONFIG_DIR": str(tmp_path / "settings")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    values = [event.value for event in events.Scalars("infobatch/saved_fraction")]
    assert values == pytest.approx([0, 8 / 48, 16 / 72])


def mosaic_probability(dataset):
    left, found = list(dataset.transforms.transforms), []
    while left:
        one = left.pop()
        left += getattr(one, "transforms", [])
        found += [one.p] if type(one).__name__ == "Mosaic" else []
    return max(found, default=0.0)


def noting(collate, dataset, file, samples):
    """Which process has made which batch, and whether it makes mosaics."""
    with file.open("a") as out:
        out.write(f"{os.getpid()} {mosaic_probability(dataset)}\n")
    return collate(samples)


def test_workers_live_on_until_mosaic_closes_and_load_no_batch_in_vain(squares, tmp_path):
    file = tmp_path / "batches"
    per_epoch = []

    class Noting(Budget):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.args.workers = 2  # which Ultralytics sets to 0 where there is no GPU

        def get_dataloader(self, dataset_path, batch_size=16, rank=0, mode="train"):
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
            if mode == "train":
                dataset = loader.dataset
                loader.loader.collate_fn = partial(noting, loader.collate_fn, dataset, file)
            return loader

    def on_train_epoch_end(trainer):
        lines = file.read_text().splitlines()[sum(map(len, per_epoch)) :]
        per_epoch.append([line.split() for line in lines])

    callbacks = {"on_train_epoch_end": on_train_epoch_end}
    trainer = train(squares, tmp_path, Noting, callbacks=callbacks, close_mosaic=2)
    assert trainer.pruner.epoch == EPOCHS
    assert list(map(len, per_epoch)) == batches_of(trainer.pruner)
    workers = [{pid for pid, _ in lines} for lines in per_epoch]
    assert len(workers[0]) == 2
    assert len(set.union(*workers[:4])) == len(set.union(*workers[4:])) == 2
    assert not set.union(*workers[:4]) & set.union(*workers[4:])
    assert [{float(p) for _, p in lines} for lines in per_epoch] == [{1.0}] * 4 + [{0.0}] * 2
    assert trainer.train_loader.loader._iterator is None  # no worker is left behind


@pytest.mark.parametrize(
    "settings",
    [
        {"multi_scale": 0.5, "imgsz": 128, "single_cls": True, "cache": True, "freeze": 2},
        {"fraction": 0.5, "batch": -1, "cls_pw": 0.5, "optimizer": "auto", "mixup": 0.5},
        {"batch": 5, "copy_paste": 0.5, "cutmix": 0.5, "save_period": 1, "mosaic": 0.0},
    ],
    ids="-".join,
)
def test_settings_of_the_trainer(squares, tmp_path, settings):
    trainer = train(squares, tmp_path, epochs=3, **settings)
    pruner = trainer.pruner
    assert pruner.num_samples == IMAGES * settings.get("fraction", 1)
    assert pruner.epoch == 3
    assert pruner.saved_fraction == pytest.approx(0.3, abs=HALF_BATCH / 3)
    assert [record.trained for record in pruner.history] == [r.kept for r in pruner.history]
    assert not np.isnan(pruner.scores.numpy()).any()


def test_early_stopping_and_a_users_callbacks(squares, tmp_path):
    class NoProgress(Budget):
        def validate(self):
            return super().validate()[0], 0.5

    notes, callbacks = followed()
    trainer = train(squares, tmp_path, NoProgress, callbacks=callbacks, val=True, patience=2)
    assert notes["epochs"] == [0, 1, 2]
    assert trainer.pruner.epoch == 3


# --- resume and recovery ------------------------------------------------------------------------


@pytest.mark.slow
def test_resume_goes_on_where_the_run_broke(squares, tmp_path):
    plans = {}

    def run(name, crash_in=None, **settings):
        notes, callbacks = followed()
        plans[name] = {}

        def on_train_batch_start(trainer):
            plans[name][trainer.epoch] = trainer.pruner.plan.indices.tolist()

        def on_train_epoch_end(trainer):
            if trainer.epoch == crash_in:
                raise KeyboardInterrupt

        callbacks |= {f.__name__: f for f in (on_train_batch_start, on_train_epoch_end)}
        settings = {"warmup_epochs": 4, "save_period": 1, "nbs": 16, **settings}
        return notes, partial(train, squares, callbacks=callbacks, **settings)

    whole_notes, whole = run("whole")
    whole = whole(tmp_path / "whole")
    _, broken = run("broken", crash_in=3)
    with pytest.raises(KeyboardInterrupt):
        broken(tmp_path / "broken")
    weights = tmp_path / "broken" / "run" / "weights"
    before = copy.deepcopy(torch.load(weights / "infobatch.pt", weights_only=True))
    with pytest.raises(StateError, match=r"after 3 epochs, the checkpoint after 2.*last\.pt"):
        train(squares, tmp_path / "broken", model=str(weights / "epoch1.pt"), resume=True)

    notes, resumed = run("resumed")
    resumed = resumed(tmp_path / "broken", model=str(weights / "last.pt"), resume=True)
    pruner = resumed.pruner
    assert pruner.epoch == EPOCHS
    assert [r.kept for r in pruner.history] == [r.kept for r in whole.pruner.history]
    assert str(pruner.history[:3]) == str(restored(before).history)
    assert min(plans["resumed"]) == 3
    assert plans["resumed"][3] == plans["broken"][3]  # the scores were those of the broken run
    # Within the warm-up, which goes over into epoch 4.
    assert notes["rates"] == [rate for rate in whole_notes["rates"] if rate[0] >= 3]


class WithPolicy(PrunedDetectionTrainer):
    pruning: ClassVar = {"policy": BudgetThreshold(), "budget": 0.7}


def test_another_policy(squares, tmp_path):
    pruner = train(squares, tmp_path, WithPolicy).pruner
    assert isinstance(pruner.policy, BudgetThreshold)
    assert pruner.saved_fraction == pytest.approx(0.3, abs=1e-2)


def restored(state):
    pruner = InfoBatch(IMAGES, EPOCHS, **Budget.pruning)
    pruner.load_state_dict(state)
    return pruner


def test_a_run_of_the_stock_trainer_is_not_resumed(squares, tmp_path):
    def crash(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    callbacks = {"on_train_epoch_end": crash}
    with pytest.raises(KeyboardInterrupt):
        train(squares, tmp_path, DetectionTrainer, callbacks=callbacks)
    last = tmp_path / "run" / "weights" / "last.pt"
    with pytest.raises(StateError, match="stock trainer"):
        train(squares, tmp_path, model=str(last), resume=True)


def test_an_epoch_that_is_made_again_after_nan(squares, tmp_path):
    broken, plans = [], []

    def note(trainer):
        if trainer.epoch == 2:
            plans.append(trainer.pruner.plan.indices.tolist())

    def break_once(trainer):
        if trainer.epoch == 2 and not broken:
            broken.append(trainer.pruner.epoch)
            trainer.loss = torch.tensor(float("nan"))

    callbacks = {"on_train_epoch_end": break_once, "on_train_batch_start": note}
    trainer = train(squares, tmp_path, callbacks=callbacks)
    assert broken == [3]
    half = len(plans) // 2
    assert plans[:half] == plans[half:] != []
    assert [record.epoch for record in trainer.pruner.history] == list(range(EPOCHS))
    assert trainer.pruner.saved_fraction == pytest.approx(0.3, abs=HALF_BATCH / EPOCHS)


@pytest.mark.parametrize("when", ["preprocess_batch", "scaler"])
def test_an_epoch_that_is_made_again_with_smaller_batches(squares, tmp_path, when):
    """Where memory runs out, before the losses have come, or after."""

    class OutOfMemory(Budget):
        left = 3

        def fail_in_time(self):
            type(self).left -= 1
            if self.left == 0:
                raise RuntimeError("CUDA out of memory")

        def preprocess_batch(self, batch):
            if when == "preprocess_batch":
                self.fail_in_time()
            return super().preprocess_batch(batch)

        def _setup_train(self):
            super()._setup_train()
            stock = self.scaler.scale

            def scale(loss):
                if when == "scaler":
                    self.fail_in_time()
                return stock(loss)

            self.scaler.scale = scale

    trainer = train(squares, tmp_path, OutOfMemory, epochs=3)
    assert trainer.batch_size == trainer.train_loader.batch_size == BATCH // 2
    assert [record.epoch for record in trainer.pruner.history] == list(range(3))
    assert [record.trained for record in trainer.pruner.history] == [
        record.kept for record in trainer.pruner.history
    ]
    assert trainer.pruner.saved_fraction == pytest.approx(0.3, abs=0.01)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rect": True}, "rect=False"),
        ({"time": 0.1}, "epochs="),
        ({"distill_model": "yolov8s.pt"}, "no teacher"),
        ({"model": "yolov8n-seg.yaml"}, "task='segment'"),
        ({"model": "yolov8n-pose.yaml"}, "task='pose'"),
        ({"model": "yolov8n-obb.yaml"}, "task='obb'"),
        ({"model": "yolov8n-cls.yaml", "data": "pictures"}, "task='classify'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(squares, tmp_path, settings, message):
    if "data" in settings:  # the form that classification wants
        for part in ("train", "val"):
            shutil.copytree(squares.parent / "images" / part, tmp_path / "pictures" / part / "red")
        settings = {**settings, "data": str(tmp_path / "pictures")}
    with pytest.raises(MisalignedUpdateError, match=message):
        train(squares, tmp_path, **settings)


@pytest.mark.parametrize("device", ["0,1", [0, 1]])
def test_several_devices_are_refused(squares, tmp_path, monkeypatch, device):
    monkeypatch.setattr(engine, "select_device", lambda *args, **kwargs: torch.device("cuda", 0))
    with pytest.raises(MisalignedUpdateError, match="one device"):
        train(squares, tmp_path, device=device)


def test_a_model_with_another_loss_is_refused():
    model = SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False)
    model.args = copy.copy(DEFAULT_CFG)
    with pytest.raises(MisalignedUpdateError, match="v8SegmentationLoss"):
        _PrunedCriterion(model.init_criterion(), InfoBatch(5, 2), model)
