"""`update` within `torch.compile`: one graph, no break, and the same run as without."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import BatchSampler

from infobatch import InfoBatch
from infobatch.errors import LossError, MisalignedUpdateError

N, BATCH, EPOCHS = 1000, 64, 4
DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, 8, generator=DRAW)
LABELS = (INPUTS[:, :3] + 0.3 * torch.randn(N, 3, generator=DRAW)).argmax(1)

# The compiler looks at .grad of what it is given, and hides the warning unless it is an error.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf"
)


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def losses_of(model, rows, dtype=torch.float32):
    return F.cross_entropy(model(INPUTS[rows]), LABELS[rows], reduction="none").to(dtype)


def plain(pruner, model):
    return lambda rows: pruner.update(losses_of(model, rows))


def summed(pruner, model):
    return lambda rows: pruner.update(losses_of(model, rows), reduction="sum") / BATCH


def unreduced(pruner, model):
    return lambda rows: pruner.update(losses_of(model, rows), reduction="none").sum() / BATCH


def scored(pruner, model):
    def step(rows):
        losses = losses_of(model, rows)
        return pruner.update(losses, scores=losses.sqrt())

    return step


def indexed(pruner, model):
    return lambda rows: pruner.update(losses_of(model, rows), indices=rows)


def in_half_precision(pruner, model):
    return lambda rows: pruner.update(losses_of(model, rows, torch.bfloat16))


def in_double_precision(pruner, model):
    return lambda rows: pruner.update(losses_of(model, rows, torch.float64))


def by_hand(pruner, model):
    """The result of `update` is not used, which a compiler takes as leave to drop it."""

    def step(rows):
        losses = losses_of(model, rows)
        pruner.update(losses)
        return losses.mean()

    return step


def train(step_of, pruner, compiled=None):
    model = model_of()
    step = step_of(pruner, model)
    if compiled is not None:
        step = torch.compile(step, fullgraph=True, backend=compiled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(EPOCHS):
        for batch in BatchSampler(pruner.sampler, BATCH, drop_last=False):
            optimizer.zero_grad()
            step(torch.tensor(batch)).backward()
            optimizer.step()
    return list(model.parameters()), pruner


def assert_same_run(found, expected):
    for mine, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].scores, expected[1].scores, rtol=1e-4, atol=1e-5)
    kept = [(record.kept, record.trained, record.left_out) for record in expected[1].history]
    assert [(r.kept, r.trained, r.left_out) for r in found[1].history] == kept
    assert any(trained < N for _, trained, _ in kept)


@pytest.mark.parametrize(
    "step_of",
    [plain, summed, unreduced, scored, indexed, in_half_precision, in_double_precision, by_hand],
)
def test_a_compiled_step_is_one_graph_and_trains_the_same(step_of):
    expected = train(step_of, InfoBatch(N, EPOCHS))
    counter = CompileCounterWithBackend("aot_eager")
    found = train(step_of, InfoBatch(N, EPOCHS), counter)
    assert_same_run(found, expected)
    assert counter.frame_count <= 2  # once more where the size of the last batch differs


@pytest.mark.parametrize("step_of", [plain, by_hand])
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated")
def test_with_the_default_compiler(step_of):
    expected = train(step_of, InfoBatch(N, EPOCHS))
    assert_same_run(train(step_of, InfoBatch(N, EPOCHS), "inductor"), expected)


def test_the_paper_s_weights_are_in_the_gradient():
    pruner = InfoBatch(N, EPOCHS)
    losses = torch.rand(N, generator=DRAW).requires_grad_()
    step = torch.compile(pruner.update, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for batch in BatchSampler(pruner.sampler, BATCH, drop_last=False):
            weights = pruner.coming_weights(len(batch))
            (gradient,) = torch.autograd.grad(step(losses[batch]), losses)
            torch.testing.assert_close(gradient[batch], weights.float() / len(batch))
    assert weights.min() == 1.0 < weights.max()


def begin(pruner):
    """Draw two batches, as a loop would; to be kept while the loop goes on."""
    batches = iter(BatchSampler(pruner.sampler, BATCH, drop_last=False))
    next(batches)
    next(batches)
    return batches


def copied(pruner):
    return copy.deepcopy(pruner)


def pickled(pruner):
    return pickle.loads(pickle.dumps(pruner))


@pytest.mark.parametrize("way", [copied, pickled])
def test_a_copy_has_losses_of_its_own(way):
    pruner = InfoBatch(N, EPOCHS)
    other = way(pruner)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(pruner, losses):
        return pruner.update(losses)

    drawn = [begin(pruner), begin(other)]
    step(pruner, torch.rand(BATCH))
    assert int(pruner.scores.isfinite().sum()) == BATCH
    assert int(other.scores.isfinite().sum()) == 0
    step(other, torch.rand(BATCH))
    assert int(other.scores.isfinite().sum()) == BATCH
    assert int(pruner.scores.isfinite().sum()) == BATCH
    del drawn


def test_what_is_wrong_is_said_as_it_is_outside():
    pruner = InfoBatch(N, EPOCHS)
    step = torch.compile(pruner.update, fullgraph=True, backend="aot_eager")
    drawn = begin(pruner)
    with pytest.raises(LossError, match='compute the loss with reduction="none"'):
        step(torch.rand(()))
    with pytest.raises(LossError, match=r"write losses\.flatten\(\)"):
        step(torch.rand(BATCH, 1))
    with pytest.raises(MisalignedUpdateError):
        step(torch.rand(BATCH - 1))
    step(torch.rand(BATCH))
    assert int(pruner.scores.isfinite().sum()) == BATCH
    del drawn


def test_a_pass_without_pruning_is_not_counted():
    pruner = InfoBatch(N, EPOCHS)
    step = torch.compile(pruner.update, fullgraph=True, backend="aot_eager")
    losses = torch.rand(BATCH)
    pruner.sampler.is_paused = True
    torch.testing.assert_close(step(losses), losses.mean())
    assert not pruner.is_within_epoch


def test_what_stands_for_a_pruner_in_graphs_is_on_the_host_whatever_the_default_device():
    with torch.device("meta"):
        pruner = InfoBatch(N, EPOCHS)
    assert pruner._handle.device.type == "cpu"


def test_skip_in_a_compiled_function_is_skip():
    pruner = InfoBatch(N, EPOCHS)
    drawn = begin(pruner)
    torch.compile(pruner.skip, backend="aot_eager")(BATCH)
    pruner.update(torch.rand(BATCH))
    assert pruner.scores.isfinite().nonzero().flatten().tolist() == sorted(
        pruner.plan.indices[BATCH : 2 * BATCH].tolist()
    )
    del drawn
