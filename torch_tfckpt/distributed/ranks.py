"""Ranks: the processes of one program that save and restore together.

    ranks = Ranks()                                       # after init_process_group; on every rank
    saver = Saver({"model": model}, ranks=ranks)          # the same lines on every rank
    saver.save("run/m", global_step=100)                  # one checkpoint, written by all

The ranks agree through a c10d store, which every process group has; no collective is called (`commit`).
"""

import os
from typing import Any

import torch.distributed as dist

from torch_tfckpt.distributed.calls import RankCalls
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError


class Ranks:
    """The ranks that save and restore together, and the store through which they agree.

    Args:
        store: A torch.distributed store that all these ranks can reach. None: a clone of the process group's store.
        group: The process group; None: the default one. No method of it is called except to ask for rank and size.
        timeout: Seconds without news after which a rank counts as missing. A rank that writes slowly is heard of as
            long as it makes progress; a single write or fsync, and reading the values in a restore, must take less.
        rank: This rank, for a store without a process group; None: from the group, or the environment variable RANK.
        world_size: The number of ranks; None: from the group, or WORLD_SIZE.
        check_replicas: Compare the replicas of every value before a checkpoint is published. All ranks compute
            checksums of what they have, and a save fails if replicas differ. This reads all values on all ranks.

    Raises:
        InvalidArgumentError (a ValueError): an argument is not valid; or rank and number of ranks are not known.
        FailedPreconditionError (a RuntimeError): there is neither a store nor a process group.
        IncompleteSaveError: the store does not answer.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> store = torch.distributed.HashStore()  # a program of one process; with several, omit all arguments
        >>> ranks = tfckpt.Ranks(store, rank=0, world_size=1)
        >>> saver = tfckpt.Saver({"w": torch.ones(2)}, ranks=ranks)
        >>> saver.save("run/m", global_step=1)
        'run/m-1'

    All ranks must create their Ranks in the same order, and call the same saves and restores in the same order. Several
    Savers may share one. A store must not be used for two runs: its keys would be those of another run.
    Cost: two to ten small messages to the store per rank and save, and some per second while ranks wait.
    """

    def __init__(
        self,
        store: Any = None,
        group: Any = None,
        *,
        timeout: float = 600.0,
        rank: int | None = None,
        world_size: int | None = None,
        check_replicas: bool = False,
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 1e7:
            raise InvalidArgumentError(f"timeout={timeout!r}: pass a number of seconds, such as 600")
        # Names of torch.distributed are looked up here, because some builds of torch are without it.
        if store is not None and not (dist.is_available() and isinstance(store, dist.Store)):  # type: ignore[attr-defined]
            raise InvalidArgumentError(
                f"store is a {type(store).__name__}; pass a torch.distributed store, such as a TCPStore, or None"
            )
        if store is None or group is not None:
            store, rank, world_size = _of_group(store, group, rank, world_size)
        self.rank, self.world_size = _checked(rank, world_size)
        self.timeout, self.check_replicas = float(timeout), bool(check_replicas)
        self._calls = RankCalls(
            store, self.rank, self.world_size, timeout=self.timeout, check_replicas=self.check_replicas
        )

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, world_size={self.world_size}, timeout={self.timeout:g})"


def _of_group(store: Any, group: Any, rank: int | None, world_size: int | None) -> tuple[Any, int, int]:
    """Return the store, rank and size of a process group."""
    if not dist.is_available() or not dist.is_initialized():
        raise FailedPreconditionError(
            "Ranks() takes the store of the process group, which does not exist. Call "
            "torch.distributed.init_process_group first, or pass a store: Ranks(store, rank=0, world_size=4)"
        )
    if rank is not None or world_size is not None:
        raise InvalidArgumentError(
            "rank and world_size are those of the process group. Omit them, or pass only a store"
        )
    known = dist.distributed_c10d
    group = known._get_default_group() if group is None else group
    if not isinstance(group, dist.ProcessGroup):
        raise InvalidArgumentError("this rank is not in the group. Create Ranks on the ranks of the group only")
    found = known._get_process_group_store(group) if store is None else store
    return found, dist.get_rank(group), dist.get_world_size(group)


def _checked(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks, from the group or the environment if they are not given."""
    if rank is None and world_size is None and dist.is_available() and dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    rank, world_size = _of_environment(rank, "RANK"), _of_environment(world_size, "WORLD_SIZE")
    if rank is None or world_size is None:
        raise InvalidArgumentError(
            "the rank of this process is not known: there is no process group, and the environment variables RANK and "
            "WORLD_SIZE are not set. Pass them: Ranks(store, rank=0, world_size=4)"
        )
    if not 0 <= rank < world_size:
        raise InvalidArgumentError(f"rank={rank} of world_size={world_size}: ranks are 0 to world_size - 1")
    return rank, world_size


def _of_environment(value: int | None, name: str) -> int | None:
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArgumentError(f"{name.lower()}={value!r}: pass an integer")
        return value
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
