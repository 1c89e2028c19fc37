"""A comparison in several processes, as torchrun starts them: the first decides and speaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from infobatch._ranks.world import Ranks
from infobatch.lab.errors import LabError

T = TypeVar("T")
_TIMEOUT = timedelta(hours=2)  # the others wait while the first one evaluates


def rank() -> int:
    """Number of this process, from 0."""
    return Ranks().world().rank


def count() -> int:
    """How many processes train together."""
    return Ranks().world().size


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started, each with a GPU of its own, if it has."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_first(function: Callable[[], T]) -> T:
    """Call it in the first process alone, and return in all of them what it returned there.

    A LabError there is raised in all of them.
    """
    if count() == 1:
        return function()
    found: list[Any] = [None]
    if rank() == 0:
        try:
            found = [function()]
        except LabError as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], LabError):
        raise found[0]
    return cast(T, found[0])
