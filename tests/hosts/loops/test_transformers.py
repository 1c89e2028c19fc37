import functools
import shutil
import traceback

import datasets
import pytest
import torch
import torch.nn.functional as F
from tests.hosts.loops import transformers_run
from tests.hosts.loops.transformers_run import (
    Digits,
    InOrder,
    Rows,
    StockSFT,
    StockTrainer,
    arguments,
    build_llama,
    build_mixtral,
    collate,
    outcome,
    sentences,
    texts,
    train_digits,
    train_llama,
    train_sft,
)
from tests.hosts.support import BATCH, EPOCHS, assert_same, plain_run, torchrun
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
)

from infobatch import DataPruner, InfoBatch
from infobatch.errors import (
    DistributedError,
    EpochError,
    LossError,
    MisalignedUpdateError,
    StateError,
)
from infobatch.integrations import _cross_entropy, _loss_check
from infobatch.integrations._loss_check import Form, LossCheck
from infobatch.integrations.transformers import InfoBatchMixin, InfoBatchTrainer
from infobatch.schedule import ProgressScheduler


def assert_run(run, reference):
    assert_same(run, reference, exact=False)  # a mean is a sum and a division here


def test_a_run_is_that_of_a_plain_loop(tmp_path):
    run, trainer, watch = train_digits(tmp_path)
    assert_run(run, plain_run())
    assert watch.totals[0] == 16 * EPOCHS  # as if nothing were pruned, as long as nobody knows
    assert watch.totals[-1] == trainer.state.max_steps == run.steps < 16 * EPOCHS
    assert trainer.state.epoch == EPOCHS


def test_a_budget_makes_the_number_of_steps_known(tmp_path):
    run, trainer, watch = train_digits(tmp_path, prune={"budget": 0.7})
    assert_run(run, plain_run(budget=0.7))
    assert set(watch.totals) == {run.steps} == {InfoBatch(500, EPOCHS, budget=0.7).total_steps(32)}
    logged = [log["epoch"] for log in trainer.state.log_history if "infobatch/kept_fraction" in log]
    assert logged == list(range(1, EPOCHS + 1))


def test_the_gradient_of_an_uneven_rest_does_not_leak_into_the_next_epoch(tmp_path):
    run, _, _ = train_digits(tmp_path, gradient_accumulation_steps=3)
    assert_run(run, plain_run(accumulate=3, mean_of_rest=True))
    run, _, watch = train_digits(tmp_path, gradient_accumulation_steps=3, prune={"budget": 0.7})
    assert_run(run, plain_run(accumulate=3, mean_of_rest=True, budget=0.7))
    assert set(watch.totals) == {run.steps}


def test_workers(tmp_path):
    run, _, _ = train_digits(tmp_path, dataloader_num_workers=2, dataloader_persistent_workers=True)
    assert_run(run, plain_run())


def test_what_is_saved_is_logged_and_the_bar_counts_to_the_end(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import trainer_callback

    bars = []

    class Bar(trainer_callback.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(trainer_callback, "tqdm", Bar)
    settings = {"disable_tqdm": False, "report_to": "tensorboard"}
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run, trainer, watch = train_digits(tmp_path, **settings)
    logged = [
        log["infobatch/kept_fraction"] for log in watch.logs if "infobatch/kept_fraction" in log
    ]
    assert logged == [record.kept / record.total for record in run.history]
    assert watch.logs[-2]["infobatch/saved_fraction"] == run.saved
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    read = [event.value for event in events.Scalars("train/infobatch/kept_fraction")]
    assert read == pytest.approx(logged)
    assert (bars[0].n, bars[0].total) == (run.steps, run.steps)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    train_digits(folder, save_strategy="steps", save_steps=8)
    return folder


# Within the first epoch, at its end, within pruned ones.
@pytest.mark.parametrize("step", [8, 16, 24, 40, 88])
def test_resume_is_as_never_having_stopped(checkpoints, step):
    reference = plain_run()
    run, _, watch = train_digits(checkpoints, resume=f"{checkpoints}/checkpoint-{step}")
    run.rates = reference.rates[:step] + run.rates
    assert_run(run, reference)
    assert watch.epochs == sorted(watch.epochs)
    assert watch.totals[-1] == reference.steps


def test_evaluation_and_checkpoints_of_the_trainer_leave_the_run_as_it_is(tmp_path):
    run, trainer, watch = train_digits(
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    run.weights, reference = [], plain_run()
    reference.weights = []  # the best model has been loaded
    assert_run(run, reference)
    assert sum("eval_loss" in log for log in watch.logs) == EPOCHS
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert len(kept) == 2
    assert all((folder / "infobatch.pt").exists() for folder in kept)
    assert trainer.state.best_model_checkpoint is not None


def test_evaluation_within_epochs(tmp_path):
    run, _, watch = train_digits(tmp_path, eval_strategy="steps", eval_steps=7)
    assert_run(run, plain_run())
    assert sum("eval_loss" in log for log in watch.logs) > EPOCHS


@pytest.mark.parametrize("budget", [None, 0.7])
def test_dropped_last_batches(tmp_path, budget):
    prune = {} if budget is None else {"budget": budget}
    run, trainer, watch = train_digits(tmp_path, dataloader_drop_last=True, prune=prune)
    assert run.steps == sum(record.kept // BATCH for record in run.history) == watch.totals[-1]
    assert all(record.trained % BATCH == 0 for record in run.history)
    assert run.rates[-1] == pytest.approx(plain_run().rates[-1], abs=1e-4)
    assert trainer.state.epoch == EPOCHS
    if budget:
        assert set(watch.totals) == {run.steps}


@pytest.mark.parametrize(
    "settings",
    [
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"accelerator_config": {"split_batches": True}},
        {"auto_find_batch_size": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_change_nothing(tmp_path, settings):
    run, _, _ = train_digits(tmp_path, **settings)
    assert_run(run, plain_run())


def test_a_schedule_that_waits_for_a_metric_is_left_alone(tmp_path):
    for name in ("reduce_lr_on_plateau", "greedy"):
        trainer = InfoBatchTrainer(
            Digits(),
            arguments(tmp_path, eval_strategy="epoch", lr_scheduler_type=name),
            train_dataset=Rows(),
            eval_dataset=Rows(),
        )
        trainer.train()
        assert not isinstance(trainer.lr_scheduler, ProgressScheduler)
        assert trainer.pruner.epoch == EPOCHS


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(transformers_run.__file__, 2, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("task", transformers_run.DIGITS_TASKS)
def test_two_processes_are_one_with_the_double_batch(two_processes, task):
    accumulate = transformers_run.DIGITS_TASKS[task].get("gradient_accumulation_steps", 1)
    reference = plain_run(accumulate=accumulate, mean_of_rest=True)
    for results in two_processes:
        run, resumed = results[task]
        assert_run(run, reference)
        assert_same(resumed, run)


# ------------------------------------------------------------------ language models


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_at_weight_one_the_loss_is_the_stock_loss_to_the_last_bit(tmp_path, accumulate):
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": accumulate}
    stock = train_llama(tmp_path, trainer=StockTrainer, **settings)
    ours = train_llama(tmp_path, prune={"prune_ratio": 0.0, "seed": 3}, **settings)
    assert ours._check.form == Form(by_items=True)
    assert ours.state.global_step == stock.state.global_step
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_gradient_is_that_of_weighted_token_losses(tmp_path):
    """Against the formula: the tokens' losses, weighted, over the number of tokens."""
    pruner, rows, model = InfoBatch(96, 2, seed=3), sentences(), build_llama().train()
    loader = torch.utils.data.DataLoader(rows, 8, sampler=pruner.sampler, collate_fn=collate)
    trainer = InfoBatchTrainer(
        model,
        arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=8),
        train_dataset=rows,
        data_collator=collate,
        pruner=pruner,
    )
    trainer.create_optimizer()
    compared = 0
    for _ in range(2):
        for batch in loader:
            weights = pruner.coming_weights(len(batch["labels"]))
            labels = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
            tokens = int((labels != -100).sum())
            token_losses = F.cross_entropy(
                model(batch["input_ids"], batch["attention_mask"]).logits.movedim(-1, 1),
                labels,
                reduction="none",
            )
            expected = (token_losses.sum(1) * weights.float()).sum() / tokens
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(tokens))
            torch.testing.assert_close(loss, expected)
            ours = torch.autograd.grad(loss, model.lm_head.weight)[0]
            theirs = torch.autograd.grad(expected, model.lm_head.weight)[0]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            compared += int((weights > 1).any())
    assert compared > 3


def test_a_sequence_is_scored_by_its_mean_token_loss(tmp_path):
    trainer = train_llama(tmp_path, prune={"seed": 3}, num_train_epochs=1, learning_rate=0.0)
    batch = collate(sentences())
    labels = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"], batch["attention_mask"]).logits
    losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    torch.testing.assert_close(
        trainer.pruner.scores, losses.sum(1) / (labels != -100).sum(1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("task", [*transformers_run.LLAMA_TASKS, "sft"])
def test_language_models_in_two_processes_are_one_with_the_double_batch(
    two_processes, task, tmp_path
):
    train = train_sft if task == "sft" else train_llama
    settings = transformers_run.SFT if task == "sft" else transformers_run.LLAMA_TASKS[task]
    weights, scores, steps = outcome(train(tmp_path, **settings))
    for results in two_processes:
        done, resumed = results[task]
        assert done[2] == steps
        torch.testing.assert_close(done[0], weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(done[1], scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(resumed, done, rtol=0, atol=0)


@pytest.mark.parametrize("across", [True, False])
def test_at_weight_one_two_processes_are_stock_to_the_last_bit(two_processes, across):
    for results in two_processes:
        ours, stock = results[f"stock {across}"]
        torch.testing.assert_close(ours, stock, rtol=0, atol=0)


def test_the_divisor_is_that_of_the_trainer_where_another_comes_to_the_same(tmp_path):
    """As on two ranks whose first batches have equally many tokens."""
    trainer = InfoBatchTrainer(build_llama(), arguments(tmp_path), train_dataset=sentences())
    trainer.accelerator.state.num_processes = 2
    try:
        check = LossCheck(trainer._forms(torch.tensor(32)), 0.001)
    finally:
        trainer.accelerator.state.num_processes = 1
    batch = (
        torch.tensor([30.0, 10.0]),
        torch.tensor([8, 8]),
        torch.tensor(32),
        [torch.tensor(0.0)] * 3,
    )
    assert check.admits(torch.tensor(2.5), *batch)
    assert check.form == Form(by_items=True, scale=2.0)


def test_the_loss_of_a_mixture_of_experts_keeps_its_own_part(tmp_path):
    for trainer in (StockTrainer, InfoBatchTrainer):
        prune = {"prune_ratio": 0.0, "seed": 3} if trainer is InfoBatchTrainer else None
        model = build_mixtral()
        train_llama(tmp_path, trainer=trainer, prune=prune, model=model, **transformers_run.STOCK)
        if trainer is StockTrainer:
            stock = model
    for one, other in zip(model.parameters(), stock.parameters(), strict=True):
        assert torch.equal(one, other)
    settings = {**transformers_run.STOCK, "num_train_epochs": 4}
    trainer = train_llama(tmp_path, prune={"seed": 3}, model=model, **settings)
    assert trainer.pruner.saved_fraction > 0.05


@pytest.mark.parametrize("settings", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_language_models_at_weight_one_are_stock_with(tmp_path, settings):
    settings = {**transformers_run.STOCK, **settings}
    stock = train_llama(tmp_path, trainer=StockTrainer, **settings)
    ours = train_llama(tmp_path, prune={"prune_ratio": 0.0, "seed": 3}, **settings)
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["label smoothing", "regression", "several labels", "tokens"])
def test_other_losses_of_the_library(tmp_path, kind):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
    rows = [{"input_ids": torch.arange(5) + i % 40} for i in range(40)]
    model = BertForSequenceClassification
    settings = {}
    if kind == "label smoothing":
        settings["label_smoothing_factor"] = 0.1
        labels = [torch.tensor(i % 3) for i in range(40)]
    elif kind == "regression":
        config.num_labels = 1
        labels = [torch.tensor(float(i % 3)) for i in range(40)]
    elif kind == "several labels":
        config.problem_type = "multi_label_classification"
        labels = [torch.tensor([1.0, 0.0, float(i % 2)]) for i in range(40)]
    else:
        model = BertForTokenClassification
        labels = [torch.tensor([0, 1, 2, i % 3, -100]) for i in range(40)]
    rows = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    torch.manual_seed(0)
    trainer = InfoBatchTrainer(
        model(config),
        arguments(tmp_path, num_train_epochs=4, per_device_train_batch_size=8, **settings),
        train_dataset=rows,
    )
    trainer.train()
    assert trainer.pruner.epoch == 4
    assert trainer.pruner.saved_fraction > 0.05


def test_a_loss_that_is_not_the_sum_of_its_samples_is_refused(tmp_path):
    class Regularised(Digits):
        def forward(self, x, labels=None):
            outputs = super().forward(x, labels)
            outputs["loss"] = outputs["loss"] + sum(p.abs().sum() for p in self.parameters())
            return outputs

    trainer = InfoBatchTrainer(Regularised(), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(LossError, match="per_token_losses"):
        trainer.train()


def test_a_batch_without_labels_is_refused(tmp_path):
    class Targets(Rows):
        def __getitem__(self, index):
            return {"x": torch.zeros(64), "target": torch.tensor(0)}

    class Net(Digits):
        def forward(self, x, target=None):
            return super().forward(x, target)

    trainer = InfoBatchTrainer(Net(), arguments(tmp_path), train_dataset=Targets())
    with pytest.raises(LossError, match="by its labels"):
        trainer.train()


def test_what_does_not_go_together_is_refused(tmp_path, checkpoints):
    def build(pruner=InfoBatch, rows=None, **settings):
        return InfoBatchTrainer(
            Digits(), arguments(tmp_path, **settings), train_dataset=rows or Rows(), pruner=pruner
        )

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Rows())

    with pytest.raises(MisalignedUpdateError, match="stream_filter"):
        build(rows=Stream(), max_steps=5)
    with pytest.raises(EpochError, match="max_steps=5"):
        build(max_steps=5)
    with pytest.raises(EpochError, match=r"num_train_epochs=1\.5"):
        build(num_train_epochs=1.5)
    with pytest.raises(EpochError, match="num_epochs=3"):
        build(InfoBatch(500, 3))
    with pytest.raises(ValueError, match="trains on 500 samples"):
        build(InfoBatch(400, EPOCHS))
    with pytest.raises(MisalignedUpdateError, match="sequential"):
        build(train_sampling_strategy="sequential")
    with pytest.raises(MisalignedUpdateError, match="dispatch_batches"):
        build(accelerator_config={"dispatch_batches": True}).train()
    with pytest.raises(StateError, match="sharded"):
        build(InfoBatch(500, EPOCHS, sharded=True))
    with pytest.raises(DistributedError, match="rank 0 of 1"):
        build(InfoBatch(500, EPOCHS, rank=1, world_size=2)).train()
    with pytest.raises(StateError, match="hyperparameter_search"):
        build().train(trial={"learning_rate": 0.1})
    trained = build()
    trained.train()
    with pytest.raises(StateError, match="has been trained before"):
        trained.train()
    bare = tmp_path / "checkpoint-8"
    shutil.copytree(checkpoints / "checkpoint-8", bare)
    (bare / "infobatch.pt").unlink()
    with pytest.raises(StateError, match=r"infobatch\.pt"):
        build(save_steps=8).train(resume_from_checkpoint=str(bare))


@pytest.mark.parametrize(
    ("pruner", "prune"), [(DataPruner, {"budget": 0.7}), (InfoBatch, {"prune_ratio": 0.5})]
)
def test_a_budget_ranks_by_the_loss_without_label_smoothing(tmp_path, pruner, prune):
    settings = {"label_smoothing_factor": 0.1, "learning_rate": 0.0}
    trainer = train_sft(tmp_path, pruner=pruner, prune={"seed": 3, **prune}, **settings)
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    smoothing = 0.0 if pruner is DataPruner else 0.1
    expected = F.cross_entropy(
        trainer.model(ids).logits[0, :-1], ids[0, 1:], label_smoothing=smoothing
    )
    torch.testing.assert_close(trainer.pruner.scores[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pruner", "prune"), [(DataPruner, {"budget": 0.7}), (InfoBatch, {"prune_ratio": 0.5})]
)
def test_a_budget_ranks_dynamic_fine_tuning_by_its_cross_entropies(tmp_path, pruner, prune):
    """Its loss p * -log(p) is small for what is learned and for what is not."""
    settings = {"loss_type": "dft", "learning_rate": 0.0}
    trainer = train_sft(tmp_path, pruner=pruner, prune={"seed": 3, **prune}, **settings)
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    losses = F.cross_entropy(trainer.model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    if pruner is InfoBatch:
        losses = losses * (-losses).exp()
    torch.testing.assert_close(trainer.pruner.scores[0], losses.mean(), rtol=1e-4, atol=1e-5)


def test_evaluation_is_left_alone(tmp_path):
    trainer = InfoBatchTrainer(
        Digits(), arguments(tmp_path), train_dataset=Rows(), eval_dataset=Rows()
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(2.3, abs=0.2)
    assert torch.isnan(trainer.pruner.scores).all()


# ------------------------------------------------------------------ TRL and PEFT


def test_sft_at_weight_one_is_stock(tmp_path):
    settings = {**transformers_run.STOCK, "label_smoothing_factor": 0.1}
    for given in (settings, {**settings, "label_smoothing_factor": 0.0}):
        stock = train_sft(tmp_path, trainer=StockSFT, **given)
        ours = train_sft(tmp_path, prune={"prune_ratio": 0.0, "seed": 3}, **given)
        for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_sft_learns_completions_alone(tmp_path):
    rows = [{"prompt": "w1 w2", "completion": " " + row["text"]} for row in texts()]
    trainer = train_sft(
        tmp_path, rows=datasets.Dataset.from_list(rows), prune={"seed": 3}, learning_rate=0.0
    )
    example = trainer.train_dataset[0]
    ids = torch.tensor([example["input_ids"]])
    losses = F.cross_entropy(trainer.model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    completion = torch.tensor(example["labels"][1:]) != -100
    assert 0 < int(completion.sum()) < len(completion)
    expected = losses[completion].mean()
    torch.testing.assert_close(trainer.pruner.scores[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_sft_resumes_as_never_having_stopped(tmp_path, lora):
    settings = {"prune": {"seed": 3}, "lora": lora, **transformers_run.SAVES}
    done = train_sft(tmp_path, **settings)
    assert done.pruner.saved_fraction > 0.05
    for step in (10, 20):
        resumed = train_sft(tmp_path, resume=f"{tmp_path}/checkpoint-{step}", **settings)
        torch.testing.assert_close(outcome(resumed), outcome(done), rtol=0, atol=0)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_sft_with_lora_saves_and_learns(tmp_path, loss_type):
    trainer = train_sft(tmp_path, prune={"budget": 0.8}, lora=True, loss_type=loss_type)
    assert trainer.pruner.saved_fraction == pytest.approx(0.2, abs=4 / 384)  # half a batch
    assert trainer.state.global_step == InfoBatch(96, 4, budget=0.8).total_steps(8)
    # The logged loss is the weighted one; what is learned shows in the unweighted mean.
    assert not torch.isnan(trainer.pruner.scores).any()
    if loss_type == "nll":  # DFT's loss, p * -log(p), first grows as p does
        assert trainer.pruner.history[-1].mean_loss < trainer.pruner.history[0].mean_loss


def test_packing_is_refused_where_sequences_share_a_row_and_works_where_the_row_is_the_sample(
    tmp_path,
):
    with pytest.raises(MisalignedUpdateError, match="wrapped"):
        train_sft(tmp_path, packing=True, max_length=32)
    trainer = train_sft(tmp_path, packing=True, packing_strategy="wrapped", max_length=32)
    assert trainer.pruner.num_samples == len(trainer.train_dataset) != 96


# ------------------------------------------------------------------ losses of another kind


CLASS_WEIGHTS = torch.tensor([1.0, 0.3, 4.0])


class WeightedByClass(Trainer):
    """The cross-entropy with class weights, whose mean divides by the weights of the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(input_ids=inputs["input_ids"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"], CLASS_WEIGHTS)
        return (loss, outputs) if return_outputs else loss

    def each(self, logits, labels):
        losses = F.cross_entropy(logits, labels, CLASS_WEIGHTS, reduction="none")
        return losses, CLASS_WEIGHTS[labels]


class Focal(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(input_ids=inputs["input_ids"])
        loss = self.each(outputs.logits, inputs["labels"])[0].mean()
        return (loss, outputs) if return_outputs else loss

    def each(self, logits, labels):
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (1 - (-losses).exp()) ** 2 * losses, torch.ones_like(labels, dtype=torch.bool)


class Doubted(Focal):
    """Samples of one class count twice, over the number of samples."""

    def each(self, logits, labels):
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses * (1.0 + (labels == 1)), torch.ones_like(labels, dtype=torch.bool)


class Regularised(Trainer):
    """With a term that is no sample's, at first too small to be seen."""

    strength = 1e-5

    def term(self):
        return self.strength * sum(p.abs().sum() for p in self.model.parameters())

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = outputs.loss + self.term()
        return (loss, outputs) if return_outputs else loss


class WeightedLater(WeightedByClass):
    """The class weights come after two epochs."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if self.state.global_step > 24:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        return Trainer.compute_loss(self, model, inputs, return_outputs, **kwargs)


def by_first_token(kind, folder, *, prune=None, **settings):
    """A trainer of a new classifier of 96 sequences, most of whose labels can be learned."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 64, "num_labels": 3}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    tokens = torch.randint(0, 60, (96, 8), generator=torch.Generator().manual_seed(0))
    labels = (tokens[:, 0] // 20 + (torch.arange(96) % 5 == 0)) % 3
    rows = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]
    sizes = {"per_device_train_batch_size": 8, "num_train_epochs": 12, "learning_rate": 1e-2}
    given = {} if prune is None else {"pruner": functools.partial(InfoBatch, **prune)}
    model = BertForSequenceClassification(config)
    args = arguments(folder, **{**sizes, **settings})
    return kind(model, args, train_dataset=rows, **given)


@pytest.mark.parametrize("loss", [WeightedByClass, Focal, Doubted, Regularised, WeightedLater])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_of_another_kind_is_refused_before_it_is_trained_on(tmp_path, loss, accumulate):
    """Although the losses of a new head are all alike, so that any mean of them is the same."""
    wrong = []

    class Observed(InfoBatchMixin, loss):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            weights = self.pruner.coming_weights(8).float()
            result, outputs = super().compute_loss(model, inputs, True, **kwargs)
            losses = F.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
            if (result - (weights * losses).mean()).abs() > 0.01 * result:
                wrong.append(self.state.global_step)
            return (result, outputs) if return_outputs else result

    trainer = by_first_token(Observed, tmp_path, gradient_accumulation_steps=accumulate)
    with pytest.raises(LossError, match="Override per_token_losses"):
        trainer.train()
    # What changes in mid-run, when enough batches have shown the loss, is seen with the next one.
    assert len(wrong) <= (loss is WeightedLater)


@pytest.mark.parametrize("loss", [WeightedByClass, Focal, Doubted])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_of_another_kind_is_weighted_as_its_samples_losses_say(tmp_path, loss, accumulate):
    seen = []

    class Pruned(InfoBatchMixin, loss):
        def per_token_losses(self, outputs, labels):
            return self.each(outputs.logits, labels)

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            weights = self.pruner.coming_weights(len(inputs["labels"])).float()
            result, outputs = super().compute_loss(model, inputs, True, **kwargs)
            losses, counts = self.each(outputs.logits, inputs["labels"])
            torch.testing.assert_close(result, (weights * losses).sum() / counts.sum())
            seen.append(bool((weights > 1).any()))
            return (result, outputs) if return_outputs else result

    trainer = by_first_token(Pruned, tmp_path, gradient_accumulation_steps=accumulate)
    trainer.train()
    assert trainer.pruner.epoch == 12
    assert trainer.pruner.saved_fraction > 0.1
    assert sum(seen) > 10


def test_a_part_of_the_loss_that_is_no_samples_is_not_weighted(tmp_path):
    class Pruned(InfoBatchMixin, Regularised):
        strength = 1e-3

        def extra_loss(self, outputs):
            return self.term()

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            weights = self.pruner.coming_weights(len(inputs["labels"])).float()
            result, outputs = super().compute_loss(model, inputs, True, **kwargs)
            losses = F.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
            torch.testing.assert_close(result, (weights * losses).mean() + self.term())
            return (result, outputs) if return_outputs else result

    trainer = by_first_token(Pruned, tmp_path)
    trainer.train()
    assert trainer.pruner.saved_fraction > 0.1


def test_class_weights_at_weight_one_are_stock(tmp_path):
    class Pruned(InfoBatchMixin, WeightedByClass):
        def per_token_losses(self, outputs, labels):
            return self.each(outputs.logits, labels)

    class Stock(InOrder, WeightedByClass):
        pass

    stock = by_first_token(Stock, tmp_path, num_train_epochs=2)
    stock.train()
    unpruned = {"prune_ratio": 0.0, "seed": 3}
    ours = by_first_token(Pruned, tmp_path, prune=unpruned, num_train_epochs=2)
    ours.train()
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_trainer_saves_by_itself_what_is_free(tmp_path):
    class Pruned(InfoBatchMixin, Trainer):
        pass

    trainer = by_first_token(Pruned, tmp_path, prune=None)
    trainer = Pruned(
        trainer.model, trainer.args, train_dataset=trainer.train_dataset, pruner=DataPruner
    )
    trainer.train()
    kept = [record.kept for record in trainer.pruner.history]
    assert kept[0] == 96
    assert kept[-1] <= 88
    assert all(r.mass_left_out < 0.01 + 8 / 96 for r in trainer.pruner.history)
    assert any("infobatch/headroom" in log for log in trainer.state.log_history)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropies_are_those_of_torch(monkeypatch, smoothing, dtype):
    monkeypatch.setattr(_cross_entropy, "_CHUNK", 40)  # four rows of ten
    logits = (3 * torch.randn(5, 3, 10)).to(dtype).requires_grad_()
    labels = torch.randint(0, 10, (5, 3))
    labels[1, 1:] = labels[4, 0] = -100
    factors = torch.rand(5, 3)
    wide = logits.to(torch.promote_types(dtype, torch.float32)).movedim(-1, 1)
    expected = F.cross_entropy(
        wide, labels, ignore_index=-100, reduction="none", label_smoothing=smoothing
    )
    found = _cross_entropy.cross_entropies(logits, labels, ignore_index=-100, smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((factors * x).sum(), logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


class Waits(TorchDispatchMode):
    """Counts the operations of ours for which a host waits for an accelerator."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        if name in {"_local_scalar_dense", "nonzero", "masked_select"}:
            files = [frame.filename for frame in traceback.extract_stack()]
            ours, theirs = "/infobatch/integrations/", "/site-packages/transformers/"
            host = next(f for f in reversed(files) if ours in f or theirs in f)
            self.count += ours in host
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("by_items", [True, False])
def test_a_step_waits_for_nothing_once_the_loss_is_known(tmp_path, monkeypatch, by_items):
    """But for the comparing, which is put off on an accelerator."""
    monkeypatch.setattr(LossCheck, "look", lambda self: None)
    waits, weighted = [], []

    class Observed(InfoBatchTrainer):
        def compute_loss(self, *args, **kwargs):
            weighted.append(bool((self.pruner.coming_weights(8) != 1).any()))
            if not by_items:
                kwargs["num_items_in_batch"] = None
            with Waits() as mode:
                result = super().compute_loss(*args, **kwargs)
            waits.append(mode.count)
            return result

    train_llama(tmp_path, trainer=Observed, prune={}, num_train_epochs=6)
    assert sum(weighted[24:]) > 5
    assert waits[0] > 0  # the trap works
    assert sum(waits[24:]) == 0


def test_what_is_put_off_is_looked_at_when_the_epoch_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(_loss_check, "_TOGETHER", 10**6)
    monkeypatch.setattr(LossCheck, "_puts_off", staticmethod(lambda loss: True))
    trainer = by_first_token(type("Late", (InfoBatchMixin, WeightedLater), {}), tmp_path)
    with pytest.raises(LossError, match="Override per_token_losses"):
        trainer.train()
    assert trainer.state.global_step <= 36  # two epochs of 12 steps, and one with the weights


def test_a_compute_loss_that_passes_the_mixin_by_is_refused(tmp_path):
    class Outside(InfoBatchTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return WeightedByClass.compute_loss(self, model, inputs, return_outputs, **kwargs)

    with pytest.raises(LossError, match="mixin first"):
        by_first_token(Outside, tmp_path).train()


def test_a_compute_loss_that_calls_another_model_is_refused(tmp_path):
    class Elsewhere(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return model.forward(**inputs).loss

    class Pruned(InfoBatchMixin, Elsewhere):
        pass

    with pytest.raises(LossError, match="has not called the model"):
        by_first_token(Pruned, tmp_path).train()


# ------------------------------------------------------------------ next tokens


def build_gpt2():
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 64, "n_positions": 32}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=0, eos_token_id=0))


class Tagger(PreTrainedModel):
    """A model of one's own, with a name that says nothing and a loss that is not shifted."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(64, 16)
        self.head = torch.nn.Linear(16, 64)
        self.post_init()

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(self.embed(input_ids))
        loss = F.cross_entropy(logits.movedim(-1, 1), labels) if labels is not None else None
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("build", "shift"), [(build_gpt2, 1), (lambda: Tagger(BertConfig()), 0)])
def test_a_score_is_the_loss_that_the_model_has_whatever_its_name(
    tmp_path, build, shift, smoothing
):
    settings = {"learning_rate": 0.0, "num_train_epochs": 1, "label_smoothing_factor": smoothing}
    trainer = train_llama(tmp_path, model=build(), prune={"seed": 3}, **settings)
    batch = collate(sentences())
    labels = F.pad(batch["labels"], (0, shift), value=-100)[:, shift:]
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
    losses = F.cross_entropy(
        logits.movedim(-1, 1), labels, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(
        trainer.pruner.scores, losses.sum(1) / (labels != -100).sum(1), rtol=1e-4, atol=1e-5
    )


# ------------------------------------------------------------------ random states, memory


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_with_dropout_resumes_bit_for_bit(tmp_path, accumulate, workers):
    """Also where a checkpoint was made with the last batch of an epoch."""
    settings = {
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": accumulate,
        "num_train_epochs": 4,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    done = by_first_token(InfoBatchTrainer, tmp_path, **settings)
    done.train()
    assert done.model.config.hidden_dropout_prob > 0
    assert done.pruner.saved_fraction > 0.0
    for step in (4, 8, 12):
        resumed = by_first_token(InfoBatchTrainer, tmp_path, **settings)
        resumed.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-{step}")
        torch.testing.assert_close(outcome(resumed), outcome(done), rtol=0, atol=0)


@pytest.mark.parametrize("fails_at", [[1], [8], [30], [3, 20]])
@pytest.mark.parametrize("budget", [None, 0.7])
def test_where_memory_runs_out_the_run_begins_anew_with_smaller_batches(tmp_path, fails_at, budget):
    """Within the first epoch, in a later one, and twice."""
    own, calls, sizes = torch.full((500,), torch.nan), [], []

    class Numbered(Rows):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "number": index}

    class Observed(InfoBatchTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            calls.append(len(inputs["labels"]))
            if len(calls) in fails_at:
                own.fill_(torch.nan)
                raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
            numbers, seen = inputs.pop("number"), []
            hook = model.register_forward_hook(lambda *given: seen.append(given[-1]["logits"]))
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            hook.remove()
            own[numbers] = F.cross_entropy(seen[-1].detach(), inputs["labels"], reduction="none")
            sizes.append(calls[-1])
            return loss

    trainer = Observed(
        Digits(),
        arguments(tmp_path, auto_find_batch_size=True, remove_unused_columns=False),
        train_dataset=Numbered(),
        pruner=functools.partial(InfoBatch, budget=budget),
    )
    trainer.train()
    assert trainer.pruner.epoch == EPOCHS
    torch.testing.assert_close(trainer.pruner.scores, own)
    assert sizes[-10:-1] == [int(BATCH * 0.9 ** len(fails_at))] * 9
    steps = sum(-(-record.trained // sizes[-2]) for record in trainer.pruner.history)
    assert trainer.state.global_step == steps
    with pytest.raises(StateError, match="has been trained before"):
        trainer.train()
