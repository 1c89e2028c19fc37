"""Instructions and answers as token numbers: the prompt, the tokenizer, what is cut."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infobatch.lab.errors import LabError, need
from infobatch.lab.tasks.base.data import TensorData
from infobatch.lab.tasks.base.text import IGNORED, SPECIAL, train_tokenizer
from infobatch.lab.tasks.instruct.records import Record

_log = logging.getLogger(__name__)

LEARN_FROM = 10_000
"""Records that a tokenizer is trained on, spread over all of them."""

_NOTHING = -1  # in place of a token, behind the end of a sequence


@dataclass(frozen=True)
class Instructions(TensorData):
    """Sequences of prompt and answer, one a row.

    Inputs are int32 (N, T) token numbers, -1 behind the end of a sequence. Targets are the same
    numbers, -100 outside the answer. The end of the sequence is part of its answer. Test rows are
    sorted by length, so that batches of them hold little padding.

    `questions` are asked when a run is judged.
    """

    tokenizer: Any = None
    questions: tuple[Record, ...] = ()


def prompt(record: Record) -> str:
    """The sections of Stanford Alpaca's prompts, without the sentence that opens all of them."""
    asked = f"### Instruction:\n{record.instruction}\n\n"
    about = f"### Input:\n{record.input}\n\n" if record.input else ""
    return f"{asked}{about}### Response:\n"


def prepare(
    rows: Tensor, targets: Tensor, _generator: torch.Generator, _training: bool
) -> tuple[Tensor, Tensor]:
    """Token numbers and targets, int64 (B, T), T the length of the longest sequence among them.

    There is no attention mask: padding stands on the right, and no token looks there.
    """
    longest = int((rows != _NOTHING).sum(dim=1).max())
    return rows[:, :longest].clamp(min=0).long(), targets[:, :longest].long()


def learn_tokenizer(records: Sequence[Record], vocabulary: int) -> Any:
    """A tokenizer of at most so many tokens, learned from `LEARN_FROM` of the records.

    One special token begins and ends sequences.
    """
    step = math.ceil(len(records) / LEARN_FROM)
    bpe = train_tokenizer((prompt(one) + one.output for one in records[::step]), vocabulary)
    special = bpe.id_to_token(SPECIAL)
    wrapped = need("transformers", "tasks").PreTrainedTokenizerFast
    return wrapped(tokenizer_object=bpe, bos_token=special, eos_token=special)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies beside pretrained weights."""
    transformers = need("transformers", "tasks")
    if not (folder / "config.json").is_file():
        raise LabError(
            f"--option weights must be a folder with config.json, weights and tokenizer, as "
            f"save_pretrained writes them, got {folder}"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LabError(f"{folder} has no readable tokenizer ({error})") from error
    if tokenizer.eos_token_id is None:
        raise LabError(f"the tokenizer in {folder} must have an end-of-sequence token")
    return tokenizer


def tokens_of(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokens of each text, none special: a record that speaks of </s> does not end there."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    found: list[list[int]] = encoded["input_ids"]
    return found


def prompt_tokens(records: Sequence[Record], tokenizer: Any) -> list[list[int]]:
    """Tokens of each record's prompt, with the one that begins a sequence, if there is one."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [start + own for own in tokens_of([prompt(one) for one in records], tokenizer)]


def encode(
    records: Sequence[Record], tokenizer: Any, cutoff: int, what: str
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `Instructions`, of sequences cut at so many tokens.

    A sequence of whose answer nothing would be left is left out. How many were cut and left out
    is logged as a warning about `what`.
    """
    sequences, cut = [], 0
    answers = tokens_of([record.output for record in records], tokenizer)
    for own, answer in zip(prompt_tokens(records, tokenizer), answers, strict=True):
        sequence = [*own, *answer, tokenizer.eos_token_id]
        if len(own) < cutoff:
            sequences.append((sequence[:cutoff], len(own)))
            cut += len(sequence) > cutoff
    left_out = len(records) - len(sequences)
    if cut or left_out:
        _log.warning(
            "%s: of %d sequences %d are cut at %d tokens, and %d, whose prompts leave no room for "
            "an answer, are left out",
            *(what, len(records), cut, cutoff, left_out),
        )
    if not sequences:
        raise LabError(f"no prompt has fewer than --option cutoff={cutoff} tokens; raise it")
    longest = max(len(sequence) for sequence, _ in sequences)
    inputs = torch.full((len(sequences), longest), _NOTHING, dtype=torch.int32)
    targets = torch.full_like(inputs, IGNORED)
    for row, (sequence, first) in enumerate(sequences):
        inputs[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
        targets[row, first : len(sequence)] = inputs[row, first : len(sequence)]
    return inputs, targets


def by_length(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows from the shortest sequence to the longest."""
    order = (inputs != _NOTHING).sum(dim=1).argsort(stable=True)
    return inputs[order], targets[order]
