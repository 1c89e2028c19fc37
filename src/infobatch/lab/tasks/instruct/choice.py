"""Coresets of records: which of them `--option coreset` leaves to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from infobatch.lab import coresets
from infobatch.lab.coresets import Evidence
from infobatch.lab.errors import LabError
from infobatch.lab.tasks.instruct.records import Record

PART = 2000
"""Most records that DQ looks at together: it compares each with each."""
_COMPONENTS = 64


def choose_records(records: Sequence[Record], coreset: str) -> Sequence[Record]:
    """The training records that `--option coreset` names, in their order; always the same.

    "none": all. "random:N": N of them. "dq:N": N by dataset quantization (Zhou et al., 2023, arXiv
    2308.10524) on the leading components of the records' TF-IDF. As its cost grows with the square
    of what it looks at, records are dealt out at random to parts of at most `PART`.
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
