"""Pretraining: a small Llama from scratch (Touvron et al., 2023, arXiv 2302.13971) on plain text.

A sample is a sequence of tokens, all of one length; its loss is the mean over its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.task import Metric, Option, Outcome, Task, Trained
from infobatch.lab.tasks.base.text import (
    IGNORED,
    SPECIAL,
    TextData,
    token_losses,
    train_tokenizer,
)
from infobatch.lab.tasks.language_model.corpora import read_corpus
from infobatch.losses import per_sample

HEADS, LAYERS, WIDTH = 4, 2, 64


def load(data_dir: Path | None, corpus: str, vocabulary: int, length: int) -> TextData:
    """Sequences of `length` tokens, one after the other, and for each token the one behind it.

    A special token stands before each document, so that its first token is predicted too. What is
    left at the end of the training part is dropped; the last held-out sequence is padded, so that
    every held-out token counts once.
    """
    train, test = read_corpus(data_dir, corpus)
    tokenizer = train_tokenizer(train, vocabulary)

    def stream(documents: Iterable[str]) -> Tensor:
        encodings = (tokenizer.encode(document).ids for document in documents)
        numbers = [number for ids in encodings for number in (SPECIAL, *ids)]
        return torch.tensor(numbers, dtype=torch.int32)

    tokens, held_out = stream(train), stream(test)
    whole = (len(tokens) - 1) // length * length
    if not whole:
        raise LabError(
            f"the training part must have more tokens than --option length, {length}, "
            f"got {len(tokens)}"
        )
    missing = -(len(held_out) - 1) % length
    return TextData(
        tokens[:whole].view(-1, length),
        tokens[1 : whole + 1].view(-1, length),
        F.pad(held_out[:-1], (0, missing), value=SPECIAL).view(-1, length),
        F.pad(held_out[1:], (0, missing), value=IGNORED).view(-1, length),
        vocabulary=tokenizer.get_vocab_size(),
        test_bytes=sum(len(document.encode()) for document in test),
    )


def prepare(
    rows: Tensor, targets: Tensor, _generator: torch.Generator, _training: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """What transformers' causal models are called with."""
    return {"input_ids": rows.long()}, targets.long()


def build(_name: str, width: int | None, data: TaskData) -> nn.Module:
    """Two layers as wide as asked for; 0.2 million parameters at width 64 with 1,024 tokens."""
    transformers = need("transformers", "tasks")
    text = cast(TextData, data)
    width = WIDTH if width is None else width
    if width % (2 * HEADS):
        raise LabError(f"--width must be a multiple of {2 * HEADS} for language-model, got {width}")
    config = transformers.LlamaConfig(
        vocab_size=text.vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=text.train_inputs.shape[1],
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=SPECIAL,
        eos_token_id=SPECIAL,
    )
    return cast(nn.Module, transformers.LlamaForCausalLM(config))


def loss(outputs: Any, targets: Tensor, label_smoothing: float) -> Tensor:
    """(B,) mean over the tokens of each sequence."""
    losses = token_losses(outputs.logits, targets, label_smoothing)
    return per_sample(losses, targets == IGNORED)


def evaluate(run: Trained) -> Outcome:
    """Mean over all held-out tokens, and the same per byte of their text."""
    nats, tokens = 0.0, 0
    for outputs, targets in run.test_outputs():
        nats += float(token_losses(outputs.logits, targets).double().sum())
        tokens += int((targets != IGNORED).sum())
    mean, text = nats / tokens, cast(TextData, run.data)
    per_byte = nats / math.log(2) / text.test_bytes
    return Outcome(mean, more={"bits per byte": per_byte, "perplexity": math.exp(mean)})


OPTIONS = {
    "corpus": Option(
        "tinyshakespeare", "tinyshakespeare, brown, wikitext2, or the name of any text file"
    ),
    "vocabulary": Option("1024", "tokens of the tokenizer, at least 257", kind=int, at_least=257),
    "length": Option("64", "tokens of a sequence", kind=int, at_least=1),
}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    corpus, vocabulary, length = values["corpus"], values["vocabulary"], values["length"]
    return {"load": lambda data_dir: load(data_dir, corpus, vocabulary, length)}


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="language-model",
    description="pretraining of a small Llama on plain text",
    epochs=5,
    batch_size=32,
    lr=4e-3,
    model="llama",
    models=("llama",),
    build=build,
    prepare=prepare,
    loss=loss,
    evaluate=evaluate,
    metric=Metric("held-out loss per token", "nats", higher_is_better=False, margin=0.02, digits=3),
    schedule="cosine",
    weight_decay=0.1,
    grad_clip=1.0,
    batch_of_test=64,
)
