"""What a task may be: inputs of any kind, a metric of either direction, options, own settings."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.lab.support import (
    DIGITS,
    digits,
    finish,
    run_command,
    run_compare,
    training_run,
)
from torch import nn

from infobatch.lab.command import app as commands
from infobatch.lab.errors import LabError, need
from infobatch.lab.report import plots
from infobatch.lab.report.summary import cells, summarise
from infobatch.lab.run.results import RunResult, read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.data import TensorData, take
from infobatch.lab.tasks.base.task import Metric, Option, Outcome, Task

ERROR = Metric("squared error", "", higher_is_better=False, margin=0.05, digits=3)


class Halves(nn.Module):
    """Takes a dict of inputs and gives a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(6, 2)

    def forward(self, left, right):
        return {"sum": self.line(torch.cat([left, right], 1))}


def halves_data() -> TensorData:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(260, 6, generator=generator)
    targets = inputs[:, :2] * 2 + 0.3 * torch.randn(260, 2, generator=generator)
    return TensorData(inputs[:200], targets[:200], inputs[200:], targets[200:])


def squared(outputs, targets, _smoothing=0.0):
    return F.mse_loss(outputs["sum"], targets, reduction="none").mean(1)


def halves(**changes) -> Task:
    return Task(
        **{
            "name": "halves",
            "description": "a line",
            "epochs": 6,
            "batch_size": 40,
            "lr": 0.1,
            "model": "line",
            "models": ("line",),
            "optimizer": "sgd",
            "weight_decay": 5e-4,
            "load": lambda _: halves_data(),
            "build": lambda _name, _width, _data: Halves(),
            "prepare": lambda rows, targets, _generator, _training: (
                {"left": rows[:, :3], "right": rows[:, 3:]},
                targets,
            ),
            "loss": squared,
            "evaluate": lambda run: Outcome(
                float(torch.cat([squared(o, t) for o, t in run.test_outputs()]).mean()),
                more={"weight": float(run.model.line.weight.detach().abs().sum())},
            ),
            "metric": ERROR,
            **changes,
        }
    )


def compared(task, out, arms, **changes):
    settings = Settings.of_task(task, {"device": "cpu", "data": "none", **changes})
    return run_compare(task, task.load(None), settings, arms, out, seeds=[0, 1])


# ------------------------------------------------------------------ inputs, outputs, scores


@pytest.mark.parametrize("arm", ["full", "infobatch", "random", "kakurenbo", "es", "orderdp"])
def test_a_model_may_take_and_give_dicts_in_every_kind_of_arm(arm, tmp_path):
    results = compared(halves(), tmp_path, ["full", arm], label_smoothing=0.0)
    for result in results:
        assert result.metric < 1.0  # targets have a variance of 4
        assert result.more["weight"] > 0
        assert result.worst_class is None


def test_samples_are_ranked_by_what_the_task_says():
    ranked = []

    def rank(outputs, targets):
        ranked.append(targets[:, 0].abs())
        return ranked[-1]

    run = training_run("infobatch", halves_data(), task=halves(rank=rank), limit_train=None)
    order = run.pruner.plan.indices
    run.run_epoch()
    expected = torch.empty(200)
    expected[order] = torch.cat(ranked)
    assert torch.equal(run.pruner.scores.float(), expected)


def test_some_samples_of_a_batch_are_taken_from_all_of_its_parts():
    parts = {"a": torch.arange(4), "b": (torch.arange(4) * 2, torch.eye(4))}
    taken = take(parts, torch.tensor([2, 0]))
    assert taken["a"].tolist() == [2, 0]
    assert taken["b"][0].tolist() == [4, 0]
    assert taken["b"][1].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("arm", ["static-el2n", "importance-sampling"])
def test_arms_that_need_logits_of_classes_say_so(arm, tmp_path):
    with pytest.raises(LabError, match=f"{arm} needs a task whose models give one logit"):
        compared(halves(), tmp_path, [arm])


def test_tasks_that_classify_and_no_others_have_such_logits():
    classify = {name for name, task in all_tasks().items() if task.by_class_logits}
    small = {"adult", "cifar10", "cifar100", "digits", "sentence-polarity"}
    assert classify == {*small, "finetune-image", "finetune-text", "imagenet"}


def test_arms_and_disturbances_that_need_classes_say_so(tmp_path):
    data = halves_data()
    with pytest.raises(LabError, match="infobatch-groups needs a task whose samples belong to"):
        compared(halves(), tmp_path, ["infobatch-groups"])
    with pytest.raises(LabError, match="label noise needs a classification task"):
        data.with_random_labels(0.1)
    with pytest.raises(LabError, match="--imbalance needs a classification task"):
        data.imbalanced(10.0)
    assert data.name_of(7) == "7"


# ------------------------------------------------------------------ metrics


def test_where_lower_is_better_a_gain_is_a_lower_metric(tmp_path):
    results = compared(halves(), tmp_path, ["full", "random", "fewer-epochs"])
    worse = [
        replace(result, metric=result.metric + 0.2) if result.arm == "random" else result
        for result in results
    ]
    (comparison,) = summarise(worse)
    full, random = (
        next(row for row in comparison.rows if row.arm == arm) for arm in ("full", "random")
    )
    assert comparison.metric == ERROR
    assert random.difference.mean == pytest.approx(full.metric - random.metric)
    assert random.difference.mean < -ERROR.margin
    assert random.reached <= full.reached == 2
    assert cells(random)[1].startswith(f"{random.metric:.3f} ± ")
    assert f"{random.difference.mean:+.3f} [" in cells(random)[8]
    assert len(plots.metric_against_cost(comparison)) > 10_000


def test_results_carry_what_they_are_judged_by(tmp_path):
    compared(halves(), tmp_path, ["full"])
    (first, *_) = read_results(tmp_path)
    assert first.judged_by == ERROR
    assert list(first.more) == ["weight"]


def test_results_from_before_other_tasks_are_those_of_sgd_and_accuracy(comparison):
    entries = json.loads((comparison.out / "results.jsonl").read_text().splitlines()[0])
    for name in ("judged_by", "more"):
        del entries[name]
    for name in ("optimizer", "schedule", "grad_clip", "options"):
        del entries["settings"][name]
    result = RunResult.from_json(entries)
    assert result.judged_by == DIGITS.metric
    assert result.settings.optimizer == "sgd"
    assert result.settings.digest == read_results(comparison.out)[0].settings.digest


def test_a_task_may_be_evaluated_at_the_end_alone():
    metric = finish(training_run("full", digits(), eval_every=0)).curves.metric
    assert [value is not None for value in metric] == [False] * 5 + [True]


# ------------------------------------------------------------------ settings and options


def test_a_task_brings_its_own_settings():
    task = halves(optimizer="adamw", schedule="cosine", grad_clip=1.0, weight_decay=0.0)
    settings = Settings.of_task(task, {"device": "cpu", "data": "", "lr": 0.3})
    assert (settings.optimizer, settings.schedule, settings.grad_clip) == ("adamw", "cosine", 1.0)
    assert (settings.lr, settings.weight_decay, settings.margin) == (0.3, 0.0, 0.05)


def test_gradients_are_clipped_to_the_norm():
    def length_of_first_step(clip):
        run = training_run("full", digits(), grad_clip=clip, weight_decay=0.0, batch_size=200)
        before = [p.detach().clone() for p in run.model.parameters()]
        lr = run.scheduler.get_last_lr()[0]
        run.run_epoch()
        pairs = zip(run.model.parameters(), before, strict=True)
        return float(torch.cat([(new - old).flatten() for new, old in pairs]).detach().norm()) / lr

    assert length_of_first_step(1e-2) == pytest.approx(1e-2, rel=0.01)
    assert length_of_first_step(0.0) > 0.1


def test_options_change_the_task_and_are_recorded(monkeypatch, tmp_path):
    seen = []

    def of_options(values):
        seen.append(values)
        return {}

    OPTIONS = {"ink": Option("black", "colour", ("black", "blue")), "size": Option("8", "pixels")}
    task = replace(DIGITS, options=OPTIONS, of_options=of_options)
    monkeypatch.setattr(commands, "all_tasks", lambda: {"digits": task})
    result = run_command(
        *("compare", "--arms", "full", "--seeds", "1", "--epochs", "1", "--limit-train", "50"),
        *("--option", "ink=blue", "--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    assert seen == [{"ink": "blue", "size": "8"}]
    (run,) = read_results(tmp_path)
    assert run.settings.options == {"ink": "blue", "size": "8"}
    assert "--option ink=blue --option size=8" in run.settings.command(["full"], [0])


def test_a_preset_may_set_options_and_what_is_given_goes_first(monkeypatch, tmp_path):
    options = {"ink": Option("black", "colour"), "size": Option("8", "pixels")}
    paper = {"epochs": 2, "options": {"ink": "blue", "size": "9"}}
    task = replace(DIGITS, options=options, paper=paper)
    monkeypatch.setattr(commands, "all_tasks", lambda: {"digits": task})
    result = run_command(
        *("compare", "--preset", "paper", "--arms", "full", "--seeds", "1", "--limit-train", "50"),
        *("--option", "size=7", "--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    (run,) = read_results(tmp_path)
    assert run.settings.options == {"ink": "blue", "size": "7"}
    assert run.settings.epochs == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ink"], "--option must be name=value, got ink"),
        (["paper=white"], "digits has no option 'paper'; it has: none"),
    ],
)
def test_options_that_are_not_there_are_refused(words, message, tmp_path):
    arguments = [word for option in words for word in ("--option", option)]
    result = run_command("compare", "--out", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_value_that_is_no_choice_is_refused():
    task = halves(options={"ink": Option("black", "colour", ("black", "blue"))})
    with pytest.raises(LabError, match="--option ink must be one of black, blue, got red"):
        task.with_options({"ink": "red"})
    assert task.with_options({}) == (task, {"ink": "black"})


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    with pytest.raises(LabError, match=r'no_such_thing is needed.*"infobatch\[tasks\]"'):
        need("no_such_thing.part", "tasks")
    assert need("json", "tasks") is json
