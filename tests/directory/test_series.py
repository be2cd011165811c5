"""What Savers and managers may delete: their own series, in directories they save into, whatever the files say.

Copied runs, state and retention files that name other places, several programs in one directory, and programs that
ended before they had deleted everything.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import CheckpointManager, KeepBest, Saver
from torch_tfckpt.directory.state_file import update_checkpoint_state
from torch_tfckpt.directory.unlisted import SUFFIX
from torch_tfckpt.storage.local import LOCAL, LocalStorage

RETENTION = "checkpoint.retention.json"


def names(directory: Path) -> list[str]:
    """Return the checkpoints in a directory; assert that there are no marks left."""
    assert not list(directory.glob(f"*{SUFFIX}"))
    return sorted(path.name.removesuffix(".index") for path in directory.glob("*.index"))


def state() -> dict[str, torch.Tensor]:
    return {"value": torch.zeros(2)}


def save(directory: Path, *steps: int, base: str = "m", **options: Any) -> Saver:
    """Save the steps with a new Saver."""
    saver = Saver(state(), **{"max_to_keep": 2, **options})
    for step in steps:
        saver.save(directory / base, step, write_meta_graph=False)
    return saver


def manager(directory: Path, name: str = "ckpt", **options: Any) -> CheckpointManager:
    return CheckpointManager(state(), directory, **{"max_to_keep": 2, "checkpoint_name": name, **options})


class Killed(BaseException):
    pass


class Interrupted(LocalStorage):
    """LOCAL, but the program is killed, or an operation fails, as soon as `when` returns an error."""

    def __init__(self, when: Callable[[str, str], BaseException | None]) -> None:
        self.when = when

    def replace(self, source: str, target: str) -> None:
        # A deletion renames the index to a temporary name first.
        self._check("replace", f"{source}.removed" if "tempstate" in target else target)
        super().replace(source, target)

    def remove(self, path: str) -> None:
        self._check("remove", path)
        super().remove(path)

    def _check(self, operation: str, path: str) -> None:
        error = self.when(operation, os.path.basename(path))
        if error is not None:
            raise error


class TestCopiedRuns:
    """The files next to the state file are meant, and nothing is deleted elsewhere."""

    @pytest.fixture
    def original(self, tmp_path: Path) -> Path:
        """Return a run whose state file has absolute paths, as a Saver writes them by default."""
        save(tmp_path / "original", 1, 2)
        return tmp_path / "original"

    def test_a_copy_continues_by_itself(self, original: Path, tmp_path: Path) -> None:
        """With recover=True and after a restore; the original is not touched."""
        for number, recover in enumerate((True, None)):
            copy = tmp_path / str(number)
            shutil.copytree(original, copy)
            saver = Saver(state(), max_to_keep=2, recover=recover)
            latest = tfckpt.latest_checkpoint(copy)
            assert latest == tfckpt.latest_checkpoint(copy, valid=True) == str(copy / "m-2")
            saver.restore(latest)
            for step in (3, 4, 5):
                saver.save(copy / "m", step)
            assert (names(original), names(copy)) == (["m-1", "m-2"], ["m-4", "m-5"])

    @pytest.mark.parametrize("valid", [False, True])
    def test_the_newest_was_not_copied(
        self, original: Path, tmp_path: Path, valid: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The one that the state file names is returned, with a warning; it is never tracked."""
        copy = tmp_path / "copy"
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("m-2*"))
        latest = tfckpt.latest_checkpoint(copy, valid=valid)
        assert latest == str(original / "m-2")
        assert f"the newest checkpoint of {copy} is outside of it: {original}/m-2" in caplog.text
        saver = Saver(state(), max_to_keep=1, recover=True)
        saver.restore(latest)
        for step in (3, 4):
            saver.save(copy / "m", step)
        assert (names(original), names(copy)) == (["m-1", "m-2"], ["m-4"])

    def test_the_list_of_the_copy_is_passed_to_a_saver(self, original: Path, tmp_path: Path) -> None:
        """The usual call in TensorFlow's programs; what leads to the original is not deleted."""
        copy = tmp_path / "copy"
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("m-1*"))
        stored = tfckpt.get_checkpoint_state(copy)
        assert stored is not None
        saver = Saver(state(), max_to_keep=1)
        saver.recover_last_checkpoints(list(stored.all_model_checkpoint_paths))
        for step in (3, 4):
            saver.save(copy / "m", step)
        # A list that is longer than the limit does not shrink, as in TensorFlow.
        assert (names(original), names(copy)) == (["m-1", "m-2"], ["m-3", "m-4"])

    def test_a_manager_in_the_copy_of_a_savers_run(self, tmp_path: Path) -> None:
        """A state file with absolute paths and times, in which no path leads into the copy."""
        original, copy = tmp_path / "original", tmp_path / "copy"
        before = manager(original)
        paths = [before.save() for _ in range(2)]
        update_checkpoint_state(original, paths[-1], paths, None, [1e9, 2e9], 0.5)
        shutil.copytree(original, copy)
        again = manager(copy, max_to_keep=1)
        assert again.restore_or_initialize() == str(copy / "ckpt-2")
        again.save()
        assert (names(original), names(copy)) == (["ckpt-1", "ckpt-2"], ["ckpt-3"])

    @pytest.mark.parametrize("stored", ["../victim/m-1", "{tmp}/victim/m-1", "link/m-1", "sub/../../victim/m-1"])
    @pytest.mark.parametrize("kind", ["Saver", "manager"])
    def test_a_state_file_that_names_another_directory(self, tmp_path: Path, stored: str, kind: str) -> None:
        """By a relative or absolute path, or through a symbolic link."""
        run, victim = tmp_path / "run", tmp_path / "victim"
        save(victim, 1)
        run.mkdir()
        (run / "sub").mkdir()
        (run / "link").symlink_to(victim)
        path = stored.format(tmp=tmp_path)
        times = ([1e9, 2e9], 0.5) if kind == "manager" else ()
        update_checkpoint_state(run, "m-1", [path, "m-1"], None, *times)
        if kind == "Saver":
            save(run, 2, 3, 4, recover=True, max_to_keep=1)
        else:
            saving = manager(run, "m", max_to_keep=1)
            for _ in range(3):
                saving.save()
        assert names(victim) == ["m-1"]
        assert len(names(run)) == 1

    @pytest.mark.parametrize("kind", ["Saver", "manager"])
    def test_a_retention_file_that_names_another_directory(self, tmp_path: Path, kind: str) -> None:
        """A name in it leads elsewhere through a symbolic link."""
        run, victim = tmp_path / "run", tmp_path / "victim"
        save(victim, 1)
        run.mkdir()
        (run / "link").symlink_to(victim)
        record: dict[str, Any] = {"version": 1, "best": None, "pins": [], "protected": ["link/m-1"], "metrics": {}}
        (run / RETENTION).write_text(json.dumps(record))
        if kind == "Saver":
            save(run, 2, 3, 4)
        else:
            saving = manager(run, "m")
            for _ in range(3):
                saving.save()
        assert names(victim) == ["m-1"]


class TestSeveralPrograms:
    """Programs that share a directory do not delete or overwrite each other's checkpoints."""

    def test_two_managers_of_different_names(self, tmp_path: Path) -> None:
        """Over restarts, each keeps its own newest two; neither loses track of its own."""
        for run in range(3):
            for name in ("gen", "disc"):
                each = manager(tmp_path, name)
                if run:
                    assert each.restore_or_initialize() == each.latest_checkpoint == str(tmp_path / f"{name}-{2 * run}")
                for _ in range(2):
                    each.save()
        assert names(tmp_path) == ["disc-5", "disc-6", "gen-5", "gen-6"]

    def test_names_that_differ_in_a_number(self, tmp_path: Path) -> None:
        """ "gen1" and "gen2" are two models, not two numbers of one."""
        for step in (1, 2, 3):
            for base in ("gen1", "gen2"):
                save(tmp_path, step, base=base, recover=True)
        assert {"gen1-3", "gen2-3"} <= set(names(tmp_path))
        saver = save(tmp_path, base="gen1")
        saver.restore(str(tmp_path / "gen1-3"))
        for step in (4, 5):
            saver.save(tmp_path / "gen1", step)
        assert "gen2-3" in names(tmp_path)

    def test_a_saver_and_a_manager(self, tmp_path: Path) -> None:
        """Whichever of them wrote the state file last."""
        for step in range(1, 4):
            manager(tmp_path).save()
            save(tmp_path, step, recover=True)
        assert {"ckpt-1", "ckpt-2", "ckpt-3", "m-3"} <= set(names(tmp_path))

    def test_two_managers_of_one_name(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Numbers do not collide, which is logged, and neither deletes what the other has saved."""
        one, other = manager(tmp_path, max_to_keep=1), manager(tmp_path, max_to_keep=1)
        assert [os.path.basename(each.save()) for each in (one, other, one, other)] == [
            "ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"
        ]  # fmt: skip
        assert "Saving 2 instead" in caplog.text
        assert names(tmp_path) == ["ckpt-3", "ckpt-4"]

    def test_pins_and_best_of_another_series(self, tmp_path: Path) -> None:
        """One rule for each series: neither deletes what is the best, or no longer pinned, of the other one."""
        rules = {"gen": KeepBest("gen_loss", "min", 1), "disc": KeepBest("disc_loss", "min", 1)}
        for run in range(2):
            savers = {name: Saver(state(), max_to_keep=1, keep_best=rule, recover=True) for name, rule in rules.items()}
            for step in range(3 * run + 1, 3 * run + 4):
                for name, saver in savers.items():
                    saver.save(tmp_path / name, step, metrics={rules[name].metric: float(step)})
            stored = json.loads((tmp_path / RETENTION).read_text())
            assert sorted(stored["protected"]) == ["disc-1", "gen-1"]
        # A Saver's list is lost when the other one writes the state file, so the last ones of the first run are left.
        assert names(tmp_path) == ["disc-1", "disc-3", "disc-6", "gen-1", "gen-3", "gen-6"]

    def test_the_directory_of_a_manager_has_other_checkpoints(self, tmp_path: Path) -> None:
        """A pretrained model in the directory does not keep `init_fn` from being called."""
        tfckpt.save_file(state(), tmp_path / "pretrained")
        called: list[bool] = []
        assert manager(tmp_path, init_fn=lambda: called.append(True)).restore_or_initialize() is None
        assert called


class TestPinsOfOthers:
    """A second Saver or manager stands for another process, such as a notebook."""

    def test_pins_are_read_before_each_deletion(self, tmp_path: Path) -> None:
        """Pins of both are kept, and an unpin of the other one is followed."""
        run = manager(tmp_path, keep_best=KeepBest("loss", "min", 1))
        for loss in (3.0, 2.0):
            run.save(metrics={"loss": loss})
        run.pin(2)
        manager(tmp_path).pin(1)
        for loss in (4.0, 5.0, 6.0):
            run.save(metrics={"loss": loss})
        assert names(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-4", "ckpt-5"]
        assert json.loads((tmp_path / RETENTION).read_text())["pins"] == ["ckpt-1", "ckpt-2"]
        manager(tmp_path).unpin(1)
        run.save(metrics={"loss": 7.0})
        assert names(tmp_path) == ["ckpt-2", "ckpt-5", "ckpt-6"]
        assert run.best_checkpoint == str(tmp_path / "ckpt-2")

    def test_a_run_without_a_limit_keeps_pins_of_others(self, tmp_path: Path) -> None:
        """It deletes nothing, but writes metrics into the same file."""
        saver = Saver(state(), max_to_keep=None)
        for step in (1, 2):
            saver.save(tmp_path / "m", step, metrics={"loss": 1.0})
            save(tmp_path).pin(tmp_path / "m-1")
        assert json.loads((tmp_path / RETENTION).read_text())["pins"] == ["m-1"]

    def test_a_damaged_file_is_not_overwritten_by_metrics(self, tmp_path: Path) -> None:
        """What it may have pinned is pinned before the first metrics are written."""
        save(tmp_path, 1, 2)
        (tmp_path / RETENTION).write_bytes(b"damaged")
        saver = Saver(state(), max_to_keep=2, recover=True)
        saver.save(tmp_path / "m", 3, metrics={"loss": 1.0})
        assert json.loads((tmp_path / RETENTION).read_text())["pins"] == ["m-1", "m-2"]

    def test_the_last_pin_is_removed_by_another(self, tmp_path: Path) -> None:
        """Before the checkpoint has expired, so that the file vanishes; it is deleted like any other."""
        saver = save(tmp_path, 1, 2)
        saver.pin(tmp_path / "m-2")
        save(tmp_path).unpin(tmp_path / "m-2")
        assert not (tmp_path / RETENTION).exists()
        for step in (3, 4):
            saver.save(tmp_path / "m", step)
        assert names(tmp_path) == ["m-3", "m-4"]

    def test_a_file_that_is_lost_deletes_nothing(self, tmp_path: Path) -> None:
        """While the run continues: what it protected stays."""
        saver = save(tmp_path, 1)
        saver.pin(tmp_path / "m-1")
        for step in (2, 3, 4):
            saver.save(tmp_path / "m", step)
        (tmp_path / RETENTION).unlink()
        for step in (5, 6):
            saver.save(tmp_path / "m", step)
        assert names(tmp_path) == ["m-1", "m-5", "m-6"]

    def test_a_file_that_becomes_damaged_deletes_nothing(self, tmp_path: Path) -> None:
        """What exists then is pinned."""
        saver = save(tmp_path, 1)
        saver.pin(tmp_path / "m-1")
        saver.save(tmp_path / "m", 2)
        (tmp_path / RETENTION).write_bytes(b"damaged")
        for step in (3, 4, 5):
            saver.save(tmp_path / "m", step)
        assert {"m-1", "m-2"} <= set(names(tmp_path))


class TestUnfinishedDeletions:
    """What a killed or failing program was to delete is deleted by the next save, or the next run."""

    @pytest.mark.parametrize("recover", [None, True, False])
    @pytest.mark.parametrize(
        "at", [("replace", "checkpoint"), ("replace", "m-1.index.removed"), ("remove", "m-1.data")]
    )
    def test_a_saver_that_is_killed(self, tmp_path: Path, at: tuple[str, str], recover: bool | None) -> None:
        """At the state file, or at any step of the deletion."""
        armed = False

        def when(operation: str, name: str) -> BaseException | None:
            return Killed() if armed and operation == at[0] and name.startswith(at[1]) else None

        saver = save(tmp_path, 1, 2, recover=recover, storage=Interrupted(when))
        armed = True
        with pytest.raises(Killed):
            saver.save(tmp_path / "m", 3)
        later = save(tmp_path, recover=recover)
        later.restore(tfckpt.latest_checkpoint(tmp_path))
        for step in (4, 5):
            later.save(tmp_path / "m", step)
        left = set(names(tmp_path))
        if recover is False:
            assert "m-1" not in left or at == ("replace", "checkpoint")
        else:  # m-3 was published, but not recorded, if the kill came before the state file
            assert left == {"m-4", "m-5", *(["m-3"] if at == ("replace", "checkpoint") else [])}

    @pytest.mark.parametrize("kind", ["Saver", "manager"])
    def test_a_deletion_that_fails_until_the_end(self, tmp_path: Path, kind: str) -> None:
        """Each save tries again, and so does the next run."""
        storage = Interrupted(
            lambda operation, name: PermissionError(13, "no") if name.startswith("m-1.index.removed") else None
        )
        if kind == "Saver":
            save(tmp_path, 1, 2, 3, 4, storage=storage)
        else:
            saving = manager(tmp_path, "m", storage=storage)
            for _ in range(4):
                saving.save()
        assert (tmp_path / f"m-1{SUFFIX}").exists()
        assert {path.stem for path in tmp_path.glob("*.index")} == {"m-1", "m-3", "m-4"}
        if kind == "Saver":
            save(tmp_path, 5, recover=True)
        else:
            again = manager(tmp_path, "m")
            again.restore_or_initialize()
            again.save()
        assert names(tmp_path) == ["m-4", "m-5"]

    def test_a_manager_that_is_killed_before_its_state_file(self, tmp_path: Path) -> None:
        """The checkpoint that was published is not overwritten, and deleted once a newer one is recorded."""
        armed = False

        def when(operation: str, name: str) -> BaseException | None:
            return Killed() if armed and name == "checkpoint" else None

        saving = manager(tmp_path, storage=Interrupted(when))
        saving.save()
        armed = True
        with pytest.raises(Killed):
            saving.save()
        before = (tmp_path / "ckpt-2.data-00000-of-00001").stat().st_ino
        again = manager(tmp_path)
        assert again.restore_or_initialize() == str(tmp_path / "ckpt-1")
        assert (tmp_path / "ckpt-2.data-00000-of-00001").stat().st_ino == before
        assert again.save() == str(tmp_path / "ckpt-3")
        assert names(tmp_path) == ["ckpt-1", "ckpt-3"]

    def test_the_very_first_save_is_killed_before_its_state_file(self, tmp_path: Path) -> None:
        """The next run restores it and tracks it."""

        def when(operation: str, name: str) -> BaseException | None:
            return Killed() if name == "checkpoint" else None

        with pytest.raises(Killed):
            manager(tmp_path, storage=Interrupted(when)).save()
        again = manager(tmp_path, max_to_keep=1)
        assert again.restore_or_initialize() == str(tmp_path / "ckpt-1")
        again.save()
        assert names(tmp_path) == ["ckpt-2"]

    def test_what_is_kept_on_purpose_is_not_deleted(self, tmp_path: Path) -> None:
        """By a run without a limit, by a schedule, or by hand: only marked checkpoints are deleted."""
        save(tmp_path, 1, 2, 3, max_to_keep=None)
        later = save(tmp_path)
        later.restore(str(tmp_path / "m-3"))
        for step in (4, 5, 6):
            later.save(tmp_path / "m", step)
        assert names(tmp_path) == ["m-1", "m-2", "m-5", "m-6"]

    def test_a_mark_of_a_checkpoint_that_is_listed_or_pinned(self, tmp_path: Path) -> None:
        """The mark is removed, the checkpoint stays."""
        first = save(tmp_path, 1, 2, 3, max_to_keep=3)
        first.pin(tmp_path / "m-1")
        update_checkpoint_state(tmp_path, str(tmp_path / "m-3"), [str(tmp_path / f"m-{n}") for n in (2, 3)])
        for step in (1, 2, 9):
            (tmp_path / f"m-{step}{SUFFIX}").touch()
        save(tmp_path, 4, recover=True, max_to_keep=3)
        assert names(tmp_path) == ["m-1", "m-2", "m-3", "m-4"]

    def test_object_stores(self) -> None:
        """Marks are objects there, and removed, too."""
        from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

        MemoryFileSystem.store.clear()
        saver = Saver(state(), max_to_keep=1)
        for step in (1, 2, 3):
            saver.save("memory://series/m", step)
        assert not [name for name in MemoryFileSystem.store if name.endswith(SUFFIX)]
        assert LOCAL.renames
