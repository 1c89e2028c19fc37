"""Runs the indented examples of docstrings, each as the middle of a training script.

An example finds what a script has by then: data, a model, a pruner, and a loader that has just
given its first batch. A `...` in it stands for what the reader has there: the next batch of the
loader that the example has made, or what its comment names. Tests that it defines are called.
"""

import ast
import functools
import importlib
import pkgutil
import re
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import infobatch
import infobatch.policies
from infobatch import InfoBatch, policies
from infobatch.lab import coresets

SAMPLES, BATCH = 50_000, 2_500

# What a `...` of its own line stands for, by the comment behind it; in a class it is the methods of
# a batch sampler.
ELLIPSES = {
    "": "batches = iter(loader); x, y = next(batches)",
    "# the epoch": (
        "pruner.update(losses_of(y))\n"
        "for x, y in batches: pruner.update(F.cross_entropy(model(x), y, reduction='none'))"
    ),
}
IN_A_CLASS = """
    def __init__(self, sampler): self.sampler = sampler
    def __iter__(self): return iter(BatchSampler(self.sampler, 100, drop_last=False))
"""


class ExampleError(AssertionError):
    """An example of a docstring does not work."""


@dataclass(frozen=True)
class Example:
    module: str
    owner: str  # the class or function whose docstring it stands in
    text: str

    @property
    def place(self) -> str:
        return f"{self.module}.{self.owner}"


def blocks_of(docstring: str) -> list[str]:
    """Its indented blocks that stand, after an empty line, below a line that is not indented."""
    found = re.findall(r"(?m)^\S.*\n\s*\n((?: {4}.*(?:\n|$)|\s*\n)+)", docstring + "\n")
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found]


def examples_of(source: str, module: str = "") -> list[Example]:
    """All examples in the docstrings of a module, public or not."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        Example(module, getattr(node, "name", "__doc__"), block)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, owners)
        for block in blocks_of(ast.get_docstring(node) or "")
    ]


def examples_in(package: types.ModuleType, *, leave_out: tuple[str, ...] = ()) -> list[Example]:
    """Of all its modules, those below `leave_out` aside."""
    modules = pkgutil.walk_packages(
        package.__path__, f"{package.__name__}.", onerror=lambda name: None
    )
    found = []
    for name, spec in [
        (package.__name__, package.__spec__),
        *((module.name, module.module_finder.find_spec(module.name)) for module in modules),
    ]:
        if not name.startswith(leave_out):
            found += examples_of(Path(spec.origin).read_text(encoding="utf-8"), name)
    return found


def evidence(train_set: TensorDataset) -> coresets.Evidence:
    """Of a proxy that has learned nothing."""
    x, labels = (tensor.numpy() for tensor in train_set.tensors)
    return coresets.Evidence(
        labels=labels,
        probabilities=np.full((len(labels), 3), 1 / 3, dtype=np.float32),
        features=x,
        head=np.zeros((3, x.shape[1]), dtype=np.float32),
        correct=np.zeros((1, len(labels)), dtype=bool),
    )


def script() -> dict[str, object]:
    """The names that a training script has when its first batch is there."""
    x = torch.randn(SAMPLES, 4)
    train_set = TensorDataset(x, torch.randint(3, (SAMPLES,)))
    model = torch.nn.Linear(4, 3)
    pruner = InfoBatch(train_set, num_epochs=3)
    loader = DataLoader(train_set, BATCH, sampler=pruner.sampler)
    batches = iter(loader)
    inputs, labels = next(batches)
    return {
        **vars(torch.utils.data),
        **{name: getattr(policies, name) for name in policies.__all__},
        **{name: getattr(infobatch, name) for name in infobatch.__all__},
        "torch": torch,
        "F": F,
        "functools": functools,
        "OneCycleLR": OneCycleLR,
        "MyPolicy": functools.partial(policies.MeanThreshold, 0.5),
        "train_set": train_set,
        "num_epochs": 3,
        "steps_per_full_epoch": len(loader),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "pruner": pruner,
        "loader": loader,
        "batches": batches,
        "x": inputs,
        "y": labels,
        "lam": 0.3,  # of mixup
        "class_weights": torch.tensor([1.0, 2.0, 0.5]),
        "loss_of": torch.nn.CrossEntropyLoss(reduction="none"),
        "coresets": coresets,
        "evidence": evidence(train_set),
        "losses_of": lambda indices: torch.rand(len(indices)),
    }


def run_example(example: Example, **names: object) -> None:
    """Run it among the names of its module, those of a script, and further ones."""

    def filled_in(match: re.Match[str]) -> str:
        indent, comment = match.groups(default="")
        if not indent and comment not in ELLIPSES:
            raise ExampleError(f"{example.place}: what does this stand for: {match[0]}")
        return IN_A_CLASS if indent else ELLIPSES[comment]

    text = re.sub(r"(?m)^( *)\.\.\.[ \t]*(#.*)?$", filled_in, example.text)
    place = vars(importlib.import_module(example.module)) if example.module else {}
    namespace = {**place, **script(), **names, "__name__": "__main__"}
    try:
        exec(compile(text, example.place, "exec"), namespace)
        for name, value in list(namespace.items()):
            if name.startswith("test_") and isinstance(value, types.FunctionType):
                value()
    except Exception as error:
        raise ExampleError(f"{example.place}: {error!r} in\n{example.text}") from error
