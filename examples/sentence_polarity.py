"""Text classification: a tokenizer, a small transformer from scratch, and InfoBatch in three lines.

    python examples/sentence_polarity.py --data-dir FOLDER   # rt-polarity.pos and rt-polarity.neg
    python examples/sentence_polarity.py                     # without: generated sentences

Needs tokenizers (pip install "infobatch[tasks]"). Batches are padded by a collate function, as
ever: nothing of the data changes.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path)
parser.add_argument("--epochs", type=int, default=4)
args = parser.parse_args()

draw = random.Random(0)
if args.data_dir:
    files = [args.data_dir / f"rt-polarity.{end}" for end in ("neg", "pos")]
    texts = [
        (line.strip(), label)
        for label, file in enumerate(files)
        for line in file.read_text(encoding="latin-1").split("\n")
        if line.strip()
    ]
else:
    common, moods = ["the", "film", "plot", "was", "and"], [["dull", "bad"], ["fresh", "good"]]
    texts = [
        (" ".join(draw.sample([*draw.choices(common, k=6), draw.choice(moods[label])], 7)), label)
        for label in [0, 1] * 500
    ]
draw.shuffle(texts)
test, train = texts[: len(texts) // 5], texts[len(texts) // 5 :]

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(
    vocab_size=4000, special_tokens=["[PAD]"], initial_alphabet=alphabet, show_progress=False
)
tokenizer.train_from_iterator((text for text, _ in train), trainer)
tokenizer.enable_truncation(48)


def encode(pairs):
    return [(torch.tensor(tokenizer.encode(text).ids), label) for text, label in pairs]


def collate(samples):
    tokens = pad_sequence([tokens for tokens, _ in samples], batch_first=True)
    return tokens, torch.tensor([label for _, label in samples])


class Classifier(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.tokens = nn.Embedding(4000, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(48, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.2, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens):
        found = self.tokens(tokens) + self.places[: tokens.shape[1]]
        found = self.layer(found, src_key_padding_mask=tokens == 0)
        weights = (tokens != 0).unsqueeze(2)
        return self.head((found * weights).sum(1) / weights.sum(1))


train_set, test_set = encode(train), encode(test)
torch.manual_seed(0)
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1
loader = DataLoader(train_set, batch_size=32, sampler=pruner.sampler, collate_fn=collate)  # 2

for _ in range(args.epochs):
    for tokens, labels in loader:
        losses = F.cross_entropy(model(tokens), labels, reduction="none")
        loss = pruner.update(losses)  # 3: was losses.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

model.eval()
with torch.no_grad():
    right = [
        model(tokens).argmax(1) == labels
        for tokens, labels in DataLoader(test_set, batch_size=256, collate_fn=collate)
    ]
print(f"test accuracy: {100 * torch.cat(right).float().mean():.2f}%")
print(pruner.summary())
