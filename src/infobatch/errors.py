"""The exception tree.

Every error that infobatch raises on purpose, beyond plain argument checks (`ValueError`,
`TypeError`), is an `InfoBatchError`. Each also inherits from the built-in class that code
without knowledge of infobatch would catch. A message says what must hold, what came, and what
to write instead.
"""

from __future__ import annotations


class InfoBatchError(Exception):
    """Base of every error that infobatch raises on purpose."""


class MisalignedUpdateError(InfoBatchError, RuntimeError):
    """The losses given to `update` are not those of the batch that was delivered, or may not be.

    Raised before anything is written: scores and position are those from before the call.
    """


class DistributedError(InfoBatchError, RuntimeError):
    """The ranks of a distributed run do not agree, or one of them did not come; on every rank."""


class LossError(InfoBatchError, ValueError):
    """The losses or scores given to `update` are not one floating-point number per sample."""


class EpochError(InfoBatchError, ValueError):
    """An epoch was announced or trained that is not the one the pruner has planned."""


class PolicyError(InfoBatchError, ValueError):
    """A policy returned a selection that no epoch can be planned from."""


class SamplerError(InfoBatchError, ValueError):
    """The user's own sampler yields indices outside the data set, or nothing at all."""


class StateError(InfoBatchError, ValueError):
    """A state given to `load_state_dict` does not fit; the pruner is as it was before."""


class NonFiniteLossWarning(UserWarning):
    """Some losses of an epoch were NaN or infinite; their samples are kept, as budgets allow."""


class IndistinctScoresWarning(UserWarning):
    """What a budget has left out was as good as random.

    The scores told hardly any samples apart, or the budget left no choice.
    """


class MissingUpdateWarning(UserWarning):
    """An epoch was drawn to its end without any call of `update`; it is due again."""


class NothingPrunedWarning(UserWarning):
    """The settings leave no epoch in which anything could be pruned."""
