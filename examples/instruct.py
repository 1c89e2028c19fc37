"""Instruction tuning with transformers, and LoRA from PEFT: a plain loop with masked prompts.

    python examples/instruct.py --epochs 6
    python examples/instruct.py --data-dir DIR --weights LLAMA --lora 16 --save tuned

DIR holds Stanford Alpaca's alpaca_data.json; without it the records are made here, of words from
Python's manual. LLAMA is a folder that save_pretrained has written; without it the model is a
small random one. What --save writes is a folder of that kind, for lm-evaluation-harness for one.
"""

import argparse
import json
import random
import re
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from infobatch import InfoBatch
from infobatch.losses import per_sample
from infobatch.schedule import ProgressScheduler

IGNORED = -100


def generated(count: int) -> list[dict[str, str]]:
    """Two words to be written in capitals, or backwards."""
    words = sorted(set(re.findall(r"[a-z]{4,7}", topics["types"])))[::40]
    draw = random.Random(0)
    records = []
    for _ in range(count):
        two = " ".join(draw.sample(words, 2))
        instruction, output = draw.choice(
            [("Write in capitals.", two.upper()), ("Write backwards.", two[::-1])]
        )
        records.append({"instruction": instruction, "input": two, "output": output})
    return records


def prompt(record: dict[str, str]) -> str:
    about = f"### Input:\n{record['input']}\n\n" if record["input"] else ""
    return f"### Instruction:\n{record['instruction']}\n\n{about}### Response:\n"


def train_tokenizer(records: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator((prompt(record) + record["output"] for record in records), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def encode(record, tokenizer, cutoff):
    """Tokens, and labels: the same, but for those of the prompt."""
    asked = tokenizer(prompt(record), add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        asked = [tokenizer.bos_token_id, *asked]
    answer = tokenizer(record["output"], add_special_tokens=False)["input_ids"]
    tokens = [*asked, *answer, tokenizer.eos_token_id]
    labels = [IGNORED] * len(asked) + tokens[len(asked) :]
    return torch.tensor(tokens[:cutoff]), torch.tensor(labels[:cutoff])


def collate(samples):
    """No attention mask: padding stands on the right, where no token looks."""
    tokens, labels = zip(*samples, strict=True)
    padded = partial(pad_sequence, batch_first=True)
    return padded(tokens), padded(labels, padding_value=IGNORED)


def token_losses(model, tokens, labels):
    logits, labels = model(tokens).logits[:, :-1].float(), labels[:, 1:]
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels), labels == IGNORED


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
parser.add_argument("--data-dir", type=Path, help="with alpaca_data.json")
parser.add_argument("--weights", type=Path, help="a pretrained model and its tokenizer")
parser.add_argument("--lora", type=int, default=0, help="rank; 0: train all weights")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--lr", type=float, help="default: 1.5e-4 with --weights, else 5e-3")
parser.add_argument("--cutoff", type=int, default=512, help="tokens of a sequence")
parser.add_argument("--save", type=Path, help="folder for the model")
args = parser.parse_args()
set_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if args.data_dir:
    records = json.loads((args.data_dir / "alpaca_data.json").read_text(encoding="utf-8"))
    random.Random(0).shuffle(records)
else:
    records = generated(1000)
if args.weights:
    tokenizer = AutoTokenizer.from_pretrained(args.weights)
    dtype = "auto" if args.lora else torch.float32  # of weights that stay as they are
    model = AutoModelForCausalLM.from_pretrained(args.weights, dtype=dtype)
else:
    tokenizer = train_tokenizer(records)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
if args.lora:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapters = LoraConfig(r=args.lora, lora_alpha=args.lora, target_modules=targets)
    model = get_peft_model(model, adapters)
model.to(device)

samples = [encode(record, tokenizer, args.cutoff) for record in records]
samples = [sample for sample in samples if (sample[1] != IGNORED).any()]  # an answer is left
held_out = len(samples) // 10
test_set, train_set = samples[:held_out], samples[held_out:]

pruner = InfoBatch(train_set, args.epochs, budget=args.budget)  # 1
loader = DataLoader(train_set, args.batch_size, sampler=pruner.sampler, collate_fn=collate)  # 2
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr or (1.5e-4 if args.weights else 5e-3))
steps = args.epochs * len(loader)  # of a full run
schedule = ProgressScheduler(
    get_cosine_schedule_with_warmup(optimizer, steps // 20, steps), pruner, total_steps=steps
)

model.train()
for _ in range(args.epochs):
    for tokens, labels in loader:
        losses, ignored = token_losses(model, tokens.to(device), labels.to(device))
        loss = pruner.update(per_sample(losses, ignored))  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

model.eval()
total = count = 0
with torch.no_grad():
    for tokens, labels in DataLoader(test_set, 64, collate_fn=collate):
        losses, ignored = token_losses(model, tokens.to(device), labels.to(device))
        total, count = total + losses.sum().item(), count + (~ignored).sum().item()
if args.save:
    (model.merge_and_unload() if args.lora else model).save_pretrained(args.save)
    tokenizer.save_pretrained(args.save)
print(pruner.summary())
print(f"test loss {total / count:.3f} nats for each token of an answer")
