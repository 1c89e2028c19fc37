"""Optimizers and schedules are the published ones, from the first step to the last."""

import math
from dataclasses import replace

import pytest
import torch
from tests.lab.support import SETTINGS
from torch import nn

from infobatch.lab.run.optim import build_optimizer, build_schedule

LR, DECAY = 0.5, 0.1


def settings(**changes):
    return replace(SETTINGS, lr=LR, weight_decay=DECAY, **changes)


class Parameters(nn.Module):
    """A matrix, as of a layer, and a vector, as of a bias or a normalisation."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        self.vector = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))


def after_steps(optimizer, count, **changes):
    """The gradient of each parameter, and the parameters before and after `count` such steps."""
    model = Parameters()
    gradients = {
        "matrix": torch.tensor([[0.0, 0.3], [-0.4, 0.0]], dtype=torch.float64),
        "vector": torch.tensor([0.1, 0.2], dtype=torch.float64),
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    built = build_optimizer(model, settings(optimizer=optimizer, **changes))
    for _ in range(count):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        built.step()
    return gradients, before, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_momentum_and_adds_the_decay_to_the_gradient(nesterov):
    gradients, before, after = after_steps("sgd", 2, nesterov=nesterov)
    for name in before:
        x, buffer = before[name].clone(), torch.zeros_like(before[name])
        for _ in range(2):
            gradient = gradients[name] + DECAY * x
            buffer = 0.9 * buffer + gradient
            x -= LR * (gradient + 0.9 * buffer if nesterov else buffer)
        torch.testing.assert_close(after[name], x)


def test_adamw_takes_the_decay_out_of_the_gradient():
    gradients, before, after = after_steps("adamw", 1)
    for name in before:
        expected = before[name] * (1 - LR * DECAY) - LR * gradients[name].sign()
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-5)


def test_lars_gives_a_layer_a_step_in_proportion_to_its_weights():
    gradients, before, after = after_steps("lars", 2)
    x, buffer = before["matrix"].clone(), torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(2):
        gradient = gradients["matrix"]
        trust = 1e-3 * x.norm() / (gradient.norm() + DECAY * x.norm())
        buffer = 0.9 * buffer + trust * (gradient + DECAY * x)
        x -= LR * buffer
    torch.testing.assert_close(after["matrix"], x)


def test_lars_leaves_biases_and_normalisation_to_sgd_without_decay():
    gradients, before, after = after_steps("lars", 2)
    torch.testing.assert_close(after["vector"], before["vector"] - LR * 2.9 * gradients["vector"])


def test_lamb_decays_before_the_trust_ratio():
    gradients, before, after = after_steps("lamb", 1)
    for name in before:
        gradient, x = gradients[name], before[name]
        adam = 0.1 * gradient / (math.sqrt(1e-3) * gradient.abs() + 1e-6)
        update = adam + DECAY * x
        expected = x - LR * x.norm() / update.norm() * update
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-5)


def rates(schedule, total):
    """The learning rate of each step, and the one after the last."""
    optimizer = build_optimizer(Parameters(), settings(schedule=schedule))
    built = build_schedule(optimizer, settings(schedule=schedule), total)
    found = []
    for step in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            built.step()
    return found


def test_one_cycle_rises_over_three_tenths_and_falls_to_nearly_nothing():
    found = rates("onecycle", 101)
    assert found[0] == pytest.approx(LR / 25)
    assert max(found) == pytest.approx(LR, rel=2e-3)
    assert found.index(max(found)) in (29, 30)
    assert found[-1] == pytest.approx(LR / 25 / 1e4)


def test_cosine_is_its_closed_form_after_a_straight_rise():
    found = rates("cosine", 100)
    assert found[:10] == pytest.approx([LR * (step + 1) / 10 for step in range(10)])
    for step in range(10, 100):
        part = (step - 10) / 90
        assert found[step] == pytest.approx(LR * 0.5 * (1 + math.cos(math.pi * part)))
    assert found[10] == LR
    assert found[-1] < 1e-3 * LR


def test_constant_is_the_peak_from_first_to_last():
    assert rates("constant", 10) == [LR] * 10


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_the_shortest_run_has_a_schedule(schedule):
    assert all(0 < rate <= LR for rate in rates(schedule, 2))
