import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.hosts.loops import lightning_run
from tests.hosts.loops.lightning_run import PACKAGES, build_net, fit, package
from tests.hosts.support import BATCH, EPOCHS, assert_same, digits, plain_run, torchrun
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.errors import EpochError, MisalignedUpdateError, StateError


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
    [({"check_val_every_n_epoch": 3}, [2, 5]), ({"val_check_interval": 0.5}, 2)],
)
def test_validation_runs_when_it_should(every, validations):
    _, net, _ = fit(**every)
    batches = 5  # of the validation loader
    if isinstance(validations, list):
        assert net.validated == [epoch for epoch in validations for _ in range(batches)]
    else:
        assert [net.validated.count(e) for e in range(EPOCHS)] == [validations * batches] * EPOCHS


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


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    pl, _ = package("lightning")
    for every in (5, 16):
        saves = pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1)
        fit(callbacks=[saves], enable_checkpointing=True)
    return {int(re.search(r"step=(\d+)", file.name)[1]): file for file in folder.iterdir()}


# Within the first epoch, at its end, within a pruned one, at the end of the last pruned one.
@pytest.mark.parametrize("step", [5, 16, 25, 40, 65, 80])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_as_never_having_stopped(checkpoints, step, workers):
    reference = plain_run()
    run, net, _ = fit(ckpt=checkpoints[step], workers=workers)
    run.rates = reference.rates[:step] + run.rates
    assert_same(run, reference)
    assert net.estimated == 16 * EPOCHS


def test_two_processes_are_one_with_the_double_batch(tmp_path):
    torchrun(lightning_run.__file__, 2, tmp_path, "ddp")
    reference = plain_run()
    for rank in range(2):
        run = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert_same(run, reference, exact=False)
        resumed = torch.load(tmp_path / f"resumed-{rank}.pt", weights_only=False)
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
    with pytest.raises(EpochError, match="max_epochs=5"):
        fit(max_epochs=5)
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


def test_fast_dev_run_passes():
    run, _, _ = fit(fast_dev_run=True)
    assert run.steps == 1
