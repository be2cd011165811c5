"""tf.train's functions on checkpoints, compared with TensorFlow's."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.directory import management as checkpoint_management
from torch_tfckpt.directory.management import (
    checkpoint_exists,
    checkpoints_iterator,
    get_checkpoint_mtimes,
    latest_checkpoint,
    meta_graph_filename,
    remove_checkpoint,
)
from torch_tfckpt.directory.state_file import update_checkpoint_state
from torch_tfckpt.storage.local import LOCAL, LocalStorage
from torch_tfckpt.v1.writer import SlicesWriter

SHARDS = "-?????-of-00002"


def save(prefix: Path) -> str:
    return tfckpt.save_file({"x": torch.arange(100.0)}, prefix)


def save_sharded(prefix: Path) -> str:
    parts = [save(prefix.with_name(f"{prefix.name}-part-{number}")) for number in range(2)]
    tfckpt.save_file({"y": torch.ones(2)}, parts[1])
    merge_bundles(LOCAL, parts, str(prefix))
    return str(prefix)


def save_v1(path: Path | str) -> str:
    with SlicesWriter(LOCAL, str(path)) as writer:
        writer.add("x", torch.tensor(1.0))
    return str(path)


def save_v1_sharded(prefix: Path) -> str:
    for number in range(2):
        save_v1(f"{prefix}-0000{number}-of-00002")
    return f"{prefix}{SHARDS}"


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class TestLatest:
    def test_as_tensorflow(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorflow: TensorFlowProcess
    ) -> None:
        """With absolute directories and both versions, TensorFlow finds the same checkpoint."""
        for path in (save(tmp_path / "m-1"), save_v1(tmp_path / "n"), save_v1_sharded(tmp_path / "o")):
            update_checkpoint_state(tmp_path, path)
            assert latest_checkpoint(tmp_path) == path
            assert tensorflow.call("checkpoint_management", "latest_checkpoint", str(tmp_path)) == path

    def test_relative_directories(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative directory gives a relative path."""
        monkeypatch.chdir(tmp_path)
        save(Path("m-1"))
        update_checkpoint_state(".", "m-1")
        assert latest_checkpoint(".") == "./m-1"
        assert latest_checkpoint("") == "m-1"
        monkeypatch.chdir("/")
        assert latest_checkpoint(os.path.relpath(tmp_path)) == f"{os.path.relpath(tmp_path)}/m-1"

    def test_a_missing_checkpoint(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """None and a logged error, never another checkpoint; the index alone is enough."""
        save(tmp_path / "m-1")
        update_checkpoint_state(tmp_path, tmp_path / "m-2")
        assert latest_checkpoint(tmp_path) is None
        assert f"Couldn't match files for checkpoint {tmp_path}/m-2" in caplog.text
        (tmp_path / "m-2.index").touch()
        assert latest_checkpoint(tmp_path) == str(tmp_path / "m-2")

    @pytest.mark.parametrize("valid", [False, True])
    @pytest.mark.parametrize("saves", [1, 3])
    def test_while_a_save_replaces_it(self, valid: bool, saves: int, tmp_path: Path) -> None:
        """A checkpoint that a running program deletes between two steps is not the end: it has saved a newer one."""
        saver = tfckpt.Saver({"x": torch.ones(1)}, max_to_keep=1)
        saver.save(tmp_path / "m", 0)
        steps = iter(range(1, saves + 1))

        class SavesMeanwhile(LocalStorage):
            def exists(self, path: str) -> bool:
                step = next(steps, None) if path.endswith(".index") else None
                if step is not None:
                    saver.save(tmp_path / "m", step)
                return super().exists(path)

        assert latest_checkpoint(tmp_path, valid=valid, storage=SavesMeanwhile()) == f"{tmp_path}/m-{saves}"

    def test_no_state_file(self, tmp_path: Path) -> None:
        """None without a state file; an empty one is an error."""
        save(tmp_path / "m-1")
        assert latest_checkpoint(tmp_path) is None
        assert latest_checkpoint(tmp_path / "no") is None
        (tmp_path / "checkpoint").touch()
        with pytest.raises(ValueError, match="Invalid checkpoint state loaded"):
            latest_checkpoint(tmp_path)

    def test_brackets(self, tmp_path: Path) -> None:
        """Names with brackets are found; TensorFlow treats them as patterns and misses them."""
        (tmp_path / "run[1]").mkdir()
        path = save(tmp_path / "run[1]" / "m[2]")
        update_checkpoint_state(tmp_path / "run[1]", path)
        assert latest_checkpoint(tmp_path / "run[1]") == path

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        """The returned path is decoded with os.fsdecode."""
        path = os.fsencode(tmp_path) + b"/m\xff"
        tfckpt.save_file({"x": torch.tensor(1.0)}, path)
        update_checkpoint_state(tmp_path, path)
        for valid in (False, True):
            found = latest_checkpoint(os.fsencode(tmp_path), valid=valid)
            assert found is not None
            assert os.fsencode(found) == path

    def test_another_state_file(self, tmp_path: Path) -> None:
        """latest_filename selects the state file."""
        path = save(tmp_path / "m-1")
        update_checkpoint_state(tmp_path, path, latest_filename="best")
        assert (latest_checkpoint(tmp_path), latest_checkpoint(tmp_path, "best")) == (None, path)


class TestLatestValid:
    """latest_checkpoint(valid=True) falls back to the newest readable checkpoint."""

    def four(self, directory: Path) -> list[str]:
        paths = [save(directory / f"m-{number}") for number in range(4)]
        for number, path in enumerate(paths):
            os.utime(f"{path}.index", (1000 + number,) * 2)
        update_checkpoint_state(directory, paths[3], paths[2:])
        return paths

    def test_skips_damaged_checkpoints(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Checkpoints damaged in different ways are skipped, and the reason is logged."""
        paths = self.four(tmp_path)
        assert latest_checkpoint(tmp_path, valid=True) == paths[3]
        os.unlink(f"{paths[3]}.data-00000-of-00001")
        assert latest_checkpoint(tmp_path, valid=True) == paths[2]
        assert "not complete: " in caplog.text
        assert "m-3.data-00000-of-00001: No such file" in caplog.text
        os.truncate(f"{paths[2]}.data-00000-of-00001", 399)
        assert latest_checkpoint(tmp_path, valid=True) == paths[1]
        os.truncate(f"{paths[1]}.index", 10)
        assert latest_checkpoint(tmp_path, valid=True) == paths[0]
        os.unlink(f"{paths[0]}.index")
        assert latest_checkpoint(tmp_path, valid=True) is None
        assert latest_checkpoint(tmp_path) == paths[3]

    @pytest.mark.parametrize("content", [None, b"", b"damaged"])
    def test_without_a_state_file(self, tmp_path: Path, content: bytes | None) -> None:
        """A missing or damaged state file does not matter."""
        paths = self.four(tmp_path)
        (tmp_path / "checkpoint").unlink()
        if content is not None:
            (tmp_path / "checkpoint").write_bytes(content)
        assert latest_checkpoint(tmp_path, valid=True) == paths[3]

    def test_an_empty_or_missing_directory(self, tmp_path: Path) -> None:
        """None for an empty and for a missing directory."""
        assert latest_checkpoint(tmp_path, valid=True) is None
        assert latest_checkpoint(tmp_path / "no", valid=True) is None


class TestExists:
    def test_kinds(self, tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
        """CASES 98, without a Saver: both versions, sharded or not, as in TensorFlow."""
        (tmp_path / "directory").mkdir()
        known = [
            save(tmp_path / "m"),
            save_sharded(tmp_path / "s"),
            save_v1(tmp_path / "n"),
            str(tmp_path / "directory"),
        ]
        known += [save_v1_sharded(tmp_path / "o"), f"{tmp_path}/m*"]
        unknown = [f"{tmp_path}/no", f"{tmp_path}/o", f"{tmp_path}/o-?????-of-00003", f"{tmp_path}/no/m"]
        for path in (*known, *unknown):
            assert checkpoint_exists(path) == (path in known), path
            assert tensorflow.call("checkpoint_management", "checkpoint_exists", path) == (path in known), path

    def test_brackets(self, tmp_path: Path) -> None:
        """The literal name is tried first, then the pattern."""
        assert not checkpoint_exists(tmp_path / "m[1]")
        save(tmp_path / "m1")
        assert checkpoint_exists(tmp_path / "m[1]")
        os.unlink(tmp_path / "m1.index")
        save(tmp_path / "m[1]")
        assert checkpoint_exists(os.fsencode(tmp_path / "m[1]"))


def test_mtimes(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 99: times in seconds of the index, else of the first file; missing checkpoints are left out."""
    paths = [save(tmp_path / "m"), str(tmp_path / "no"), save_v1(tmp_path / "n"), save_v1_sharded(tmp_path / "o")]
    for number, name in enumerate(["m.index", "n", "o-00000-of-00002", "o-00001-of-00002"]):
        os.utime(tmp_path / name, (0, 1_700_000_000 + number))
    times = get_checkpoint_mtimes(paths)
    assert times == [1_700_000_000.0, 1_700_000_001.0, 1_700_000_002.0]
    assert times[:2] == tensorflow.call("checkpoint_management", "get_checkpoint_mtimes", paths[:3])
    os.utime(tmp_path / "n", ns=(0, 1_500_000_000))
    assert get_checkpoint_mtimes([tmp_path / "n"]) == [1.5]


class TestRemove:
    def test_version_2(self, tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
        """CASES 100: data files and meta graph are deleted, other checkpoints are kept, as in TensorFlow."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        for directory in (ours, theirs):
            directory.mkdir()
            save_sharded(directory / "m-1")
            save(directory / "m-10")
            for name in ("m-1.meta", "m-1.data-00000-of-000001", "m-1", "m-1x.index", "m-10.meta"):
                (directory / name).touch()
        remove_checkpoint(ours / "m-1")
        tensorflow.call("checkpoint_management", "remove_checkpoint", str(theirs / "m-1"))
        assert not checkpoint_exists(ours / "m-1.index")
        assert set(files(theirs)) == set(files(ours))
        assert "m-10.index" in files(ours)
        remove_checkpoint(ours / "m-1")

    def test_version_1(self, tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
        """A single file, or all shards of a pattern, with the meta graph."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        for directory in (ours, theirs):
            directory.mkdir()
            single, sharded = save_v1(directory / "m-1"), save_v1_sharded(directory / "o-2")
            for name in ("m-1.meta", "o-2.meta", "o-2-00000-of-00003", "o-2.index", "m-1.index"):
                (directory / name).touch()
            for path in (single, sharded):
                if directory == ours:
                    remove_checkpoint(path, SaverDef.V1)
                else:
                    tensorflow.call("checkpoint_management", "remove_checkpoint", path, int(SaverDef.V1))
        assert files(ours) == files(theirs) == ["m-1.index", "o-2-00000-of-00003", "o-2.index"]

    @pytest.mark.parametrize("version", [SaverDef.V1, SaverDef.V2])
    def test_brackets(self, tmp_path: Path, version: int) -> None:
        """A name with brackets that is already deleted must not match another checkpoint."""
        for name in ("m1", "m1.index", "m1.data-00000-of-00001", "m1.meta", "m[1]", "m[1].meta"):
            (tmp_path / name).touch()
        remove_checkpoint(tmp_path / "m[1]", version)
        remove_checkpoint(tmp_path / "m[1]", version)
        assert [name for name in files(tmp_path) if "[" not in name] == [
            "m1", "m1.data-00000-of-00001", "m1.index", "m1.meta"
        ]  # fmt: skip
        assert ("m[1]" in files(tmp_path)) == (version == SaverDef.V2)

    def test_another_suffix_of_the_meta_graph(self, tmp_path: Path) -> None:
        """meta_graph_suffix selects the meta graph to delete."""
        path = save(tmp_path / "m")
        (tmp_path / "m.meta").touch()
        (tmp_path / "m.graph").touch()
        remove_checkpoint(path, meta_graph_suffix="graph")
        assert files(tmp_path) == ["m.meta"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("m-5-?????-of-00002", "m-5.meta"), ("m-12-of-3", "m.meta"), ("m-?????-of-?????", "m-?????-of-?????.meta"),
     ("d/m-5", "d/m-5.meta"), ("m-00000-of-00001.x", "m-00000-of-00001.x.meta")],
)  # fmt: skip
def test_meta_graph_filename(tensorflow: TensorFlowProcess, path: str, expected: str) -> None:
    """The result equals TensorFlow's."""
    assert meta_graph_filename(path) == expected
    assert tensorflow.call("checkpoint_management", "meta_graph_filename", path) == expected
    assert meta_graph_filename("m", "x") == "m.x"


class Clock:
    """Clock that advances only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        monkeypatch.setattr(checkpoint_management, "_now", lambda: self.now)
        monkeypatch.setattr(checkpoint_management, "_sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class TestIterator:
    def publish(self, directory: Path, number: int) -> str:
        path = save(directory / f"m-{number}")
        update_checkpoint_state(directory, path)
        return path

    def test_new_checkpoints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each newer checkpoint is yielded once; those replaced between two checks are skipped."""
        clock = Clock(monkeypatch)
        seen = checkpoints_iterator(tmp_path, timeout=3)
        first = self.publish(tmp_path, 1)
        assert next(seen) == first
        self.publish(tmp_path, 2)
        third = self.publish(tmp_path, 3)
        assert next(seen) == third
        assert clock.slept == []
        assert list(seen) == []
        assert clock.slept == [1.0, 1.0, 1.0]

    def test_waiting_without_a_timeout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a timeout it checks every second; the directory need not exist yet."""
        clock = Clock(monkeypatch)
        directory = tmp_path / "later"

        def sleep(seconds: float) -> None:
            clock.now += seconds
            if clock.now == 1100.0:
                directory.mkdir()
                self.publish(directory, 1)

        monkeypatch.setattr(checkpoint_management, "_sleep", sleep)
        assert next(checkpoints_iterator(directory)) == str(directory / "m-1")
        assert clock.now == 1100.0

    def test_interval(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The interval between checkpoints includes the caller's time."""
        clock = Clock(monkeypatch)
        self.publish(tmp_path, 1)
        seen = checkpoints_iterator(tmp_path, min_interval_secs=10, timeout=0)
        next(seen)
        clock.now += 4
        self.publish(tmp_path, 2)
        next(seen)
        assert clock.slept == [6.0]
        clock.now += 11
        assert next(seen, None) is None
        assert clock.slept == [6.0]

    @pytest.mark.parametrize("present", [False, True])
    @pytest.mark.parametrize("answers", [None, [True], [False, True], [False, False, False, True, True]])
    @pytest.mark.parametrize("timeout", [0.0, 2.5])
    def test_timeouts_as_tensorflow(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        tensorflow: TensorFlowProcess,
        present: bool,
        answers: list[bool] | None,
        timeout: float,
    ) -> None:
        """Yielded paths, waiting time and calls of timeout_fn equal TensorFlow's."""
        if present:
            self.publish(tmp_path, 1)
        clock = Clock(monkeypatch)
        left = list(answers or ())

        def iterate() -> Iterator[str]:
            yield from checkpoints_iterator(
                tmp_path, timeout=timeout, timeout_fn=None if answers is None else lambda: left.pop(0)
            )
            yield f"{clock.now:g} s, {len(left)} answers left"

        assert list(iterate()) == tensorflow.call("iterate_checkpoints", str(tmp_path), timeout, answers)

    def test_real_time(self, tmp_path: Path) -> None:
        """Without a replaced clock the system's clock is used."""
        self.publish(tmp_path, 1)
        start = time.time()
        assert list(checkpoints_iterator(tmp_path, timeout=0)) == [str(tmp_path / "m-1")]
        assert time.time() - start < 60
