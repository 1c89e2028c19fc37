"""Warnings that come in time to act: a run that prunes nothing, or no better than at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

from infobatch._core.headroom import NO_HEADROOM
from infobatch._core.history import EpochRecord
from infobatch._core.user_warnings import warn_user
from infobatch._settings import Settings
from infobatch.errors import IndistinctScoresWarning, NonFiniteLossWarning, NothingPrunedWarning
from infobatch.policies import FullData

_INDISTINCT = 0.9  # of the gradient mass in a random part of the samples


def warn_if_nothing_is_pruned(settings: Settings) -> None:
    """Say so if the settings ask for pruning and leave no epoch for it."""
    policy, delta, epochs = settings.policy, settings.delta, settings.num_epochs
    asks = not isinstance(policy, FullData) and getattr(policy, "prune_ratio", 1) > 0
    if settings.pruned or not asks or delta == 0.0 or epochs == 1:
        return
    warn_user(
        f"nothing will be pruned: the first warmup_epochs={settings.warmup_epochs} of "
        f"{epochs} epochs use the full data, and so do all from delta={delta:g} "
        "of them on; use fewer warm-up epochs or a longer run, or FullData() if it is meant",
        NothingPrunedWarning,
    )


def warn_if_indistinct(settings: Settings, history: Sequence[EpochRecord]) -> None:
    """Say once, after the second pruned epoch, if the samples left out were as good as random."""
    if settings.budget is None:  # then it does not leave out what it cannot tell apart
        return
    records = [record for record in history if record.kept < record.total]
    second = len(records) == 2 and history[-1] is records[-1]
    if not (second or (len(records) == 1 and history[-1].epoch == settings.pruned.stop - 1)):
        return
    saved = sum(1.0 - record.kept / record.total for record in records)
    mass = sum(record.mass_left_out for record in records)
    if mass >= _INDISTINCT * saved > 0.0:
        seen = (
            f"{saved / len(records):.0%} of the samples were left out of each pruned epoch so "
            f"far, and {mass / len(records):.0%} of the total gradient bound with them"
        )
    elif math.isnan(mass) and (gain := history[-1].headroom) < NO_HEADROOM:
        seen = (
            f"the gradient bounds, 1 - exp(-loss), hardly differ: by choosing samples "
            f"at most {gain:.1%} of the gradients' second moment can be saved"
        )
    else:
        return
    warn_user(
        f"{seen}. So the scores tell hardly any samples apart, or the budget leaves no choice, "
        "and the run is one on the full data for fewer epochs, until that changes. With label "
        "smoothing, or any loss that is not near 0 for what is learned, pass one that is: "
        "update(losses, scores=F.cross_entropy(...)); for other losses there are other "
        "policies: docs/methods/proportional.md",
        IndistinctScoresWarning,
    )


def warn_of_non_finite(record: EpochRecord) -> None:
    """Say how many losses of an epoch were no numbers."""
    warn_user(
        f"epoch {record.epoch}: {record.non_finite} of {record.trained} samples had a NaN or "
        "infinite loss; they are kept in the next epoch, as far as a budget allows, and "
        "leave the threshold untouched",
        NonFiniteLossWarning,
    )
