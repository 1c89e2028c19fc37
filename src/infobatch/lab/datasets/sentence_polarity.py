"""Sentence polarity: 10,662 sentences of film reviews, half of them kind (Pang and Lee, 2005)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infobatch.lab.datasets.files import find_text, read_jsonl, read_lines
from infobatch.lab.errors import LabError

CLASSES = ("negative", "positive")

_SITE = "https://www.cs.cornell.edu/people/pabo/movie-review-data/"


def read_sentence_polarity(data_dir: Path | None) -> tuple[list[str], list[int]]:
    """Sentences and their labels, 1 for positive; the positive ones of the official files first.

    Read are the official rt-polarity.pos and rt-polarity.neg, in Latin-1, in a folder or in
    rt-polaritydata/ there, and sentence_polarity.jsonl with {"label": 0 or 1, "text": ...} a line.

    Raises:
        LabError: a file is missing (the message says what to fetch from where) or damaged.
    """
    if data_dir is None:
        raise LabError(f"sentence-polarity needs --data-dir. {_how_to_get(Path('data'))}")
    for folder in (data_dir, data_dir / "rt-polaritydata"):
        positive, negative = (find_text(folder, f"rt-polarity.{end}") for end in ("pos", "neg"))
        if positive is not None and negative is not None:
            pairs = [(line, 1) for _, line in read_lines(positive, "latin-1")]
            pairs += [(line, 0) for _, line in read_lines(negative, "latin-1")]
            return _checked(pairs, folder)
    path = find_text(data_dir, "sentence_polarity.jsonl")
    if path is None:
        raise LabError(f"no sentence polarity found in {data_dir}. {_how_to_get(data_dir)}")
    return _checked(list(_labelled(path)), path)


def _labelled(path: Path) -> Iterator[tuple[str, int]]:
    for number, entry in read_jsonl(path):
        text, label = entry.get("text"), entry.get("label")
        if not isinstance(text, str) or not text.strip() or label not in (0, 1):
            raise LabError(
                f'{path}, line {number}: "text" must be a sentence and "label" 0 or 1, '
                f"got {text!r} and {label!r}"
            )
        yield text.strip(), int(label)


def _checked(pairs: list[tuple[str, int]], path: Path) -> tuple[list[str], list[int]]:
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    fewest = min(labels.count(label) for label in (0, 1))
    if fewest < 5:
        raise LabError(f"{path} must hold at least 5 sentences of each class, got {fewest}")
    return texts, labels


def _how_to_get(folder: Path) -> str:
    return (
        f'Download "sentence polarity dataset v1.0" from {_SITE}, unpack it in {folder}, and give '
        f"--data-dir {folder}. Also read: sentence_polarity.jsonl with label and text on each line."
    )
