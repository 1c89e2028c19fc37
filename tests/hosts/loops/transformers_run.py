"""Runs of transformers' Trainer; as a program, one rank of a run in several processes."""

import functools
import sys

import datasets
import peft
import torch
import torch.nn.functional as F
import trl
from tests.hosts.support import BATCH, EPOCHS, Run, build_model, digits
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from infobatch import InfoBatch
from infobatch.integrations.accelerate import keep_shares
from infobatch.integrations.transformers import InfoBatchMixin, InfoBatchTrainer


class Digits(torch.nn.Module):
    """A model as Trainer wants one: it returns its mean loss."""

    def __init__(self):
        super().__init__()
        self.model = build_model()

    def forward(self, x, labels=None):
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    """Digits as dictionaries."""

    def __init__(self):
        self.data = digits()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, label = self.data[index]
        return {"x": x, "labels": label}


class Watch(TrainerCallback):
    """Notes the learning rate of each step, and where the trainer thinks it stands."""

    def __init__(self):
        self.rates, self.epochs, self.totals, self.logs = [], [], [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.epochs.append(state.epoch)
        self.totals.append(state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)


def arguments(folder, **settings):
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    given = {"per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "max_grad_norm": 0}
    return TrainingArguments(str(folder), **{**quiet, **given, **settings})


def train_digits(
    folder, *, resume=None, prune=None, processes=1, trainer=InfoBatchTrainer, **settings
):
    """Train on digits; a Run, the trainer and what was noted."""
    settings.setdefault("per_device_train_batch_size", BATCH // processes)
    args = arguments(folder, **settings)
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    total = EPOCHS * -(-16 // args.gradient_accumulation_steps)
    schedule = OneCycleLR(optimizer, 0.2, total_steps=total)
    watch = Watch()
    trainer = InfoBatchTrainer(
        model,
        args,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        optimizers=(optimizer, schedule),
        callbacks=[watch],
        pruner=functools.partial(InfoBatch, **(prune or {})),
    )
    trainer.train(resume_from_checkpoint=resume)
    pruner = trainer.pruner
    weights = [p.detach().clone() for p in model.parameters()]
    run = Run(
        trainer.state.global_step,
        watch.rates,
        pruner.scores,
        pruner.history,
        weights,
        pruner.saved_fraction,
    )
    return run, trainer, watch


def sentences(count=96):
    """Token sequences of unlike length, of which the first tokens are prompt and not learned."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        length = int(torch.randint(6, 20, (), generator=generator))
        step = int(torch.randint(1, 5, (), generator=generator))
        ids = (
            torch.arange(length) * step + int(torch.randint(0, 30, (), generator=generator))
        ) % 50
        labels = ids.clone()
        labels[:2] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def collate(rows):
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    ids = pad([row["input_ids"] for row in rows])
    labels = pad([row["labels"] for row in rows], padding_value=-100)
    return {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}


def build_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def build_mixtral():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "num_local_experts": 4}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, output_router_logits=True))


def train_llama(
    folder, *, trainer=InfoBatchTrainer, prune=None, model=None, rows=96, resume=None, **settings
):
    args = arguments(
        folder, **{"per_device_train_batch_size": 8, "learning_rate": 1e-2, **settings}
    )
    given = {} if prune is None else {"pruner": functools.partial(InfoBatch, **prune)}
    trainer = trainer(
        model or build_llama(), args, train_dataset=sentences(rows), data_collator=collate, **given
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class InOrder:
    """A trainer as it is, in the order of an unpruned run."""

    def _get_train_sampler(self, train_dataset=None):
        epochs = int(self.args.num_train_epochs)
        self.plan = InfoBatch(len(self.train_dataset), epochs, prune_ratio=0.0, seed=3)
        return _Order(self.plan)

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        keep_shares(loader, self.plan)
        return loader


class _Order(torch.utils.data.Sampler):
    def __init__(self, pruner):
        self.pruner = pruner

    def __len__(self):
        return len(self.pruner._run.prepare().share)

    def set_epoch(self, epoch):
        while self.pruner.epoch < epoch:
            for _ in self.pruner.sampler:
                pass
            self.pruner.end_epoch()  # none of them is trained

    def __iter__(self):
        share = self.pruner._run.prepare().share
        return iter(share.ids(0, len(share)).tolist())


class StockTrainer(InOrder, Trainer):
    pass


class PrunedSFT(InfoBatchMixin, trl.SFTTrainer):
    pass


class StockSFT(InOrder, trl.SFTTrainer):
    pass


LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])


def build_tokenizer():
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(50))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def texts():
    rows = [" ".join(f"w{int(i) % 50}" for i in row["input_ids"]) for row in sentences()]
    return datasets.Dataset.from_dict({"text": rows})


def train_sft(
    folder,
    *,
    trainer=PrunedSFT,
    pruner=InfoBatch,
    prune=None,
    lora=False,
    rows=None,
    resume=None,
    **settings,
):
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    sizes = {"per_device_train_batch_size": 8, "num_train_epochs": 4, "learning_rate": 1e-2}
    given = {} if prune is None else {"pruner": functools.partial(pruner, **prune)}
    trainer = trainer(
        build_llama(),
        trl.SFTConfig(str(folder), **{**quiet, **sizes, "bf16": False, **settings}),
        train_dataset=rows or texts(),
        processing_class=build_tokenizer(),
        peft_config=LORA if lora else None,
        **given,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def outcome(trainer):
    """What two runs of a language model are compared by."""
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    pruner = getattr(trainer, "pruner", None)
    return weights, None if pruner is None else pruner.scores, trainer.state.global_step


# What is run in two processes; those with save_steps are resumed as well.
DIGITS_TASKS = {
    "plain": {"save_steps": 25},
    "accumulated": {"save_steps": 8, "gradient_accumulation_steps": 3},
}
SAVES = {"save_strategy": "steps", "save_steps": 10}
# 97 = 12 * 8 + 1: the second rank's last batch of the first epoch is one sample of padding.
LLAMA = {"prune": {"seed": 3}, "rows": 97, "num_train_epochs": 4, "optim": "sgd"}
LLAMA_TASKS = {
    "llama": {**LLAMA, **SAVES},
    "llama accumulated": {**LLAMA, "gradient_accumulation_steps": 2},
}
SFT = {"prune": {"seed": 3}, "lora": True, "optim": "sgd", "learning_rate": 0.1, **SAVES}
STOCK = {"num_train_epochs": 2, "gradient_accumulation_steps": 2}


def run_digits(folder, save_steps, **settings):
    settings = {"save_strategy": "steps", "save_steps": save_steps, "processes": 2, **settings}
    run, _, _ = train_digits(folder, **settings)
    resumed, _, _ = train_digits(folder, resume=f"{folder}/checkpoint-{save_steps}", **settings)
    resumed.rates = run.rates[:save_steps] + resumed.rates
    return run, resumed


def run_twice(train, folder, **settings):
    """Trained, and, if there are checkpoints, resumed within a pruned epoch."""
    settings["per_device_train_batch_size"] = 4
    done = outcome(train(folder, **settings))
    if "save_steps" not in settings:
        return done, done
    return done, outcome(train(folder, resume=f"{folder}/checkpoint-20", **settings))


def ours_and_stock(folder, **settings):
    """At weight 1, and the trainer as it is."""
    settings = {**STOCK, "per_device_train_batch_size": 4, **settings}
    ours = train_llama(folder, prune={"prune_ratio": 0.0, "seed": 3}, **settings)
    return outcome(ours)[0], outcome(train_llama(folder, trainer=StockTrainer, **settings))[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, results = sys.argv[1], {}
    for task, settings in DIGITS_TASKS.items():
        results[task] = run_digits(f"{folder}/{task}", **settings)
    for task, settings in LLAMA_TASKS.items():
        results[task] = run_twice(train_llama, f"{folder}/{task}", **settings)
    results["sft"] = run_twice(train_sft, f"{folder}/sft", **SFT)
    for across in (True, False):
        results[f"stock {across}"] = ours_and_stock(folder, average_tokens_across_devices=across)
    torch.save(results, f"{folder}/{torch.distributed.get_rank()}.pt")
