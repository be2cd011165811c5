"""Which checkpoints are deleted and which are kept, without files and clocks."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_process import TensorFlowProcess

from torch_tfckpt.directory.retention import (
    ExpiredCheckpoints,
    KeepBest,
    Saved,
    SaverHistory,
    best_first,
    next_deletion,
    partition,
    protected,
    record,
    saved_again,
    sweep,
)
from torch_tfckpt.errors import InvalidArgumentError

HOUR = 3600.0


def save(history: SaverHistory, path: str, now: float, keep: int | None) -> tuple[SaverHistory, str | None]:
    return next_deletion(record(history, path, now, keep), HOUR)


def paths(saved: tuple[Saved, ...]) -> list[str]:
    return [each.path for each in saved]


class TestSaver:
    def test_timeline(self) -> None:
        """CASES 198: a timeline with max_to_keep 2 and one checkpoint per hour, created at time 0."""
        table: list[tuple[float, list[int], list[int], float]] = [
            (600, [0], [0], 3600),
            (1200, [0, 1], [0, 1], 3600),
            (1800, [1, 2], [1, 2], 3600),
            (3700, [2, 3], [2, 3], 3600),
            (5000, [3, 4], [3, 4], 3600),
            (7000, [4, 5], [3, 4, 5], 7200),
            (7300, [5, 6], [3, 5, 6], 7200),
            (9000, [6, 7], [3, 6, 7], 7200),
            (11000, [7, 8], [3, 6, 7, 8], 10800),
            (20000, [8, 9], [3, 6, 8, 9], 10800),
            (20100, [9, 10], [3, 6, 8, 9, 10], 14400),
            (20200, [10, 11], [3, 6, 8, 9, 10, 11], 18000),
            (20300, [11, 12], [3, 6, 8, 9, 10, 11, 12], 21600),
        ]
        history, disk = SaverHistory(next_kept=HOUR), set[str]()
        for number, (now, last, there, next_kept) in enumerate(table):
            disk.add(f"m-{number}")
            history, deleted = save(history, f"m-{number}", now, 2)
            disk.discard(deleted or "")
            assert paths(history.last) == [f"m-{i}" for i in last]
            assert disk == {f"m-{i}" for i in there}
            assert history.next_kept == next_kept
            assert history.expired == ()

    @pytest.mark.parametrize("seed", range(4))
    def test_as_tensorflow(self, tmp_path: Path, tensorflow: TensorFlowProcess, seed: int) -> None:
        """Random times: after each save the list and the checkpoints on disk equal TensorFlow's."""
        choose = random.Random(seed)
        keep, hours = choose.choice([1, 2, 3, -1]), choose.choice([0.5, 1.0, 10_000.0])
        now, saves = 1000.0, []
        for _ in range(12):
            now += choose.choice([0.0, 360.0, 1800.0, 3600.0, 9000.0])
            saves.append(now)
        expected = tensorflow.call("run_saver", str(tmp_path), keep, hours, 1000.0, saves)
        history, disk = SaverHistory(1000.0 + hours * HOUR), set[str]()
        for number, (moment, (last, files, _)) in enumerate(zip(saves, expected, strict=True)):
            disk.add(f"m-{number}")
            history, deleted = next_deletion(record(history, f"m-{number}", moment, keep), hours * HOUR)
            disk.discard(deleted or "")
            assert [str(tmp_path / path) for path in paths(history.last)] == last
            assert sorted(disk) == files

    def test_saved_again(self) -> None:
        """CASES 49: a path that is saved again becomes the newest, without a deletion."""
        history = SaverHistory(math.inf)
        deleted = []
        for path in ("s1", "s2", "s3", "s2", "s1"):
            history, gone = save(history, path, 1.0, 2)
            deleted.append(gone)
        assert deleted == [None, None, "s1", None, "s3"]
        assert paths(history.last) == ["s2", "s1"]

    def test_saved_again_while_expired(self) -> None:
        """An expired path that is saved again before its deletion is not deleted."""
        history = SaverHistory(math.inf, (Saved("b", 2.0),), (Saved("a", 1.0),))
        history, gone = save(history, "a", 3.0, 2)
        assert (gone, paths(history.last), history.expired) == (None, ["b", "a"], ())

    @pytest.mark.parametrize("keep", [0, None])
    def test_no_limit(self, keep: int | None) -> None:
        """CASES 55: nothing is recorded and nothing deleted."""
        history = SaverHistory(0.0, (Saved("a", 1.0),))
        assert save(history, "b", 2.0, keep) == (history, None)

    def test_negative(self) -> None:
        """With a negative limit each checkpoint is deleted at once."""
        history, gone = save(SaverHistory(math.inf), "a", 1.0, -1)
        assert (gone, history.last) == ("a", ())

    def test_unknown_age(self) -> None:
        """Limit 1, list [a] of unknown age; after saving b and c, a is kept, b deleted; one hour is used."""
        history = SaverHistory(HOUR, (Saved("a", math.inf),))
        history, gone = save(history, "b", 10.0, 1)
        assert (gone, history.next_kept) == (None, 2 * HOUR)
        history, gone = save(history, "c", 20.0, 1)
        assert (gone, history.next_kept) == ("b", 2 * HOUR)

    def test_exactly_on_time(self) -> None:
        """A checkpoint is kept only if it is strictly later than the schedule."""
        for time, gone in ((HOUR, "a"), (math.nextafter(HOUR, math.inf), None)):
            assert next_deletion(SaverHistory(HOUR, (), (Saved("a", time),)), HOUR)[1] == gone

    def test_one_deletion_per_save(self) -> None:
        """A list longer than the limit, as from set_last_checkpoints, does not shrink."""
        history = SaverHistory(math.inf, tuple(Saved(f"m-{i}", float(i)) for i in range(4)))
        history, gone = save(history, "m-4", 5.0, 2)
        assert (gone, len(history.last)) == ("m-0", 4)
        assert next_deletion(history, HOUR) == (history, None)


class TestManager:
    def test_timeline(self) -> None:
        """CASES 198: a timeline with max_to_keep 2 and one checkpoint per hour, created at time 1000."""
        moments = [1000, 2000, 4599, 4600, 6000, 8200, 9000, 12000, 12001, 12002]
        tracked: tuple[Saved, ...] = ()
        last_preserved, disk, when_kept = 999.0, set[str](), dict[float, int]()
        for number, now in enumerate(moments, start=1):
            disk.add(f"ckpt-{number}")
            swept = sweep(saved_again(tracked, f"ckpt-{number}", now), last_preserved, 2, HOUR)
            tracked, last_preserved = swept.tracked, swept.last_preserved
            disk -= set(swept.expired)
            when_kept.setdefault(last_preserved, number)
        assert disk == {f"ckpt-{i}" for i in (3, 6, 8, 9, 10)}
        assert when_kept == {999.0: 1, 4599.0: 5, 8200.0: 8, 12000.0: 10}
        assert tracked == (Saved("ckpt-9", 12001), Saved("ckpt-10", 12002))
        swept = sweep(saved_again(tracked, "ckpt-11", 12003), last_preserved, 1, HOUR)
        assert swept == ((Saved("ckpt-11", 12003),), 12000.0, ("ckpt-9", "ckpt-10"))

    @pytest.mark.parametrize("hours", [None, 0.0])
    def test_without_hours(self, hours: float | None) -> None:
        """Without an interval no checkpoint is kept permanently."""
        tracked = [Saved("a", 1e9), Saved("b", 2e9)]
        assert sweep(tracked, 0.0, 1, hours) == ((Saved("b", 2e9),), 0.0, ("a",))

    def test_all(self) -> None:
        """With the limit None all checkpoints remain tracked."""
        tracked = tuple(Saved(str(i), i) for i in range(100))
        assert sweep(tracked, 0.0, None, HOUR) == (tracked, 0.0, ())

    def test_saved_again(self) -> None:
        """The path moves to the end with its new time."""
        assert saved_again([Saved("a", 1), Saved("b", 2)], "a", 3) == (Saved("b", 2), Saved("a", 3))


RULE = KeepBest("loss", "min", 2)
LOSSES = {name: {"loss": value} for name, value in {"a": 3.0, "b": 1.0, "c": 1.0, "d": math.nan, "e": 2.0}.items()}


class TestBest:
    def test_order(self) -> None:
        """Best first, the newer of two equal ones first; NaN and missing metrics are left out."""
        known = ["a", "b", "c", "d", "e", "f"]
        assert best_first(known, LOSSES, RULE) == ["c", "b", "e", "a"]
        assert best_first(known, LOSSES, KeepBest("loss", "max", 9)) == ["a", "e", "c", "b"]
        assert best_first(known, LOSSES, KeepBest("accuracy", "max", 1)) == []

    def test_protected(self) -> None:
        """Protected are the pins and the k best among the known checkpoints."""
        assert protected(["a", "b", "c", "f"], {"f", "z"}, LOSSES, RULE) == {"b", "c", "f"}
        assert protected(["a", "b"], (), LOSSES, None) == frozenset()

    def test_new_checkpoints_count_among_the_best(self) -> None:
        """A better checkpoint among the newest replaces a protected older one."""
        assert partition(["c"], ["a"], ["b", "e"], (), LOSSES, RULE) == ExpiredCheckpoints(("b",), ("e", "a"))

    def test_a_protected_checkpoint_saved_again(self) -> None:
        """A protected checkpoint that is saved again is one of the newest and no longer in the list."""
        assert partition(["e", "b"], [], ["b"], (), {}, None) == ExpiredCheckpoints((), ())

    def test_without_pins_and_metrics(self) -> None:
        """The deleted checkpoints are those that TensorFlow deletes."""
        assert partition(["c"], ["a", "b"], [], (), {}, None) == ExpiredCheckpoints((), ("a", "b"))

    @given(
        losses=st.lists(st.sampled_from([0.0, 1.0, 2.0, math.inf, math.nan]), min_size=1, max_size=12),
        k=st.integers(1, 4),
        keep=st.integers(1, 3),
        pinned=st.sets(st.integers(0, 11)),
    )
    def test_the_best_and_the_pinned_always_exist(
        self, losses: list[float], k: int, keep: int, pinned: set[int]
    ) -> None:
        """After each save the newest, the pinned and the k best of all saved checkpoints exist, and no others."""
        rule = KeepBest("loss", "min", k)
        metrics = {str(i): {"loss": loss} for i, loss in enumerate(losses)}
        pins = {str(i) for i in pinned}
        history, protected_before, disk = SaverHistory(math.inf), tuple[str, ...](), set[str]()
        for number in range(len(losses)):
            disk.add(str(number))
            history, candidate = save(history, str(number), 0.0, keep)
            expired = [] if candidate is None else [candidate]
            protected_before, to_delete = partition(paths(history.last), expired, protected_before, pins, metrics, rule)
            disk -= set(to_delete)
            numbers = [i for i in range(number + 1) if not math.isnan(losses[i])]
            best = sorted(numbers, key=lambda i: (losses[i], -i))[:k]
            newest = range(max(0, number + 1 - keep), number + 1)
            assert disk == {str(i) for i in {*best, *newest, *(pinned & set(range(number + 1)))}}

    @pytest.mark.parametrize(
        ("metric", "mode", "k"),
        [("", "min", 1), ("loss", "low", 1), ("loss", "min", 0), ("loss", "min", True), (3, "min", 1)],
    )
    def test_invalid_rules(self, metric: str, mode: str, k: int) -> None:
        """The error names the invalid argument."""
        with pytest.raises(InvalidArgumentError, match=r"KeepBest: (metric|mode|k)="):
            KeepBest(metric, mode, k)  # type: ignore[arg-type]
