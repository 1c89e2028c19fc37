"""A run that was stopped and resumed is, bit for bit, the run that never stopped."""

import contextlib
import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from infobatch import DataPruner, InfoBatch
from infobatch._state.fields import checksum
from infobatch.errors import InfoBatchError, NonFiniteLossWarning, StateError
from infobatch.policies import PAPER_QUANTILES, MeanThreshold, RandomSubset

# 60 batches an epoch: on the CPU the losses of several are buffered before they become scores, so
# states are taken both with full and with half-filled buffers.
N, B, EPOCHS = 480, 8, 4


class OwnOrder:
    """A user's sampler that follows the epoch and repeats some samples."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        draws = torch.Generator().manual_seed(100 + self.epoch)
        return iter(torch.randint(0, N, (N - 33,), generator=draws).tolist())


PRUNERS = {
    "mean": lambda: InfoBatch(N, EPOCHS, delta=0.75, seed=6),
    "quantiles": lambda: InfoBatch(N, EPOCHS, delta=0.75, quantiles=PAPER_QUANTILES),
    "RandomSubset": lambda: DataPruner(N, EPOCHS, RandomSubset(0.4), delta=0.75),
    "own sampler": lambda: InfoBatch(N, EPOCHS, delta=0.75, sampler=OwnOrder()),
    "own sampler, quantiles, EMA": lambda: InfoBatch(
        N, EPOCHS, delta=0.75, quantiles=PAPER_QUANTILES, sampler=OwnOrder(), score_ema=0.7
    ),
    "score EMA": lambda: InfoBatch(N, EPOCHS, delta=0.75, score_ema=0.9),
    "budget within groups": lambda: InfoBatch(
        N, EPOCHS, delta=0.75, budget=0.7, groups=np.arange(N) % 4
    ),
}
# Of all kinds of state, one that holds least and one that holds most.
LEAST_AND_MOST = pytest.mark.parametrize("kind", ["mean", "own sampler, quantiles, EMA"])

STOPS = {
    "the start": (0, 0),
    "within the full first epoch": (0, 7),
    "within a pruned epoch": (1, 13),
    "before the last batch of a pruned epoch": (2, -1),
    "the end of an epoch": (1, 0),
    "the beginning of annealing": (3, 0),
    "within annealing": (3, 50),
}


class Numbered(Dataset):
    """Images in classes of unequal difficulty; each item names itself."""

    def __init__(self):
        draws = torch.Generator().manual_seed(1)
        self.y = torch.randint(0, 3, (N,), generator=draws)
        self.x = torch.randn(N, 5, generator=draws) + self.y[:, None] * torch.rand(N, 1)

    def __len__(self):
        return N

    def __getitem__(self, index):
        return index, self.x[index], self.y[index]


class Training:
    """An ordinary training script with checkpoints, and a log of all it did."""

    def __init__(self, build, workers=0, drop_last=False):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.pruner = build()
        options = {"multiprocessing_context": "fork"} if workers else {}
        self.loader = DataLoader(
            Numbered(),
            B,
            sampler=self.pruner.sampler,
            num_workers=workers,
            drop_last=drop_last,
            **options,
        )
        self.log = []

    def run(self, *, stop=None, breaks=None, epochs=EPOCHS):
        """Train to the end, or up to `stop` = (epoch, step); leave epochs early as `breaks` say.

        Stopped within an epoch, its loop is not left: a state is then one that was saved inside it.
        """
        for epoch in range(self.pruner.epoch, epochs):
            self.pruner.sampler.set_epoch(epoch)
            if stop == (epoch, 0):
                return self
            steps = -(-len(self.pruner.plan) // B)
            self.batches = iter(self.loader)
            for batch in self.batches:
                self.step(*batch)
                done = sum(entry[0] == epoch for entry in self.log)
                if stop in ((epoch, done), (epoch, done - steps)):
                    return self
                if breaks is not None and breaks.get(epoch) == done:
                    break
            self.batches = None
        return self

    def step(self, ids, x, y):
        epoch = self.pruner.epoch
        losses = F.cross_entropy(self.model(x), y, reduction="none")
        rescaled = self.pruner.update(losses, reduction="none")
        self.optimizer.zero_grad()
        rescaled.mean().backward()
        self.optimizer.step()
        self.log.append((epoch, ids, losses.detach(), rescaled.detach()))

    def state(self):
        """The pruner's; taken while this object, which holds the loop, is there."""
        return self.pruner.state_dict()

    def save(self):
        file = io.BytesIO()
        parts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict(),
        }
        torch.save(parts, file)
        return file.getvalue()

    def load(self, saved, log):
        parts = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.pruner.load_state_dict(parts["pruner"])
        self.log = list(log)
        return self


def plain(history):
    """Records in a form in which NaN equals NaN."""
    return [repr(record) for record in history]


def assert_same_run(left, right):
    assert_same_plans(left, right)
    assert_same_pruner(left.pruner, right.pruner)


def assert_same_plans(left, right):
    assert len(left.log) == len(right.log)
    for (epoch, *ours), (expected_epoch, *expected) in zip(left.log, right.log, strict=True):
        assert epoch == expected_epoch
        for ours_part, expected_part in zip(ours, expected, strict=True):
            assert torch.equal(ours_part, expected_part)
    for ours, expected in zip(
        left.model.state_dict().values(), right.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, expected)


def assert_same_pruner(left, right):
    assert torch.equal(left.scores.nan_to_num(-1.0), right.scores.nan_to_num(-1.0))
    assert plain(left.history) == plain(right.history)
    assert (left.epoch, left.progress) == (right.epoch, right.progress)
    assert left.saved_fraction == right.saved_fraction
    assert len(left.sampler) == len(right.sampler)
    assert torch.equal(left.plan.indices, right.plan.indices)
    assert torch.equal(left.plan.weights, right.plan.weights)


@pytest.fixture(scope="module")
def uninterrupted():
    """One whole run of each kind, for all tests that compare with it."""
    runs = {}

    def whole_run(kind):
        if kind not in runs:
            runs[kind] = Training(PRUNERS[kind]).run()
            history = runs[kind].pruner.history
            assert [record.kept < record.total for record in history] == [False, True, True, False]
        return runs[kind]

    return whole_run


# --- conformance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", STOPS)
@LEAST_AND_MOST
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(kind, stop, uninterrupted):
    stopped = Training(PRUNERS[kind]).run(stop=STOPS[stop])
    resumed = Training(PRUNERS[kind]).load(stopped.save(), stopped.log)
    assert_same_pruner(resumed.pruner, stopped.pruner) if STOPS[stop][1] == 0 else None
    assert_same_run(resumed.run(), uninterrupted(kind))
    assert resumed.pruner.progress == 1.0


@pytest.mark.parametrize(
    ("stop", "workers"),
    [("within a pruned epoch", 2), ("the end of an epoch", 2), ("within a pruned epoch", 0)],
)
def test_batches_that_workers_had_fetched_ahead_come_again(stop, workers, uninterrupted):
    """Also where the run goes on with another number of workers."""
    kind = "own sampler, quantiles, EMA"
    stopped = Training(PRUNERS[kind], workers=2).run(stop=STOPS[stop])
    resumed = Training(PRUNERS[kind], workers=workers).load(stopped.save(), stopped.log)
    assert_same_run(resumed.run(), uninterrupted(kind))


@pytest.mark.parametrize("stop", [(1, 13), (2, 0)])
def test_a_resumed_run_under_drop_last_is_the_uninterrupted_run(stop):
    whole = Training(PRUNERS["own sampler"], drop_last=True).run()
    stopped = Training(PRUNERS["own sampler"], drop_last=True).run(stop=stop)
    resumed = Training(PRUNERS["own sampler"], drop_last=True).load(stopped.save(), stopped.log)
    assert_same_run(resumed.run(), whole)
    assert any(record.trained < record.kept for record in whole.pruner.history)


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_run_resumed_again_and_again_is_the_uninterrupted_run(kind, uninterrupted):
    training = Training(PRUNERS[kind])
    for stop in [(0, 0), (0, 1), (0, 31), (1, 2), (1, 3), (2, -1), (3, 1), (3, 54)]:
        stopped = training.run(stop=stop)
        training = Training(PRUNERS[kind]).load(stopped.save(), stopped.log)
    assert_same_run(training.run(), uninterrupted(kind))


BREAKS = {0: 20, 1: 9, 2: 1}


@pytest.mark.parametrize("stop", [(2, 0), (1, 4)], ids=["after two breaks", "between"])
@LEAST_AND_MOST
def test_a_resumed_run_whose_epochs_were_left_early_is_the_uninterrupted_run(kind, stop):
    whole = Training(PRUNERS[kind]).run(breaks=BREAKS)
    assert [record.trained for record in whole.pruner.history[:3]] == [160, 72, 8]
    stopped = Training(PRUNERS[kind]).run(stop=stop, breaks=BREAKS)
    resumed = Training(PRUNERS[kind]).load(stopped.save(), stopped.log)
    assert_same_run(resumed.run(breaks=BREAKS), whole)


def test_a_state_from_inside_the_loop_goes_on_there_and_one_from_after_a_break_behind_it():
    stopped = Training(PRUNERS["mean"]).run(stop=(1, 9))
    rest = Training(PRUNERS["mean"]).load(stopped.save(), stopped.log)
    assert len(rest.pruner.sampler) == len(rest.pruner.plan) - 9 * B
    assert list(rest.pruner.sampler) == rest.pruner.plan.indices[9 * B :].tolist()
    stopped.batches = None  # the loop is left
    following = Training(PRUNERS["mean"]).load(stopped.save(), stopped.log)
    assert following.pruner.epoch == stopped.pruner.epoch == 2
    assert_same_pruner(following.pruner, stopped.pruner)
    rest.pruner.sampler.set_epoch(2)  # or the next epoch is asked for
    assert_same_pruner(rest.pruner, stopped.pruner)


def test_len_and_progress_after_loading_are_those_of_what_is_left():
    stopped = Training(PRUNERS["mean"]).run(stop=(1, 13))
    resumed = Training(PRUNERS["mean"]).load(stopped.save(), stopped.log)
    left = len(stopped.pruner.plan) - 13 * B
    assert len(resumed.pruner.sampler) == left
    assert len(resumed.loader) == -(-left // B)
    assert resumed.pruner.progress == stopped.pruner.progress
    assert resumed.pruner.epoch == 1
    next(iter(resumed.loader))  # a look changes nothing here either
    assert (
        len(resumed.loader)
        == -(-left // B)
        == len(list(BatchSampler(resumed.pruner.sampler, B, drop_last=False)))
    )
    resumed.run(stop=(2, 0))
    assert len(resumed.pruner.sampler) == len(resumed.pruner.plan)


def test_the_wrapped_order_check_goes_on_after_loading():
    stopped = Training(PRUNERS["mean"]).run(stop=(1, 13))
    resumed = Training(PRUNERS["mean"]).load(stopped.save(), stopped.log)
    with pytest.raises(InfoBatchError, match="before any batch was drawn"):
        resumed.pruner.update(torch.rand(B))
    batches = iter(resumed.loader)
    batch = next(batches)
    resumed.step(*batch)
    with pytest.raises(InfoBatchError, match="Call it once per batch"):
        resumed.step(*batch)


# --- what a state is ------------------------------------------------------------------------------


def test_taking_a_state_and_being_refused_one_at_every_step_changes_nothing(uninterrupted):
    curious = Training(PRUNERS["mean"])
    original_step = curious.step
    foreign = InfoBatch(N, EPOCHS, seed=99).state_dict()

    def step(*batch):
        original_step(*batch)
        curious.pruner.state_dict()
        assert len(curious.pruner.scores) == N
        with pytest.raises(StateError, match="delta="):
            curious.pruner.load_state_dict(foreign)

    curious.step = step
    assert_same_run(curious.run(), uninterrupted("mean"))


def test_training_on_from_a_state_does_not_change_it_and_a_pruner_can_go_back_to_it(uninterrupted):
    training = Training(PRUNERS["own sampler"]).run(stop=(1, 13))
    saved, log = training.save(), list(training.log)
    taken = training.pruner.state_dict()
    before = copy.deepcopy(taken)
    training.pruner.sampler.set_epoch(2)  # the epoch that was left is over
    training.run()
    assert_equal_states(taken, before)
    for _ in range(2):
        training.load(saved, log).pruner.load_state_dict(taken)
        assert_same_run(training.run(), uninterrupted("own sampler"))
        assert_equal_states(taken, before)


def test_non_finite_losses_before_the_stop_are_still_reported_after_it():
    def run(stop):
        pruner = InfoBatch(64, 3)
        loader = DataLoader(range(64), 8, sampler=pruner.sampler)
        batches = iter(loader)  # held, so that the loop is not left
        for step, ids in enumerate(batches):
            losses = ids.float()
            if step == 2:
                losses[:3] = math.nan
            pruner.update(losses)
            if step == stop:
                break
        if stop is not None:
            state, pruner = pruner.state_dict(), InfoBatch(64, 3)
            pruner.load_state_dict(state)
            for ids in DataLoader(range(64), 8, sampler=pruner.sampler):
                pruner.update(ids.float())
        return pruner

    with pytest.warns(NonFiniteLossWarning, match="3 of 64"):
        whole = run(stop=None)
    with pytest.warns(NonFiniteLossWarning, match="3 of 64"):
        resumed = run(stop=4)
    assert_same_pruner(resumed, whole)


def test_a_finished_run_can_be_saved_and_read(uninterrupted):
    whole = uninterrupted("own sampler")
    pruner = PRUNERS["own sampler"]()
    pruner.load_state_dict(whole.pruner.state_dict())
    assert pruner.progress == 1.0
    assert plain(pruner.history) == plain(whole.pruner.history)


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_state_holds_five_bytes_a_sample(kind):
    training = Training(PRUNERS[kind]).run(stop=(2, 0))
    tensors = [part for part in training.pruner.state_dict().values() if torch.is_tensor(part)]
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.float32, torch.uint8]
    assert [tensor.numel() for tensor in tensors] == [N, min(N, 1024), N]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pruner: pickle.loads(pickle.dumps(pruner))]
)
@pytest.mark.parametrize("stop", [(0, 7), (2, 0)])
@LEAST_AND_MOST
def test_a_copy_goes_on_where_the_original_stands_and_leaves_it_alone(
    kind, stop, copied, uninterrupted
):
    original = Training(PRUNERS[kind]).run(stop=stop)
    twin = Training(lambda: copied(original.pruner))
    assert twin.pruner.sampler is not original.pruner.sampler
    twin.model.load_state_dict(original.model.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(original.optimizer.state_dict()))
    twin.log = list(original.log)
    state = original.pruner.state_dict()
    assert_same_run(twin.run(), uninterrupted(kind))
    assert_equal_states(original.pruner.state_dict(), state)


def assert_equal_states(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_states(left[key], right[key])
    elif torch.is_tensor(left):
        assert torch.equal(left.nan_to_num(-1.0), right.nan_to_num(-1.0))
    else:
        assert repr(left) == repr(right)


# --- states that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            lambda: InfoBatch(N + 1, EPOCHS, delta=0.75, seed=6),
            f"num_samples={N}.*num_samples={N + 1}",
        ),
        (lambda: InfoBatch(N, EPOCHS + 1, delta=0.75, seed=6), "num_epochs=4.*num_epochs=5"),
        (lambda: InfoBatch(N, EPOCHS, 0.6, delta=0.75, seed=6), "policy=.*0.5.*policy=.*0.6"),
        (lambda: InfoBatch(N, EPOCHS, delta=0.75, seed=6, quantiles=PAPER_QUANTILES), "policy="),
        (lambda: DataPruner(N, EPOCHS, RandomSubset(0.5), delta=0.75, seed=6), "RandomSubset"),
        (lambda: InfoBatch(N, EPOCHS, delta=0.8, seed=6), "delta=0.75.*delta=0.8"),
        (lambda: InfoBatch(N, EPOCHS, delta=0.75, seed=7), "seed=6.*seed=7"),
        (lambda: InfoBatch(N, EPOCHS, delta=0.75, seed=6, sampler=OwnOrder()), "own_sampler="),
        (lambda: InfoBatch(N, EPOCHS, delta=0.75, seed=6, warmup_epochs=2), "warmup_epochs=1"),
        (lambda: InfoBatch(N, EPOCHS, delta=0.75, seed=6, score_ema=0.5), "score_ema=0.0"),
    ],
)
@pytest.mark.parametrize("stop", [(1, 13), (2, 0)], ids=["within an epoch", "between epochs"])
def test_a_state_of_other_settings_is_refused_with_the_reason(other, reason, stop):
    state = Training(PRUNERS["mean"]).run(stop=stop).state()
    pruner = other()
    before = pruner.state_dict()
    with pytest.raises(StateError, match=reason) as caught:
        pruner.load_state_dict(state)
    assert isinstance(caught.value, InfoBatchError)
    assert isinstance(caught.value, ValueError)
    caught.match("build the pruner with the settings of the saved run")
    assert_equal_states(pruner.state_dict(), before)


def test_the_same_policy_written_out_has_the_same_state_and_any_mapping_will_do():
    class FrozenState(dict):
        pass

    state = FrozenState(Training(PRUNERS["mean"]).run(stop=(1, 13)).state())
    pruner = DataPruner(N, EPOCHS, MeanThreshold(0.5), delta=0.75, seed=6)
    pruner.load_state_dict(state)
    assert len(pruner.sampler) == len(pruner.plan) - 13 * B


def damaged(state, path, value):
    """A deep copy of a state with one entry replaced, or removed where `value` is ABSENT.

    With a checksum that fits, as far as there can be one, so that the other checks are reached.
    """
    state = copy.deepcopy(state)
    state["plan"], state["history"] = list(state["plan"]), list(state["history"])
    place = state
    for key in path[:-1]:
        place = place[key]
    if value is ABSENT:
        del place[path[-1]]
    elif callable(value):
        place[path[-1]] = value(place[path[-1]])
    else:
        place[path[-1]] = value
    if path != ("checksum",):
        with contextlib.suppress(Exception):
            state["checksum"] = checksum(state)
    return state


ABSENT = object()
DAMAGE = [
    *[((key,), ABSENT) for key in ("format", "settings", "epoch", "position", "scores")],
    *[((key,), ABSENT) for key in ("plan", "level", "tally", "history", "shard", "checksum")],
    *[(("settings", key), ABSENT) for key in ("num_samples", "policy", "seed", "delta")],
    *[(("plan", 0, key), ABSENT) for key in ("total", "order", "table", "weights", "threshold")],
    *[(("tally", key), ABSENT) for key in ("trained", "non_finite", "loss_count", "loss_sum")],
    (("format",), 999),
    (("format",), "1"),
    (("settings",), None),
    (("epoch",), -1),
    (("epoch",), EPOCHS + 1),
    (("epoch",), 2),
    (("epoch",), 1.0),
    (("epoch",), True),
    (("position",), -1),
    (("position",), N + 1),
    (("position",), 13.5),
    (("position",), None),
    *[(("scores",), lambda scores, n=n: scores.repeat(2)[:n]) for n in (0, 1, N - 1, N + 1)],
    (("scores",), lambda scores: scores.double()),
    (("scores",), lambda scores: scores.half()),
    (("scores",), lambda scores: scores[:, None]),
    (("scores",), lambda scores: scores.tolist()),
    (("plan",), None),
    (("plan",), []),
    (("plan",), lambda plan: plan * 2),
    (("plan", 0), 7),
    (("plan", 0, "total"), -1),
    (("plan", 0, "table"), lambda table: [-weight - 1 for weight in table]),
    (("plan", 0, "table"), lambda table: [math.nan for _ in table]),
    (("plan", 0, "table"), lambda table: [math.inf for _ in table]),
    (("plan", 0, "table"), lambda table: [0.0 for _ in table]),
    (("plan", 0, "table"), lambda table: table[:1]),
    (("plan", 0, "table"), lambda table: ["one" for _ in table]),
    (("plan", 0, "table"), lambda table: [table]),
    (("plan", 0, "table"), None),
    (("plan", 0, "weights"), 7),
    (("plan", 0, "threshold"), None),
    (("plan", 0, "order"), lambda order: order + N),
    (("plan", 0, "order"), lambda order: order - N),
    (("plan", 0, "order"), lambda order: order.float()),
    (("plan", 0, "order"), lambda order: order[None]),
    (("plan", 0, "order"), None),
    (("plan", 0, "order"), "order"),
    *[(("level",), lambda level, n=n: level.repeat(2)[:n]) for n in (0, N - 1, N + 1)],
    (("level",), lambda level: level.long()),
    (("level",), lambda level: level + 100),
    (("level",), None),
    (("shard",), [0, 2]),
    (("shard",), [1, 1]),
    (("shard",), [0]),
    (("shard",), ["0", 1]),
    (("checksum",), None),
    (("tally",), None),
    (("tally", "trained"), 1.5),
    (("tally", "loss_sum"), "0.0"),
    (("history",), None),
    (("history",), []),
    (("history",), lambda history: history * 2),
    (("history", 0), None),
    (("history", 0, "epoch"), 1),
    (("history", 0, "kept"), ABSENT),
    (("history", 0, "kept"), "480"),
]


@pytest.mark.parametrize(
    ("path", "value"),
    DAMAGE,
    ids=[f"{number}-{path[-1]}" for number, (path, _) in enumerate(DAMAGE)],
)
def test_a_damaged_state_is_refused_and_the_pruner_goes_on_as_before(path, value, damage_case):
    state, training, expected = damage_case
    with pytest.raises(StateError) as caught:
        training.pruner.load_state_dict(damaged(state, path, value))
    assert len(str(caught.value)) > 20
    assert_equal_states(training.pruner.state_dict(), expected)
    training.pruner.load_state_dict(state)


@pytest.fixture(scope="module")
def damage_case():
    """A good state from within an epoch, and a pruner within an epoch that refuses bad ones."""
    state = Training(PRUNERS["own sampler"]).run(stop=(1, 13)).state()
    training = Training(PRUNERS["own sampler"])
    training.pruner.load_state_dict(state)
    return state, training, copy.deepcopy(state)


@pytest.mark.parametrize("nothing", [None, [], "state", 3, {}])
def test_what_is_no_state_is_refused(nothing):
    pruner = PRUNERS["mean"]()
    with pytest.raises(StateError, match=r"a state is a dict|has no entry 'format'"):
        pruner.load_state_dict(nothing)


def as_format_4(state):
    """The state as it was written before it said how it stood to its loop."""
    old = copy.deepcopy(state)
    for name in ("steps", "is_over", "batch_size", "before"):
        del old[name]
    for part in (old["tally"], *old["history"]):
        del part["left_out"]
    for record in old["history"]:
        del record["headroom"], record["rank_correlation"]
    old["format"] = 4
    old["checksum"] = checksum(old)
    return old


@pytest.mark.parametrize("stop", [(1, 13), (2, 0)])
def test_a_state_of_the_format_before_is_read(stop, uninterrupted):
    stopped = Training(PRUNERS["mean"]).run(stop=stop)
    resumed = Training(PRUNERS["mean"]).load(stopped.save(), stopped.log)
    resumed.pruner.load_state_dict(as_format_4(stopped.state()))
    resumed.run()
    assert_same_plans(resumed, uninterrupted("mean"))
    known = [math.isfinite(record.rank_correlation) for record in resumed.pruner.history]
    first = stop[0] + (stop[1] > 0)  # a state within an epoch lacks the scores before
    assert known == [epoch >= first for epoch in range(len(known))]


def test_the_tensors_of_an_older_state_may_be_such_as_numpy_cannot_see():
    """On an accelerator, or, as here, with a gradient."""
    state = as_format_4(Training(PRUNERS["mean"]).run(stop=(2, 0)).state())
    state["scores"].requires_grad_()
    resumed = PRUNERS["mean"]()
    resumed.load_state_dict(state)
    assert torch.equal(resumed.scores, state["scores"].detach())


def test_a_state_of_an_older_format_is_refused_with_those_that_are_read():
    state = {**Training(PRUNERS["mean"]).run(stop=(2, 0)).state(), "format": 3}
    with pytest.raises(StateError, match=r"has format 3, .* reads formats 4 to 6"):
        PRUNERS["mean"]().load_state_dict(state)
