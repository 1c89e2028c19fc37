"""Pretraining: a small Llama from scratch on plain text, and InfoBatch in three lines.

    python examples/language_model.py --data-dir FOLDER   # with .txt files, the last tenth held out
    python examples/language_model.py                     # without: Python's own argparse.py

Needs tokenizers and transformers (pip install "infobatch[tasks]"). The one thing to get right is
the loss: one number for each sequence, where the model's own `loss` is one for the batch.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from infobatch import InfoBatch
from infobatch.losses import per_sample

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--length", type=int, default=64)
args = parser.parse_args()

if args.data_dir:
    text = "\n".join(path.read_text() for path in sorted(args.data_dir.glob("*.txt")))
else:
    text = Path(argparse.__file__).read_text()
at = len(text) - len(text) // 10

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(
    [text[:at]],
    trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False),
)


def sequences(text):
    tokens = torch.tensor(tokenizer.encode(text).ids)
    whole = (len(tokens) - 1) // args.length * args.length
    shape = (-1, args.length)
    return TensorDataset(tokens[:whole].view(shape), tokens[1 : whole + 1].view(shape))


train_set, held_out = sequences(text[:at]), sequences(text[at:])
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=170,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        use_cache=False,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)


def token_losses(tokens, targets):
    logits = model(input_ids=tokens).logits
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (batch, length)


pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1
loader = DataLoader(train_set, batch_size=16, sampler=pruner.sampler)  # 2: was shuffle=True

for _ in range(args.epochs):
    for tokens, targets in loader:
        losses = per_sample(token_losses(tokens, targets))  # one for each sequence
        loss = pruner.update(losses)  # 3: was losses.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

model.eval()
with torch.no_grad():
    found = [token_losses(*batch).flatten() for batch in DataLoader(held_out, batch_size=64)]
print(f"held-out loss: {torch.cat(found).mean():.3f} nats per token")
print(pruner.summary())
