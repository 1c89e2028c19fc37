"""The only file that knows of `torch.distributed`."""

from __future__ import annotations

import torch.distributed

from infobatch.errors import InfoBatchError


def require_one_process() -> None:
    """Refuse to start an epoch in one of several training processes.

    Every rank would train on the same samples, silently, where a plain run would shard them.
    Asked when an epoch starts and not before: hosts initialise the process group late.

    Raises:
        InfoBatchError: a process group of more than one process is initialised.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        if processes > 1:
            raise InfoBatchError(
                f"this version of infobatch plans epochs for one process, but the process group "
                f"has {processes}: every rank would train on the same samples. Train in one "
                "process, or use torch.utils.data.DistributedSampler and the plain mean loss"
            )
