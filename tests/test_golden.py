"""Plans, weights, scores and states are those that were written down, bit for bit."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.runs import RUNS, train

GOLDEN = Path(__file__).parent / "golden"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # NaN losses are among them


@cache
def written() -> dict[str, list[dict[str, Any]]]:
    return json.loads((GOLDEN / "runs.json").read_text())


@cache
def states(file: str) -> dict[str, dict[str, Any]]:
    return torch.load(GOLDEN / file, weights_only=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_one_that_was_written_down(name):
    assert train(RUNS[name]()) == written()[name]


@pytest.mark.parametrize("name", RUNS)
def test_a_state_that_was_written_down_goes_on_as_its_run_did(name):
    pruner = RUNS[name]()
    pruner.load_state_dict(states("states.pt")[name])
    assert train(pruner)[1:] == written()[name][3:]


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("adaptive")])
def test_a_state_of_the_format_before_goes_on_alike(name):
    """But for what its history does not tell."""
    pruner = RUNS[name]()
    pruner.load_state_dict(states("states-format-5.pt")[name])
    assert train(pruner)[1:-1] == written()[name][3:-1]
