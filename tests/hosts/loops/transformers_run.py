"""Runs of transformers' Trainer; as a program, one rank of a run in several processes."""

import functools
import sys

import torch
import torch.nn.functional as F
from tests.hosts.support import BATCH, EPOCHS, Run, build_model, digits
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from infobatch import InfoBatch
from infobatch.integrations.transformers import InfoBatchTrainer


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


def train_llama(folder, *, trainer=InfoBatchTrainer, prune=None, model=None, **settings):
    args = arguments(
        folder, **{"per_device_train_batch_size": 8, "learning_rate": 1e-2, **settings}
    )
    given = {} if prune is None else {"pruner": functools.partial(InfoBatch, **prune)}
    trainer = trainer(
        model or build_llama(), args, train_dataset=sentences(), data_collator=collate, **given
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, task = sys.argv[1:3]
    if task == "digits":
        settings = {"save_strategy": "steps", "save_steps": 25, "processes": 2}
        run, trainer, _ = train_digits(folder, **settings)
        rank = trainer.args.process_index
        torch.save(run, f"{folder}/{rank}.pt")
        resumed, _, _ = train_digits(folder, resume=f"{folder}/checkpoint-25", **settings)
        resumed.rates = run.rates[:25] + resumed.rates
        torch.save(resumed, f"{folder}/resumed-{rank}.pt")
    else:
        trainer = train_llama(
            folder,
            prune={"seed": 3},
            num_train_epochs=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )
        weights = [p.detach() for p in trainer.model.parameters()]
        torch.save((weights, trainer.pruner.scores), f"{folder}/{trainer.args.process_index}.pt")
