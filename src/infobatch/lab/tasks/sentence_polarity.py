"""Sentence polarity: is a sentence of a film review positive?

Pang and Lee, 2005, arXiv cs/0506075: 10,662 sentences, half of them positive. A small transformer
from scratch, on tokens of a tokenizer that has seen the training part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.files import find_text, find_texts, read_jsonl, read_lines, search
from infobatch.lab.tasks.base.images import accuracy, cross_entropy
from infobatch.lab.tasks.base.task import Metric, Option, Task
from infobatch.lab.tasks.base.text import SPECIAL, TextData, train_tokenizer

CLASSES = ("negative", "positive")
HEADS, LAYERS, WIDTH = 4, 1, 64

_HOW_TO_GET = (
    'Download "sentence polarity dataset v1.0" from '
    "https://www.cs.cornell.edu/people/pabo/movie-review-data/, unpack it in {folder}, and give "
    "--data-dir {folder}. Also read: sentence_polarity.jsonl with label and text on each line."
)


# ------------------------------------------------------------------ data


def read_sentence_polarity(data_dir: Path | None) -> tuple[list[str], list[int]]:
    """Sentences and their labels, 1 for positive; the positive ones of the official files first.

    Read are the official rt-polarity.pos and rt-polarity.neg, in Latin-1, in a folder or in
    rt-polaritydata/ there, and sentence_polarity.jsonl with {"label": 0 or 1, "text": ...} a line.
    """
    return search("sentence-polarity", data_dir, _HOW_TO_GET, _read, "rt-polaritydata")


def _read(folder: Path) -> tuple[list[str], list[int]] | None:
    if official := find_texts(folder, "rt-polarity.pos", "rt-polarity.neg"):
        pairs = [
            (line, label)
            for path, label in zip(official, (1, 0), strict=True)
            for _, line in read_lines(path, "latin-1")
        ]
    elif path := find_text(folder, "sentence_polarity.jsonl"):
        pairs = [_labelled(entry, f"{path}, line {number}") for number, entry in read_jsonl(path)]
    else:
        return None
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    fewest = min(labels.count(label) for label in (0, 1))
    if fewest < 5:
        raise LabError(f"{folder} must hold at least 5 sentences of each class, got {fewest}")
    return texts, labels


def _labelled(entry: Mapping[str, Any], place: str) -> tuple[str, int]:
    text, label = entry.get("text"), entry.get("label")
    if not isinstance(text, str) or not text.strip() or label not in (0, 1):
        raise LabError(
            f'{place}: "text" must be a sentence and "label" 0 or 1, got {text!r} and {label!r}'
        )
    return text.strip(), int(label)


def load(data_dir: Path | None, vocabulary: int, length: int) -> TextData:
    """The sentences in tokens of a tokenizer of the training part; see `in_tokens`."""
    return in_tokens(data_dir, lambda train: train_tokenizer(train, vocabulary), length)


def in_tokens(
    data_dir: Path | None, tokenizer_for: Callable[[list[str]], Any], length: int
) -> TextData:
    """Four fifths train and one fifth tests, stratified by class and always the same split.

    Args:
        data_dir: where the sentences lie.
        tokenizer_for: gives the tokenizer, of the `tokenizers` library, for the training part.
        length: of a row, to which sentences are cut or filled up with `SPECIAL`.
    """
    texts, labels = read_sentence_polarity(data_dir)
    train, test, train_labels, test_labels = train_test_split(
        texts, labels, test_size=0.2, random_state=0, stratify=labels
    )
    tokenizer = tokenizer_for(train)
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


# ------------------------------------------------------------------ model


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
    """0.3 million parameters at width 64, most of them the tokens'."""
    text = cast(TextData, data)
    width = WIDTH if width is None else width
    if width % HEADS:
        raise LabError(f"--width must be a multiple of {HEADS} for sentence-polarity, got {width}")
    return SentenceClassifier(text.vocabulary, text.train_inputs.shape[1], width)


# ------------------------------------------------------------------ task

OPTIONS = {
    "vocabulary": Option("4000", "tokens of the tokenizer, at least 257", kind=int, at_least=257),
    "length": Option("48", "tokens of a sentence that are read", kind=int, at_least=1),
}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary, length = values["vocabulary"], values["length"]
    return {"load": lambda data_dir: load(data_dir, vocabulary, length)}


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="sentence-polarity",
    description="sentence polarity (film reviews), 10,662 sentences, 2 classes",
    epochs=5,
    batch_size=64,
    lr=1e-3,
    model="transformer",
    models=("transformer",),
    build=build,
    prepare=prepare,
    loss=cross_entropy,
    evaluate=accuracy,
    metric=Metric(margin=1.0),
    grad_clip=1.0,
    batch_of_test=256,
    by_class_logits=True,
)
