"""Sentence polarity: is a sentence of a film review kind? Pang and Lee, 2005, arXiv cs/0506075.

A small transformer from scratch, on tokens of a tokenizer that has seen the training part alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from infobatch.lab.data import TaskData
from infobatch.lab.datasets.sentence_polarity import CLASSES, read_sentence_polarity
from infobatch.lab.errors import LabError
from infobatch.lab.images import accuracy, cross_entropy
from infobatch.lab.options import whole_number
from infobatch.lab.task import Metric, Option, Task
from infobatch.lab.text import SPECIAL, TextData, train_tokenizer

HEADS, LAYERS, WIDTH = 4, 1, 64


def load(data_dir: Path | None, vocabulary: int, length: int) -> TextData:
    """Four fifths train and one fifth tests, stratified by class and always the same split."""
    texts, labels = read_sentence_polarity(data_dir)
    train, test, train_labels, test_labels = train_test_split(
        texts, labels, test_size=0.2, random_state=0, stratify=labels
    )
    tokenizer = train_tokenizer(train, vocabulary)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=SPECIAL)

    def rows(sentences: list[str]) -> Tensor:
        encodings = tokenizer.encode_batch(sentences)
        return torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int32)

    return TextData(
        rows(train),
        torch.tensor(train_labels),
        rows(test),
        torch.tensor(test_labels),
        CLASSES,
        vocabulary=tokenizer.get_vocab_size(),
    )


def prepare(
    rows: Tensor, targets: Tensor, _generator: torch.Generator, _training: bool
) -> tuple[Tensor, Tensor]:
    """Token numbers, cut where the longest sentence of the batch ends."""
    longest = int((rows != SPECIAL).sum(1).max())
    return rows[:, :longest].long(), targets


class SentenceClassifier(nn.Module):
    """Embedded tokens and places, a transformer layer, and the mean over a sentence's tokens."""

    def __init__(self, vocabulary: int, length: int, width: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, LAYERS, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, numbers: Tensor) -> Tensor:
        """Token numbers (B, T), padded behind, to logits (B, 2)."""
        padding = numbers == SPECIAL
        embedded = self.dropout(self.tokens(numbers) + self.places[: numbers.shape[1]])
        found = self.layers(embedded, src_key_padding_mask=padding)
        weights = (~padding).to(found.dtype).unsqueeze(2)
        return cast(Tensor, self.head(self.dropout((found * weights).sum(1) / weights.sum(1))))


def build(_name: str, width: int | None, data: TaskData) -> nn.Module:
    """As wide as asked for; 0.3 million parameters at width 64, most of them the tokens'."""
    text = cast(TextData, data)
    width = WIDTH if width is None else width
    if width % HEADS:
        raise LabError(f"--width must be a multiple of {HEADS} for sentence-polarity, got {width}")
    return SentenceClassifier(text.vocabulary, text.train_inputs.shape[1], width)


def _remake(values: Mapping[str, str]) -> Task:
    vocabulary = whole_number(values, "vocabulary", at_least=257)
    length = whole_number(values, "length", at_least=1)
    return replace(TASK, load=lambda data_dir: load(data_dir, vocabulary, length))


TASK = Task(
    name="sentence-polarity",
    description="sentence polarity (film reviews), 10,662 sentences, 2 classes",
    epochs=5,
    batch_size=64,
    lr=1e-3,
    model="transformer",
    threads=1,
    models=("transformer",),
    load=lambda data_dir: load(data_dir, 4000, 48),
    build=build,
    prepare=prepare,
    loss=cross_entropy,
    evaluate=accuracy,
    metric=Metric(margin=1.0),
    optimizer="adamw",
    weight_decay=0.05,
    label_smoothing=0.0,
    grad_clip=1.0,
    batch_of_test=256,
    by_class_logits=True,
    options={
        "vocabulary": Option("4000", "tokens of the tokenizer, at least 257"),
        "length": Option("48", "tokens of a sentence that are read"),
    },
    remake=_remake,
)
