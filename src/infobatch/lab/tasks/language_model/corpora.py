"""Plain text to model: a training part and a held-out part of any corpus."""

from __future__ import annotations

import logging
from pathlib import Path

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.files import find_text, find_texts, read_jsonl, read_text, search

_log = logging.getLogger(__name__)

_HOW_TO_GET = (
    "Put {name}.txt or {name}.jsonl, or {name}_train and {name}_test of these, into {{folder}}, "
    "plain or packed as .xz or .gz, and give --data-dir {{folder}}.{site}"
)
_SITES = {
    "tinyshakespeare": "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)",
    "brown": "https://www.nltk.org/nltk_data (Brown Corpus, as brown.jsonl with a text a line)",
    "wikitext2": "https://huggingface.co/datasets/Salesforce/wikitext (wikitext-2-v1.zip)",
}
_WHOLE = {"tinyshakespeare": ["input.txt"]}
_PARTS = {"wikitext2": [("wiki.train.tokens", "wiki.test.tokens"), ("train.txt", "test.txt")]}
"""Official names, of one file or of a training and a held-out file."""
_HELD_OUT = 10
"""One part in so many is held out."""

Documents = list[str]


def read_corpus(data_dir: Path | None, name: str) -> tuple[Documents, Documents]:
    """Documents to train on, and documents that are held out.

    In the folder lie NAME_train and NAME_test, or NAME, each .txt (one document) or .jsonl (one
    document in "text" of each line), plain or packed as .xz or .gz; for tinyshakespeare and
    wikitext2 also their official files. Where there is one file, every tenth document is held out;
    of fewer than ten documents the last tenth of each is, from the start of a line.
    """
    kinds = (".txt", ".jsonl")
    pairs = [(f"{name}_train{one}", f"{name}_test{other}") for one in kinds for other in kinds]
    pairs += _PARTS.get(name, [])
    wholes = [*(f"{name}{kind}" for kind in kinds), *_WHOLE.get(name, [])]

    def read(place: Path) -> tuple[Documents, Documents] | None:
        if place.is_file():
            return _split(_documents(place), place)
        for names in pairs:
            if parts := find_texts(place, *names):
                return _documents(parts[0]), _documents(parts[1])
        whole = find_text(place, *wholes)
        return _split(_documents(whole), whole) if whole else None

    site = f" Get it from {_SITES[name]}." if name in _SITES else ""
    how_to_get = _HOW_TO_GET.format(name=name, site=site)
    return search(f"language-model with corpus {name}", data_dir, how_to_get, read)


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
