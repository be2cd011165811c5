"""One save or restore of all ranks, agreed over a c10d store, without a collective.

Keys, after the prefix of the Ranks object and the number of the call ("12/"):

    every rank                       rank 0                               key
    begins                           begins                               heard/R += 1; by rank 0: latest
    works, and tells of progress     works                                heard/R += 1, every few seconds
    reports its part                 reports                              report/R, then heard/R += 2**40, reports += 1
    polls `state`                    polls `reports` until all are there
                                     decides                              state: nothing -> "go"
                                     publishes, tells the result          state: "go" -> result
    reads the result                                                      read += 1

`state` is written at most twice. A rank that fails writes its failure there if nothing is written yet, so all others
know at their next poll, even if rank 0 hangs. Rank 0 does the same for ranks that it has not heard of for `timeout`
seconds, and the others for rank 0. The first to write wins: rank 0 publishes nothing after a failure, and a rank that
was named missing finds its name there when it wakes.

A rank is heard of when it begins, while it makes progress, and when it reports. While rank 0 waits for the others,
polling is progress; the others need not be heard of after their reports.

Rank 0 returns from a failure when every living rank has read it, at most one second later, because the store may end
with its process. It removes the keys of a call when all ranks have read its result, or after some more calls. Values
are JSON; anything else in the store is an error.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from torch_tfckpt.distributed.failures import Outcome, decoded, of_all, parsed
from torch_tfckpt.distributed.missed_calls import RecentCalls, call_text, last_forgotten, number_to_join
from torch_tfckpt.distributed.store_thread import Operation, Result, StoreLost, StoreThread, peek
from torch_tfckpt.errors import CheckpointError, IncompleteSaveError, InvalidArgumentError, located
from torch_tfckpt.text import listed, printable

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_REPORTED: Final = 1 << 40  # added to `heard/R` by a report
_DECIDED: Final = 1 << 40  # added to `reports` by a failure
_GO: Final = '{"go": true}'
_FIRST_PAUSE: Final = 0.001  # seconds between two polls; doubled up to a limit
_LAST_WORD: Final = 1.0  # seconds for which rank 0 waits until the others have read a failure
_LISTED: Final = 8  # ranks named in a message
_NOT_RESTORED: Final = (
    "Nothing was restored. A missing rank was killed, hangs, has not called restore, or needs more time to read its "
    "values: see its log. Ranks(timeout=...) sets the time"
)

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Member:
    """One rank of those that act together."""

    rank: int
    world_size: int
    timeout: float  # seconds


class Commit:
    """One save or restore of all ranks, as one rank sees it.

    Args:
        number: Number of the call, the same on all ranks. `begin` raises it if this rank has skipped calls.
        action: "save" or "restore".
        target: The path of the checkpoint. It must be the same on all ranks. "": an error prevented knowing it.
        connect: Returns the store; it may block.

    Attributes:
        progress: Changed by whoever does the work, so that the other ranks hear of this one.
        is_over: Whether the outcome is known.
        failed: Whether it is a failure.
        keeps_parts: Whether this rank's part may be needed although the call is over.
        skipped: Numbers of calls that the others have ended without this rank, which has not made them.

    Raises:
        IncompleteSaveError: by every method: another rank has failed, or is missing; or the store is.

    Thread safety: one thread at a time; any thread may change `progress`.
    """

    def __init__(self, member: Member, number: int, action: str, target: str, connect: "Callable[[], Store]") -> None:
        self.rank, self.world_size, self._timeout = member.rank, member.world_size, member.timeout
        self.number, self.action, self.target = number, action, target
        self.progress = 0
        self._told = 0  # progress that the others have heard of
        self._knew = "its own part was not complete yet"
        self._went = False  # rank 0 has decided that all parts are complete
        self.is_over = self.failed = False
        self.keeps_parts = False
        self._reported = False
        self.skipped: list[int] = []
        self._call_text = call_text(action, target)
        self._thread = StoreThread(connect, member.timeout, self._beat, min(member.timeout / 8, 5.0))
        # Longer pauses for more ranks: all of them poll one store.
        self._longest_pause = min(0.5, 0.02 + 0.0002 * member.world_size)
        self._look_interval = max(min(0.5, member.timeout / 4), member.world_size / 2000)

    def begin(self, earlier: RecentCalls) -> None:
        """Tell the others that this rank is here. If they have ended this call without this rank, raise their error.

        Args:
            earlier: On rank 0, its latest calls; this one is added.
        """

        def first(store: "Store") -> tuple[bytes | None, int]:
            forgotten = last_forgotten(store) if self.rank else 0
            own = self.number
            self.number = number_to_join(store, own, self._call_text, forgotten)
            self.skipped = list(range(own, self.number))
            if self.rank == 0:
                earlier.add(self._call_text, self.number)
                store.set("latest", earlier.encode())
            store.add(f"{self.number}/heard/{self.rank}", 1)
            return peek(store, f"{self.number}/state"), forgotten

        found, forgotten = self._call(first)
        if found is not None:
            self._read(found)
        self._refuse_forgotten(forgotten)

    @property
    def is_lost(self) -> bool:
        """Whether the store has failed."""
        return self._thread.is_lost

    @property
    def went(self) -> bool:
        """Whether rank 0 has decided that all parts are complete, as far as this rank knows."""
        return self._went

    def report(self, report: Json) -> None:
        """Tell rank 0 that this rank's part is complete."""
        own = {"target": self.target, "action": self.action, "world_size": self.world_size}
        text = json.dumps({**report, **own})

        def tell(store: "Store") -> None:
            store.set(f"{self.number}/report/{self.rank}", text)
            store.add(f"{self.number}/heard/{self.rank}", _REPORTED)
            store.add(f"{self.number}/reports", 1)

        self._call(tell)
        self._reported = True
        self._knew = "its own part was complete, and it was not known whether the others' were"

    def gather(self) -> list[dict[str, Any]]:
        """On rank 0: wait for the reports of all ranks, and return them in order.

        Raises:
            IncompleteSaveError: a rank failed, is missing, has sent something else, or names another target.
        """
        now = time.monotonic()
        heard = {rank: (0, now) for rank in range(1, self.world_size)}
        look, pause = now + self._look_interval, _FIRST_PAUSE
        state = f"{self.number}/state"
        while True:
            self.progress += 1
            count = self._call(lambda store: store.add(f"{self.number}/reports", 0))
            if count >= _DECIDED:
                value = self._call(lambda store: peek(store, state))
                if value is not None:
                    self._read(value)
            if count >= self.world_size:
                break
            if time.monotonic() >= look:
                self._look(heard)
                look = time.monotonic() + self._look_interval
                waiting = listed([str(rank) for rank in heard], _LISTED, str)
                self._knew = f"the parts of all ranks except {waiting} were complete"
            time.sleep(pause)
            pause = min(2 * pause, self._longest_pause)
        keys = [f"{self.number}/report/{rank}" for rank in range(self.world_size)]
        values = self._call(lambda store: [peek(store, key) for key in keys])
        reports, wrong = [], dict[int, BaseException]()
        for rank, value in enumerate(values):
            try:
                reports.append(_report(value))
            except ValueError as error:
                wrong[rank] = IncompleteSaveError(f"its report in the store is not valid: {error}")
        if wrong:
            self.fail(wrong)
        self._compare_calls(reports)
        return reports

    def go(self) -> None:
        """On rank 0: decide that all parts are complete. From now on a failure cannot be written by others."""
        stored = self._call(lambda store: store.compare_set(f"{self.number}/state", "", _GO))
        if stored != _GO.encode():
            self._read(stored)
        self._went = True
        self._knew = "the parts of all ranks were complete"

    def conclude(self, result: Json) -> None:
        """On rank 0: tell the others the result."""
        text = json.dumps({"done": result})
        self._call(lambda store: store.set(f"{self.number}/state", text))
        self._leave(failed=False)

    def result(self) -> dict[str, Any]:
        """On all ranks but 0: wait for the result, and return it."""
        state, now = f"{self.number}/state", time.monotonic()
        heard = {0: (0, now)}
        look, pause = now + self._look_interval, _FIRST_PAUSE

        while True:
            value = self._call(lambda store: peek(store, state))
            if value is not None:
                found = self._read(value)
                if found is not None:
                    self._leave(failed=False)
                    return found
            if time.monotonic() >= look:
                self._look(heard)
                self._refuse_forgotten(self._call(last_forgotten))
                look = time.monotonic() + self._look_interval
            time.sleep(pause)
            pause = min(2 * pause, self._longest_pause)

    def fail(self, failures: Mapping[int, BaseException], *, common: str = "", in_place: bool = False) -> NoReturn:
        """Tell the others that ranks have failed, unless another failure is known; raise. REQUIRES: not `is_over`.

        Args:
            common: One message, instead of the errors of the ranks.
            in_place: Whether the checkpoint is published nevertheless.
        """
        outcome = Outcome(failures, common, in_place)
        text = outcome.encode(self._call_text)
        state = f"{self.number}/state"

        def tell(store: "Store") -> bytes:
            if self._went and self.rank == 0:
                store.set(state, text)
                return text.encode()
            stored = store.compare_set(state, "", text)
            store.add(f"{self.number}/reports", _DECIDED)
            return stored

        stored = self._call(tell)
        if stored == text.encode():
            # The exceptions themselves, not what became of them on the way.
            raise self._error(outcome)
        if self._parsed(stored).get("go") is True:
            self._went = True
            error = self._error(outcome)
            self.keeps_parts = self.rank != 0  # rank 0 is publishing them
            raise error
        self._read(stored, failures)
        raise AssertionError("unreachable: no result without rank 0's own part")

    def _read(self, value: bytes, own: Mapping[int, BaseException] | None = None) -> dict[str, Any] | None:
        """Return the result in `state`; None if rank 0 is publishing. Raise the error if there is a failure."""
        found = self._parsed(value)
        if found.get("go") is True:
            self._went = True
            self._knew = "the parts of all ranks were complete, and rank 0 was publishing them"
            return None
        try:
            if "failed" in found:
                outcome = decoded(found, self.world_size)
            elif isinstance(found.get("done"), dict):
                return dict(found["done"])
            else:
                raise ValueError("neither a result nor a failure")
        except (ValueError, TypeError, KeyError) as error:
            raise self._refused(str(error)) from error
        raise self._error(replace(outcome, failures={**outcome.failures, **(own or {})}))

    def _parsed(self, value: bytes) -> dict[str, Any]:
        try:
            return parsed(value, f"the state of {self.action} {self.number}")
        except ValueError as error:
            raise self._refused(str(error)) from error

    def _look(self, heard: dict[int, tuple[int, float]]) -> None:
        """Read how often other ranks were heard of, and remove those that have reported; fail if one is missing."""
        ranks = list(heard)

        def read(store: "Store") -> list[int]:
            return [store.add(f"{self.number}/heard/{rank}", 0) for rank in ranks]

        now, missing = time.monotonic(), dict[int, BaseException]()
        for rank, count in zip(ranks, self._call(read), strict=True):
            if count >= _REPORTED and rank != 0:
                del heard[rank]
            elif count != heard[rank][0]:
                heard[rank] = count, now
            elif now - heard[rank][1] > self._timeout:
                missing[rank] = TimeoutError(f"not heard of for {self._timeout:g} s")
        if missing:
            self.fail(missing)

    def _refuse_forgotten(self, forgotten: int) -> None:
        """Raise if the others have ended this call so long ago that its outcome has been removed."""

        if forgotten >= self.number:
            gone = TimeoutError("the other ranks have not heard of it, and have ended without it")
            raise self._error(Outcome({self.rank: gone}))

    def _compare_calls(self, reports: Sequence[Json]) -> None:
        """Fail unless all ranks make the same call, and as many as there are."""
        targets = [printable(str(report["target"])) for report in reports]
        calls = [f"{report.get('action')} of {target}" for report, target in zip(reports, targets, strict=True)]
        sizes = [f"world_size={report.get('world_size')}" for report in reports]
        same_action = len({report.get("action") for report in reports}) == 1
        self._refuse_different(sizes, "the ranks have different numbers of ranks", "Give all the same store and group")
        if not same_action:
            self._refuse_different(calls, "the ranks make different calls", "All ranks must make the same, in order")
        self._refuse_different(targets, "the ranks name different checkpoints")

    def _refuse_different(self, values: Sequence[str], finding: str, fix: str = "") -> None:
        by_value: dict[str, list[int]] = {}
        for rank, value in enumerate(values):
            by_value.setdefault(value, []).append(rank)
        if len(by_value) > 1:
            named = "; ".join(f"{value}: {ranks_text(ranks)}" for value, ranks in by_value.items())
            text = f"{finding}: {named}" + (f". {fix}" if fix else "")
            others = [rank for ranks in list(by_value.values())[1:] for rank in ranks]
            self.fail(dict.fromkeys(others, InvalidArgumentError(text)), common=text)

    # Ends.

    def _error(self, outcome: Outcome) -> CheckpointError:
        """Tell rank 0 that this rank knows the failures, and return the error that names them."""
        self._leave(failed=True, missing=len(outcome.missing))
        # Parts that rank 0 may have merged, or that anybody may still publish.
        self.keeps_parts = self.rank != 0 and self._reported and 0 in outcome.missing
        place, failures = f"{self.action} of {printable(self.target)}", outcome.failures
        if self.action == "restore":
            rank = min(failures)
            first = failures[rank]
            if isinstance(first, CheckpointError) and not isinstance(first, IncompleteSaveError):
                return located(first, place if outcome.common else f"{place}: rank {rank} of {self.world_size}")
            return of_all(place, outcome, self.world_size, _NOT_RESTORED if outcome.missing else "Nothing was restored")
        return of_all(place, outcome, self.world_size, self._consequence(outcome))

    def _consequence(self, outcome: Outcome) -> str:
        path = printable(self.target)
        publishes = f"`tfckpt merge {path}`, or latest_checkpoint(valid=True) in the next run, publishes the checkpoint"
        if outcome.in_place:
            return "The checkpoint is in place. Fix the cause, then save again"
        if self.went and self.rank in outcome.failures and self.rank != 0:
            return "Rank 0 is publishing the checkpoint nevertheless"
        if 0 in outcome.missing:
            if self.went:
                return f"The parts of all ranks are complete: {publishes}, unless rank 0 has done so"
            return f"If the parts of all ranks are complete, {publishes}. Earlier checkpoints are unchanged"
        fix = "Fix the cause, then save again"
        if outcome.missing:
            fix = "A missing rank was killed, hangs, or has not called save: see its log. Then save again"
        return f"Nothing was published; earlier checkpoints are unchanged. {fix}"

    def _refused(self, found: str) -> IncompleteSaveError:
        """Return the error for a value that this package has not written."""
        self._leave(failed=True)
        return IncompleteSaveError(
            f"{self.action} of {printable(self.target)}: {found}, so another program writes to the same store. Give "
            f"Ranks a store of its own, such as PrefixStore('checkpoints', store)"
        )

    def _lost(self, error: StoreLost) -> IncompleteSaveError:
        self.is_over = self.failed = True
        self.keeps_parts = self._reported
        return IncompleteSaveError(
            f"{self.action} of {printable(self.target)}: the store through which the ranks agree is gone: {error}. Its "
            f"host, usually the process of rank 0 or the launcher, has ended or hangs. What rank {self.rank} of "
            f"{self.world_size} knew: {self._knew}. Restart the program"
        )

    def _call(self, operation: "Operation[Result]") -> Result:
        try:
            return self._thread.call(operation)
        except StoreLost as error:
            self._thread.close()
            raise self._lost(error) from error

    def _beat(self, store: "Store") -> None:
        progress = self.progress
        if progress != self._told:
            store.add(f"{self.number}/heard/{self.rank}", 1)
            self._told = progress

    def _leave(self, *, failed: bool, missing: int = 0) -> None:
        """Tell rank 0 that this rank knows the outcome; on rank 0, wait until the others know a failure."""
        self.is_over, self.failed = True, failed
        number, rank = self.number, self.rank
        living = self.world_size - 1 - missing

        def tell(store: "Store") -> None:
            if rank != 0:
                remove_keys(store, [f"{number}/report/{rank}", f"{number}/heard/{rank}"])
                store.add(f"{number}/read", 1)

        try:
            self._thread.call(tell)
            until = time.monotonic() + _LAST_WORD
            while rank == 0 and failed and time.monotonic() < until:
                if self._thread.call(lambda store: store.add(f"{number}/read", 0)) >= living:
                    break
                time.sleep(0.01)
        except StoreLost:
            pass  # the outcome is known
        finally:
            self._thread.close()


def _report(value: bytes | None) -> dict[str, Any]:
    if value is None:
        raise ValueError("it is missing")
    found = parsed(value, "it")
    if not isinstance(found.get("target"), str):
        raise ValueError("it names no target")
    return found


def remove_keys(store: "Store", keys: Sequence[str]) -> None:
    """Remove keys from a store, if it can; a store that cannot keeps a few small values."""
    for key in keys:
        try:
            store.delete_key(key)
        except (RuntimeError, NotImplementedError):
            return


def ranks_text(ranks: Sequence[int]) -> str:
    """Return "rank 3" or "ranks 0, 1, 2 and 5 more"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {listed([str(rank) for rank in ranks], _LISTED, str)}"
