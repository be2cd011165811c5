"""Ranks as threads of one process over one store: for tests of the commit, which needs no processes."""

import threading
from collections.abc import Callable
from typing import Any

from torch._C._distributed_c10d import HashStore, Store

from torch_tfckpt.distributed.calls import RankCalls, calls_of
from torch_tfckpt.distributed.commit import Commit
from torch_tfckpt.distributed.ranks import Ranks


def together(
    count: int, act: Callable[[Ranks], object], *, store: Store | None = None, timeout: float = 60.0, absent: int = -1
) -> list[Any]:
    """Call `act` on every rank at the same time; return the results and exceptions, in the order of the ranks.

    Args:
        absent: A rank that is not started; its result is None.
    """
    store = HashStore() if store is None else store
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = act(Ranks(store, rank=rank, world_size=count, timeout=timeout))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count) if rank != absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def commit(
    of: Ranks,
    target: str,
    work: Callable[[], object] = lambda: None,
    action: str = "save",
    *,
    begun: dict[int, Commit] | None = None,
) -> Any:
    """One call of all ranks: do `work`, report, and return the result, which is the number of the call.

    Args:
        begun: Receives the Commit of each rank.
    """
    ranks = calls(of)
    call = ranks.begin(action, target)
    if begun is not None:
        begun[ranks.rank] = call
    try:
        ranks.token(call)
        try:
            work()
        except Exception as error:
            call.fail({ranks.rank: error})
        call.report({"part": ranks.rank})
        if ranks.rank:
            return call.result()["number"]
        assert [report["part"] for report in call.gather()] == list(range(ranks.world_size))
        call.go()
        call.conclude({"number": call.number})
        return call.number
    finally:
        ranks.ended(call)


def calls(ranks: Ranks) -> RankCalls:
    """The calls that savers make."""
    found = calls_of(ranks)
    assert found is not None
    return found
