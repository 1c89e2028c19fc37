"""Checks that any policy, also one of your own, can be run through.

    from infobatch.testing import check_policy

    def test_my_policy():
        check_policy(MyPolicy(), unbiased=True)

Each check raises an AssertionError that says what does not hold. They take seconds.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infobatch._core.policy import new_memory
from infobatch._core.scores import FloatArray
from infobatch.policies import BatchPolicy, Policy, Request, Selection, Visits
from infobatch.pruner import DataPruner

SIZES = (1, 2, 3, 17, 400)
_DRAWS = 1000  # a mean weight off by 6 standard deviations of a draw / sqrt(1000) is found
_EPOCHS = 6
_BATCH = 8  # in the runs


def check_policy(policy: Policy, *, unbiased: bool = False, num_samples: int = 120) -> None:
    """Check all that a policy promises by being one.

    - It selects from pools of any size, of one sample up, and from any scores: equal ones, none
      known, infinite ones; it keeps at least one sample, weights are positive and finite, and the
      scores are not written to.
    - It is deterministic: the same scores, epoch and generator give the same selection, and a
      copy of the policy does too.
    - Told how many to keep, it keeps exactly so many, and a run under `budget=` costs what it
      should, to within half a batch.
    - A memory does not depend on how an epoch's losses are cut, and a run that is saved within an
      epoch and resumed ends like one that was not.

    Args:
        policy: the policy. Settings that depend on the size of a data set must fit `num_samples`.
        unbiased: it claims that E[weight * kept] = 1 for every sample; then this is tested, with
            a chance of a false alarm below one in ten thousand.
        num_samples: of the runs; policies bound to a data set are only tried with pools of this
            size.

    Raises:
        AssertionError: something does not hold; the message says what.
    """
    _require(isinstance(policy, Policy), f"{policy!r} is no infobatch.policies.Policy")
    needs, takes = policy.needs_budget, policy.takes_budget
    _require(takes or not needs, f"{policy!r} needs a budget and takes none")
    bound = _is_bound(policy)
    for exact in [mode for mode, can in ((False, not needs), (True, takes)) if can]:
        for size in (num_samples,) if bound else SIZES:
            for name, scores in _score_vectors(size):
                _check_selections(policy, scores, exact=exact, name=f"{size} {name} scores")
        _check_run(policy, num_samples, exact=exact)
        if unbiased:
            _check_unbiased(policy, num_samples, exact=exact)
    if policy.columns:
        _check_memory(policy, num_samples)


def check_batch_policy(policy: BatchPolicy, *, unbiased: bool = False) -> None:
    """Check all that an in-batch policy promises by being one.

    Args:
        policy: the policy.
        unbiased: it claims that the weighted mean of what it chooses is, in expectation, the mean
            of the batch; tested for scores that are all positive.

    Raises:
        AssertionError: something does not hold; the message says what.
    """
    for size in (1, 2, 5, 64):
        for name, scores in _score_vectors(size):
            ranked = np.nan_to_num(scores, nan=1.0, posinf=2.0, neginf=0.0)
            for keep in {1, (size + 1) // 2, size}:
                results = []
                for _ in range(2):
                    memory = new_memory(policy.columns, size)
                    before = ranked.copy()
                    choice = policy.select_batch(ranked, memory, keep, np.random.default_rng(7))
                    where = f"{size} {name} scores, keep={keep}"
                    _require(np.array_equal(ranked, before), f"{where}: scores were written to")
                    results.append((choice.positions, choice.weights, memory))
                    positions, weights = choice.positions, choice.weights
                    _require(
                        positions.shape == weights.shape == (keep,),
                        f"{where}: positions and weights must be ({keep},), got "
                        f"{positions.shape} and {weights.shape}",
                    )
                    _require(
                        positions.dtype == np.int64
                        and positions.min() >= 0
                        and positions.max() < size,
                        f"{where}: positions must be int64, 0 to {size - 1}, got {positions}",
                    )
                    _require(
                        bool(np.all(np.isfinite(weights) & (weights > 0))),
                        f"{where}: weights must be positive and finite, got {weights}",
                    )
                    _require(set(memory) == set(policy.columns), f"{where}: columns have changed")
                for first, second in zip(results[0][:2], results[1][:2], strict=True):
                    _require(np.array_equal(first, second), f"{name}: not deterministic")
    if unbiased:
        rng = np.random.default_rng(0)
        scores = rng.gamma(1.0, size=16).astype(np.float32) + 0.05
        sums = np.zeros((_DRAWS, len(scores)))
        for draw in range(_DRAWS):
            choice = policy.select_batch(scores, new_memory(policy.columns, 16), 6, rng)
            np.add.at(sums[draw], choice.positions, choice.weights * 16 / 6)
        _check_means(sums, f"{policy!r}")


# ------------------------------------------------------------------ selections


def _score_vectors(size: int) -> Iterator[tuple[str, FloatArray]]:
    rng = np.random.default_rng(size)
    ordinary = rng.gamma(0.7, size=size).astype(np.float32)
    yield "ordinary", ordinary
    yield "equal", np.full(size, 0.1, np.float32)
    yield "zero", np.zeros(size, np.float32)
    yield "unknown", np.full(size, np.nan, np.float32)
    some = ordinary.copy()
    some[::3] = np.nan
    some[1::5] = np.inf
    yield "partly unknown", some
    yield "tied", np.round(ordinary).astype(np.float32)
    yield "negative", -ordinary
    yield "large", (ordinary * np.float32(1e30)).astype(np.float32)


def _check_selections(policy: Policy, scores: FloatArray, *, exact: bool, name: str) -> None:
    size = len(scores)
    for keep in _keeps(policy, size) if exact else [None]:
        where = f"{policy!r}, {name}" + ("" if keep is None else f", keep={keep}")
        selections = []
        for who in (policy, policy, copy.deepcopy(policy)):
            memory = _memory_after_an_epoch(who, scores)
            view = scores.view()
            view.flags.writeable = False
            selections.append(_ask(who, memory, view, keep, 5))
            if memory:
                again = _ask(who, memory, view, keep, 5)
                _require(
                    _equal(again, selections[-1]),
                    f"{where}: asked twice for one epoch, it has given two selections",
                )
        first = selections[0]
        _require(isinstance(first, Selection), f"{where}: got {type(first).__name__}, no Selection")
        _require(len(first) == size, f"{where}: the selection is of {len(first)} samples")
        for other in selections[1:]:
            _require(_equal(first, other), f"{where}: not deterministic")
        kept = int(np.count_nonzero(_weights(first)))
        _require(kept > 0, f"{where}: nothing is kept")
        if keep is not None:
            _require(kept == keep, f"{where}: {kept} samples are kept")


def _ask(
    policy: Policy, memory: Any, scores: FloatArray, keep: int | None, seed: int | tuple[int, int]
) -> Selection:
    rng = np.random.default_rng(seed)
    return policy.select(Request(scores, 3, _EPOCHS, rng, keep, memory))


def _keeps(policy: Policy, size: int) -> list[int | None]:
    least = policy.min_keep(size)
    _require(
        isinstance(least, int) and 1 <= least <= size,
        f"{policy!r}: min_keep({size}) must be an int, 1 to {size}, got {least!r}",
    )
    return [*sorted({least, (least + size + 1) // 2, max(least, size - 1), size})]


def _check_unbiased(policy: Policy, size: int, *, exact: bool) -> None:
    """The mean of weight * kept over many draws is 1, for every sample."""
    scores = np.random.default_rng(1).gamma(0.7, size=size).astype(np.float32)
    keep = None
    if exact:
        keep = (policy.min_keep(size) + 2 * size) // 3
    sums, memory = np.empty((_DRAWS, size)), _memory_after_an_epoch(policy, scores)
    for draw in range(_DRAWS):
        fresh = {name: values.copy() for name, values in memory.items()}
        sums[draw] = _weights(_ask(policy, fresh, scores, keep, (2, draw)))
    _check_means(sums, f"{policy!r}" + (f", keep={keep}" if exact else ""))


def _check_means(draws: NDArray[np.float64], where: str) -> None:
    means = draws.mean(axis=0)
    errors = np.maximum(draws.std(axis=0, ddof=1) / np.sqrt(len(draws)), 1e-9)
    furthest = int(np.argmax(np.abs(means - 1.0) / errors))
    _require(
        abs(means[furthest] - 1.0) <= 6.0 * errors[furthest],
        f"{where} is not unbiased: the mean weight of sample {furthest} is {means[furthest]:.4f} "
        f"over {len(draws)} draws, with a standard error of {errors[furthest]:.4f}",
    )


# ------------------------------------------------------------------ memory and runs


def _check_memory(policy: Policy, size: int) -> None:
    """What is remembered of an epoch does not depend on when it was told."""
    rng = np.random.default_rng(3)
    outcomes = []
    for cuts in (1, 4):
        memory = new_memory(policy.columns, size)
        draws = np.random.default_rng(4)
        for _ in range(3):
            rows = draws.permutation(size)
            scores = draws.gamma(1.0, size=size).astype(np.float32)
            batches = [8] * (size // 8) + ([size % 8] if size % 8 else [])
            ends = np.cumsum([0, *batches])
            for part in np.array_split(np.arange(len(batches)), cuts):
                if len(part):
                    span = slice(ends[part[0]], ends[part[-1] + 1])
                    told = [batches[number] for number in part]
                    policy.remember(memory, Visits(rows[span], scores[span], told))
        policy.remember(memory, Visits(np.arange(2), np.ones(2, np.float32), [2], trained=False))
        outcomes.append(memory)
    for name in policy.columns:
        _require(
            np.array_equal(outcomes[0][name], outcomes[1][name], equal_nan=True),
            f"{policy!r}: column {name!r} depends on how the losses of an epoch were cut",
        )
    repeated = rng.integers(0, size, size=16)
    policy.remember(memory, Visits(repeated, np.ones(16, np.float32), [16]))


def _check_run(policy: Policy, size: int, *, exact: bool) -> None:
    """A run saved within an epoch and resumed ends like one that was not; a budget is met."""
    budget = None
    if exact:
        least = policy.min_keep(size) / size
        budget = max(0.75, 0.999 * least + 0.001)
    whole, _ = _train(policy, size, budget, save=False)
    resumed, _ = _train(policy, size, budget, save=True)
    _require(
        torch.equal(whole.scores.nan_to_num(-1), resumed.scores.nan_to_num(-1))
        and repr(whole.history) == repr(resumed.history),
        f"{policy!r}: a run that was saved and resumed has ended otherwise than one that was not",
    )
    if budget is not None:
        passes = sum(record.kept for record in whole.history)
        wanted = int(budget * size * _EPOCHS + 0.5)
        _require(
            2 * abs(passes - wanted) <= _BATCH,
            f"{policy!r}: under budget={budget} a run cost {passes} sample passes, not {wanted}, "
            f"give or take half a batch of {_BATCH}",
        )


def _train(
    policy: Policy, size: int, budget: float | None, *, save: bool
) -> tuple[DataPruner, DataPruner]:
    def build() -> DataPruner:
        return DataPruner(size, _EPOCHS, copy.deepcopy(policy), delta=1.0, seed=9, budget=budget)

    first = pruner = build()
    generator = np.random.default_rng(11)
    hardness = torch.from_numpy(generator.gamma(1.0, size=size).astype(np.float32))
    for epoch in range(_EPOCHS):
        due = save and epoch == _EPOCHS // 2
        while pruner.epoch == epoch:
            for batch in torch.utils.data.BatchSampler(pruner.sampler, _BATCH, drop_last=False):
                rows = torch.tensor(batch)
                pruner.update(hardness[rows] / (1.0 + epoch) + 0.01 * (rows % 7))
                if due:
                    file = io.BytesIO()
                    torch.save(pruner.state_dict(), file)
                    file.seek(0)
                    pruner, due = build(), False
                    pruner.load_state_dict(torch.load(file, weights_only=True))
                    break
    return pruner, first


def _memory_after_an_epoch(policy: Policy, scores: FloatArray) -> dict[str, FloatArray]:
    """The memory of a policy that has seen these scores once; empty if it has none."""
    memory = new_memory(policy.columns, len(scores))
    seen = np.flatnonzero(~np.isnan(scores))
    if memory and len(seen):
        batches = [4] * (len(seen) // 4) + ([len(seen) % 4] if len(seen) % 4 else [])
        with np.errstate(over="ignore", invalid="ignore"):
            policy.remember(memory, Visits(seen, scores[seen], batches))
    return memory


def _is_bound(policy: object) -> bool:
    """Whether a policy, or one inside it, knows the samples of one data set."""
    inside = getattr(policy, "policy", None)
    own = any(hasattr(policy, name) for name in ("groups", "indices"))
    return (own and not isinstance(getattr(policy, "groups", None), int)) or (
        inside is not None and _is_bound(inside)
    )


def _weights(selection: Selection) -> NDArray[np.floating[Any]]:
    return selection.weights_of(np.arange(len(selection)))


def _equal(one: Selection, other: Selection) -> bool:
    return len(one) == len(other) and bool(np.array_equal(_weights(one), _weights(other)))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
