"""Which rank this process is, and the one way to the others; all that knows `torch.distributed`."""

from __future__ import annotations

import datetime as dt
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from infobatch._core.validation import check_int
from infobatch.distributed import Bytes, Communicator
from infobatch.errors import DistributedError

# The gloo group on which exchanges go, of each process group: one for all pruners, as each has
# sockets and threads of its own. Weak at both ends, so that destroy_process_group() ends it:
# threads of a gloo group that is alive at the interpreter's end may abort the process.
_exchange_groups: weakref.WeakKeyDictionary[Any, Callable[[], Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class World:
    """The place of this process among those that share a data set."""

    rank: int = 0
    size: int = 1


class Ranks:
    """The ranks that share a data set, found out when asked: hosts initialise groups late.

    Args:
        process_group: a `torch.distributed` process group, a one-dimensional `DeviceMesh`, or a
            `Communicator`; None: the default process group where one is initialised.
        rank, world_size: this process's data-parallel place, where it is not that in the group,
            as under tensor or pipeline parallelism: processes of equal `rank` are replicas.

    Raises:
        ValueError, TypeError: not such a group, or a rank outside the world.
    """

    def __init__(
        self, process_group: object = None, rank: int | None = None, world_size: int | None = None
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError(
                f"rank and world_size must be given together, got rank={rank!r} and "
                f"world_size={world_size!r}"
            )
        self._given: World | None = None
        if rank is not None:
            size = check_int("world_size", world_size, at_least=1)
            self._given = World(check_int("rank", rank, at_least=0, at_most=size - 1), size)
        self._group = _as_group(process_group)

    def world(self) -> World:
        """This process's place among the ranks, as things are now."""
        if self._given is not None:
            return self._given
        group = self._group
        if isinstance(group, Communicator):
            return World(group.rank, group.world_size)
        if group is None and not _is_initialized():
            return World()
        rank = dist.get_rank(group)
        if rank < 0:
            raise DistributedError(
                "this process is not a member of the process_group that the pruner was given"
            )
        return World(rank, dist.get_world_size(group))

    def all_gather(self, data: Bytes, occasion: str, *, what: str) -> list[Bytes]:
        """Every process's data; a collective operation.

        Args:
            data: (n,) equally many bytes on every process.
            occasion: what this process is doing, for the message of an error.
            what: name of the data, in the plural, for the same.

        Raises:
            DistributedError: some process did not take part within the group's timeout.
        """
        base = self._base(occasion)
        try:
            if isinstance(base, Communicator):
                return base.all_gather(data)
            group = _exchange_group(base, occasion)
            own = torch.from_numpy(data)
            gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
            dist.all_gather(gathered, own, group=group)
        except DistributedError:
            raise
        except RuntimeError as error:
            if not isinstance(base, Communicator):
                _exchange_groups.pop(base, None)  # of no use any more
            raise DistributedError(
                f"at {occasion} this rank waited for the others' {what}, and not all came: "
                f"{error}. Every rank must train on every batch of its loader, and call "
                "synchronize, rescore, end_epoch and load_state_dict alike: a rank that leaves an "
                "epoch early (break), skips a batch without pruner.skip(), waits for something "
                "else, or dies leaves the others waiting until the timeout of the process group"
            ) from error
        return [part.numpy() for part in gathered]

    def _base(self, occasion: str) -> Any:
        """The group whose members exchange."""
        if self._group is not None:
            return self._group
        if not _is_initialized():
            raise DistributedError(
                f"{self._given} was given, but torch.distributed is not initialised, so that the "
                f"ranks cannot talk at {occasion}. Call torch.distributed.init_process_group "
                "before training, or pass process_group= (a Communicator of your own will do)"
            )
        return dist.group.WORLD

    def __getstate__(self) -> dict[str, Any]:
        if self._group is not None:
            raise TypeError(
                "a pruner that was given process_group= cannot be pickled or copied, as process "
                "groups cannot; save pruner.state_dict() and load it into a new one"
            )
        return self.__dict__.copy()


def _exchange_group(base: Any, occasion: str) -> Any:
    """A gloo group of our own with the members of another, shared by all pruners of the process.

    Of our own, so that a rank that is elsewhere cannot have its gradients matched with our losses;
    gloo, because losses are wanted on the host.
    """
    known = _exchange_groups.get(base)
    exchange = known() if known is not None else None
    if exchange is not None:
        return exchange
    try:
        exchange = dist.new_group(
            dist.get_process_group_ranks(base),
            backend="gloo",
            timeout=_timeout_of(base),
            use_local_synchronization=True,  # only members need to come
        )
    except RuntimeError as error:
        raise DistributedError(
            f"at {occasion} this rank could not form the gloo group on which ranks exchange: "
            f"{error}. Every member of the process group must come to the first update of its "
            "pruner; if all did, see that gloo finds them (GLOO_SOCKET_IFNAME names the network "
            "interface; after a restart by torchrun see TORCH_DISABLE_SHARE_RDZV_TCP_STORE in "
            "docs/distributed.md)"
        ) from error
    _exchange_groups[base] = weakref.ref(exchange)
    return exchange


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _as_group(given: Any) -> Any:
    if given is None or isinstance(given, Communicator):
        return given
    if hasattr(given, "get_group"):  # a DeviceMesh; one of several dimensions refuses
        return given.get_group()
    if dist.is_available() and isinstance(given, dist.ProcessGroup):
        return given
    raise TypeError(
        "process_group must be a torch.distributed process group, a one-dimensional DeviceMesh, "
        "or an object with rank, world_size and all_gather(data) "
        f"(infobatch.distributed.Communicator), got {given!r}"
    )


def _timeout_of(group: Any) -> dt.timedelta | None:
    """The timeout of a process group; None, which is torch's default, where it cannot be seen."""
    for device in getattr(group, "_device_types", ()):
        options = getattr(group._get_backend(device), "options", None)
        timeout = getattr(options, "_timeout", None)
        if isinstance(timeout, dt.timedelta):
            return timeout
    return None
