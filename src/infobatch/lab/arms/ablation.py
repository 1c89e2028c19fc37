"""Two by two by two: selector, rescale and annealing, each on or off, at the same cost.

With rescale and annealing the random selector is the control `random`, the threshold one
`infobatch-budget`. Without both, the random one is the paper's Random*.
"""

from __future__ import annotations

from functools import partial

from infobatch.lab.arm import Arm, ArmContext, ArmRun, exact_run
from infobatch.policies import BudgetThreshold, CappedWeights, Policy, RandomSubset


def start(context: ArmContext, *, by_score: bool, rescale: bool, anneal: bool, name: str) -> ArmRun:
    """One corner of the cube. Random subsets need no scores, but get the same warm-up."""
    policy: Policy = RandomSubset(rescale=rescale)
    if by_score:
        policy = BudgetThreshold() if rescale else CappedWeights(BudgetThreshold(), 1.0)
    return exact_run(context, policy, name, delta=None if anneal else 1.0)


def _arm(by_score: bool, rescale: bool, anneal: bool) -> Arm:
    name = "threshold" if by_score else "random"
    name += "" if rescale else "-no-rescale"
    name += "" if anneal else "-no-anneal"
    words = "below a threshold" if by_score else "at random"
    words += ", with rescale" if rescale else ", without rescale"
    words += ", with annealing" if anneal else ", without annealing"
    run = partial(start, by_score=by_score, rescale=rescale, anneal=anneal, name=name)
    return Arm(name, f"pruned {words}", run, family="ablation")


ARM = tuple(
    _arm(by_score, rescale, anneal)
    for by_score in (False, True)
    for rescale in (True, False)
    for anneal in (True, False)
    if not (by_score and rescale and anneal)  # which is `infobatch-budget`
)
