"""Choosing within a batch."""

import io

import numpy as np
import pytest
import torch

from infobatch import BatchPruner
from infobatch.errors import LossError, StateError
from infobatch.policies import ES, ImportanceSampling, SelectiveBackprop

N = 100


def batches(seed=0, size=20):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        indices = torch.randint(N, (size,), generator=generator).unique()
        yield indices, torch.rand(len(indices), generator=generator)


@pytest.mark.parametrize("policy", [SelectiveBackprop(), ImportanceSampling(), ES()], ids=repr)
def test_it_counts_what_it_costs_and_resumes_where_it_stood(policy):
    whole, first = BatchPruner(N, policy, seed=3), BatchPruner(N, policy, seed=3)
    expected = [whole.select(losses, keep=5, indices=ids) for ids, losses in batches()]
    for number, (ids, losses) in enumerate(batches()):
        if number == 13:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            first = BatchPruner(N, policy, seed=3)
            first.load_state_dict(torch.load(file, weights_only=True))
        choice = first.select(losses, keep=5, indices=ids)
        assert torch.equal(choice.positions, expected[number].positions)
        assert torch.equal(choice.weights, expected[number].weights)
    assert first.steps == 30
    assert first.forwarded == sum(len(ids) for ids, _ in batches())
    assert first.backpropagated == 150


def test_the_loss_of_the_chosen_ones_estimates_that_of_the_batch():
    losses = torch.tensor(np.random.default_rng(0).gamma(1.0, size=64))
    pruner = BatchPruner(64, ImportanceSampling())
    estimates = []
    for _ in range(4000):
        choice = pruner.select(losses, keep=8)
        estimates.append(float((choice.weights * losses[choice.positions]).mean()))
    assert np.mean(estimates) == pytest.approx(float(losses.mean()), rel=1e-6)  # p ~ loss: exact


def test_each_step_draws_anew():
    pruner, losses = BatchPruner(64, SelectiveBackprop()), torch.rand(64)
    drawn = {tuple(pruner.select(losses, keep=16).positions.tolist()) for _ in range(20)}
    assert len(drawn) == 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_of_any_float_type_and_with_a_gradient(dtype):
    losses = torch.rand(16, requires_grad=True).to(dtype)
    choice = BatchPruner(16, SelectiveBackprop()).select(losses, keep=4)
    assert choice.positions.shape == choice.weights.shape == (4,)
    assert not choice.weights.requires_grad


def test_a_non_finite_loss_counts_as_the_hardest():
    losses = torch.tensor([0.1] * 30 + [float("nan"), 5.0])
    pruner = BatchPruner(32, ImportanceSampling())
    drawn = torch.cat([pruner.select(losses, keep=8).positions for _ in range(50)])
    assert (drawn == 30).sum() > 100
    assert pruner.select(torch.full((4,), float("inf")), keep=2).positions.shape == (2,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.select(torch.tensor(1.0), keep=1), LossError, "shape"),
        (lambda s: s.select(torch.ones(4), keep=5), ValueError, "keep must be at least 1 and at"),
        (lambda s: s.select(torch.ones(4), keep=0), ValueError, "keep must be at least 1"),
        (lambda s: s.select(torch.ones(4), keep=2), LossError, "pass indices="),
        (
            lambda s: s.select(torch.ones(4), keep=2, scores=torch.ones(3)),
            LossError,
            "one per loss",
        ),
        (lambda s: s.select(torch.ones(2), keep=2, indices=[0, N]), LossError, "0 to"),
        (lambda s: s.load_state_dict({}), StateError, "no state of a BatchPruner"),
        (
            lambda s: s.load_state_dict(BatchPruner(N, SelectiveBackprop()).state_dict()),
            StateError,
            "was saved with",
        ),
        (
            lambda s: s.load_state_dict({**s.state_dict(), "memory": {}}),
            StateError,
            "memory must have",
        ),
        (
            lambda s: s.load_state_dict({**s.state_dict(), "steps": -1}),
            StateError,
            "counts must be",
        ),
        (lambda _: BatchPruner(N, object()), TypeError, "select_batch"),
        (lambda _: BatchPruner(0, SelectiveBackprop()), ValueError, "at least"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(BatchPruner(N, ES()))
