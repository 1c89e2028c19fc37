import copy
import re
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from tests.hosts.loops import lightning_run
from tests.hosts.loops.lightning_run import PACKAGES, build_net, fit, package
from tests.hosts.support import BATCH, EPOCHS, assert_same, digits, plain_run, torchrun
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.errors import DistributedError, EpochError, MisalignedUpdateError, StateError


@pytest.mark.parametrize("name", PACKAGES)
def test_a_run_is_that_of_a_plain_loop(name):
    run, net, _ = fit(name)
    assert_same(run, plain_run())
    assert net.estimated == 16 * EPOCHS  # that of a full run, to which the schedule was built
    assert net.lengths[-1] == 16 > min(net.lengths)  # it grows again at the end
    assert net.validated == sorted(net.validated)
    assert set(net.validated) == set(range(EPOCHS))  # in short epochs too


def test_a_budget_is_met():
    run, net, trainer = fit(settings={"budget": 0.7})
    assert_same(run, plain_run(budget=0.7))
    assert (
        trainer.global_step
        == sum(net.lengths)
        == InfoBatch(digits(), EPOCHS, budget=0.7).total_steps(BATCH)
    )


def test_accumulated_gradients():
    run, _, _ = fit(accumulate_grad_batches=3)
    assert_same(run, plain_run(accumulate=3))


def test_workers_that_persist():
    run, _, _ = fit(workers=2)
    assert_same(run, plain_run())


def test_limited_batches_are_a_part_of_each_epoch():
    run, net, _ = fit(limit_train_batches=0.5)
    assert_same(run, plain_run(limit=0.5))
    assert net.lengths[0] == 8 > min(net.lengths)
    run, net, _ = fit(limit_train_batches=12)
    assert max(net.lengths) == 12 > min(net.lengths)


@pytest.mark.parametrize(
    ("every", "validations"),
    [
        ({"check_val_every_n_epoch": 3}, [2, 5]),
        ({"val_check_interval": 0.5}, 2),
        ({"val_check_interval": 8}, 1),
        ({"val_check_interval": "00:01:00:00"}, 0),
    ],
)
def test_validation_runs_when_it_should(every, validations):
    _, net, _ = fit(**every)
    batches = 5  # of the validation loader
    if isinstance(validations, list):
        assert net.validated == [epoch for epoch in validations for _ in range(batches)]
    else:
        times = [net.validated.count(epoch) // batches for epoch in range(EPOCHS)]
        assert times[1:-1] == [validations] * (EPOCHS - 2)


def test_metrics_reach_the_logger(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pl, _ = package("lightning")
    run, _, trainer = fit(logger=pl.loggers.TensorBoardLogger(tmp_path))
    assert float(trainer.callback_metrics["infobatch/saved_fraction"]) == pytest.approx(run.saved)
    events = EventAccumulator(trainer.logger.log_dir).Reload().Scalars("infobatch/kept_fraction")
    assert [e.value for e in events] == pytest.approx([r.kept / r.total for r in run.history])


def test_the_progress_bar_counts_to_the_length_of_each_epoch(capsys):
    pl, _ = package("lightning")

    totals = []

    class Bar(pl.callbacks.TQDMProgressBar):
        def on_train_epoch_end(self, *args):
            totals.append((self.train_progress_bar.n, self.train_progress_bar.total))
            super().on_train_epoch_end(*args)

    _, net, _ = fit(callbacks=[Bar()], enable_progress_bar=True)
    assert totals == [(length, length) for length in net.lengths]


def save_while_training(folder, when, **settings):
    """A checkpoint after each of some steps; {step: file}."""
    pl, _ = package(settings.get("name", "lightning"))
    saves = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, **when)
    fit(callbacks=[saves], enable_checkpointing=True, **settings)
    return {int(re.search(r"step=(\d+)", file.name)[1]): file for file in folder.iterdir()}


def assert_resumes(checkpoint, step, reference, **settings):
    run, net, _ = fit(ckpt=checkpoint, **settings)
    run.rates = reference.rates[:step] + run.rates
    assert_same(run, reference)
    return net


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_while_training(folder, {"every_n_train_steps": 5})
    return save_while_training(folder, {"every_n_train_steps": 16})


# Within the first epoch, at its end, within a pruned one, at the end of the last pruned one.
@pytest.mark.parametrize("step", [5, 16, 25, 40, 65, 80])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_as_never_having_stopped(checkpoints, step, workers):
    net = assert_resumes(checkpoints[step], step, plain_run(), workers=workers)
    assert net.estimated == 16 * EPOCHS


# Each has checkpoints made with the last batch of an epoch, which the trainer closes otherwise.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "settings", "plain"),
    [
        ({}, {}, {}),
        ({"save_on_train_epoch_end": False}, {"val_check_interval": 0.5}, {}),
        ({"every_n_train_steps": 7}, {"accumulate_grad_batches": 3}, {"accumulate": 3}),
        ({"every_n_train_steps": 3}, {"limit_train_batches": 0.5}, {"limit": 0.5}),
        ({"every_n_train_steps": 9}, {"name": "pytorch_lightning"}, {}),
    ],
    ids=["epoch end", "after validation", "accumulated", "limited", "pytorch_lightning"],
)
def test_every_checkpoint_of_a_run_resumes(tmp_path, when, settings, plain):
    reference, files = plain_run(**plain), save_while_training(tmp_path, when, **settings)
    assert len(files) > 4
    for step, file in files.items():
        assert_resumes(file, step, reference, **settings)


def test_a_strategy_may_restore_late_as_sharded_ones_do(checkpoints):
    pl, _ = package("lightning")

    class Late(pl.strategies.SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    for step in (5, 25):  # in the first epoch nothing else would show that no state was loaded
        strategy = {"strategy": Late("cpu"), "accelerator": "auto"}
        assert_resumes(checkpoints[step], step, plain_run(), **strategy)


def test_validating_a_checkpoint_does_not_resume_the_next_fit(checkpoints):
    pl, callback = package("lightning")
    data, pruner = digits(), InfoBatch(digits(), EPOCHS)
    settings = {**lightning_run.QUIET, "max_epochs": EPOCHS, "callbacks": [callback(pruner)]}
    trainer = pl.Trainer(**settings)
    trainer.validate(build_net(pl), DataLoader(data, 100), ckpt_path=checkpoints[25])
    trainer.fit(build_net(pl), DataLoader(data, BATCH, sampler=pruner.sampler))
    assert trainer.global_step == plain_run().steps


@pytest.mark.parametrize("stop", ["callback", "max_time"])
def test_a_run_that_was_stopped_resumes(tmp_path, stop):
    pl, _ = package("lightning")

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 20:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                trainer.should_stop = stop == "callback"
                time.sleep(2 * (stop == "max_time"))

    limit = {"max_time": {"seconds": 2}} if stop == "max_time" else {}
    run, net, _ = fit(callbacks=[Stop()], **limit)
    assert net.pruner.history[-1].trained < net.pruner.history[-1].kept
    assert run.steps < 25
    assert_resumes(tmp_path / "stopped.ckpt", 20, plain_run())


def test_loaders_built_anew_for_each_epoch():
    pl, callback = package("lightning")
    net, data, pruner = build_net(pl), digits(), InfoBatch(digits(), EPOCHS)
    net.train_dataloader = lambda: DataLoader(data, BATCH, sampler=pruner.sampler)
    settings = {"max_epochs": EPOCHS, "reload_dataloaders_every_n_epochs": 1}
    pl.Trainer(**lightning_run.QUIET, **settings, callbacks=[callback(pruner)]).fit(net)
    assert net.rates == pytest.approx(plain_run().rates, rel=1e-9)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_in_a_plain_loop(algorithm):
    run, _, _ = fit(gradient_clip_val=0.05, gradient_clip_algorithm=algorithm)
    assert_same(run, plain_run(clip=algorithm))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision):
    run, net, _ = fit(precision=precision)
    assert net.lengths[-1] == 16 > min(net.lengths)
    reference = plain_run()
    assert run.saved == pytest.approx(reference.saved, abs=0.02)
    assert run.history[0].mean_loss == pytest.approx(reference.history[0].mean_loss, rel=0.02)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(lightning_run.__file__, 2, folder)
    return folder


@pytest.mark.parametrize("task", lightning_run.TASKS)
def test_two_processes_are_one_with_the_double_batch(two_processes, task):
    settings = lightning_run.TASKS[task]
    reference = plain_run(accumulate=settings.get("accumulate_grad_batches", 1))
    for rank in range(2):
        run, resumed = torch.load(two_processes / f"{task}-{rank}.pt", weights_only=False)
        assert_same(run, reference, exact=False)
        assert_same(resumed, run)


def test_several_optimizers_in_manual_optimization():
    pl, callback = package("lightning")

    class Two(pl.LightningModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.model = lightning_run.build_model()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.model[0], self.model[2])
            ]

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = self.pruner.update(F.cross_entropy(self.model(x), y, reduction="none"))
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    data = digits()
    pruner = InfoBatch(data, EPOCHS)
    settings = {**lightning_run.QUIET, "max_epochs": EPOCHS, "callbacks": [callback(pruner)]}
    pl.Trainer(**settings).fit(Two(), DataLoader(data, BATCH, sampler=pruner.sampler))
    assert pruner.epoch == EPOCHS
    assert pruner.saved_fraction > 0.1


def test_beside_another_loader():
    pl, callback = package("lightning")
    data, pruner = digits(), InfoBatch(digits(), EPOCHS)
    other = DataLoader(TensorDataset(torch.zeros(10_000)), BATCH)

    class Both(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = lightning_run.build_model()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def training_step(self, batch, batch_idx):
            x, y = batch["labelled"]
            return self.pruner.update(F.cross_entropy(self.model(x), y, reduction="none"))

    def run(mode, pruner):
        loaders = {"labelled": DataLoader(data, BATCH, sampler=pruner.sampler), "other": other}
        settings = {**lightning_run.QUIET, "max_epochs": EPOCHS, "callbacks": [callback(pruner)]}
        pl.Trainer(**settings).fit(Both(), pl.utilities.CombinedLoader(loaders, mode))

    run("min_size", pruner)
    assert pruner.epoch == EPOCHS
    with pytest.raises(MisalignedUpdateError, match="min_size"):
        run("max_size_cycle", InfoBatch(data, EPOCHS))


def test_what_does_not_go_together_is_refused(tmp_path, checkpoints):
    pl, callback = package("lightning")
    with pytest.raises(EpochError, match="got 5"):
        fit(max_epochs=5)
    with pytest.raises(EpochError, match="num_epochs=8"):
        fit(max_epochs=-1)
    with pytest.raises(EpochError, match="max_steps=50"):
        fit(max_steps=50)
    with pytest.raises(StateError, match="sharded"):
        fit(settings={"sharded": True})
    with pytest.raises(DistributedError, match="rank 0 of 1"):
        fit(settings={"rank": 1, "world_size": 2})
    with pytest.raises(ValueError, match="overfit_batches"):
        fit(overfit_batches=2)
    with pytest.raises(TypeError, match="InfoBatch or a DataPruner"):
        callback(digits())
    done = InfoBatch(digits(), EPOCHS)
    fit(pruner=done)
    with pytest.raises(StateError, match="stands at epoch 8"):
        fit(pruner=done)

    data, other = digits(), InfoBatch(digits(), EPOCHS)
    trainer = pl.Trainer(
        **{**lightning_run.QUIET, "max_epochs": EPOCHS, "callbacks": [callback(other)]}
    )
    with pytest.raises(MisalignedUpdateError, match=r"sampler=pruner\.sampler"):
        trainer.fit(build_net(pl), DataLoader(data, BATCH, shuffle=True))

    saved = torch.load(checkpoints[25], weights_only=False)
    without = copy.copy(saved)
    without["callbacks"] = {}
    torch.save(without, tmp_path / "without.ckpt")
    with pytest.raises(StateError, match="saved with this callback"):
        fit(ckpt=Path(tmp_path / "without.ckpt"))


def test_a_fast_dev_run_does_not_count():
    pruner = InfoBatch(digits(), EPOCHS)
    run, _, _ = fit(pruner=pruner, fast_dev_run=True)
    assert run.steps == 1
    assert not run.history
    assert torch.isnan(pruner.scores).all()
    run, _, _ = fit(pruner=pruner)
    assert_same(run, plain_run())


# ------------------------------------------------------------------ finders, averages, no loss


class Tunable:
    """A module that makes its loaders, for what is to be found before or while it is trained."""

    def __init__(self, folder, *, name="lightning", workers=0, callbacks=()):
        self.pl, callback = package(name)
        data, self.pruner = digits(), InfoBatch(digits(), EPOCHS)
        self.net = build_net(self.pl)
        self.net.lr, self.net.batch_size = 0.1, BATCH
        self.net.train_dataloader = lambda: DataLoader(
            data, self.net.batch_size, sampler=self.pruner.sampler, num_workers=workers
        )
        self.net.val_dataloader = lambda: DataLoader(data, 100)
        settings = {**lightning_run.QUIET, "max_epochs": EPOCHS, "default_root_dir": folder}
        self.trainer = self.pl.Trainer(**settings, callbacks=[callback(self.pruner), *callbacks])

    def assert_untouched(self):
        assert self.pruner.epoch == 0
        assert not self.pruner.is_within_epoch
        assert torch.isnan(self.pruner.scores).all()

    def assert_fits_as_a_plain_loop(self):
        self.net.rates.clear()
        self.trainer.fit(self.net)
        assert self.net.rates == pytest.approx(plain_run().rates, rel=1e-9)
        assert [r.trained for r in self.pruner.history] == [r.kept for r in plain_run().history]
        torch.testing.assert_close(self.pruner.scores, plain_run().scores)


# Within the first epoch, and over several.
@pytest.mark.parametrize("steps", [5, 40])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_search_for_the_learning_rate_leaves_no_trace(tmp_path, name, steps, workers):
    run = Tunable(tmp_path, name=name, workers=workers)
    run.net.configure_optimizers = lambda: torch.optim.SGD(run.net.parameters(), run.net.lr)
    tuner = run.pl.tuner.Tuner(run.trainer)
    tuner.lr_find(run.net, num_training=steps, update_attr=False)
    run.assert_untouched()
    del run.net.configure_optimizers
    run.assert_fits_as_a_plain_loop()


@pytest.mark.parametrize("mode", ["power", "binsearch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_search_for_the_batch_size_leaves_no_trace(tmp_path, mode, workers):
    run = Tunable(tmp_path, workers=workers)
    tuner = run.pl.tuner.Tuner(run.trainer)
    tuner.scale_batch_size(run.net, mode=mode, init_val=4, max_trials=4, margin=0.0)
    assert run.net.batch_size == 32
    run.assert_untouched()
    run.assert_fits_as_a_plain_loop()


# Epochs at whose start a search comes; None: before the first, as the callback's own way is.
@pytest.mark.parametrize("epochs", [None, (0, 3)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_finder_may_be_a_callback(tmp_path, epochs, workers):
    class Finder(package("lightning")[0].callbacks.LearningRateFinder):
        def on_fit_start(self, trainer, pl_module):
            if epochs is None:
                super().on_fit_start(trainer, pl_module)

        def on_train_epoch_start(self, trainer, pl_module):
            if epochs is not None and trainer.current_epoch in epochs:
                self.lr_find(trainer, pl_module)

    run = Tunable(tmp_path, workers=workers, callbacks=[Finder(num_training_steps=20)])
    run.net.configure_optimizers = lambda: torch.optim.SGD(run.net.parameters(), run.net.lr)
    run.trainer.fit(run.net)
    kept = [record.kept for record in run.pruner.history]
    assert [record.trained for record in run.pruner.history] == kept
    assert len(kept) == EPOCHS
    assert kept[0] == kept[-1] == 500 > min(kept)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_weight_averaging_passes_over_the_data_once_more_for_batch_norm(accumulate):
    pl, _ = package("lightning")
    net = build_net(pl)
    net.model.insert(1, torch.nn.BatchNorm1d(32))
    pruner = InfoBatch(digits(), EPOCHS)
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.5)
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.1)
    run, _, _ = fit(
        net=net, pruner=pruner, callbacks=[averaging], accumulate_grad_batches=accumulate
    )
    assert len(run.history) == EPOCHS
    assert [record.trained for record in run.history] == [record.kept for record in run.history]
    assert int(net.model[1].num_batches_tracked) == 16  # one pass over all 500 samples
    inputs = net.model[0](digits()[:][0])
    torch.testing.assert_close(net.model[1].running_mean, inputs.mean(0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("left_out", [[0], [5, 6], [-3], [-1]])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_without_a_loss_shifts_no_score(left_out, workers):
    """Items are their own number, and a sample's loss is told by it."""
    pl, callback = package("lightning")
    pruner, due = InfoBatch(500, EPOCHS), torch.full((500,), torch.nan)

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def training_step(self, numbers, batch_idx):
            batches = self.trainer.num_training_batches
            if batch_idx in [place % batches for place in left_out] and self.current_epoch != 1:
                return None
            due[numbers] = numbers + self.current_epoch / 10
            return self.pruner.update(self.weight * due[numbers])

    loader = DataLoader(range(500), BATCH, sampler=pruner.sampler, num_workers=workers)
    settings = {**lightning_run.QUIET, "max_epochs": EPOCHS, "callbacks": [callback(pruner)]}
    if left_out == [0] and workers:  # what workers load before the callback can say what is read
        pruner.sampler.batches_ahead = 0
    pl.Trainer(**settings).fit(Net(), loader)
    torch.testing.assert_close(pruner.scores, due, equal_nan=True)
    for record in pruner.history:
        assert record.trained + record.left_out == record.kept
        assert (record.left_out > 0) == (record.epoch != 1)


# ------------------------------------------------------------------ Fabric


@pytest.mark.parametrize("workers", [0, 2])
def test_fabric_counts_epochs_by_itself_and_the_error_says_what_to_write(workers):
    """It announces as many epochs as its loader was iterated, a look at a batch among them."""
    fabric, data = Fabric(accelerator="cpu", devices=1), digits()

    def start():
        pruner, model = InfoBatch(data, EPOCHS), lightning_run.build_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(data, BATCH, sampler=pruner.sampler, num_workers=workers)
        return pruner, *fabric.setup(model, optimizer), fabric.setup_dataloaders(loader)

    def train(pruner, model, optimizer, loader):
        for _ in range(EPOCHS):
            for x, y in loader:
                losses = F.cross_entropy(model(x), y, reduction="none")
                fabric.backward(pruner.update(losses))
                optimizer.step()
                optimizer.zero_grad()

    plain = start()
    train(*plain)
    looked = start()
    next(iter(looked[-1]))
    with pytest.raises(EpochError, match=r"pruner\.sampler\.host_counts_epochs = False"):
        train(*looked)
    looked = start()
    looked[0].sampler.host_counts_epochs = False
    next(iter(looked[-1]))
    train(*looked)
    assert looked[0].epoch == EPOCHS
    assert looked[0].saved_fraction > 0.1
    assert torch.equal(looked[0].scores, plain[0].scores)
