"""What does it cost many ranks to agree on a save through one store?

Setup:    one TCPStore; every rank is a thread of this process with a client of its own. No files: a rank reports when
          it has begun. All ranks share the cores of one machine, and Python's lock.
Floor:    none.
Compare:  nothing; a barrier of torch.distributed needs a process per rank.
Reports:  for each number of ranks, the median seconds of one save from the first rank that begins to the last that
          returns, the messages to the store, in all and per rank, and the keys that are left. Every rank must have
          received rank 0's result.
"""

import statistics
import threading
import time
from collections import Counter
from typing import Any

from settings import Bench
from timing import WrongResult
from torch._C._distributed_c10d import TCPStore

from torch_tfckpt.distributed.calls import RankCalls


class CountingClient:
    """A client of a store that counts its messages."""

    def __init__(self, store: Any, prefix: str, counts: Counter[str]) -> None:
        self._store, self._prefix, self._counts = store, prefix, counts

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def counted(key: str, *arguments: Any) -> Any:
            self._counts[name] += 1
            return call(f"{self._prefix}/{key}", *arguments)

        return counted


class CountingCalls(RankCalls):
    """The calls of one rank, with a counting client."""

    def __init__(self, client: Any, rank: int, world_size: int) -> None:
        self.counts = Counter[str]()
        self._counted = client
        super().__init__(client, rank, world_size, timeout=600.0)

    def _connect(self) -> Any:
        return CountingClient(self._counted, self._prefix, self.counts)


def run(bench: Bench) -> None:
    """Row "commit"."""
    largest = max(8, bench.sizes.tiny // 100)
    for count in sorted({max(2, largest // 10), largest}):
        found = measure(count, bench.sizes.few_rounds)
        work = f"{count:,} ranks agree on a save"
        bench.report.keep({"work": work, **found})
        bench.report.measure(work, "a rank", [found["per_rank"]], "messages", at_most=None, against="the store")
        bench.report.measure(work, "the slowest rank", [found["seconds"]], "s", at_most=None, against="no limit")


def measure(count: int, rounds: int) -> dict[str, float]:
    """Let `count` ranks agree on `rounds` saves, after one to warm up."""
    server: Any = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [CountingCalls(server.clone(), rank, count) for rank in range(count)]
    seconds, messages = [], []
    for number in range(rounds + 1):
        before = sum(sum(each.counts.values()) for each in ranks)
        results: list[Any] = [None] * count

        def save(each: CountingCalls, number: int = number, results: list[Any] = results) -> None:
            commit = each.begin("save", f"run/m-{number}")
            commit.report({"domain": 0, "names": "0" * 32, "count": 1000, "bytes": 1 << 30})
            if each.rank:
                results[each.rank] = commit.result()
            else:
                commit.gather()
                commit.go()
                results[0] = {"number": number}
                commit.conclude(results[0])
            each.ended(commit)

        threads = [threading.Thread(target=save, args=(each,)) for each in ranks]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if results != [{"number": number}] * count:
            raise WrongResult("a rank has not received the result")
        if number:
            seconds.append(time.perf_counter() - begun)
            messages.append(sum(sum(each.counts.values()) for each in ranks) - before)
    ranks[0].wait_until_known()
    return {
        "seconds": statistics.median(seconds),
        "messages": statistics.median(messages),
        "per_rank": statistics.median(messages) / count,
        "keys_left_per_rank": server.num_keys() / count,
    }
