"""Images in class folders, train/<class>/* and val/<class>/*, read from disk while it trains."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.data import Batch, Generators, Prepare, TaskData
from infobatch.lab.tasks.base.files import class_folders

SUFFIXES = (".jpg", ".jpeg", ".png")
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_FEW = 64  # so few images are not worth starting workers for

Key = tuple[int, int | None]
"""Number of an image, and the seed of its crop; None for the middle of the image."""


@dataclass(frozen=True)
class Crops:
    """How images of any size become squares of one size.

    Attributes:
        size: of the squares, in pixels.
        smallest: part of an image that a crop in training covers at least.
    """

    size: int
    smallest: float

    def random(self, image: Image.Image, seed: int) -> Image.Image:
        """A crop of random area and shape, resized, and flipped with probability one half.

        As ImageNet is augmented since Szegedy et al., 2015 (arXiv 1409.4842): the area is uniform
        from `smallest` to all of the image, the logarithm of width over height uniform from that
        of 3/4 to that of 4/3; after ten crops that do not fit, the middle.
        """
        draws = np.random.default_rng(seed)
        width, height = image.size
        box = self._middle(image, 1.0)
        for _ in range(10):
            area = width * height * draws.uniform(self.smallest, 1.0)
            shape = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
            across, down = math.sqrt(area * shape), math.sqrt(area / shape)
            if across <= width and down <= height:
                left, top = draws.uniform(0, width - across), draws.uniform(0, height - down)
                box = (left, top, left + across, top + down)
                break
        crop = self._resized(image, box)
        flip = draws.random() < 0.5
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop

    def middle(self, image: Image.Image) -> Image.Image:
        """The square in the middle, 7/8 of the shorter side: 224 of 256 pixels."""
        return self._resized(image, self._middle(image, 7 / 8))

    def _middle(self, image: Image.Image, part: float) -> tuple[float, float, float, float]:
        side = part * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return left, top, left + side, top + side

    def _resized(self, image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


class ImageFiles(Dataset[Tensor | str]):
    """Images by key: uint8 (3, size, size), or in words why one cannot be read.

    Args:
        root: folder of the class folders.
        names: path of each image in it. Kept as one array: a list of a million strings would be
            copied into each worker, bit by bit, as their reference counts change.
        labels: (N,) class of each.
        crops: how they become squares.
    """

    def __init__(self, root: Path, names: Sequence[bytes], labels: Tensor, crops: Crops) -> None:
        self.root = root
        self.names = np.array(names)
        self.labels = labels
        self.crops = crops

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Where an image lies."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def __getitem__(self, key: Key) -> Tensor | str:
        index, seed = key
        try:
            with Image.open(self.path(index)) as file:
                image = file.convert("RGB")
        except _UNREADABLE as error:
            return f"{self.path(index)} is not a readable image ({error})"
        crop = self.crops.middle(image) if seed is None else self.crops.random(image, seed)
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)

    def only(self, chosen: Tensor) -> ImageFiles:
        """Some of them, in that order."""
        return ImageFiles(
            self.root, list(self.names[chosen.numpy()]), self.labels[chosen], self.crops
        )

    def load(self, batches: Iterable[list[Key]], workers: int) -> Iterator[Loaded]:
        """Batches of images, read by so many processes ahead of time."""
        loader: DataLoader[Tensor | str] = DataLoader(
            self, batch_sampler=batches, num_workers=workers, collate_fn=_together
        )
        yield from loader


class Loaded(NamedTuple):
    """A batch of images, uint8 (B, 3, size, size), or those of its keys that can be read.

    Attributes:
        readable: (B,) which can.
        problem: in words, of the first one that cannot.
    """

    images: Tensor
    readable: Tensor
    problem: str | None


def _together(images: list[Tensor | str]) -> Loaded:
    """In the worker: one tensor travels to the training, not one for each image."""
    read = [image for image in images if isinstance(image, Tensor)]
    readable = torch.tensor([isinstance(image, Tensor) for image in images])
    problem = next((image for image in images if isinstance(image, str)), None)
    return Loaded(torch.stack(read) if read else torch.empty(0), readable, problem)


@dataclass(frozen=True, eq=False)
class FolderData(TaskData):
    """Images that are read, cropped and scaled in the order in which batches are planned.

    What is random in a crop comes from the generator of its batch, whatever the workers.

    Attributes:
        train, test: the files.
        class_names: names of the class folders, in alphabetical order.
        workers: processes that read; 0: this one.
        put_on: device of the batches.
        left_out: files that were not readable and are no samples.
    """

    reads_ahead = True

    train: ImageFiles
    test: ImageFiles
    class_names: tuple[str, ...] = ()
    workers: int = 0
    put_on: torch.device = field(default_factory=lambda: torch.device("cpu"))
    left_out: int = 0

    @property
    def device(self) -> torch.device:
        return self.put_on

    @property
    def labels(self) -> Tensor:
        return self.train.labels

    def __len__(self) -> int:
        return len(self.train)

    def _rows(self, loaded: Loaded) -> Tensor:
        if loaded.problem is not None:
            raise LabError(f"{loaded.problem}; mend or delete it, or give --option corrupt=skip")
        return loaded.images.to(self.device)

    def batches(
        self, numbers: Iterable[list[int]], prepare: Prepare, generators: Generators
    ) -> Iterator[Batch]:
        ahead: deque[tuple[Tensor, torch.Generator]] = deque()

        def keys() -> Iterator[list[Key]]:
            for place, batch in enumerate(numbers):
                generator = generators(place)
                seeds = torch.randint(2**62, (len(batch),), generator=generator).tolist()
                ahead.append((torch.tensor(batch), generator))
                yield list(zip(batch, seeds, strict=True))

        for loaded in self.train.load(keys(), self.workers):
            indices, generator = ahead.popleft()
            targets = self.labels[indices].to(self.device)
            yield Batch(
                indices.to(self.device), *prepare(self._rows(loaded), targets, generator, True)
            )

    def _in_order(self, files: ImageFiles, indices: Tensor, size: int) -> Iterator[Tensor]:
        workers = 0 if len(indices) < _FEW else self.workers
        return map(self._rows, files.load(_middles(indices, size), workers))

    def samples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The middle of some training images, and their classes."""
        indices = indices.cpu()
        rows = torch.cat(list(self._in_order(self.train, indices, _FEW)))
        return rows, self.labels[indices].to(self.device)

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The middle of every test image, and their classes."""
        rows = self._in_order(self.test, torch.arange(len(self.test)), size)
        yield from zip(rows, self.test.labels.to(self.device).split(size), strict=True)

    def to(self, device: torch.device) -> FolderData:
        return replace(self, put_on=device)

    def only(self, chosen: Tensor) -> FolderData:
        return replace(self, train=self.train.only(chosen))

    def fingerprint(self) -> str:
        """A digest of names, classes and sizes of files: to read all of them takes too long."""
        digest = hashlib.sha256()
        for files in (self.train, self.test):
            for index in range(len(files)):
                digest.update(bytes(files.names[index]))
                digest.update(files.path(index).stat().st_size.to_bytes(8, "little"))
            digest.update(files.labels.numpy().data)
        return digest.hexdigest()[:16]

    def without_unreadable(self) -> FolderData:
        """The same without the files that cannot be read; each is read once to find them."""
        train, test = (_readable(files, self.workers) for files in (self.train, self.test))
        left_out = len(self.train) + len(self.test) - len(train) - len(test)
        return replace(self, train=train, test=test, left_out=left_out)


def _middles(indices: Tensor, size: int) -> list[list[Key]]:
    return [[(index, None) for index in part.tolist()] for part in indices.split(size)]


def _readable(files: ImageFiles, workers: int) -> ImageFiles:
    parts = _middles(torch.arange(len(files)), _FEW)
    readable = torch.cat([loaded.readable for loaded in files.load(parts, workers)])
    if not bool(readable.any()):
        raise LabError(f"{files.root} holds no image that can be read")
    return files.only(readable.nonzero().flatten())


def read_image_folder(data_dir: Path, crops: Crops, workers: int) -> FolderData:
    """The images under train/<class> and val/<class>."""
    train, test = data_dir / "train", data_dir / "val"
    for part in (train, test):
        if not part.is_dir():
            raise LabError(
                f"{data_dir} must hold train/CLASS/*.jpg and val/CLASS/*.jpg (or .jpeg, .png), "
                f"but there is no {part}"
            )
    names = class_folders(train, test)
    return FolderData(
        _files(train, names, crops), _files(test, names, crops), tuple(names), workers
    )


def _files(part: Path, names: Sequence[str], crops: Crops) -> ImageFiles:
    found: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(
            entry.name
            for entry in os.scandir(part / name)
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
        )
        if not files:
            raise LabError(f"{part / name} holds no image ({', '.join(SUFFIXES)})")
        found += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageFiles(part, found, torch.tensor(labels), crops)
