"""PyTorch-Ignite itself, through the twenty lines that docs/hosts.md shows for any other host."""

import math
import textwrap

import pytest
import torch
import torch.nn.functional as F
from examples.ignite_digits import build_model, digits
from ignite.engine import Engine, Events
from tests.hosts.loops import ignite_run
from tests.hosts.loops.ignite_run import BATCH, EPOCHS, train
from tests.hosts.support import ROOT, Run, assert_same, torchrun
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.schedule import ProgressScheduler


@pytest.fixture(scope="module")
def plain():
    data, model = digits(), build_model()
    pruner = InfoBatch(data, EPOCHS)
    loader = DataLoader(data, BATCH, sampler=pruner.sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    total = EPOCHS * math.ceil(len(data) / BATCH)
    schedule = ProgressScheduler(OneCycleLR(optimizer, 0.2, total_steps=total), pruner)
    rates = []
    for _ in range(EPOCHS):
        for x, y in loader:
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            pruner.update(F.cross_entropy(model(x), y, reduction="none")).backward()
            optimizer.step()
            schedule.step()
    weights = [p.detach().clone() for p in model.parameters()]
    return Run(len(rates), rates, pruner.scores, pruner.history, weights, pruner.saved_fraction)


def test_a_run_is_that_of_a_plain_loop(plain):
    run, epochs, state = train()
    assert_same(run, plain)
    assert epochs == [(epoch, epoch) for epoch in range(1, EPOCHS + 1)]
    assert state.metrics["infobatch/saved_fraction"] == plain.saved > 0.15
    assert state.metrics["progress"] == 1.0


@pytest.mark.parametrize("step", [13, 25, 36])
def test_a_killed_run_goes_on_within_the_epoch(plain, step, tmp_path):
    train(folder=tmp_path, kill_at=step)
    run, *_ = train(folder=tmp_path)
    saved_at = step - step % 10
    run.rates, run.steps = plain.rates[:saved_at] + run.rates, saved_at + run.steps
    assert_same(run, plain)


def test_an_epoch_may_be_left_early():
    run, epochs, _ = train(terminate_at=4)
    assert [record.trained for record in run.history] == [4 * BATCH] * EPOCHS
    assert epochs == [(epoch, epoch) for epoch in range(1, EPOCHS + 1)]


@pytest.mark.slow
def test_two_processes_are_one_with_the_double_batch(plain, tmp_path):
    torchrun(ignite_run.__file__, 2, tmp_path)
    for rank in range(2):
        run, resumed = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert_same(run, plain, exact=False)
        resumed.rates, resumed.steps = run.rates[:30] + resumed.rates, 30 + resumed.steps
        assert_same(resumed, run)


def test_without_the_lines_ignite_cuts_epochs_at_the_length_of_the_first():
    """What they are for: the run then ends after fewer epochs than it was asked for."""
    pruner = InfoBatch(100, 6)
    loader = DataLoader(range(100), 10, sampler=pruner.sampler)
    trainer = Engine(lambda engine, batch: pruner.update(batch.float()))
    lengths = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: lengths.append((engine.state.epoch, pruner.epoch))
    )
    with pytest.raises(Exception, match="epochs are over"):
        trainer.run(loader, max_epochs=6)
    assert any(host != ours for host, ours in lengths)


def test_the_guide_shows_the_lines_that_are_tested():
    page = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    section = page[page.index("## Any other host") :]
    shown = section.split("```text\n")[1].split("```")[0]
    source = (ROOT / "examples" / "ignite_digits.py").read_text(encoding="utf-8")
    assert "def follow(" in shown
    assert shown in source, "docs/hosts.md differs from examples/ignite_digits.py"
    assert len(textwrap.dedent(shown).split("\n")) <= 30
