"""infobatch: train on about a third fewer samples by a three-line change.

Unbiased dynamic data pruning for PyTorch, after Qin et al., InfoBatch, ICLR 2024
(arXiv 2303.04947).
"""

from infobatch import distributed, errors, losses, policies, schedule
from infobatch._core.history import EpochRecord
from infobatch.batch_pruner import BatchPruner
from infobatch.infobatch import InfoBatch
from infobatch.losses import per_sample
from infobatch.pruner import DataPruner
from infobatch.schedule import ProgressScheduler

__version__ = "0.1.0"

__all__ = [
    "BatchPruner",
    "DataPruner",
    "EpochRecord",
    "InfoBatch",
    "ProgressScheduler",
    "__version__",
    "distributed",
    "errors",
    "losses",
    "per_sample",
    "policies",
    "schedule",
]
