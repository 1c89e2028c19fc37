"""What text tasks share: a byte-level tokenizer, its training, and token tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from infobatch.lab.errors import need
from infobatch.lab.tasks.base.data import TensorData

SPECIAL = 0
"""The token that is no text: padding, and the start of each document."""

IGNORED = -100
"""The target where no token is to be predicted: what `cross_entropy` ignores."""


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, T, V) at every token, (B, T) float32; 0 where it is ignored."""
    return F.cross_entropy(
        logits.float().transpose(1, 2), targets, reduction="none", label_smoothing=label_smoothing
    )


@dataclass(frozen=True)
class TextData(TensorData):
    """Token numbers (N, T), int32, of so many tokens; `test_bytes`: of the test part, in UTF-8."""

    vocabulary: int = 0
    test_bytes: int = 0


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Byte-level BPE (Sennrich et al., 2016; on bytes, Radford et al., 2019) of these texts alone.

    Token 0 is `SPECIAL` and comes out of no text. All bytes are tokens, so any text can be encoded.
    `vocabulary` is the most tokens, the 256 bytes and `SPECIAL` among them.
    """
    tokenizers = need("tokenizers", "tasks")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|special|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # in a text its name is text like any other
    return tokenizer
