"""CIFAR-10 small enough to try ideas on: 20,000 training images, each 2x2 pixels averaged.

    python benchmarks/research/half_cifar.py path/to/cifar10 half.npz

Then `--data-dir half.npz` takes it, and a run costs a tenth of one on CIFAR-10.
"""

import sys
from pathlib import Path

import numpy as np

from infobatch.lab.tasks.cifar.reader import read_cifar


def halved(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, H/2, W/2, 3)."""
    count, height, width, colours = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, colours).astype(np.float32)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)


source, target = map(Path, sys.argv[1:])
cifar = read_cifar(source, classes=10)
np.savez(
    target,
    x_train=halved(cifar.train_images[:20_000]),
    y_train=cifar.train_labels[:20_000],
    x_test=halved(cifar.test_images),
    y_test=cifar.test_labels,
    classes=np.array(cifar.class_names),
)
