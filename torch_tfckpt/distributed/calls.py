"""The saves and restores of all ranks, as one rank calls them, one after another over one store."""

import atexit
import secrets
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

import torch.distributed as dist

from torch_tfckpt.distributed.commit import Commit, Member, remove_keys
from torch_tfckpt.distributed.missed_calls import RecentCalls
from torch_tfckpt.distributed.store_thread import Operation, Result, StoreLost, StoreThread, peek
from torch_tfckpt.errors import CheckpointError, FailedPreconditionError, IncompleteSaveError, InvalidArgumentError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_PREFIX: Final = "tfckpt"
_KEPT: Final = 8  # ended calls whose outcome is kept for ranks that have not read it
_TO_CONNECT: Final = 60.0  # seconds that connecting may take, whatever the timeout: names may have to be looked up
_AT_EXIT: Final = 1.0  # seconds for which rank 0 keeps the store alive after its last save, until all ranks know


class RankCalls:
    """The calls of a Ranks object; see there.

    Raises:
        IncompleteSaveError: the store does not answer.

    Thread safety: one thread at a time begins a call; several calls may be in progress.
    """

    def __init__(
        self, store: "Store", rank: int, world_size: int, *, timeout: float, check_replicas: bool = False
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.timeout, self.check_replicas = timeout, check_replicas
        self._given = store  # referenced, because a TCPStore's server ends with its last reference
        self._client: Store | None = None
        self._session = ""
        self._count = 0
        self._recent = RecentCalls()
        self._ended: deque[tuple[int, bool]] = deque()  # calls whose keys are to be removed: (number, failed)
        self._prefix = _PREFIX
        # All ranks create their n-th object for the same purpose, so these have the same prefix.
        self._prefix += f"/{self._in_thread(lambda store: store.add(f'born/{self.rank}', 1), _TO_CONNECT)}"
        if self.rank == 0:
            self._session = secrets.token_hex(16)
            self._in_thread(lambda store: store.set("session", self._session))
            _AT_EXIT_OF.add(self)

    def begin(self, action: str, target: str) -> Commit:
        """Begin a save or restore of all ranks.

        Args:
            action: "save" or "restore".
            target: The path, which must be the same on all ranks; "" if an error prevents knowing it.

        Raises:
            IncompleteSaveError: the store is gone; or the others have ended this call without this rank.
        """
        self._count += 1
        member = Member(self.rank, self.world_size, self.timeout)
        commit = Commit(member, self._count, action, target, self._connect)
        try:
            commit.begin(self._recent)
        finally:
            self._count = commit.number
            self._ended += [(number, True) for number in commit.skipped if self.rank == 0]
            self.ended(commit)
        if self.rank == 0:
            self.remove_old_keys()
        return commit

    @contextmanager
    def taking_part(self, action: str) -> Iterator[None]:
        """If an error ends the `with` block before this rank has begun a call, tell the others, who wait for it."""
        count = self._count
        try:
            yield
        except FailedPreconditionError:
            raise  # on all ranks; or in a signal handler of this rank, and the others do not make this call
        except BaseException as error:
            if self._count == count:
                with suppress(CheckpointError):
                    commit = self.begin(action, "")
                    try:
                        commit.fail({self.rank: error})
                    finally:
                        self.ended(commit)
            raise

    def ended(self, commit: Commit) -> None:
        """Note that a call has ended, if it has."""
        if not commit.is_over:
            return
        if commit.is_lost:
            self._client = None
        if self.rank == 0:
            self._ended.append((commit.number, commit.failed))

    def token(self, commit: Commit) -> str:
        """Return a string that is the same on all ranks, and different for every call of every run.

        Waits for rank 0 only if it has not created its Ranks yet.
        """
        until = time.monotonic() + self.timeout
        while not self._session:
            found = self._in_thread(lambda store: peek(store, "session"))
            if found is not None:
                self._session = found.decode("ascii", "replace")
            elif time.monotonic() > until:
                commit.fail({0: TimeoutError(f"not heard of for {self.timeout:g} s")})
            else:
                time.sleep(0.01)
        return f"{self._session} {commit.number}"

    def remove_old_keys(self) -> None:
        """On rank 0, remove the keys of ended calls that all ranks have read, or that are long over."""
        if self._ended:
            with suppress(IncompleteSaveError):  # the next call reports it
                self._in_thread(self._remove_read)

    def _remove_read(self, store: "Store") -> bool:
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

    def _connect(self) -> "Store":
        """Return a client of the store that no other part of the program uses; called in a StoreThread."""
        if self._client is None:
            # A TCPStore client can be used by one thread at a time, and another thread may be in a long `wait`.
            clone = getattr(self._given, "clone", None)  # added after torch 2.6
            self._client = self._given if clone is None else clone()
        return dist.PrefixStore(self._prefix, self._client)  # type: ignore[attr-defined]  # not declared

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


def calls_of(ranks: object) -> RankCalls | None:
    """Return the calls of a Ranks object; None for None; raise InvalidArgumentError for anything else."""
    calls = None if ranks is None else getattr(ranks, "_calls", None)
    if ranks is not None and not isinstance(calls, RankCalls):
        raise InvalidArgumentError(f"ranks is a {type(ranks).__name__}; pass tfckpt.Ranks(), or None")
    return calls


def taking_part(ranks: RankCalls | None, action: str) -> AbstractContextManager[None]:
    """Return `ranks.taking_part(action)`; without ranks, a context manager that does nothing."""
    return nullcontext() if ranks is None else ranks.taking_part(action)


_AT_EXIT_OF: Final = weakref.WeakSet[RankCalls]()


@atexit.register
def _before_the_store_ends() -> None:
    """Let the other ranks read the last outcome, because the store may end with this process."""
    for ranks in list(_AT_EXIT_OF):
        ranks.wait_until_known()
