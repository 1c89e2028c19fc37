"""Text files as data sets come in: plain, or packed by xz or gzip."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infobatch.lab.errors import LabError

_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error)


def find_text(folder: Path, *names: str) -> Path | None:
    """The first of these files that lies in a folder, plain or with .xz or .gz behind its name."""
    paths = (folder / f"{name}{packed}" for name in names for packed in ("", ".xz", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, unpacked.

    Raises:
        LabError: it is damaged, or in another encoding.
    """
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)
    try:
        return unpack(path.read_bytes()).decode(encoding)
    except _UNREADABLE as error:
        raise LabError(f"{path} is not a readable text file ({error})") from error


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1."""
    # Not splitlines: it takes characters such as U+0085, which texts may hold, for line ends.
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, with the numbers of their lines.

    Raises:
        LabError: a line holds something else.
    """
    for number, line in read_lines(path):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise LabError(f"{path}, line {number}: each line must be one JSON object")
        yield number, entry
