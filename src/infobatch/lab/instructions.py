"""Instructions and answers as token numbers: the prompt, the tokenizer, what is cut, coresets."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from infobatch.lab import coresets
from infobatch.lab.coresets import Evidence
from infobatch.lab.data import TensorData
from infobatch.lab.datasets.instructions import Record
from infobatch.lab.errors import LabError
from infobatch.lab.extras import need
from infobatch.lab.text import IGNORED, SPECIAL, train_tokenizer

_log = logging.getLogger(__name__)

LEARN_FROM = 10_000
"""Records that a tokenizer is trained on, spread over all of them."""
PART = 2000
"""Most records that DQ looks at together: it compares each with each."""

_NOTHING = -1  # in place of a token, behind the end of a sequence
_COMPONENTS = 64


@dataclass(frozen=True)
class Instructions(TensorData):
    """Sequences of prompt and answer, one a row.

    Inputs are int32 (N, T) token numbers, -1 behind the end of a sequence. Targets are the same
    numbers, -100 outside the answer. The end of the sequence is part of its answer. Test rows are
    sorted by length, so that batches of them hold little padding.

    Attributes:
        tokenizer: of transformers.
        questions: that are asked when a run is judged.
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


# ------------------------------------------------------------------ tokens


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
    """The tokenizer that lies beside pretrained weights.

    Raises:
        LabError: there is none that can be used.
    """
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
    """Of each text, none special: a record that speaks of </s> does not end there."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    found: list[list[int]] = encoded["input_ids"]
    return found


def prompt_tokens(records: Sequence[Record], tokenizer: Any) -> list[list[int]]:
    """Of the prompt of each record, with the token that begins a sequence, if there is one."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [start + own for own in tokens_of([prompt(one) for one in records], tokenizer)]


def encode(
    records: Sequence[Record], tokenizer: Any, cutoff: int, what: str
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `Instructions`, of sequences cut at so many tokens.

    A sequence of whose answer nothing would be left is left out. How many were cut and left out
    is logged as a warning.

    Args:
        records: to encode.
        tokenizer: of transformers.
        cutoff: most tokens of a sequence.
        what: names the records in that warning.

    Raises:
        LabError: no sequence is left.
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


# ------------------------------------------------------------------ coresets


def choose_records(records: Sequence[Record], coreset: str) -> Sequence[Record]:
    """The training records that `--option coreset` names, in their order; always the same.

    "none": all. "random:N": N of them. "dq:N": N by dataset quantization (Zhou et al., 2023, arXiv
    2308.10524) on the leading components of the records' TF-IDF. As its cost grows with the square
    of what it looks at, records are dealt out at random to parts of at most `PART`.

    Raises:
        LabError: it is none of these, or there are not so many.
    """
    if coreset == "none":
        return records
    method, _, number = coreset.partition(":")
    if method not in ("random", "dq") or not number.isdecimal():
        raise LabError(f"--option coreset must be none, random:N or dq:N, got {coreset}")
    parts = math.ceil(len(records) / PART)
    if not parts <= int(number) <= len(records):
        raise LabError(
            f"--option coreset must name {parts} to {len(records)} records, got {number}"
        )
    labels = np.random.default_rng(0).permutation(len(records)) % parts
    features = features_of(records) if method == "dq" else np.zeros((len(records), 1), np.float32)
    evidence = Evidence(
        labels=labels.astype(np.int64),
        probabilities=np.eye(parts, dtype=np.float32)[labels],
        features=features,
        head=np.zeros((parts, features.shape[1]), np.float32),
        correct=np.zeros((0, len(records)), bool),
    )
    chosen = coresets.choose(method, evidence, int(number))
    return [records[at] for at in chosen.indices]


def features_of(records: Sequence[Record]) -> np.ndarray:
    """(N, 64) float32: the leading components of the records' TF-IDF."""
    counts = TfidfVectorizer(max_features=20_000, sublinear_tf=True, dtype=np.float32)
    matrix = counts.fit_transform([record.text for record in records])
    components = min(_COMPONENTS, matrix.shape[1])
    found: np.ndarray = TruncatedSVD(components, random_state=0).fit_transform(matrix)
    return found.astype(np.float32)
