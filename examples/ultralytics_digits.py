"""Ultralytics YOLO: find handwritten digits on a sheet, from scratch.

    python examples/ultralytics_digits.py --epochs 10

The sheets are made of scikit-learn's digits. Ultralytics is AGPL-3.0.
"""

import argparse
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from ultralytics import YOLO

from infobatch.integrations.ultralytics import PrunedDetectionTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
parser.add_argument("--folder", type=Path, default=Path("sheets"), help="for sheets and runs")
args = parser.parse_args()


class Trainer(PrunedDetectionTrainer):
    pruning: ClassVar = {"budget": args.budget}


def write_sheets(folder, digits, size=64):
    """One sheet for each four digits, and in YOLO's format where they are."""
    draw = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(len(digits) // 4):
        sheet, lines = draw.integers(0, 40, (size, size), dtype=np.uint8), []
        for digit in digits[4 * number :][: draw.integers(1, 5)]:
            side = int(draw.integers(16, 25))
            x, y = draw.integers(0, size - side, 2)
            picture = Image.fromarray(np.uint8(digit * 15.9)).resize((side, side))
            place = sheet[y : y + side, x : x + side]
            np.maximum(place, picture, out=place)
            box = (x + side / 2, y + side / 2, side, side)
            lines.append("0 " + " ".join(f"{value / size:.4f}" for value in box))
        Image.fromarray(sheet).convert("RGB").save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines))


digits = load_digits().images
folder = args.folder.resolve()
for name, part in (("train", digits[:640]), ("val", digits[640:800]), ("test", digits[800:1120])):
    write_sheets(folder / name, part)
data = folder / "sheets.yaml"
data.write_text(
    f"path: {folder}\ntrain: train/images\nval: val/images\ntest: test/images\nnames: [digit]\n"
)

model = YOLO("yolov8n.yaml")
model.train(
    trainer=Trainer,  # the whole change
    data=str(data),
    epochs=args.epochs,
    imgsz=64,
    batch=8,
    nbs=8,  # no accumulation: there are few steps
    warmup_epochs=0,
    workers=0,
    device="cpu",
    plots=False,
    project=str(folder),
    name="run",
    exist_ok=True,
)
results = model.val(data=str(data), split="test", plots=False, project=str(folder))

print(model.trainer.pruner.summary())
print(f"test mAP50 {results.box.map50:.3f}")
