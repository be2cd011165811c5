"""Pins, metrics and protected checkpoints, over restarts and with damaged files."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_tfckpt.directory.retention import KeepBest
from torch_tfckpt.directory.retention_file import RetentionRecord, check_metrics
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.storage.local import LOCAL

RULE = KeepBest("loss", "min", 1)
FILE = "checkpoint.retention.json"


def checkpoint(path: Path) -> str:
    """Create enough of a checkpoint to exist."""
    Path(f"{path}.index").touch()
    return str(path)


def loaded(directory: Path | str, rule: KeepBest | None = None) -> RetentionRecord:
    retained = RetentionRecord(rule)
    retained.load(LOCAL, str(directory))
    return retained


class TestPartition:
    def test_protected_then_deleted_then_forgotten(self, tmp_path: Path) -> None:
        """Protected while among the best, deleted when a better one is saved, then forgotten."""
        retained = loaded(tmp_path, RULE)
        a, b, c = (checkpoint(tmp_path / name) for name in "abc")
        retained.note(a, {"loss": 1.0})
        assert retained.partition([a], []) == []
        retained.note(b, {"loss": 2.0})
        assert retained.partition([b], [a]) == []
        assert retained.protected == [a]
        assert retained.best_first([b]) == [a, b]
        retained.note(c, {"loss": 0.5})
        assert retained.partition([c], [b]) == [a, b]
        retained.forget([a, b])
        assert (retained.protected, retained.metrics) == ([], {c: {"loss": 0.5}})

    def test_a_failed_deletion(self, tmp_path: Path) -> None:
        """A checkpoint that was not deleted is returned for deletion again at the next save."""
        retained = loaded(tmp_path)
        a, b = str(tmp_path / "a"), str(tmp_path / "b")
        retained.pin(a)
        assert retained.partition([b], [a]) == []
        retained.unpin(a)
        for _ in range(2):
            assert retained.partition([b], []) == [a]
            assert retained.protected == [a]
        retained.forget([a])
        assert retained.partition([b], []) == []

    def test_spellings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pin by absolute path protects a checkpoint that was saved by relative path."""
        monkeypatch.chdir(tmp_path)
        retained = loaded("")
        retained.note("train/../a")
        retained.pin(str(tmp_path / "a"))
        assert retained.partition(["b"], ["./a"]) == []
        assert retained.pins == retained.protected == ["train/../a"]
        retained.unpin("a")
        assert retained.partition(["b"], []) == ["train/../a"]

    def test_urls(self) -> None:
        """URLs are not normalised like local paths."""
        retained = RetentionRecord()
        retained.pin("s3://bucket/d/a")
        assert retained.partition([], ["s3://bucket/d/a", "s3:/bucket/d/a"]) == ["s3:/bucket/d/a"]

    def test_saving_again_without_metrics(self) -> None:
        """Metrics of the earlier contents are dropped."""
        retained = RetentionRecord(RULE)
        retained.note("a", {"loss": 0.0})
        retained.note("a")
        assert retained.partition(["b"], ["a"]) == ["a"]


class TestRestart:
    def test_everything_is_restored(self, tmp_path: Path) -> None:
        """Pins, metrics with values that JSON lacks, the rule, protected paths, names that are not UTF-8."""
        a, b, c = (checkpoint(tmp_path / name) for name in ("a", "b\udcff", "ö"))
        before = loaded(tmp_path, RULE)
        for path, loss in ((a, 0.25), (b, math.inf), (c, math.nan)):
            before.note(path, {"loss": loss, "other": -math.inf})
        before.pin(b)
        before.partition([c], [a, b])
        before.save()
        after = loaded(tmp_path)
        assert after.best == RULE
        assert after.pins == [b]
        assert after.protected == [a, b]
        assert str(after.metrics) == str({a: before.metrics[a], b: before.metrics[b], c: before.metrics[c]})
        assert after.partition([c], []) == []
        after.save()
        assert json.loads((tmp_path / FILE).read_text())["protected"] == ["a", "b\udcff"]

    def test_a_moved_directory(self, tmp_path: Path) -> None:
        """Paths in the file are relative to the directory."""
        (tmp_path / "old").mkdir()
        before = loaded(tmp_path / "old")
        before.pin(checkpoint(tmp_path / "old" / "a"))
        before.save()
        os.rename(tmp_path / "old", tmp_path / "new")
        assert loaded(tmp_path / "new").pins == [str(tmp_path / "new" / "a")]

    def test_another_rule(self, tmp_path: Path) -> None:
        """A given rule replaces the one in the file."""
        a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
        before = loaded(tmp_path, RULE)
        before.note(a, {"loss": 1.0})
        before.note(b, {"loss": 2.0})
        before.partition([b], [a])
        before.save()
        assert loaded(tmp_path).partition([b], []) == []
        assert loaded(tmp_path, KeepBest("loss", "max", 1)).partition([b], []) == [a]

    def test_missing_checkpoints_are_forgotten(self, tmp_path: Path) -> None:
        """Checkpoints deleted by others do not count among the best."""
        a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
        before = loaded(tmp_path, RULE)
        before.note(a, {"loss": 0.0})
        before.note(b, {"loss": 1.0})
        before.partition([], [a, b])
        before.pin(a)
        before.partition([], [b])
        before.save()
        os.unlink(f"{a}.index")
        after = loaded(tmp_path)
        assert (after.pins, after.best_first([b]), after.metrics) == ([], [b], {b: {"loss": 1.0}})

    def test_no_file_without_content(self, tmp_path: Path) -> None:
        """No file is written without pins or metrics, and it is deleted when it becomes empty."""
        retained = loaded(tmp_path, RULE)
        retained.note(str(tmp_path / "a"))
        retained.partition([str(tmp_path / "a")], [])
        retained.save()
        assert os.listdir(tmp_path) == []
        retained.pin(str(tmp_path / "a"))
        retained.save()
        assert os.listdir(tmp_path) == [FILE]
        retained.unpin(str(tmp_path / "a"))
        retained.save()
        assert os.listdir(tmp_path) == []

    def test_written_only_when_changed(self, tmp_path: Path) -> None:
        """An unchanged record is not written again."""
        retained = loaded(tmp_path)
        retained.pin(str(tmp_path / "a"))
        retained.save()
        (tmp_path / FILE).unlink()
        retained.save()
        assert os.listdir(tmp_path) == []

    def test_several_directories(self, tmp_path: Path) -> None:
        """Each directory has its own file for its checkpoints, except those in nested directories with one."""
        (tmp_path / "in").mkdir()
        retained = RetentionRecord()
        retained.load(LOCAL, str(tmp_path), "best")
        retained.load(LOCAL, str(tmp_path / "in"))
        for path in (tmp_path / "a", tmp_path / "in" / "b", Path("/elsewhere")):
            retained.pin(str(path))
        retained.save()
        assert json.loads((tmp_path / "best.retention.json").read_text())["pins"] == ["a"]
        assert json.loads((tmp_path / "in" / FILE).read_text())["pins"] == ["b"]

    def test_loading_twice(self, tmp_path: Path) -> None:
        """Loading a directory again does nothing and does not restore removed pins."""
        retained = loaded(tmp_path)
        retained.pin(str(tmp_path / "a"))
        retained.save()
        retained.unpin(str(tmp_path / "a"))
        retained.load(LOCAL, str(tmp_path))
        assert retained.pins == []


DAMAGED = [
    b"",
    b"nonsense",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"version": 2, "best": null, "pins": ["a"], "protected": ["a"], "metrics": {}}',
    b'{"version": 1, "best": null, "pins": "a", "protected": ["a"], "metrics": {}}',
    b'{"version": 1, "best": null, "pins": [1], "protected": ["a"], "metrics": {}}',
    b'{"version": 1, "best": {"k": 1}, "pins": [], "protected": ["a"], "metrics": {}}',
    b'{"version": 1, "best": null, "pins": [], "protected": ["a"], "metrics": {"a": {"loss": []}}}',
    b'{"version": 1, "best": null, "pins": [], "protected": ["a"], "metrics": []}',
]


class TestDamage:
    @pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
    def test_a_damaged_file_deletes_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
    ) -> None:
        """A warning is logged, existing checkpoints are pinned, and only new ones are deleted."""
        (tmp_path / FILE).write_bytes(content)
        a, b, c, d = (checkpoint(tmp_path / name) for name in "abcd")
        retained = loaded(tmp_path)
        assert f"{tmp_path}/{FILE}: cannot be read: " in caplog.text
        retained.save()
        assert (tmp_path / FILE).read_bytes() == content
        retained.note(c)
        assert retained.partition([b, c], [a]) == []
        assert retained.pins == [a, b]
        retained.save()
        after = loaded(tmp_path)
        assert after.pins == [a, b]
        after.note(d)
        assert after.partition([d], [b, c]) == [c]

    def test_unpinned_after_damage(self, tmp_path: Path) -> None:
        """An explicit unpin takes precedence over the unreadable file."""
        (tmp_path / FILE).touch()
        retained = loaded(tmp_path)
        retained.unpin(str(tmp_path / "a"))
        assert retained.partition([], [str(tmp_path / "a")]) == [str(tmp_path / "a")]

    @pytest.mark.parametrize("name", ["../a", "..", "/etc/passwd", "x/../../a", "./a", "", "s3://b/a", "a\0", "a/"])
    def test_paths_outside_of_the_directory(self, tmp_path: Path, name: str) -> None:
        """A file cannot cause checkpoints of other directories to be deleted."""
        (tmp_path / "d").mkdir()
        checkpoint(tmp_path / "a")
        record: dict[str, Any] = {"version": 1, "best": None, "pins": [], "protected": [name], "metrics": {}}
        (tmp_path / "d" / FILE).write_text(json.dumps(record))
        retained = loaded(tmp_path / "d")
        assert retained.protected == []
        assert retained.partition([], []) == []

    def test_too_large(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A file that is larger than any of ours is not read."""
        (tmp_path / FILE).touch()
        os.truncate(tmp_path / FILE, 1 << 40)
        loaded(tmp_path)
        assert "bytes are too many" in caplog.text


class TestMetrics:
    def test_numbers(self) -> None:
        """Any number is accepted: ints, tensors of one element, numpy."""
        assert check_metrics({"a": 1, "b": torch.tensor(0.5), "c": torch.tensor([2])}) == {"a": 1.0, "b": 0.5, "c": 2.0}
        assert check_metrics(None) == {}

    @pytest.mark.parametrize("metrics", [[("a", 1)], {1: 2.0}, {"a": "x"}, {"a": None}, {"a": torch.ones(2)}, 3.0])
    def test_others(self, metrics: object) -> None:
        """The error says what is wrong with the metrics."""
        with pytest.raises(InvalidArgumentError, match="metrics"):
            check_metrics(metrics)
