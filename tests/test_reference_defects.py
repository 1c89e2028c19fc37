"""Sixteen ways in which the public InfoBatch code goes wrong on current PyTorch: none happens here.

Each was seen by running that code. What happens there stands beside the tests that show that it
does not happen here: below, or where the promise is at home.
"""

import copy
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Subset

from infobatch import InfoBatch

TESTS = Path(__file__).parent

DEFECTS = {  # what happens there: file and names of the tests of what happens here
    "Iterating the sampler resets it and returns it; torch's BatchSampler asks for an iterator "
    "again and again, and a single-process epoch never ends.": {
        "test_reference_defects.py": ["test_an_epoch_ends"],
    },
    "Weights are reset when `iterations == num_epochs * delta + 1`, as floats, so for 10, 30, 90, "
    "100 or 300 epochs the doubled weights stay on through all full-data epochs.": {
        "test_schedule.py": [
            "test_delta_is_the_decimal_number_that_was_written",
            "test_a_run_prunes_in_these_epochs_and_has_weight_one_in_all_others",
        ],
    },
    "One slot holds the current batch. Accelerate fetches the next before the loss of this one is "
    "known, and 950 of 1000 scores go to the wrong samples.": {
        "test_delivery.py": ["test_a_loop_that_reads_ahead_says_by_how_much"],
    },
    "`__getattr__` delegates to the data set, so pickle, deepcopy and spawned workers recurse "
    "without end, and a wrapped Subset, whose `__getitems__` is handed on, yields garbage.": {
        "test_reference_defects.py": ["test_it_copies_and_pickles_and_hands_no_attribute_on"],
        "test_alignment.py": [
            "test_any_data_set_and_collate_function_is_served",
            "test_any_way_to_start_workers_keeps_the_order",
        ],
    },
    "The import replaces `_BaseDataLoaderIter.__next__` for every loader in the process.": {
        "test_reference_defects.py": ["test_no_class_of_torch_is_patched"],
    },
    "A sample becomes `(index, item)`: collate functions, dicts, detection, text break.": {
        "test_alignment.py": ["test_any_data_set_and_collate_function_is_served"],
        "test_neutrality.py": ["test_the_data_set_and_the_losses_stay_as_they_are"],
    },
    "Losses in fp16, bf16 and fp64 raise from within, as do (B, 1), (B, T) and a scalar.": {
        "test_update.py": [
            "test_each_loss_and_its_gradient_are_multiplied_by_the_weight",
            "test_what_is_not_one_float_per_sample_is_refused_with_the_remedy",
        ],
    },
    "`mul_` on the loss breaks autograd where backward needs the loss's value, and changes the "
    "tensor that the user logs.": {
        "test_update.py": [
            "test_losses_whose_value_is_needed_for_backward_have_exact_gradients",
            "test_losses_are_never_modified_and_share_no_memory_with_the_result",
        ],
    },
    "DDP packs indices among float losses, so indices above 2**24 (fp32), 2048 (fp16) or 256 "
    "(bf16) come back as others.": {
        "test_reference_defects.py": ["test_indices_above_two_to_the_24_are_exact"],
    },
    "One NaN ends all pruning, one inf prunes half of all data.": {
        "test_update.py": [
            "test_samples_of_non_finite_loss_are_counted_kept_and_leave_the_threshold_alone"
        ],
    },
    "Unseen samples start at score 3: with losses near 7 they count as easy.": {
        "test_reference_defects.py": ["test_unseen_samples_are_kept_whatever_the_losses_scale"],
    },
    "`np.random.seed(epoch)` reseeds the user's generator every epoch, and the user's own seed has "
    "no effect on what is pruned.": {
        "test_neutrality.py": [
            "test_global_random_generators_are_not_written",
            "test_the_pruners_own_seed_decides",
        ],
    },
    "Each access to `dataset.sampler` builds a new sampler and prunes once more.": {
        "test_reference_defects.py": ["test_an_epoch_ends"],
        "test_alignment.py": ["test_looking_changes_nothing"],
    },
    "`len(loader)` is that of the epoch before, so progress bars and schedules are wrong.": {
        "test_alignment.py": [
            "test_losses_reach_their_samples_and_len_is_right_before_every_epoch"
        ],
    },
    "There is no state_dict: a resumed run has no scores and restarts the annealing clock.": {
        "resume/test_resume.py": ["test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit"],
    },
    "`int()` truncation: of a pool of 3 below the mean, one is kept, with weight 2, so that "
    "E[weight * included] is 0.67 and not 1.": {
        "claims/test_unbiased.py": [
            "test_thinning_is_exact_in_count_and_in_total_weight",
            "test_every_sample_counts_once_on_average_and_all_together_count_n_every_time",
        ],
    },
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_has_its_tests(defect):
    for file, names in DEFECTS[defect].items():
        source = (TESTS / file).read_text(encoding="utf-8")
        assert [name for name in names if f"def {name}(" not in source] == []


def test_there_are_sixteen():
    assert len(DEFECTS) == 16


def losses_of(ids):
    return (torch.as_tensor(ids).double() * 7919 % 1000 / 1000).float()


def train(pruner, loader, losses_of=losses_of):
    """One epoch over a loader whose batches are sample ids."""
    for ids in loader:
        pruner.update(losses_of(ids))


def batches(pruner, size=16):
    return BatchSampler(pruner.sampler, size, drop_last=False)


def test_an_epoch_ends():
    pruner = InfoBatch(100, 3)
    indices, sampler = iter(pruner.sampler), pruner.sampler
    assert iter(indices) is indices
    assert next(indices) != next(iter(indices))
    for epoch in range(3):
        assert pruner.sampler is sampler
        steps = -(-len(pruner.plan) // 16)
        loader = DataLoader(range(100), 16, sampler=pruner.sampler)
        taken = 0
        for ids in itertools.islice(loader, 1000):
            pruner.update(losses_of(ids))
            taken += 1
        assert taken == steps == len(list(range(0, pruner.history[epoch].kept, 16)))


def test_it_copies_and_pickles_and_hands_no_attribute_on():
    subset = Subset(range(100), range(50, 100))
    pruner = InfoBatch(subset, 3)
    train(pruner, batches(pruner))
    for copied in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        assert torch.equal(copied.scores, pruner.scores)
        assert torch.equal(copied.plan.indices, pruner.plan.indices)
        assert list(copied.sampler) == list(pruner.sampler)
    for name in ("__getitems__", "indices", "dataset"):
        assert hasattr(subset, name)
        assert not hasattr(pruner, name)


PATCH_DETECTOR = """
import torch.utils.data
from torch.utils.data import dataloader, sampler

def members():
    return {
        (space.__name__, name, attribute): value
        for space in (torch.utils.data, dataloader, sampler, torch.optim.lr_scheduler)
        for name, kind in vars(space).items() if isinstance(kind, type)
        for attribute, value in vars(kind).items() if callable(value)
    }

before = members()
import infobatch
pruner = infobatch.InfoBatch(8, 2)
loader = dataloader.DataLoader(range(8), 4, sampler=pruner.sampler)
for batch in loader:
    pruner.update(torch.rand(4))

def changed():
    after = members()
    return [key for key in before | after if before.get(key) is not after.get(key)]

assert not changed(), changed()
dataloader._BaseDataLoaderIter.__next__ = lambda self: None
assert len(changed()) == 1, "this check sees nothing"
"""


def test_no_class_of_torch_is_patched():
    subprocess.run([sys.executable, "-c", PATCH_DETECTOR], check=True)


def test_indices_above_two_to_the_24_are_exact():
    size = 2**24 + 100
    pruner = InfoBatch(size, 3)

    def exact_losses(ids):
        return (ids % 4093).float()

    order, position = pruner.plan.indices, 0
    assert order.dtype == torch.int64
    for batch in batches(pruner, 1 << 22):
        ids = torch.tensor(batch)
        assert torch.equal(ids, order[position : position + len(ids)])
        pruner.update(exact_losses(ids))
        position += len(ids)
    expected = exact_losses(torch.arange(size))
    assert torch.equal(pruner.scores, expected)
    plan = pruner.plan.indices
    kept = torch.zeros(size, dtype=torch.bool)
    kept[plan] = True
    assert int(kept.sum()) == len(plan) < size
    assert bool(kept[expected >= expected.double().mean()].all())
    assert 2 < int((plan > 2**24).sum()) < 99


def test_unseen_samples_are_kept_whatever_the_losses_scale():
    pruner = InfoBatch(1000, 5)
    seen = set()
    for ids in itertools.islice(batches(pruner, 50), 10):
        pruner.update(losses_of(ids) + 7)
        seen |= set(ids)
    pruner.sampler.set_epoch(1)
    kept = dict(zip(pruner.plan.indices.tolist(), pruner.plan.weights.tolist(), strict=True))
    unseen = set(range(1000)) - seen
    assert len(unseen) == 500
    assert unseen <= set(kept)
    assert {kept[index] for index in unseen} == {1.0}
    assert pruner.plan.threshold > 7
    assert len(kept) < 1000
