"""CheckpointManager, compared with TensorFlow's."""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt.directory import manager_records
from torch_tfckpt.directory.retention import KeepBest
from torch_tfckpt.directory.state_file import get_checkpoint_state, update_checkpoint_state
from torch_tfckpt.manager import CheckpointManager
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage

SIDE_FILE = "checkpoint.retention.json"


class Refusing:
    """LOCAL, but one operation on files with one ending fails once `refuses` is set."""

    def __init__(self, operation: str, ending: str, error: BaseException) -> None:
        self.operation, self.ending, self.error = operation, ending, error
        self.refuses = False

    def __getattr__(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(LOCAL, name)

        def call(*paths: str) -> object:
            if self.refuses and name == self.operation and any(path.endswith(self.ending) for path in paths):
                raise self.error
            return method(*paths)

        return call if callable(method) else method


class Fake:
    """A ManagedCheckpoint with one value."""

    def __init__(self) -> None:
        self.save_counter = torch.tensor(0)
        self.value = 0.0
        self.synced = 0

    def write(self, prefix: str) -> str:
        os.makedirs(os.path.dirname(prefix), exist_ok=True)
        return tfckpt.save_file({"counter": self.save_counter, "value": torch.tensor(self.value)}, prefix)

    def restore(self, path: str) -> None:
        values = tfckpt.load_file(path)
        self.save_counter.copy_(torch.as_tensor(values["counter"]))
        self.value = float(values["value"])

    def sync(self) -> None:
        self.synced += 1


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def there(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.index"))


def numbers(manager: CheckpointManager) -> list[int]:
    return [int(path.rpartition("-")[2]) for path in manager.checkpoints]


def state_times(directory: Path) -> tuple[list[float], float]:
    state = get_checkpoint_state(directory)
    assert state is not None
    return list(state.all_model_checkpoint_timestamps), state.last_preserved_timestamp


class TestRetention:
    def test_deletion(self, tmp_path: Path) -> None:
        """CASES 101: the fourth save deletes the first with all its files."""
        manager = CheckpointManager(Fake(), tmp_path, 3)
        paths = [manager.save() for _ in range(4)]
        assert there(tmp_path) == ["ckpt-2", "ckpt-3", "ckpt-4"]
        assert [name for name in os.listdir(tmp_path) if "ckpt-1" in name] == []
        assert manager.checkpoints == paths[1:]
        assert manager.latest_checkpoint == paths[3] == str(tmp_path / "ckpt-4")

    def test_keep_all(self, tmp_path: Path) -> None:
        """CASES 102: None keeps all, even across a restart; a limit set later is applied at the next save."""
        clock = Clock(1000.0)
        fake = Fake()
        for attempt, saves in ((0, 3), (1, 1)):
            manager = CheckpointManager(fake, tmp_path, None, clock=clock)
            assert numbers(manager) == [1, 2, 3][: 3 * attempt]
            for _ in range(saves):
                clock.now += 1
                manager.save()
        manager = CheckpointManager(fake, tmp_path, 3, clock=clock)
        assert numbers(manager) == [1, 2, 3, 4]
        assert there(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]
        manager.save()
        assert numbers(manager) == [3, 4, 5]
        assert there(tmp_path) == ["ckpt-3", "ckpt-4", "ckpt-5"]

    def test_state_over_restarts(self, tmp_path: Path) -> None:
        """CASES 103 to 105: three managers with a controlled clock."""
        clock, fake = Clock(3.0), Fake()
        manager = CheckpointManager(fake, tmp_path, 2, clock=clock)
        for now in (10000.0, 13610.0):
            clock.now = now
            manager.save()
        assert state_times(tmp_path) == ([10000.0, 13610.0], 2.0)
        assert numbers(manager) == [1, 2]
        manager = CheckpointManager(fake, tmp_path, 2, 1.5, clock=clock)
        assert manager.latest_checkpoint == str(tmp_path / "ckpt-2")
        for step, active in ((720, [2, 3]), (1800, [3, 4]), (1800, [4, 5])):
            clock.now += step
            manager.save()
            assert (numbers(manager), state_times(tmp_path)[1]) == (active, 10000.0)
        time_of_4 = clock.now - 1800
        manager = CheckpointManager(fake, tmp_path, 2, 1.5, clock=clock)
        clock.now += 10
        manager.save()
        assert numbers(manager) == [5, 6]
        assert there(tmp_path) == ["ckpt-1", "ckpt-4", "ckpt-5", "ckpt-6"]
        assert state_times(tmp_path)[1] == time_of_4

    def test_a_state_file_without_times(self, tmp_path: Path) -> None:
        """CASES 106: a state file without times is not tracked, and its checkpoints are kept."""
        fake = Fake()
        for number in (1, 2):
            fake.save_counter += 1
            update_checkpoint_state(tmp_path, fake.write(str(tmp_path / f"unusual-{number}")))
        manager = CheckpointManager(fake, tmp_path, 2)
        fake.save_counter.zero_()
        assert manager.restore_or_initialize() == str(tmp_path / "unusual-2")
        assert int(fake.save_counter) == 2
        manager.save()
        assert numbers(manager) == [3]
        manager.save()
        manager.save()
        assert there(tmp_path) == ["ckpt-4", "ckpt-5", "unusual-1", "unusual-2"]

    def test_a_clock_set_back(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """CASES 107, 108: a warning is logged, and checkpoints with later times are kept."""
        clock, fake = Clock(10000.0), Fake()
        manager = CheckpointManager(fake, tmp_path, 1, 1.0, clock=clock)
        for now in (10000.0, 13600.0, 17200.0):
            clock.now = now
            manager.save()
        assert there(tmp_path) == ["ckpt-2", "ckpt-3"]
        assert (numbers(manager), state_times(tmp_path)[1]) == ([3], 13600.0)
        clock.now = 5000.0
        with caplog.at_level(logging.WARNING, manager_records.__name__):
            manager = CheckpointManager(fake, tmp_path, 1, 1.0, clock=clock)
        assert "8600.000000 seconds behind the last preserved checkpoint timestamp" in caplog.text
        assert manager.checkpoints == []
        assert manager.latest_checkpoint == str(tmp_path / "ckpt-3")
        for now in (5010.0, 5020.0):
            clock.now = now
            manager.save()
        assert there(tmp_path) == ["ckpt-2", "ckpt-3", "ckpt-5"]
        assert (numbers(manager), state_times(tmp_path)) == ([5], ([5020.0], 5000.0))

    def test_timeline(self, tmp_path: Path) -> None:
        """CASES 198: a timeline through the manager; a second manager with max_to_keep 1 continues it."""
        clock, fake = Clock(1000.0), Fake()
        manager = CheckpointManager(fake, tmp_path, 2, 1.0, clock=clock)
        for now in (1000, 2000, 4599, 4600, 6000, 8200, 9000, 12000, 12001, 12002):
            clock.now = float(now)
            manager.save()
        assert there(tmp_path) == ["ckpt-10", "ckpt-3", "ckpt-6", "ckpt-8", "ckpt-9"]
        assert (tmp_path / "checkpoint").read_text() == (
            'model_checkpoint_path: "ckpt-10"\n'
            'all_model_checkpoint_paths: "ckpt-9"\nall_model_checkpoint_paths: "ckpt-10"\n'
            "all_model_checkpoint_timestamps: 12001.0\nall_model_checkpoint_timestamps: 12002.0\n"
            "last_preserved_timestamp: 12000.0\n"
        )
        clock.now = 12003.0
        manager = CheckpointManager(fake, tmp_path, 1, 1.0, clock=clock)
        assert numbers(manager) == [9, 10]
        manager.save()
        assert there(tmp_path) == ["ckpt-11", "ckpt-3", "ckpt-6", "ckpt-8"]

    @pytest.mark.parametrize("seed", range(6))
    def test_as_tensorflow(self, tmp_path: Path, tensorflow: TensorFlowProcess, seed: int) -> None:
        """Random runs: after each save list, files and state file equal TensorFlow's, byte for byte."""
        choose = random.Random(seed)
        keep = choose.choice([1, 2, 3, None])
        hours = choose.choice([None, 0.5, 1.0, 0.1])
        now, runs = 10000.0, []
        for _ in range(3):
            made = now
            saves = []
            for _ in range(choose.randint(1, 6)):
                now += choose.choice([0.0, 0.25, 360.0, 1800.0, 3600.0, 9000.0])
                saves.append(now)
            runs.append((made, saves))
            now -= choose.choice([0.0, 0.0, 4000.0])
        theirs = tmp_path / "theirs"
        expected = tensorflow.call("run_manager", str(theirs), keep, hours, runs)
        ours, fake, seen, clock = tmp_path / "ours", Fake(), [], Clock(0.0)
        for made, saves in runs:
            clock.now = made
            manager = CheckpointManager(fake, ours, keep, hours, clock=clock)
            manager.restore_or_initialize()
            for moment in saves:
                clock.now = moment
                manager.save()
                text = (ours / "checkpoint").read_text()
                seen.append((manager.checkpoints, there(ours), text))
        for mine, (paths, files, text) in zip(seen, expected, strict=True):
            assert mine == ([path.replace(str(theirs), str(ours)) for path in paths], files, text)

    def test_a_failed_deletion(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A failed deletion is logged; the new checkpoint is saved and the latest.

        Each save tries again, and a pin set meanwhile is respected.
        """
        storage = Refusing("replace", ".index", PermissionError(13, "Permission denied"))
        manager = CheckpointManager(Fake(), tmp_path, 1, storage=cast(Storage, storage))
        manager.save()
        storage.refuses = True
        path = manager.save()
        assert "ckpt-1 could not be deleted; will retry. Ignoring: [Errno 13]" in caplog.text
        assert tfckpt.latest_checkpoint(tmp_path) == path
        assert manager.checkpoints == [path]
        manager.save()
        assert there(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-3"]
        manager.pin(1)
        storage.refuses = False
        manager.save()
        assert there(tmp_path) == ["ckpt-1", "ckpt-4"]

    def test_a_failed_write_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The state is unchanged, and the same step can be saved again."""
        step = torch.tensor(0)
        fake = Fake()
        manager = CheckpointManager(fake, tmp_path, 1, step_counter=step, checkpoint_interval=2)
        first = manager.save()
        step += 2

        def fail(_: str) -> str:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(fake, "write", fail)
            with pytest.raises(OSError, match="No space left"):
                manager.save()
        assert manager.latest_checkpoint == tfckpt.latest_checkpoint(tmp_path) == first
        assert manager.save() == str(tmp_path / "ckpt-3")

    def test_a_moved_directory(self, tmp_path: Path) -> None:
        """The state file has relative paths, so a new manager tracks and deletes in the new place."""
        CheckpointManager(Fake(), tmp_path / "old", 2).save()
        os.rename(tmp_path / "old", tmp_path / "new")
        fake = Fake()
        manager = CheckpointManager(fake, tmp_path / "new", 1)
        assert manager.restore_or_initialize() == str(tmp_path / "new" / "ckpt-1")
        manager.save()
        assert there(tmp_path / "new") == ["ckpt-2"]


class TestNumbering:
    def test_custom_numbers(self, tmp_path: Path) -> None:
        """CASES 109: a tensor or a number; the counter increases in either case."""
        fake, number = Fake(), torch.tensor(0)
        manager = CheckpointManager(fake, tmp_path, 2)
        for expected in (0, 2, 4, 6, 8):
            assert manager.save(checkpoint_number=number) == str(tmp_path / f"ckpt-{expected}")
            number += 2
        assert int(fake.save_counter) == 5
        assert manager.save(32) == manager.latest_checkpoint == str(tmp_path / "ckpt-32")
        state = get_checkpoint_state(tmp_path)
        assert state is not None
        assert list(state.all_model_checkpoint_paths) == [str(tmp_path / "ckpt-8"), str(tmp_path / "ckpt-32")]

    def test_the_same_number_again(self, tmp_path: Path) -> None:
        """A path that is saved again moves to the end."""
        manager = CheckpointManager(Fake(), tmp_path, 2)
        for number in (1, 2, 1, 3):
            manager.save(number)
        assert numbers(manager) == [1, 3]
        assert there(tmp_path) == ["ckpt-1", "ckpt-3"]

    def test_name(self, tmp_path: Path) -> None:
        """CASES 110: checkpoint_name replaces "ckpt"."""
        manager = CheckpointManager(Fake(), tmp_path, 2, checkpoint_name="ckpt_name")
        assert manager.save(5) == str(tmp_path / "ckpt_name-5")
        assert CheckpointManager(Fake(), tmp_path, 2).save(5) == str(tmp_path / "ckpt-5")

    @pytest.mark.parametrize("number", [1.5, "1", torch.tensor(1.0), torch.ones(2, dtype=torch.int64)])
    def test_invalid_numbers(self, tmp_path: Path, number: Any) -> None:
        """Rejected before anything is written or counted."""
        fake = Fake()
        manager = CheckpointManager(fake, tmp_path, 2)
        with pytest.raises(tfckpt.InvalidArgumentError, match="checkpoint_number"):
            manager.save(number)
        assert (int(fake.save_counter), os.listdir(tmp_path)) == (0, [])


class TestInterval:
    @pytest.mark.parametrize("as_function", [False, True])
    def test_interval(self, tmp_path: Path, as_function: bool) -> None:
        """CASES 113: the step is a tensor that is increased, or a function."""
        step = torch.tensor(0)
        counter: Any = (lambda: int(step)) if as_function else step
        manager = CheckpointManager(Fake(), tmp_path, None, step_counter=counter, checkpoint_interval=2)
        assert manager.checkpoint_interval == 2
        saved = []
        for at in (0, 1, 2, 2, 3):
            step.fill_(at)
            saved.append(manager.save() is not None)
        assert saved == [True, False, True, False, False]
        assert manager.save(check_interval=False) is not None
        assert manager.save(check_interval=False) is None

    def test_last_step(self, tmp_path: Path) -> None:
        """CASES 114: the first interval starts at last_checkpoint_step."""
        step = torch.tensor(0)
        manager = CheckpointManager(
            Fake(), tmp_path, None, step_counter=step, checkpoint_interval=2, last_checkpoint_step=1
        )
        saved = []
        for at in (1, 2, 3):
            step.fill_(at)
            saved.append(manager.save() is not None)
        assert saved == [False, False, True]

    def test_restored(self, tmp_path: Path) -> None:
        """CASES 115: the step of the restored checkpoint counts as saved."""
        step = torch.tensor(3)
        arguments: dict[str, Any] = {"max_to_keep": None, "step_counter": step, "checkpoint_interval": 2}
        path = CheckpointManager(Fake(), tmp_path, **arguments).save()
        manager = CheckpointManager(Fake(), tmp_path, **arguments)
        assert manager.restore_or_initialize() == path
        assert manager.save() is None
        step += 2
        assert manager.save() is not None

    def test_without_a_counter(self, tmp_path: Path) -> None:
        """An interval requires a step_counter."""
        with pytest.raises(ValueError, match="`step_counter` should be passed"):
            CheckpointManager(Fake(), tmp_path, 1, checkpoint_interval=2)


class TestRestore:
    def test_restore_or_initialize(self, tmp_path: Path) -> None:
        """CASES 111: init_fn is called only if there is nothing to restore."""
        fake = Fake()

        def initialise() -> None:
            fake.value = 2.0

        manager = CheckpointManager(fake, tmp_path, 1, init_fn=initialise)
        assert manager.restore_or_initialize() is None
        assert fake.value == 2.0
        fake.value = 3.0
        path = manager.save()
        fake.value = 4.0
        assert manager.restore_or_initialize() == path
        assert (fake.value, int(fake.save_counter)) == (3.0, 1)
        assert CheckpointManager(Fake(), tmp_path / "none", 1).restore_or_initialize() is None

    @pytest.mark.parametrize("spell", [Path, str, os.fsencode])
    def test_path_kinds(self, tmp_path: Path, spell: Callable[[Path], Any]) -> None:
        """CASES 112: directories of all types are accepted, and returned paths are str."""
        manager = CheckpointManager(Fake(), spell(tmp_path / "d"), 2)
        path = manager.save()
        assert (manager.directory, path) == (str(tmp_path / "d"), str(tmp_path / "d" / "ckpt-1"))
        assert CheckpointManager(Fake(), spell(tmp_path / "d"), 2).latest_checkpoint == path

    def test_relative_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relative paths are returned, and a new manager continues with them."""
        monkeypatch.chdir(tmp_path)
        for number in (1, 2):
            fake = Fake()
            manager = CheckpointManager(fake, "train", 1)
            manager.restore_or_initialize()
            assert manager.save() == f"train/ckpt-{number}"
        assert there(tmp_path / "train") == ["ckpt-2"]

    def test_other_sources_are_wrapped(self, tmp_path: Path) -> None:
        """A module, a dictionary of tensors or a Saver is saved, tracked and restored with its counter."""
        module, tensor = torch.nn.Linear(2, 2), torch.ones(3)
        for number, source in enumerate((module, {"x": tensor}, tfckpt.Saver({"x": tensor}))):
            directory = tmp_path / str(number)
            manager = CheckpointManager(source, directory, 1)
            manager.save()
            path = manager.save()
            assert there(directory) == ["ckpt-2"]
            expected = tensor.clone()
            tensor.zero_()
            again = CheckpointManager(source, directory, 1)
            assert again.restore_or_initialize() == path
            assert int(again.checkpoint.save_counter) == 2
            assert number == 0 or torch.equal(tensor, expected)
            tensor.fill_(number + 2)

    def test_sync(self, tmp_path: Path) -> None:
        """`sync` calls that of the checkpoint."""
        fake = Fake()
        manager = CheckpointManager(fake, tmp_path, 1)
        manager.sync()
        assert (manager.checkpoint, fake.synced) == (fake, 1)

    @pytest.mark.parametrize("keep", [0, -1, True, 2.0, "3"])
    def test_max_to_keep(self, tmp_path: Path, keep: Any) -> None:
        """Only a positive number and None are accepted."""
        with pytest.raises(ValueError, match="Expected a positive integer or `None`"):
            CheckpointManager(Fake(), tmp_path, keep)

    @pytest.mark.parametrize("hours", [-1.0, float("nan"), "1"])
    def test_hours(self, tmp_path: Path, hours: Any) -> None:
        """Only a number of hours and None are accepted."""
        with pytest.raises(ValueError, match=r"keep_checkpoint_every_n_hours=.*number of hours"):
            CheckpointManager(Fake(), tmp_path, 1, hours)

    def test_a_rule_that_is_not_a_keep_best(self, tmp_path: Path) -> None:
        """Rejected at construction, with the expression to use."""
        rule: Any = ("loss", "min", 2)
        with pytest.raises(
            ValueError, match=r'is a tuple, not a KeepBest. Pass keep_best=KeepBest\("loss", "min", k=2\)'
        ):
            CheckpointManager(Fake(), tmp_path, 1, keep_best=rule)

    def test_the_directory_is_created_at_once(self, tmp_path: Path) -> None:
        """The constructor creates it with its parents; storage behind URLs has no directories to create."""
        CheckpointManager(Fake(), tmp_path / "runs" / "a" / "b", 1)
        assert (tmp_path / "runs" / "a" / "b").is_dir()
        MemoryFileSystem.store.clear()
        CheckpointManager(Fake(), "memory://runs/a/b", 1)
        assert not MemoryFileSystem.store

    @pytest.mark.parametrize("folder", ["file", "file/deeper"])
    def test_a_file_in_the_way_of_the_directory(self, tmp_path: Path, folder: str) -> None:
        """The constructor raises with the directory, the reason and the fix."""
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"cannot be created.*Remove the file at this path") as caught:
            CheckpointManager(Fake(), tmp_path / folder, 1)
        assert str(tmp_path / folder) in str(caught.value)

    def test_a_metric_that_is_never_given(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A warning at the second save; a metric with another name is reported at the first."""
        manager = CheckpointManager(Fake(), tmp_path / "a", 5, keep_best=KeepBest("loss", "min", 1))
        manager.save()
        assert not caplog.records
        for _ in range(3):
            manager.save()
        (text,) = caplog.messages
        assert 'the metric "loss", which has not been passed' in text
        caplog.clear()
        CheckpointManager(Fake(), tmp_path / "b", 1, keep_best=KeepBest("loss", "min", 1)).save(metrics={"los": 1.0})
        assert 'Closest: "los"' in caplog.text

    @pytest.mark.parametrize("content", [b"", b"damaged", b'model_checkpoint_path: "ckpt-3"'])
    @pytest.mark.parametrize("valid", [False, True])
    def test_a_state_file_without_checkpoints(self, tmp_path: Path, content: bytes, valid: bool) -> None:
        """An error, so that a training does not start anew where an earlier one was saved."""
        (tmp_path / "checkpoint").write_bytes(content)
        manager = CheckpointManager(Fake(), tmp_path, 1)
        with pytest.raises((tfckpt.DataLossError, tfckpt.NotFoundError), match=str(tmp_path)):
            manager.restore_or_initialize(valid=valid)


class TestKeeping:
    RULE = KeepBest("loss", "min", 1)

    def test_best(self, tmp_path: Path) -> None:
        """The best is kept besides the newest two, and deleted when a better one is saved."""
        manager = CheckpointManager(Fake(), tmp_path, 2, keep_best=self.RULE)
        there_after = []
        for loss in (3.0, 1.0, 2.0, 4.0, 0.5, float("nan"), 5.0):
            manager.save(metrics={"loss": loss})
            there_after.append([int(name[5:]) for name in there(tmp_path)])
        assert there_after == [[1], [1, 2], [2, 3], [2, 3, 4], [4, 5], [5, 6], [5, 6, 7]]
        assert numbers(manager) == [6, 7]
        assert manager.best_checkpoint == str(tmp_path / "ckpt-5")
        assert set(manager.metrics) == {str(tmp_path / f"ckpt-{number}") for number in (5, 6, 7)}

    def test_best_over_restarts(self, tmp_path: Path) -> None:
        """A new manager for each save continues with the rule that only the first one was given."""
        fake = Fake()
        for number, loss in enumerate((1.0, 2.0, 3.0, 0.5, 4.0, 5.0)):
            manager = CheckpointManager(fake, tmp_path, 1, keep_best=self.RULE if number == 0 else None)
            manager.save(metrics={"loss": loss})
        assert there(tmp_path) == ["ckpt-4", "ckpt-6"]
        assert CheckpointManager(fake, tmp_path, 1).best_checkpoint == str(tmp_path / "ckpt-4")

    def test_the_schedule_comes_before_metrics(self, tmp_path: Path) -> None:
        """Checkpoints kept by the schedule do not depend on metrics and do not count among the best."""
        clock = Clock(0.0)
        manager = CheckpointManager(Fake(), tmp_path, 1, 1.0, keep_best=self.RULE, clock=clock)
        for now, loss in ((4000, 0.0), (4100, 1.0), (4200, 2.0), (4300, 3.0)):
            clock.now = float(now)
            manager.save(metrics={"loss": loss})
        assert there(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-4"]

    def test_pin(self, tmp_path: Path) -> None:
        """By number or path, over a restart; after unpinning, the next save deletes it."""
        fake = Fake()
        manager = CheckpointManager(fake, tmp_path, 1)
        manager.save()
        manager.pin(1)
        manager.save()
        manager.pin(tmp_path / "ckpt-2")
        manager = CheckpointManager(fake, tmp_path, 1)
        manager.save()
        assert there(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-3"]
        manager.unpin(str(tmp_path / "ckpt-1"))
        manager = CheckpointManager(fake, tmp_path, 1)
        assert there(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-3"]
        manager.save()
        assert there(tmp_path) == ["ckpt-2", "ckpt-4"]
        manager.unpin(2)
        manager.save()
        assert there(tmp_path) == ["ckpt-5"]
        assert SIDE_FILE not in os.listdir(tmp_path)

    def test_pin_a_missing_checkpoint(self, tmp_path: Path) -> None:
        """Pinning a mistyped path raises an error."""
        manager = CheckpointManager(Fake(), tmp_path, 1)
        with pytest.raises(tfckpt.NotFoundError, match="no such checkpoint to pin"):
            manager.pin(7)
        manager.unpin(7)

    def test_without_pins_and_metrics(self, tmp_path: Path) -> None:
        """There are no files besides those that TensorFlow writes."""
        manager = CheckpointManager(Fake(), tmp_path, 1)
        manager.save()
        manager.save()
        assert sorted(os.listdir(tmp_path)) == ["checkpoint", "ckpt-2.data-00000-of-00001", "ckpt-2.index"]

    def test_all_are_kept(self, tmp_path: Path) -> None:
        """max_to_keep=None deletes nothing, not even what an earlier manager had protected."""
        fake = Fake()
        manager = CheckpointManager(fake, tmp_path, 1)
        manager.save()
        manager.pin(1)
        manager.save()
        manager.unpin(1)
        CheckpointManager(fake, tmp_path, None).save()
        assert there(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-3"]
        CheckpointManager(fake, tmp_path, 1).save()
        assert there(tmp_path) == ["ckpt-4"]

    def test_killed_at_any_step(self, tmp_path: Path) -> None:
        """After an interruption the next manager has the newest, the best and the pinned checkpoints."""

        class Killed(BaseException):
            pass

        steps = (("replace", "checkpoint"), ("replace", ".index"))
        for number, step in enumerate(steps):
            directory = tmp_path / str(number)
            fake = Fake()
            storage = Refusing(*step, Killed())
            manager = CheckpointManager(fake, directory, 1, keep_best=self.RULE, storage=cast(Storage, storage))
            for loss in (1.0, 2.0):
                manager.save(metrics={"loss": loss})
            storage.refuses = True
            with pytest.raises(Killed):
                manager.save(metrics={"loss": 3.0})
            assert {"ckpt-1", "ckpt-2"} <= set(there(directory))
            manager = CheckpointManager(fake, directory, 1)
            assert manager.best_checkpoint == str(directory / "ckpt-1")
            manager.save(metrics={"loss": 4.0})
            assert {"ckpt-1", "ckpt-4"} <= set(there(directory))
            assert "ckpt-2" not in there(directory)

    def test_metrics_are_written_before_anything_is_deleted(self, tmp_path: Path) -> None:
        """If killed before the deletion, the next manager has the metrics of the new checkpoint."""
        fake = Fake()
        storage = Refusing("replace", ".index", KeyboardInterrupt())
        manager = CheckpointManager(fake, tmp_path, 1, keep_best=self.RULE, storage=cast(Storage, storage))
        manager.save(metrics={"loss": 1.0})
        storage.refuses = True
        with pytest.raises(KeyboardInterrupt):
            manager.save(metrics={"loss": 0.5})
        assert CheckpointManager(fake, tmp_path, 1).best_checkpoint == str(tmp_path / "ckpt-2")

    def test_bad_metrics(self, tmp_path: Path) -> None:
        """Rejected before anything is written."""
        manager = CheckpointManager(Fake(), tmp_path, 1)
        with pytest.raises(tfckpt.InvalidArgumentError, match='metrics: "loss" is not a number'):
            manager.save(metrics={"loss": "low"})  # type: ignore[dict-item]
        assert os.listdir(tmp_path) == []


def test_urls() -> None:
    """At a URL, checkpoints are numbered, tracked, deleted or kept as best, and a new manager continues."""
    memory = MemoryFileSystem()
    model, place = torch.nn.Linear(1, 1), "memory://test_checkpoint_manager/run"
    rule = KeepBest("loss", "min", 1)
    for loss in (3.0, 1.0, 2.0, 4.0):
        manager = CheckpointManager(model, place, 1, keep_best=rule)
        manager.restore_or_initialize()
        manager.save(metrics={"loss": loss})
    assert (manager.checkpoints, manager.best_checkpoint) == ([f"{place}/ckpt-4"], f"{place}/ckpt-2")
    assert tfckpt.latest_checkpoint(place) == tfckpt.latest_checkpoint(place, valid=True) == f"{place}/ckpt-4"
    files = memory.ls("/test_checkpoint_manager/run", detail=False)
    assert sorted(os.path.basename(path) for path in files if path.endswith(".index")) == [
        "ckpt-2.index",
        "ckpt-4.index",
    ]
    assert b'model_checkpoint_path: "ckpt-4"' in memory.cat("/test_checkpoint_manager/run/checkpoint")


def test_a_renamed_attribute_is_a_warning_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its values are not in the checkpoint, so they are unchanged; that is not a silent success."""
    CheckpointManager(tfckpt.Checkpoint(model=torch.nn.Linear(2, 1)), tmp_path, 1).save()
    renamed = torch.nn.Linear(2, 1)
    CheckpointManager(tfckpt.Checkpoint(net=renamed), tmp_path, 1).restore_or_initialize()
    [record] = [each for each in caplog.records if each.name == "torch_tfckpt.manager_restore"]
    assert record.levelno == logging.WARNING
    assert "some objects were not restored: Found 2 Python objects" in record.getMessage()
    assert "(root).net" in record.getMessage()


def test_objects_that_a_saver_did_not_save_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that continues from the checkpoint of a Saver names the objects that it lacks, with their values."""
    tfckpt.Saver({"model": torch.nn.Linear(2, 1)}).save(tmp_path / "ckpt", 1)
    checkpoint = tfckpt.Checkpoint(model=torch.nn.Linear(2, 1), epoch=torch.tensor(4))
    CheckpointManager(checkpoint, tmp_path, 1).restore_or_initialize()
    assert "some objects were not restored" in caplog.text and "(root).epoch" in caplog.text


def test_metrics_that_require_gradients(tmp_path: Path) -> None:
    """A loss can be passed as it is; torch does not warn (warnings are errors here)."""
    manager = CheckpointManager({"x": torch.zeros(1)}, tmp_path, 1, keep_best=KeepBest("loss", "min", k=1))
    loss: Any = torch.tensor(0.5, requires_grad=True)
    path = manager.save(metrics={"loss": loss})
    assert manager.metrics == {path: {"loss": 0.5}}
