import functools
import shutil

import datasets
import peft
import pytest
import torch
import torch.nn.functional as F
import trl
from tests.hosts.loops import transformers_run
from tests.hosts.loops.transformers_run import (
    Digits,
    Rows,
    arguments,
    build_llama,
    collate,
    sentences,
    train_digits,
    train_llama,
)
from tests.hosts.support import EPOCHS, assert_same, plain_run, torchrun
from transformers import Trainer

from infobatch import InfoBatch
from infobatch.errors import EpochError, LossError, MisalignedUpdateError, StateError
from infobatch.integrations.transformers import InfoBatchMixin, InfoBatchTrainer


class StockTrainer(Trainer):
    """The trainer as it is, in the order of an unpruned run."""

    def _get_train_sampler(self, train_dataset=None):
        self.plan = InfoBatch(len(self.train_dataset), 4, prune_ratio=0.0, seed=3)
        return _Order(self.plan)


class _Order(torch.utils.data.Sampler):
    def __init__(self, pruner):
        self.pruner, self.epoch = pruner, 0

    def __len__(self):
        return self.pruner.num_samples

    def set_epoch(self, epoch):
        while self.pruner.epoch < epoch:
            for _ in self.pruner.sampler:
                pass
            self.pruner._commit()

    def __iter__(self):
        return iter(self.pruner.plan.indices.tolist())


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
    from transformers import trainer_callback

    bars = []

    class Bar(trainer_callback.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(trainer_callback, "tqdm", Bar)
    run, trainer, watch = train_digits(tmp_path, disable_tqdm=False)
    logged = [
        log["infobatch/kept_fraction"] for log in watch.logs if "infobatch/kept_fraction" in log
    ]
    assert logged == [record.kept / record.total for record in run.history]
    assert watch.logs[-2]["infobatch/saved_fraction"] == run.saved
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


def test_two_processes_are_one_with_the_double_batch(tmp_path):
    torchrun(transformers_run.__file__, 2, tmp_path, "digits")
    reference = plain_run()
    for rank in range(2):
        run = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert_run(run, reference)
        resumed = torch.load(tmp_path / f"resumed-{rank}.pt", weights_only=False)
        assert_same(resumed, run)


# ------------------------------------------------------------------ language models


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_at_weight_one_the_loss_is_the_stock_loss_to_the_last_bit(tmp_path, accumulate):
    settings = {"num_train_epochs": 4, "gradient_accumulation_steps": accumulate}
    stock = train_llama(tmp_path, trainer=StockTrainer, **settings)
    ours = train_llama(tmp_path, prune={"prune_ratio": 0.0, "seed": 3}, **settings)
    assert ours._division == (True, 1.0)
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


def test_two_processes_with_accumulation_are_one(tmp_path):
    torchrun(transformers_run.__file__, 2, tmp_path, "llama")
    weights, scores = torch.load(tmp_path / "0.pt")
    other_weights, other_scores = torch.load(tmp_path / "1.pt")
    torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)
    torch.testing.assert_close(scores, other_scores, rtol=0, atol=0)
    alone = train_llama(
        tmp_path,
        prune={"seed": 3},
        num_train_epochs=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )
    torch.testing.assert_close(scores, alone.pruner.scores, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["label smoothing", "regression", "several labels", "tokens"])
def test_other_losses_of_the_library(tmp_path, kind):
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertForTokenClassification,
    )

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


def test_what_does_not_go_together_is_refused(tmp_path, checkpoints):
    def build(pruner=InfoBatch, rows=None, **settings):
        return InfoBatchTrainer(
            Digits(), arguments(tmp_path, **settings), train_dataset=rows or Rows(), pruner=pruner
        )

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
    trained = build()
    trained.train()
    with pytest.raises(StateError, match="has been trained before"):
        trained.train()
    bare = tmp_path / "checkpoint-8"
    shutil.copytree(checkpoints / "checkpoint-8", bare)
    (bare / "infobatch.pt").unlink()
    with pytest.raises(StateError, match=r"infobatch\.pt"):
        build(save_steps=8).train(resume_from_checkpoint=str(bare))


def test_evaluation_is_left_alone(tmp_path):
    trainer = InfoBatchTrainer(
        Digits(), arguments(tmp_path), train_dataset=Rows(), eval_dataset=Rows()
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(2.3, abs=0.2)
    assert torch.isnan(trainer.pruner.scores).all()


# ------------------------------------------------------------------ TRL and PEFT


class PrunedSFT(InfoBatchMixin, trl.SFTTrainer):
    pass


def sft_settings(folder, **settings):
    return trl.SFTConfig(
        str(folder),
        **{
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 4,
            "learning_rate": 1e-2,
            "bf16": False,
            **settings,
        },
    )


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(50))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def texts():
    rows = [" ".join(f"w{int(i) % 50}" for i in row["input_ids"]) for row in sentences()]
    return datasets.Dataset.from_dict({"text": rows})


def train_sft(folder, tokenizer, trainer=PrunedSFT, prune=None, peft_config=None, **settings):
    given = {} if prune is None else {"pruner": functools.partial(InfoBatch, **prune)}
    trainer = trainer(
        build_llama(),
        sft_settings(folder, **settings),
        train_dataset=texts(),
        processing_class=tokenizer,
        peft_config=peft_config,
        **given,
    )
    trainer.train()
    return trainer


def test_sft_at_weight_one_is_stock(tmp_path, tokenizer):
    class StockSFT(trl.SFTTrainer):
        _get_train_sampler = StockTrainer._get_train_sampler

    stock = train_sft(tmp_path, tokenizer, StockSFT, gradient_accumulation_steps=2)
    ours = train_sft(
        tmp_path, tokenizer, prune={"prune_ratio": 0.0, "seed": 3}, gradient_accumulation_steps=2
    )
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_sft_with_lora_saves_and_learns(tmp_path, tokenizer, loss_type):
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    trainer = train_sft(
        tmp_path,
        tokenizer,
        prune={"budget": 0.8},
        peft_config=lora,
        loss_type=loss_type,
    )
    assert trainer.pruner.saved_fraction == pytest.approx(0.2, abs=0.005)
    assert trainer.state.global_step == InfoBatch(96, 4, budget=0.8).total_steps(8)
    # The logged loss is the weighted one; what is learned shows in the unweighted mean.
    assert not torch.isnan(trainer.pruner.scores).any()
    if loss_type == "nll":  # DFT's loss, p * -log(p), first grows as p does
        assert trainer.pruner.history[-1].mean_loss < trainer.pruner.history[0].mean_loss


def test_packing_is_refused_where_sequences_share_a_row_and_works_where_the_row_is_the_sample(
    tmp_path, tokenizer
):
    with pytest.raises(MisalignedUpdateError, match="wrapped"):
        train_sft(tmp_path, tokenizer, packing=True, max_length=32)
    trainer = train_sft(
        tmp_path, tokenizer, packing=True, packing_strategy="wrapped", max_length=32
    )
    assert trainer.pruner.num_samples == len(trainer.train_dataset) != 96
