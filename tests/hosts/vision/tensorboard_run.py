"""As a program: a short run with TensorBoard; arguments are the data's YAML file and a folder."""

import sys
from typing import ClassVar

if __name__ == "__main__":
    import tests.hosts.vision.conftest  # noqa: F401
    from ultralytics import YOLO, settings

    from infobatch.integrations.ultralytics import PrunedDetectionTrainer

    class Trainer(PrunedDetectionTrainer):
        pruning: ClassVar = {"budget": 0.8}

    settings.update({"tensorboard": True})
    data, folder = sys.argv[1:]
    quiet = {"plots": False, "val": False, "amp": False, "imgsz": 64, "batch": 4, "device": "cpu"}
    place = {"project": folder, "name": "run", "exist_ok": True}
    YOLO("yolov8n.yaml").train(data=data, epochs=3, trainer=Trainer, conf=0.5, **quiet, **place)
