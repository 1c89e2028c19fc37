"""Plain text to model: a training part and a held-out part of any corpus."""

from __future__ import annotations

import logging
from pathlib import Path

from infobatch.lab.datasets.files import find_text, read_jsonl, read_text
from infobatch.lab.errors import LabError

_log = logging.getLogger(__name__)

_WHOLE = {"tinyshakespeare": ("input.txt",)}
_PARTS = {
    "wikitext2": (
        (("wiki.train.tokens",), ("wiki.test.tokens",)),
        (("train.txt",), ("test.txt",)),
    )
}
_SITES = {
    "tinyshakespeare": "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)",
    "brown": "https://www.nltk.org/nltk_data (Brown Corpus, as brown.jsonl with a text a line)",
    "wikitext2": "https://huggingface.co/datasets/Salesforce/wikitext (wikitext-2-v1.zip)",
}
_HELD_OUT = 10
"""One part in so many is held out."""


def read_corpus(data_dir: Path | None, name: str) -> tuple[list[str], list[str]]:
    """Documents to train on, and documents that are held out.

    In the folder lie NAME_train and NAME_test, or NAME, each .txt (one document) or .jsonl (one
    document in "text" of each line), plain or packed as .xz or .gz; for tinyshakespeare and
    wikitext2 also their official files. Where there is one file, every tenth document is held out;
    of fewer than ten documents the last tenth of each is, from the start of a line.

    Raises:
        LabError: there is no such file (the message says what to put where), it is damaged, or has
            no text.
    """
    if data_dir is None:
        raise LabError(f"language-model needs --data-dir. {_how_to_get(Path('data'), name)}")
    if data_dir.is_file():
        return _split(_documents(data_dir), data_dir)
    kinds = (".txt", ".jsonl")
    named = tuple(tuple(f"{name}_{part}{kind}" for kind in kinds) for part in ("train", "test"))
    for train_names, test_names in (named, *_PARTS.get(name, ())):
        train, test = find_text(data_dir, *train_names), find_text(data_dir, *test_names)
        if train is not None and test is not None:
            return _documents(train), _documents(test)
    whole = find_text(data_dir, *(f"{name}{kind}" for kind in kinds), *_WHOLE.get(name, ()))
    if whole is None:
        raise LabError(f"no text of {name} found in {data_dir}. {_how_to_get(data_dir, name)}")
    return _split(_documents(whole), whole)


def _documents(path: Path) -> list[str]:
    if ".jsonl" not in path.suffixes:
        texts = [read_text(path)]
    else:
        texts = []
        for number, entry in read_jsonl(path):
            text = entry.get("text")
            if not isinstance(text, str):
                raise LabError(f'{path}, line {number}: "text" must be a document, got {text!r}')
            texts.append(text)
    found = [text for text in texts if text.strip()]
    if not found:
        raise LabError(f"{path} holds no text")
    if len(found) < len(texts):
        _log.warning("%s: %d empty documents left out", path, len(texts) - len(found))
    return found


def _split(documents: list[str], path: Path) -> tuple[list[str], list[str]]:
    if len(documents) >= _HELD_OUT:
        held_out = documents[_HELD_OUT - 1 :: _HELD_OUT]
        return [d for n, d in enumerate(documents, start=1) if n % _HELD_OUT], held_out
    train, held_out = [], []
    for document in documents:
        line = document.find("\n", len(document) - len(document) // _HELD_OUT - 1) + 1
        if not 0 < line < len(document):
            raise LabError(
                f"{path} must hold ten documents, or lines of which the last tenth can be held out"
            )
        train.append(document[:line])
        held_out.append(document[line:])
    return train, held_out


def _how_to_get(folder: Path, name: str) -> str:
    site = f" Get it from {_SITES[name]}." if name in _SITES else ""
    return (
        f"Put {name}.txt or {name}.jsonl, or {name}_train and {name}_test of these, into {folder}, "
        f"plain or packed as .xz or .gz, and give --data-dir {folder}.{site}"
    )
