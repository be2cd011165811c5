"""Commit: what all ranks agree on through a store, whoever fails, is missing, or writes something else there."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from rank_threads import calls, commit, together
from torch._C._distributed_c10d import FileStore, HashStore, PrefixStore, Store, TCPStore

from torch_tfckpt.distributed.commit import Commit
from torch_tfckpt.distributed.ranks import Ranks
from torch_tfckpt.errors import DataLossError, FailedPreconditionError, IncompleteSaveError, InvalidArgumentError

MANY = 64


@pytest.fixture
def tcp_store() -> Store:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def saves(count: int) -> object:
    return lambda ranks: [commit(ranks, f"run/m-{step}") for step in range(count)]


def out_of_space() -> None:
    raise OSError(28, "No space left on device")


def errors_of(results: list[object]) -> list[IncompleteSaveError]:
    assert all(isinstance(each, IncompleteSaveError) for each in results), results
    return results  # type: ignore[return-value]


def test_64_ranks_agree_over_one_tcp_store(tcp_store: Store) -> None:
    """Each with a client of its own, twice in a row."""
    assert (
        together(MANY, lambda ranks: [commit(ranks, "m-1"), commit(ranks, "m-2")], store=tcp_store) == [[1, 2]] * MANY
    )


@pytest.mark.parametrize("kind", ["hash", "file", "prefix"])
def test_every_kind_of_store(kind: str, tmp_path: object, tcp_store: Store) -> None:
    store: Store = HashStore()
    if kind == "file":
        store = FileStore(f"{tmp_path}/store", 4)
    elif kind == "prefix":
        store = PrefixStore("job", tcp_store)
    assert together(4, lambda ranks: [commit(ranks, "m-1"), commit(ranks, "m-2")], store=store) == [[1, 2]] * 4


@pytest.mark.parametrize("failing", [0, 1, MANY - 1])
def test_a_failing_rank_is_named_by_all(failing: int) -> None:
    """At once, with its error, also where the others are many; and the next save works."""

    def act(ranks: Ranks) -> object:
        with pytest.raises(IncompleteSaveError) as caught:
            commit(ranks, "run/m-1", out_of_space if ranks.rank == failing else lambda: None)
        return caught.value, commit(ranks, "run/m-2")

    for error, number in together(MANY, act):
        assert str(error) == (
            f"save of run/m-1: rank {failing} of {MANY} failed: [Errno 28] No space left on device. Nothing was "
            f"published; earlier checkpoints are unchanged. Fix the cause, then save again"
        )
        assert (list(error.failures), error.errno, number) == ([failing], 28, 2)


@pytest.mark.parametrize("absent", [0, 2])
def test_an_absent_rank_is_named_by_all(absent: int) -> None:
    """A rank that is not heard of for `timeout` seconds; rank 0 is not special."""
    results = together(4, lambda ranks: commit(ranks, "run/m-1"), timeout=0.4, absent=absent)
    for error in errors_of([each for rank, each in enumerate(results) if rank != absent]):
        assert f"rank {absent} of 4: not heard of for 0.4 s. " in str(error)
        assert "arlier checkpoints are unchanged" in str(error)
        assert list(error.failures) == [absent]
        assert isinstance(error.failures[absent], TimeoutError)


def test_a_rank_that_is_absent_from_a_restore_is_named() -> None:
    """With what it may be doing."""
    results = together(2, lambda ranks: commit(ranks, "run/m-1", action="restore"), timeout=0.4, absent=1)
    (error,) = errors_of(results[:1])
    assert "restore of run/m-1: rank 1 of 2: not heard of for 0.4 s. Nothing was restored. A missing rank" in str(error)
    assert "or needs more time to read its values: see its log. Ranks(timeout=...) sets the time" in str(error)


def test_a_rank_that_was_named_missing_learns_it_when_it_wakes() -> None:
    """And takes part in the next save."""
    store = HashStore()
    ranks = [Ranks(store, rank=rank, world_size=2, timeout=0.3) for rank in range(2)]
    with pytest.raises(IncompleteSaveError, match=r"rank 1 of 2: not heard of for 0\.3 s"):
        commit(ranks[0], "run/m-1")
    with pytest.raises(IncompleteSaveError, match=r"rank 1 of 2: not heard of for 0\.3 s"):
        commit(ranks[1], "run/m-1", out_of_space)  # before it begins to write
    again = iter(ranks)
    assert together(2, lambda _: commit(next(again), "run/m-2")) == [2, 2]


def test_a_rank_that_slept_through_several_saves_joins_the_next() -> None:
    store = HashStore()
    ranks = [Ranks(store, rank=rank, world_size=2, timeout=0.1) for rank in range(2)]
    for step in range(12):
        with pytest.raises(IncompleteSaveError, match="rank 1 of 2: not heard of"):
            commit(ranks[0], f"run/m-{step}")
    with pytest.raises(IncompleteSaveError, match="rank 1"):
        commit(ranks[1], "run/m-0")
    with pytest.raises(IncompleteSaveError, match="rank 1"):
        commit(ranks[1], "run/m-1")
    each = {0: ranks[0], 1: ranks[1]}
    assert together(2, lambda new: commit(each[new.rank], "run/m-20")) == [13, 13]


@pytest.mark.parametrize("skipping", [0, 1, 2])
def test_a_rank_that_skips_calls_joins_the_next(skipping: int) -> None:
    """The others name it, twice; then all are in step again."""
    waiting = threading.Barrier(3)

    def act(ranks: Ranks) -> list[object]:
        results: list[object] = [commit(ranks, "run/m-1")]
        for step in (2, 3):
            if ranks.rank != skipping:
                with pytest.raises(IncompleteSaveError, match=f"rank {skipping} of 3: not heard of"):
                    commit(ranks, f"run/m-{step}")
        waiting.wait()
        return [*results, *(commit(ranks, f"run/m-{step}") for step in (4, 5))]

    assert together(3, act, timeout=0.4) == [[1, 4, 5]] * 3


def test_a_rank_that_was_too_late_for_one_call_joins_the_one_that_the_others_are_in() -> None:
    """By its path, although the others have begun two calls since."""
    store = HashStore()
    ranks = [Ranks(store, rank=rank, world_size=2, timeout=timeout) for rank, timeout in ((0, 0.2), (1, 60))]
    for step in (1, 2):
        with pytest.raises(IncompleteSaveError, match="rank 1 of 2: not heard of"):
            commit(ranks[0], f"run/m-{step}")
    with pytest.raises(IncompleteSaveError, match="rank 1 of 2: not heard of"):
        commit(ranks[1], "run/m-2")
    again = {each.rank: each for each in ranks}
    assert together(2, lambda new: commit(again[new.rank], "run/m-3")) == [3, 3]


def test_a_slow_rank_that_makes_progress_is_waited_for() -> None:
    """Much longer than the timeout, as long as it is heard of."""
    store = HashStore()
    heard = PrefixStore("tfckpt/1/1", store)

    def slow() -> None:
        while heard.add("heard/1", 0) < 40:  # eight times in each timeout
            begun[1].progress += 1

    begun: dict[int, Commit] = {}
    assert together(
        2, lambda ranks: commit(ranks, "run/m-1", slow if ranks.rank else int, begun=begun), store=store, timeout=0.4
    ) == [1, 1]


def test_a_rank_that_fails_while_rank_0_publishes_keeps_its_part() -> None:
    """For example by Ctrl-C: rank 0 needs the part, and does not fail because of it."""
    store = HashStore()
    zero, one = (calls(Ranks(store, rank=rank, world_size=2)).begin("save", "run/m-1") for rank in range(2))
    one.report({})
    zero.report({})
    zero.gather()
    zero.go()
    with pytest.raises(IncompleteSaveError, match="Rank 0 is publishing the checkpoint nevertheless"):
        one.fail({1: KeyboardInterrupt()})
    assert one.keeps_parts
    zero.conclude({})


def test_ranks_that_name_different_checkpoints_are_told() -> None:
    """Before anything is published."""
    for error in errors_of(together(4, lambda ranks: commit(ranks, f"run/m-{ranks.rank // 2}"))):
        assert "the ranks name different checkpoints: run/m-0: ranks 0, 1; run/m-1: ranks 2, 3" in str(error)
        assert sorted(error.failures) == [2, 3]


def test_ranks_that_make_different_calls_are_told() -> None:
    """A restore on one rank, and a save to the same path on the other."""
    for error in together(2, lambda ranks: commit(ranks, "run/m-1", action="restore" if ranks.rank else "save")):
        assert "the ranks make different calls: save of run/m-1: rank 0; restore of run/m-1: rank 1. All" in str(error)


def test_ranks_that_differ_in_their_number_are_told() -> None:
    store = HashStore()

    def act(ranks: Ranks) -> object:
        return commit(Ranks(store, rank=ranks.rank, world_size=2 + ranks.rank, timeout=30), "run/m-1")

    for error in errors_of(together(2, act)):
        assert "different numbers of ranks: world_size=2: rank 0; world_size=3: rank 1. Give all the same" in str(error)


def test_a_restore_fails_with_the_error_of_the_rank() -> None:
    """So that programs can tell damage from a missing rank."""

    def damaged() -> None:
        raise DataLossError("run/m-1.data-00000-of-00001, bytes 0:4: checksum mismatch")

    for error in together(3, lambda ranks: commit(ranks, "run/m-1", damaged if ranks.rank == 1 else int, "restore")):
        assert type(error) is DataLossError
        assert str(error).startswith(
            "restore of run/m-1: rank 1 of 3: run/m-1.data-00000-of-00001, bytes 0:4: checksum"
        )


def test_unknown_errors_keep_their_names() -> None:
    class OddError(Exception):
        pass

    def odd() -> None:
        raise OddError("of the program")

    for error in errors_of(together(2, lambda ranks: commit(ranks, "m", odd if ranks.rank else int))):
        assert "rank 1 of 2 failed: OddError: of the program" in str(error).replace("RuntimeError: ", "")


def test_the_store_does_not_grow() -> None:
    """After hundreds of saves, every tenth of which fails, as many keys are left as after a few."""
    store = HashStore()

    def act(ranks: Ranks) -> int:
        for step in range(300):
            if step % 10:
                commit(ranks, f"run/m-{step}")
            else:
                with pytest.raises(IncompleteSaveError):
                    commit(ranks, f"run/m-{step}", out_of_space if ranks.rank == step % 3 else int)
        if ranks.rank == 0:
            calls(ranks).wait_until_known()
        return ranks.rank

    assert together(3, act, store=store) == [0, 1, 2]
    keys = [key.rpartition("tfckpt/")[2] for key in store.list_keys()]
    assert sorted(key for key in keys if not key.startswith("born")) == ["1/latest", "1/session"]


HOSTILE = {
    "not JSON": b"\x80\x04\x95N.",
    "no object": b"[1]",
    "deep": b"[" * 100_000,
    "empty": b"",
    "nothing known": b"{}",
    "failures of no rank": b'{"failed": {"9": {"type": "OSError", "text": "x"}}}',
    "failures without text": b'{"failed": {"1": {"type": 3}}}',
    "failures that are none": b'{"failed": 3}',
    "a result that is none": b'{"done": "run/m-1"}',
    "huge": b" " * (65 << 20),
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_state_is_refused(value: bytes) -> None:
    """Nothing is unpickled, and no rank hangs or raises anything else."""
    store = HashStore()
    ranks = Ranks(store, rank=1, world_size=2, timeout=5.0)
    PrefixStore("tfckpt/1/1", store).set("state", value)  # type: ignore[arg-type]
    with pytest.raises(IncompleteSaveError, match="another program writes to the same store"):
        commit(ranks, "run/m-1")


@pytest.mark.parametrize("value", [*HOSTILE.values(), b'{"target": 3}'], ids=[*HOSTILE.keys(), "target"])
def test_a_hostile_report_is_refused(value: bytes) -> None:
    """And the rank that it comes from is named."""
    store = HashStore()
    ranks = Ranks(store, rank=0, world_size=2, timeout=5.0)
    theirs = PrefixStore("tfckpt/1/1", store)
    theirs.set("report/1", value)  # type: ignore[arg-type]
    theirs.add("reports", 1)
    with pytest.raises(IncompleteSaveError, match="rank 1 of 2 failed: its report in the store is not valid"):
        commit(ranks, "run/m-1")
    assert list(json.loads(theirs.get("state"))["failed"]) == ["1"]


HOST = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host() -> Iterator[tuple[subprocess.Popen[str], Store]]:
    """A process that hosts a store, and a client of it."""
    with subprocess.Popen([sys.executable, "-c", HOST], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield process, TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
        finally:
            process.kill()


@pytest.mark.parametrize("signal_number", [9, 19], ids=["killed", "stopped"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_store_that_goes_away_is_an_error(
    host: tuple[subprocess.Popen[str], Store], signal_number: int, rank: int
) -> None:
    """Its host is gone, or stopped, so that no call of the store returns: the error says what the rank knew."""
    process, store = host
    ranks = Ranks(store, rank=rank, world_size=2, timeout=1.0)
    if rank:
        PrefixStore("tfckpt/1", store).set("session", "0")

    def end_host() -> None:
        process.send_signal(signal_number)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    with pytest.raises(IncompleteSaveError) as caught:
        commit(ranks, "run/m-1", end_host)
    text = str(caught.value)
    assert "save of run/m-1: the store through which the ranks agree is gone" in text
    assert f"What rank {rank} of 2 knew: its own part was not complete yet" in text


def test_the_rank_is_known_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """From arguments or the environment, where there is no process group."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InvalidArgumentError, match="the rank of this process is not known"):
        Ranks(HashStore())
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert repr(Ranks(HashStore())) == "Ranks(rank=2, world_size=4, timeout=600)"
    with pytest.raises(FailedPreconditionError, match=r"Call torch\.distributed\.init_process_group first"):
        Ranks()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "5"}, "timeout='5'"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"store": "localhost:29500"}, "store is a str"),
        ({"rank": 4}, "rank=4 of world_size=4"),
        ({"rank": -1}, "rank=-1"),
        ({"rank": True}, "rank=True"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"store": HashStore(), "rank": 0, "world_size": 4, **arguments}
    with pytest.raises(InvalidArgumentError, match=message):
        Ranks(**given)  # type: ignore[arg-type]
