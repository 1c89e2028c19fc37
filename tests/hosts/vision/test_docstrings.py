"""The example in the docstring of the integration of Ultralytics runs, on a few small pictures."""

import pytest
from tests.hosts.vision.ultralytics_data import write_squares
from tests.support.examples import examples_in, run_example
from ultralytics import YOLO

import infobatch.integrations

EXAMPLES = [
    example
    for example in examples_in(infobatch.integrations)
    if example.module.endswith((".ultralytics", ".timm"))
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_the_example_of_the_docstring_runs(example, tmp_path):
    class Small(YOLO):
        """On other data than the example's, which would be downloaded."""

        def train(self, trainer=None, **given):
            small = {"epochs": 3, "imgsz": 64, "batch": 4, "device": "cpu", "plots": False}
            small |= {"data": str(write_squares(tmp_path)), "project": str(tmp_path)}
            super().train(trainer=trainer, **{**given, **small})

    run_example(example, YOLO=Small)
    assert (tmp_path / "train" / "results.csv").exists()
