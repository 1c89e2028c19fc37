"""The comparisons that want a GPU, in pieces: each call trains for some minutes and goes on later.

python benchmarks/gpu_pieces.py --data-dir path/to/cifar --out runs/gpu --minutes 9

`--data-dir` holds both CIFAR sets in a form that `infobatch compare` reads. Arms are run seed by
seed, so that what is there after any piece is a whole comparison with fewer seeds. Exit status 0:
all is done; 3: the time is over, call it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

COST, SEEDS = "0.65", 5
ARMS = "full,fewer-epochs,random,infobatch,infobatch-budget,proportional,adaptive,orderdp"
SHARED = ("--precision", "bf16", "--channels-last", "--eval-every", "5")
COMPARISONS: dict[str, tuple[str, ...]] = {
    "cifar10-airbench": (
        *("--task", "cifar10", "--model", "airbench", "--width", "64", "--epochs", "20"),
        *("--batch-size", "256", "--lr", "0.2", "--nesterov", "--label-smoothing", "0"),
    ),
    "cifar10-resnet18": ("--task", "cifar10", "--model", "resnet18", "--epochs", "30"),
    "cifar100-resnet18": ("--task", "cifar100", "--model", "resnet18", "--epochs", "30"),
    "cifar100-airbench": (
        *("--task", "cifar100", "--model", "airbench", "--width", "64", "--epochs", "20"),
        *("--batch-size", "256", "--lr", "0.2", "--nesterov", "--label-smoothing", "0"),
    ),
}
TIME_IS_OVER = 3


def main() -> int:
    """Run what is left, until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this piece (default: 9)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true", help="a few samples and epochs of each")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    # Not channels-last: torch 2.13 crashes in the backward pass of so narrow a ResNet on the CPU.
    small = ("--limit-train", "32", "--epochs", "4", "--width", "4", "--eval-every", "0")
    for seed in range(1 if arguments.smoke else SEEDS):
        for name, settings in COMPARISONS.items():
            command = [
                *(sys.executable, "-m", "infobatch", "compare", "--arms", ARMS, "--cost", COST),
                *("--seeds", "1", "--first-seed", str(seed), "--device", arguments.device),
                *("--data-dir", str(arguments.data_dir), "--out", str(arguments.out / name)),
                *(*settings, *(small if arguments.smoke else SHARED)),
            ]
            try:
                subprocess.run(command, check=True, timeout=max(1.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                print("the time is over; the same command goes on")
                return TIME_IS_OVER
    return 0


if __name__ == "__main__":
    sys.exit(main())
