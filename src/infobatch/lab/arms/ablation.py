"""Two by two by two: selector, rescale and annealing, each on or off, at the same cost.

With rescale and annealing the random selector is the control `random`, the threshold one
`infobatch-budget`. Without both, the random one is the paper's Random*. Random subsets need no
scores, but get the same warm-up.
"""

from __future__ import annotations

from infobatch.lab.arms.base import Arm, exact_arm
from infobatch.policies import BudgetThreshold, CappedWeights, Policy, RandomSubset


def _arm(by_score: bool, rescale: bool, anneal: bool) -> Arm:
    policy: Policy = RandomSubset(rescale=rescale)
    if by_score:
        policy = BudgetThreshold() if rescale else CappedWeights(BudgetThreshold(), 1.0)
    name = "threshold" if by_score else "random"
    name += ("" if rescale else "-no-rescale") + ("" if anneal else "-no-anneal")
    words = "below a threshold" if by_score else "at random"
    words += f", {'with' if rescale else 'without'} rescale"
    words += f", {'with' if anneal else 'without'} annealing"
    delta = None if anneal else 1.0
    return exact_arm(name, f"pruned {words}", lambda _: policy, family="ablation", delta=delta)


ARM = tuple(
    _arm(by_score, rescale, anneal)
    for by_score in (False, True)
    for rescale in (True, False)
    for anneal in (True, False)
    if not (by_score and rescale and anneal)  # which is `infobatch-budget`
)
