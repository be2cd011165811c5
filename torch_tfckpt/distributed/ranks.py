"""Ranks: the processes of one program that save and restore together.

    ranks = Ranks()                                       # after init_process_group; on every rank
    saver = Saver({"model": model}, ranks=ranks)          # the same lines on every rank
    saver.save("run/m", global_step=100)                  # one checkpoint, written by all

The ranks agree through a c10d store, which every process group has; no collective is called (`commit`).
"""

import atexit
import hashlib
import os
import secrets
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import Final

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, ProcessGroup, Store
from torch.distributed.distributed_c10d import _get_default_group, _get_process_group_store

from torch_tfckpt.distributed.commit import Commit, Member, remove_keys
from torch_tfckpt.distributed.store_thread import Operation, Result, StoreLost, StoreThread, peek
from torch_tfckpt.errors import FailedPreconditionError, IncompleteSaveError, InvalidArgumentError

_PREFIX: Final = "tfckpt"
_KEPT: Final = 8  # ended calls whose outcome is kept for ranks that have not read it
_TO_CONNECT: Final = 60.0  # seconds that connecting may take, whatever the timeout: names may have to be looked up
_AT_EXIT: Final = 1.0  # seconds for which rank 0 keeps the store alive after its last save, until all ranks know


class Ranks:
    """The ranks that save and restore together, and the store through which they agree.

    Args:
        store: A torch.distributed store that all these ranks can reach. None: a clone of the process group's store.
        group: The process group; None: the default one. No method of it is called except to ask for rank and size.
        timeout: Seconds without news after which a rank counts as missing. A rank that writes slowly is heard of as
            long as it makes progress.
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
        store: Store | None = None,
        group: ProcessGroup | None = None,
        *,
        timeout: float = 600.0,
        rank: int | None = None,
        world_size: int | None = None,
        check_replicas: bool = False,
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 1e7:
            raise InvalidArgumentError(f"timeout={timeout!r}: pass a number of seconds, such as 600")
        if store is not None and not isinstance(store, Store):
            raise InvalidArgumentError(
                f"store is a {type(store).__name__}; pass a torch.distributed store, such as a TCPStore, or None"
            )
        if store is None or group is not None:
            store, rank, world_size = _of_group(store, group, rank, world_size)
        self.rank, self.world_size = _checked(rank, world_size)
        self.timeout, self.check_replicas = float(timeout), bool(check_replicas)
        self._given = store  # referenced, because a TCPStore's server ends with its last reference
        self._client: Store | None = None
        self._session = ""
        self._calls = 0
        self._ended: deque[tuple[int, bool]] = deque()  # calls whose keys are to be removed: (number, failed)
        self._prefix = _PREFIX
        self._prefix += f"/{self._in_thread(lambda store: store.add(f'born/{self.rank}', 1), _TO_CONNECT)}"
        if self.rank == 0:
            self._session = secrets.token_hex(16)
            self._in_thread(lambda store: store.set("session", self._session))
            _AT_EXIT_OF.add(self)

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, world_size={self.world_size}, timeout={self.timeout:g})"

    def begin(self, action: str, target: str) -> Commit:
        """Begin a save or restore of all ranks; for savers.

        Args:
            action: "save" or "restore".
            target: The path, which must be the same on all ranks.

        Raises:
            IncompleteSaveError: the store is gone; or the others have ended this call without this rank.
        """
        self._calls += 1
        member = Member(self.rank, self.world_size, self.timeout)
        commit = Commit(member, self._calls, action, target, self._connect)
        try:
            commit.begin()
        finally:
            self.ended(commit)
        if self.rank == 0:
            self.remove_old_keys()
        return commit

    def ended(self, commit: Commit) -> None:
        """Note that a call has ended, if it has; for savers."""
        if not commit.is_over:
            return
        self._calls = max(self._calls, commit.latest - 1)
        if commit.is_lost:
            self._client = None
        if self.rank == 0:
            self._ended.append((commit.number, commit.failed))

    def save_id(self, commit: Commit) -> int:
        """Return a 32-bit number that is the same on all ranks, and different for every save of every run."""
        if not self._session:
            until = time.monotonic() + self.timeout
            while not self._session:
                found = self._in_thread(lambda store: peek(store, "session"))
                if found is not None:
                    self._session = found.decode("ascii", "replace")
                elif time.monotonic() > until:
                    commit.fail({0: TimeoutError(f"not heard of for {self.timeout:g} s")})
                else:
                    time.sleep(0.01)
        text = f"{self._session} {commit.number}"
        return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest())

    def remove_old_keys(self) -> None:
        """On rank 0, remove the keys of ended calls that all ranks have read, or that are long over."""
        if self._ended:
            with suppress(IncompleteSaveError):  # the next call reports it
                self._in_thread(self._remove_read)

    def _remove_read(self, store: Store) -> bool:
        """Remove keys; return whether all are removed."""
        kept: deque[tuple[int, bool]] = deque()
        others = range(1, self.world_size)
        while self._ended:
            number, failed = self._ended.popleft()
            all_know = store.add(f"{number}/read", 0) >= self.world_size - 1
            if not all_know and len(self._ended) < _KEPT:
                kept.append((number, failed))
                continue
            if not all_know:
                store.set("ended", str(number))
            keys = [f"{number}/{name}" for name in ("state", "reports", "read", "report/0", "heard/0")]
            if failed:  # otherwise every rank has removed its own, after rank 0 had read them
                keys += [f"{number}/{name}/{rank}" for rank in others for name in ("report", "heard")]
            remove_keys(store, keys)
        self._ended = kept
        return not kept

    def wait_until_known(self) -> None:
        """On rank 0, wait for at most a second until all ranks know the outcome of the last call."""
        until = time.monotonic() + _AT_EXIT
        with suppress(IncompleteSaveError):
            while self._ended and not self._in_thread(self._remove_read) and time.monotonic() < until:
                time.sleep(0.01)

    def _connect(self) -> Store:
        """Return a client of the store that no other part of the program uses; called in a StoreThread."""
        if self._client is None:
            # A TCPStore client can be used by one thread at a time, and another thread may be in a long `wait`.
            clone = getattr(self._given, "clone", None)  # added after torch 2.6
            self._client = self._given if clone is None else clone()
        return PrefixStore(self._prefix, self._client)

    def _in_thread(self, operation: "Operation[Result]", patience: float = 0.0) -> Result:
        thread = StoreThread(self._connect, max(patience, self.timeout))
        try:
            return thread.call(operation)
        except StoreLost as error:
            raise IncompleteSaveError(
                f"the store through which the ranks agree is gone: {error}. Its host, usually the process of rank 0 "
                f"or the launcher, has ended or hangs. Restart the program"
            ) from error
        finally:
            thread.close()


def _of_group(
    store: Store | None, group: ProcessGroup | None, rank: int | None, world_size: int | None
) -> tuple[Store, int, int]:
    """Return the store, rank and size of a process group."""
    if not dist.is_available() or not dist.is_initialized():
        raise FailedPreconditionError(
            "Ranks() takes the store of the process group, and there is none. Call "
            "torch.distributed.init_process_group first, or pass a store: Ranks(store, rank=0, world_size=4)"
        )
    if rank is not None or world_size is not None:
        raise InvalidArgumentError(
            "rank and world_size are those of the process group. Omit them, or pass only a store"
        )
    group = _get_default_group() if group is None else group
    if not isinstance(group, ProcessGroup):
        raise InvalidArgumentError("this rank is not in the group. Create Ranks on the ranks of the group only")
    found = _get_process_group_store(group) if store is None else store
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


_AT_EXIT_OF: Final = weakref.WeakSet[Ranks]()


@atexit.register
def _before_the_store_ends() -> None:
    """Let the other ranks read the last outcome, because the store may end with this process."""
    for ranks in list(_AT_EXIT_OF):
        ranks.wait_until_known()
