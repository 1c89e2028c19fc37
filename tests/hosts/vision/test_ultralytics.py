import copy
import csv
from typing import ClassVar

import pytest
import torch
from tests.hosts.vision.ultralytics_data import write_squares
from ultralytics import YOLO
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from infobatch import InfoBatch
from infobatch.errors import MisalignedUpdateError, StateError
from infobatch.integrations.ultralytics import PrunedDetectionTrainer, _PrunedCriterion
from infobatch.loaders import planned_loader

EPOCHS = 6


class Budget(PrunedDetectionTrainer):
    pruning: ClassVar = {"budget": 0.7}


class Unpruned(PrunedDetectionTrainer):
    pruning: ClassVar = {"prune_ratio": 0.0}


class StockInThatOrder(DetectionTrainer):
    """The stock trainer, whose samples come in the order of an unpruned run."""

    def get_dataloader(self, dataset_path, batch_size=16, rank=0, mode="train"):
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode != "train":
            return loader
        pruner = InfoBatch(loader.dataset, self.epochs, prune_ratio=0.0)
        loader = planned_loader(loader, pruner)
        self.add_callback(
            "on_train_batch_end", lambda trainer: pruner.update(torch.ones(self.drawn()))
        )
        self.pruner, self.left = pruner, 24
        loader.reset = lambda: None
        return loader

    def drawn(self):
        return min(self.batch_size, self.pruner.sampler._remaining() - self.pruner._position)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"))


def train(squares, folder, trainer=Budget, model="yolov8n.yaml", callbacks=None, **settings):
    quiet = {"plots": False, "val": False, "amp": False, "verbose": False, "workers": 0}
    small = {"imgsz": 64, "batch": 4, "device": "cpu", "epochs": EPOCHS, "optimizer": "SGD"}
    yolo = YOLO(model)
    for event, function in (callbacks or {}).items():
        yolo.add_callback(event, function)
    given = {"data": str(squares), "project": str(folder), "name": "run", "exist_ok": True}
    yolo.train(trainer=trainer, **{**quiet, **small, **given, **settings})
    return yolo.trainer


def criterion_and_batch(name="yolov8n.yaml", images=5):
    torch.manual_seed(0)
    model = DetectionModel(name, nc=2, verbose=False)
    model.args = copy.copy(DEFAULT_CFG)
    model.train()
    batch = {
        "img": torch.rand(images, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 0, 1, 3, 4]),  # nothing on picture 2
        "cls": torch.tensor([[0.0], [1], [1], [0], [0]]),
        "bboxes": torch.rand(5, 4) * 0.2 + 0.3,
    }
    return model, batch


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
def test_the_images_losses_add_up_to_the_stock_loss_with_its_gradient(name):
    model, batch = criterion_and_batch(name)
    stock, stock_items = model.init_criterion()(model(batch["img"]), batch)
    learned = [p for p in model.parameters() if p.requires_grad]
    stock_gradients = torch.autograd.grad(stock.sum(), learned, allow_unused=True)

    pruner = InfoBatch(5, 2)
    ours = _PrunedCriterion(model.init_criterion(), pruner, model)
    next(iter(torch.utils.data.DataLoader(range(5), 5, sampler=pruner.sampler)))
    order = pruner.plan.indices
    loss, items = ours(model(batch["img"]), batch)
    gradients = torch.autograd.grad(loss.sum(), learned, allow_unused=True)

    torch.testing.assert_close(loss, stock)
    torch.testing.assert_close(items, stock_items)
    for one, other in zip(gradients, stock_gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pruner.scores.sum(), stock.sum().detach())
    assert pruner.scores[order[2]] == pruner.scores.min()  # the empty picture


def test_an_images_part_is_its_own_and_weights_scale_it():
    model, batch = criterion_and_batch()
    criterion = _PrunedCriterion(model.init_criterion(), InfoBatch(5, 2), model)
    preds = model(batch["img"])
    boxes = preds["boxes"]
    for image in range(5):
        criterion.losses, criterion.weights = (
            [],
            torch.nn.functional.one_hot(torch.tensor(image), 5).float() * 3,
        )
        loss, _ = criterion.criterion(preds, batch)
        torch.testing.assert_close(loss.sum(), 3 * criterion.losses[0][image])
        gradient = torch.autograd.grad(loss.sum(), boxes, retain_graph=True)[0]
        touched = gradient.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [i == image and image != 2 for i in range(5)]


def test_at_weight_one_a_run_is_that_of_the_stock_trainer(squares, tmp_path):
    ours = train(squares, tmp_path / "ours", Unpruned, epochs=3, close_mosaic=1)
    stock = train(squares, tmp_path / "stock", StockInThatOrder, epochs=3, close_mosaic=1)
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_budget_is_met_and_shown(squares, tmp_path, monkeypatch, workers):
    bars = []
    stock_bar = engine.TQDM

    def bar(*args, **kwargs):
        bars.append(stock_bar(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(engine, "TQDM", bar)
    rates = []
    trainer = train(
        squares,
        tmp_path,
        workers=workers,
        close_mosaic=2,
        callbacks={"on_train_epoch_end": lambda t: rates.append(t.optimizer.param_groups[0]["lr"])},
    )
    pruner = trainer.pruner
    assert pruner.saved_fraction == pytest.approx(0.3, abs=0.005)
    assert [record.trained for record in pruner.history] == [r.kept for r in pruner.history]
    assert [(b.n, b.total) for b in bars] == [(-(-r.kept // 4),) * 2 for r in pruner.history]
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["infobatch/saved_fraction"]) == pytest.approx(pruner.saved_fraction)
    assert rates == sorted(rates[:1]) + rates[1:]
    assert engine.TQDM is bar


def test_resume_goes_on_where_the_run_broke(squares, tmp_path):
    whole = train(squares, tmp_path / "whole")

    def crash(trainer):
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(squares, tmp_path / "broken", callbacks={"on_train_epoch_end": crash})
    last = tmp_path / "broken" / "run" / "weights" / "last.pt"
    resumed = train(squares, tmp_path / "broken", model=str(last), resume=True)
    assert [r.kept for r in resumed.pruner.history] == [r.kept for r in whole.pruner.history]
    assert resumed.pruner.epoch == EPOCHS
    same = resumed.pruner.history[:3], whole.pruner.history[:3]
    assert [r.threshold for r in same[0][1:]] == [r.threshold for r in same[1][1:]]

    with pytest.raises(KeyboardInterrupt):
        train(
            squares, tmp_path / "stock", DetectionTrainer, callbacks={"on_train_epoch_end": crash}
        )
    last = tmp_path / "stock" / "run" / "weights" / "last.pt"
    with pytest.raises(StateError, match="stock trainer"):
        train(squares, tmp_path / "stock", model=str(last), resume=True)


def test_an_epoch_that_the_trainer_makes_again_is_made_again(squares, tmp_path):
    broken = []

    def break_once(trainer):
        if trainer.epoch == 2 and not broken:
            broken.append(trainer.pruner.state_dict())
            trainer.loss = torch.tensor(float("nan"))

    trainer = train(squares, tmp_path, callbacks={"on_train_epoch_end": break_once})
    assert broken
    assert [record.epoch for record in trainer.pruner.history] == list(range(EPOCHS))


def test_what_does_not_go_together_is_refused(squares, tmp_path, monkeypatch):
    with pytest.raises(MisalignedUpdateError, match="rect=False"):
        train(squares, tmp_path, rect=True)
    with pytest.raises(MisalignedUpdateError, match="epochs="):
        train(squares, tmp_path, time=0.1)
    monkeypatch.setattr(engine, "select_device", lambda *args, **kwargs: torch.device("cuda", 0))
    with pytest.raises(MisalignedUpdateError, match="one device"):
        train(squares, tmp_path, device="0,1")
