"""Hostile states and hostile updates: refused with a reason, and the pruner is as it was."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import InfoBatchError, StateError

N, EPOCHS, BATCH = 40, 4, 8


def trained(epoch, step, **options):
    pruner = InfoBatch(N, EPOCHS, **options)
    for _ in range(EPOCHS):
        # Kept, so that the loop is not left and a state is one that was saved inside it.
        pruner.sampler.loop = iter(DataLoader(range(N), BATCH, sampler=pruner.sampler))
        for number, ids in enumerate(pruner.sampler.loop):
            if (pruner.epoch, number) == (epoch, step):
                return pruner
            pruner.update(ids.float() % 7)
    return pruner


def same(left, right):
    """Whether two states hold the same, bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    if torch.is_tensor(left):
        return left.numpy().tobytes() == right.numpy().tobytes()
    return repr(left) == repr(right)


GOOD = trained(1, 2).state_dict()


def refused(state, reason="state"):
    pruner = trained(2, 1)
    before = pruner.state_dict()
    with pytest.raises(StateError, match=reason):
        pruner.load_state_dict(state)
    assert same(pruner.state_dict(), before)
    pruner.load_state_dict(before)
    for ids in DataLoader(range(N), BATCH, sampler=pruner.sampler):
        pruner.update(ids.float() % 7)  # it goes on
    assert pruner.epoch == 3


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 0.0, -1.0])
def test_scores_that_are_not_those_that_were_saved_are_refused(fill):
    state = copy.deepcopy(GOOD)
    state["scores"].fill_(fill)
    refused(state, "the state is damaged: its contents are not those that its checksum")


@pytest.mark.parametrize("byte", [0, 7, N // 2])
@pytest.mark.parametrize("name", ["scores", "level"])
def test_one_flipped_bit_is_noticed(name, byte):
    state = copy.deepcopy(GOOD)
    state[name].numpy().view(np.uint8)[byte] ^= 4
    refused(state, "the state is damaged")


@pytest.mark.parametrize(
    ("name", "value"), [("epoch", 2), ("position", 1), ("checksum", 7), ("format", 1)]
)
def test_one_changed_number_is_noticed(name, value):
    refused({**copy.deepcopy(GOOD), name: value})


class Loud:
    """Says so when anything is asked of it: what a hostile pickle could hold."""

    asked: list[str] = []  # noqa: RUF012

    def __getattr__(self, name):
        Loud.asked.append(name)
        raise AssertionError(name)

    def __bool__(self):
        Loud.asked.append("bool")
        return True

    def __len__(self):
        Loud.asked.append("len")
        return 1

    def __iter__(self):
        Loud.asked.append("iter")
        return iter(())


@pytest.mark.parametrize("name", [name for name in GOOD if name != "settings"])
def test_an_object_with_code_in_it_is_refused_and_not_asked_anything(name):
    Loud.asked.clear()
    refused({**copy.deepcopy(GOOD), name: Loud()}, f"'{name}' must be of type")
    assert Loud.asked == []


class Exploit:
    def __reduce__(self):
        return (print, ("this must never be run",))


def test_a_pickle_with_code_in_it_is_not_run(capsys):
    for bad in ({**GOOD, "tally": Exploit()}, Exploit()):
        buffer = io.BytesIO()
        torch.save({"pruner": bad}, buffer)
        buffer.seek(0)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(buffer, weights_only=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_not_read(part):
    buffer = io.BytesIO()
    torch.save(GOOD, buffer)
    data = buffer.getvalue()
    with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
        torch.load(io.BytesIO(data[: int(part * len(data))]), weights_only=True)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, N), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool]),
)
anything = st.recursive(
    scalars | st.binary(max_size=9) | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(sorted(GOOD)), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, (tuple, list)) else items
    for key, item in items:
        yield from paths(item, (*path, key))


def with_entry(value, path, new):
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: with_entry(value[path[0]], path[1:], new)}
    parts = [
        with_entry(part, path[1:], new) if i == path[0] else part for i, part in enumerate(value)
    ]
    return type(value)(parts)


@given(path=st.sampled_from(list(paths(GOOD))), value=anything)
def test_whatever_stands_in_an_entry_the_state_is_refused_or_the_same(path, value):
    state = with_entry(copy.deepcopy(GOOD), path, value)
    pruner = trained(2, 1)
    before = pruner.state_dict()
    try:
        pruner.load_state_dict(state)
    except StateError:
        assert same(pruner.state_dict(), before)
    else:
        assert same(pruner.state_dict(), GOOD)


@given(state=anything)
def test_what_is_no_state_is_refused(state):
    refused(state)


losses = st.one_of(
    st.builds(
        lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
        st.lists(st.integers(0, 2 * BATCH), max_size=3).map(tuple),
        st.sampled_from(
            [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool]
        ),
        st.floats(0, 1e3),
    ),
    st.builds(
        lambda fill, dtype: torch.full((BATCH,), fill, dtype=dtype),
        st.floats(width=32),
        st.sampled_from([torch.float32, torch.float64]),
    ),
    scalars,
)


@pytest.mark.filterwarnings("ignore::infobatch.errors.NonFiniteLossWarning")
@given(
    losses=losses,
    scores=st.none() | losses,
    indices=st.none() | st.lists(st.integers(-1, N), max_size=BATCH) | tensors | scalars,
    reduction=st.sampled_from(["mean", "sum", "none", "max", None]),
)
def test_whatever_update_is_given_it_takes_or_refuses_and_changes_nothing(
    losses, scores, indices, reduction
):
    pruner = InfoBatch(N, EPOCHS)
    batches = iter(DataLoader(range(N), BATCH, sampler=pruner.sampler))
    pruner.update(next(batches).float())
    next(batches)
    before = pruner.state_dict()
    try:
        result = pruner.update(losses, scores=scores, indices=indices, reduction=reduction)
    except (InfoBatchError, ValueError, TypeError):
        assert same(pruner.state_dict(), before)
    else:
        assert result.dtype == losses.dtype
        assert result.shape == (losses.shape if reduction == "none" else ())
        assert len(losses) == BATCH or indices is not None
