"""The examples in the docstrings of the integrations run, with the real frameworks."""

import functools

import pytest
import torch
import transformers
import trl
from accelerate import Accelerator
from lightning import LightningModule, Trainer
from tests.hosts.loops import lightning_run
from tests.hosts.loops.transformers_run import Digits, Rows, arguments
from tests.support.examples import examples_in, run_example

import infobatch.integrations

EXAMPLES = examples_in(infobatch.integrations, leave_out=("infobatch.integrations.ultralytics",))


class WithLayers(LightningModule):
    """What a module of the reader's own has beside what the example shows."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def names_of(module, folder):
    """What a reader of an integration has beside the names of a script."""
    if module.endswith("lightning"):
        quiet = functools.partial(Trainer, **lightning_run.QUIET)
        return {"LightningModule": WithLayers, "Trainer": quiet}
    if module.endswith("transformers"):
        return {
            "Trainer": transformers.Trainer,
            "SFTTrainer": trl.SFTTrainer,
            "CLASS_WEIGHTS": torch.ones(3),
            "model": Digits(),
            "args": arguments(folder),
            "train_set": Rows(),
        }
    return {"accelerator": Accelerator(cpu=True)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_the_example_of_the_docstring_runs(example, tmp_path):
    run_example(example, **names_of(example.module, tmp_path))
