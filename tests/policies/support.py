"""Asking a policy, as a pruner does."""

from infobatch.policies import Request


def ask(policy, scores, epoch, rng, *, num_epochs=20, **more):
    """What a policy selects in an epoch; `more` of a request: keep, memory, summary."""
    return policy.select(Request(scores, epoch, num_epochs, rng, **more))
