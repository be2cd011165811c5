"""Restarted runs: when max_to_keep counts the checkpoints of earlier runs."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from saver_files import HOUR, Clock, names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import KeepBest, Saver
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.local import LOCAL


def steps_in(directory: Path) -> list[int]:
    """Return the steps of the checkpoints in a directory."""
    return sorted(int(name.partition("-")[2][:-6]) for name in names_in(directory) if name.endswith(".index"))


def run(directory: Any, steps: list[int], restore: Any = None, **options: Any) -> Saver:
    """Run a program once: restore the given checkpoint, if any, and save the given steps."""
    saver = Saver({"v": torch.zeros(1)}, **{"max_to_keep": 3, **options})
    if restore is not None:
        saver.restore(restore)
    for step in steps:
        saver.save(os.path.join(directory, "m"), step)
    return saver


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_restarted_loop_keeps_max_to_keep(tmp_path: Path, asynchronously: bool) -> None:
    """Four runs that restore the latest leave three checkpoints, which the state file lists."""
    for attempt in range(4):
        saver = Saver({"v": torch.zeros(1)}, max_to_keep=3)
        latest = tfckpt.latest_checkpoint(tmp_path)
        if latest is not None:
            saver.restore(latest)
        for step in range(3 * attempt, 3 * attempt + 3):
            save = saver.save_async if asynchronously else saver.save
            save(tmp_path / "m", step)
        saver.close()
    assert steps_in(tmp_path) == [9, 10, 11]
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (9, 10, 11)]
    state = tfckpt.get_checkpoint_state(tmp_path)
    assert state is not None and list(state.all_model_checkpoint_paths) == saver.last_checkpoints


def test_recover_false_is_as_in_tensorflow(tmp_path: Path) -> None:
    """With recover=False each run counts its own checkpoints and deletes none of earlier runs."""
    run(tmp_path, [1, 2, 3])
    run(tmp_path, [4, 5, 6, 7], str(tmp_path / "m-3"), recover=False)
    assert steps_in(tmp_path) == [1, 2, 3, 5, 6, 7]


def test_without_a_restore_nothing_is_taken_over(tmp_path: Path) -> None:
    """A new training in the directory of an earlier one deletes none of its checkpoints."""
    run(tmp_path, [1, 2, 3])
    run(tmp_path, [4, 5, 6, 7])
    assert steps_in(tmp_path) == [1, 2, 3, 5, 6, 7]


def test_restored_from_one_directory_and_saved_into_another(tmp_path: Path) -> None:
    """Saving elsewhere affects neither directory; saving in the first one again counts its checkpoints."""
    one, other = tmp_path / "one", tmp_path / "other"
    run(one, [1, 2, 3])
    run(other, [1, 2, 3])
    saver = run(other, [4, 5, 6], str(one / "m-3"))
    assert (steps_in(one), steps_in(other)) == ([1, 2, 3], [1, 2, 3, 4, 5, 6])
    assert saver.last_checkpoints == [str(other / f"m-{step}") for step in (4, 5, 6)]
    # One saver has one list: with the checkpoints of the other directory it exceeds three, so the oldest are deleted.
    saver.save(one / "m", 4)
    assert (steps_in(one), steps_in(other)) == ([4], [1, 2, 3, 5, 6])


def test_restoring_an_older_checkpoint(tmp_path: Path) -> None:
    """Newer checkpoints still count by age; one that is saved again becomes the newest and is kept."""
    run(tmp_path, [1, 2, 3])
    run(tmp_path, [2], str(tmp_path / "m-1"))
    assert steps_in(tmp_path) == [1, 2, 3]
    run(tmp_path, [4], str(tmp_path / "m-2"))
    assert steps_in(tmp_path) == [2, 3, 4]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute names", "relative names"])
@pytest.mark.parametrize("restored", ["train/m-3", "./train/./m-3", "absolute", "link/m-3", "train/m-3.index", "train"])
@pytest.mark.parametrize("saved", ["train", "train/.", "absolute", "link"])
def test_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool, restored: str, saved: str) -> None:
    """Different spellings of the directory are the same; saving a step again does not count it twice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "train")
    run("train", [1, 2, 3], save_relative_paths=relative)
    directory = str(tmp_path / "train") if saved == "absolute" else saved
    path = str(tmp_path / "train" / "m-3") if restored == "absolute" else restored
    saver = run(directory, [3, 4, 5, 6], path, save_relative_paths=relative)
    assert steps_in(tmp_path / "train") == [4, 5, 6]
    assert saver.last_checkpoints == [os.path.join(directory, f"m-{step}") for step in (4, 5, 6)]


@pytest.mark.parametrize("storage", [False, True], ids=["by URL", "storage="])
def test_urls(storage: bool) -> None:
    """The same holds for an object store."""
    MemoryFileSystem.store.clear()
    directory = "memory://restarts"
    options = {"storage": storage_of(directory)} if storage else {}
    for attempt in range(3):
        latest = tfckpt.latest_checkpoint(directory)
        saver = run(directory, [2 * attempt, 2 * attempt + 1], latest, **options)
    assert saver.last_checkpoints == [f"{directory}/m-{step}" for step in (3, 4, 5)]
    assert sorted(name for name in MemoryFileSystem.store if name.endswith(".index")) == [
        f"/restarts/m-{step}.index" for step in (3, 4, 5)
    ]


def test_an_explicit_local_storage(tmp_path: Path) -> None:
    """The same holds with an explicit `storage=` argument."""
    run(tmp_path, [1, 2, 3], storage=LOCAL)
    run(tmp_path, [4], tmp_path / "m-3", storage=LOCAL)
    assert steps_in(tmp_path) == [2, 3, 4]


def test_checkpoints_deleted_by_others(tmp_path: Path) -> None:
    """Checkpoints that are listed but were deleted meanwhile do not count."""
    run(tmp_path, [1, 2, 3])
    tfckpt.remove_checkpoint(tmp_path / "m-2")
    saver = run(tmp_path, [4], tmp_path / "m-3")
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (1, 3, 4)]
    assert steps_in(tmp_path) == [1, 3, 4]


def test_a_damaged_state_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged state file is logged, nothing is taken over, and the save succeeds."""
    run(tmp_path, [1, 2, 3])
    (tmp_path / "checkpoint").write_text("")
    run(tmp_path, [4], tmp_path / "m-3")
    assert "checkpoints of earlier runs are not tracked" in caplog.text
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_checkpoints_of_another_origin(tmp_path: Path) -> None:
    """A pretrained checkpoint in the directory's state file is never deleted by fine-tuning."""
    tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / "pretrained.ckpt")
    tfckpt.update_checkpoint_state(tmp_path, tmp_path / "pretrained.ckpt")
    saver = run(tmp_path, [1, 2, 3, 4], tmp_path)
    assert (tmp_path / "pretrained.ckpt.index").exists()
    assert len(saver.last_checkpoints) == 3


def test_checkpoints_of_a_tensorflow_manager(tmp_path: Path) -> None:
    """An object-based checkpoint restored by variable names belongs to another writer and is kept."""
    v = tfckpt.Variable(torch.zeros(1), "v")
    other = tfckpt.CheckpointManager(tfckpt.Checkpoint(variable=v), tmp_path, 3, checkpoint_name="m")
    for _ in range(3):
        other.save()
    run(tmp_path, [4, 5], str(tmp_path / "m-3"))
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit(tmp_path: Path, limit: int | None) -> None:
    """Nothing is deleted, and the state file lists only the newest."""
    run(tmp_path, [1, 2, 3])
    for step in (4, 5):
        run(tmp_path, [step], tmp_path / "m-3", max_to_keep=limit)
        state = tfckpt.get_checkpoint_state(tmp_path)
        assert state is not None and list(state.all_model_checkpoint_paths) == [str(tmp_path / f"m-{step}")]
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("recover", [None, True])
def test_a_lower_limit_applies_at_the_next_save(tmp_path: Path, recover: bool | None) -> None:
    """As with CheckpointManager, checkpoints beyond the lower limit are deleted."""
    run(tmp_path, [1, 2, 3, 4, 5], max_to_keep=5)
    run(tmp_path, [6], tmp_path / "m-5", max_to_keep=2, recover=recover)
    assert steps_in(tmp_path) == [5, 6]


def test_set_last_checkpoints_replaces_the_list(tmp_path: Path) -> None:
    """After set_last_checkpoints_with_time, the saver counts only the given checkpoints."""
    run(tmp_path, [1, 2, 3])
    saver = run(tmp_path, [], tmp_path / "m-3")
    saver.set_last_checkpoints_with_time([(str(tmp_path / "m-3"), 0.0)])
    saver.save(tmp_path / "m", 4)
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (3, 4)]
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_the_best_of_earlier_runs_are_kept(tmp_path: Path) -> None:
    """Metrics persist over restarts and protect the best checkpoint, even through a symbolic link."""
    (tmp_path / "train").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "train")
    for step, loss in enumerate([0.5, 0.1, 0.9, 0.3, 0.7]):
        directory = tmp_path / ("link" if step % 2 else "train")
        saver = Saver({"v": torch.zeros(1)}, max_to_keep=1, keep_best=KeepBest("loss", "min", 1))
        if step:
            saver.restore(tfckpt.latest_checkpoint(directory))
        saver.save(directory / "m", step, metrics={"loss": loss})
        best = saver.best_checkpoint
        assert best is not None and os.path.basename(best) == ("m-1" if step else "m-0")
    assert steps_in(tmp_path / "train") == [1, 4]


def test_the_schedule_continues_over_restarts(tmp_path: Path) -> None:
    """Restarted every 40 minutes, a run keeps one checkpoint per hour, like an uninterrupted run."""
    clock = Clock(1_700_000_000.0)
    begun = clock.now
    for attempt in range(9):
        saver = Saver({"v": torch.zeros(1)}, max_to_keep=1, keep_checkpoint_every_n_hours=1.0, clock=clock)
        if attempt:
            saver.restore(tfckpt.latest_checkpoint(tmp_path))
        for _ in range(2):
            clock.now += 1200
            saver.save(tmp_path / "m", int(clock.now - begun) // 60)
            for path in tmp_path.glob("m-*"):  # files have the age that the clock implies
                if path.stat().st_mtime > clock.now:
                    os.utime(path, (clock.now, clock.now))
    assert steps_in(tmp_path) == [80, 140, 200, 260, 320, 360]


def test_a_schedule_that_was_interrupted(tmp_path: Path) -> None:
    """After a pause of a week one checkpoint is due, not one per hour of the week."""
    clock = Clock(1_700_000_000.0)
    options = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": clock}
    run(tmp_path, [1, 2], **options)
    os.utime(tmp_path / "m-2.index", (clock.now, clock.now))
    clock.now += 7 * 24 * HOUR
    saver = run(tmp_path, [], tmp_path / "m-2", **options)
    for step in range(3, 7):
        clock.now += 60
        saver.save(tmp_path / "m", step)
    assert [step for step in steps_in(tmp_path) if step > 2] == [3, 6]


@pytest.mark.parametrize("recover", ["yes", 2])
def test_recover_is_true_false_or_none(recover: Any) -> None:
    """Other values are rejected."""
    with pytest.raises(ValueError, match=r"recover=.*True, False or None"):
        Saver({"v": torch.zeros(1)}, recover=recover)


# The best.


def test_best_checkpoint(tmp_path: Path) -> None:
    """The best of the kept checkpoints; None without a rule or metric; also without a limit."""
    v = {"v": torch.zeros(1)}
    assert Saver(v).best_checkpoint is None
    for limit in (1, None):
        directory = tmp_path / str(limit)
        saver = Saver(v, max_to_keep=limit, keep_best=KeepBest("accuracy", "max", 1))
        best = [saver.best_checkpoint]
        for step, accuracy in enumerate([0.5, 0.9, 0.1]):
            saver.save(directory / "m", step, metrics={"accuracy": accuracy})
            best.append(saver.best_checkpoint)
        assert best == [None, *(str(directory / name) for name in ("m-0", "m-1", "m-1"))]
        assert tfckpt.checkpoint_exists(directory / "m-1")


@pytest.mark.parametrize("best", [("loss", "min", 2), "loss", {"metric": "loss"}])
def test_a_rule_that_is_not_a_keep_best(best: Any) -> None:
    """Another value is rejected at construction, with the expression to use."""
    with pytest.raises(ValueError, match=r'not a KeepBest. Pass keep_best=KeepBest\("loss", "min", k=2\)'):
        Saver({"v": torch.zeros(1)}, keep_best=best)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_metrics_without_that_of_the_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning at the first such save, with the metric name that was probably meant."""
    saver = Saver({"v": torch.zeros(1)}, max_to_keep=1, keep_best=KeepBest("val_loss", "min", 1))
    saver.save(tmp_path / "m", 0, metrics={"val_los": 0.5, "accuracy": 1.0})
    (text,) = warnings(caplog)
    assert text.startswith(f'{tmp_path / "m-0"}: keep_best chooses by the metric "val_loss"')
    assert '"val_los", "accuracy"' in text and 'Closest: "val_los"' in text
    for step in (1, 2):
        saver.save(tmp_path / "m", step, metrics={"val_los": 0.5})
    saver.close()
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_a_metric_that_is_never_given(tmp_path: Path, caplog: pytest.LogCaptureFixture, saves: int) -> None:
    """One warning at the second save, before anything is deleted; after one save, when the saver is closed."""
    with Saver({"v": torch.zeros(1)}, max_to_keep=5, keep_best=KeepBest("loss", "min", 1)) as saver:
        for step in range(saves):
            saver.save(tmp_path / "m", step)
            assert len(warnings(caplog)) == (step > 0)
    (text,) = warnings(caplog)
    assert 'the metric "loss", which has not been passed' in text and 'metrics={"loss": value}' in text


def test_no_warning_about_metrics_without_need(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No warning if the metric was given once, even by an earlier run, or without a rule or a save."""
    v, rule = {"v": torch.zeros(1)}, KeepBest("loss", "min", 1)
    Saver(v, keep_best=rule).close()
    with Saver(v, max_to_keep=1, keep_best=rule) as saver:
        saver.save(tmp_path / "m", 0, metrics={"loss": 0.5})
        for step in (1, 2, 3):
            saver.save(tmp_path / "m", step)
    with Saver(v, max_to_keep=1, keep_best=rule) as saver:
        saver.restore(tmp_path / "m-3")
        for step in (4, 5, 6):
            saver.save(tmp_path / "m", step)
    with Saver(v, max_to_keep=1) as saver:
        for step in (1, 2):
            saver.save(tmp_path / "other" / "m", step, metrics={"accuracy": 1.0})
    assert warnings(caplog) == []


# After a restore, before the first save.


@pytest.mark.parametrize("recover", [None, True])
@pytest.mark.parametrize("limit", [3, 2])
def test_a_restarted_saver_lists_what_its_next_save_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, recover: bool | None
) -> None:
    """After a restore both properties show the records of the directory, and the first save leaves what they show."""
    monkeypatch.chdir(tmp_path)
    best = KeepBest("loss", "min", 1)
    earlier = Saver({"v": torch.zeros(1)}, max_to_keep=3, keep_best=best)
    for step, loss in enumerate([0.1, 0.5, 0.4, 0.9, 0.7]):
        earlier.save("run/m", step, metrics={"loss": loss})
    earlier.save("run/other", 7)
    saver = Saver({"v": torch.zeros(1)}, max_to_keep=limit, keep_best=best, recover=recover)
    assert (saver.last_checkpoints, saver.best_checkpoint) == ([], None)
    saver.restore(tfckpt.latest_checkpoint("run"))  # run/other-7, alone in its series
    assert saver.last_checkpoints == ["run/other-7"]
    saver.restore("run/m-4")
    listed = ["run/m-3", "run/m-4"]  # other-7 belongs to another series
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert (saver.last_checkpoints, saver.best_checkpoint) == (listed, "run/m-0")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files
    saver.save("run/m", 5, metrics={"loss": 0.6})
    assert saver.last_checkpoints == [*listed, "run/m-5"][-limit:]
    assert saver.best_checkpoint == "run/m-0"


def test_after_the_first_save_nothing_more_is_read(tmp_path: Path) -> None:
    """The directory that was restored from is not shown any more once the saver has saved elsewhere."""
    run(tmp_path / "pretrained", [1, 2], keep_best=KeepBest("loss", "min", 1))
    saver = run(tmp_path / "tuned", [3], tmp_path / "pretrained" / "m-2")
    assert saver.last_checkpoints == [str(tmp_path / "tuned" / "m-3")]
    assert saver.best_checkpoint is None


def test_looking_at_the_best_checkpoint_changes_no_file_of_another_directory(tmp_path: Path) -> None:
    """A later save elsewhere does not write the retention file of the directory that was only restored from."""
    run(tmp_path / "one", [])
    first = Saver({"v": torch.zeros(1)}, keep_best=KeepBest("loss", "min", 1))
    first.save(tmp_path / "one" / "m", 1, metrics={"loss": 0.5})
    saver = Saver({"v": torch.zeros(1)}, keep_best=KeepBest("loss", "max", 2))
    saver.restore(tmp_path / "one" / "m-1")
    assert saver.best_checkpoint == str(tmp_path / "one" / "m-1")
    before = (tmp_path / "one" / "checkpoint.retention.json").read_bytes()
    saver.save(tmp_path / "two" / "m", 2, metrics={"loss": 0.5})
    assert (tmp_path / "one" / "checkpoint.retention.json").read_bytes() == before


def test_what_a_restarted_saver_does_not_count_is_not_listed(tmp_path: Path) -> None:
    """recover=False and no limit list nothing; the best is known by its metric."""
    best = KeepBest("loss", "min", 1)
    earlier = Saver({"v": torch.zeros(1)}, max_to_keep=1, keep_best=best)
    for step, loss in enumerate([0.1, 0.5]):
        earlier.save(tmp_path / "m", step, metrics={"loss": loss})
    for options in ({"recover": False}, {"max_to_keep": None}):
        saver = run(tmp_path, [], tmp_path / "m-1", keep_best=best, **options)
        assert (saver.last_checkpoints, saver.best_checkpoint) == ([], str(tmp_path / "m-0"))


def test_the_list_that_a_program_has_set_wins_over_the_directory(tmp_path: Path) -> None:
    """After set_last_checkpoints_with_time a restored saver lists what the program said."""
    run(tmp_path, [1, 2, 3])
    saver = run(tmp_path, [], tmp_path / "m-3")
    saver.set_last_checkpoints_with_time([(str(tmp_path / "m-2"), 0.0)])
    assert saver.last_checkpoints == [str(tmp_path / "m-2")]


def test_damaged_records_after_a_restore(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged state file or retention file is logged; nothing is listed."""
    run(tmp_path, [1, 2, 3])
    saver = run(tmp_path, [], tmp_path / "m-3", keep_best=KeepBest("loss", "min", 1))
    (tmp_path / "checkpoint").write_text("")
    (tmp_path / "checkpoint.retention.json").write_text("{")
    assert (saver.last_checkpoints, saver.best_checkpoint) == ([], None)
    assert "checkpoints of earlier runs are not tracked" in caplog.text and "cannot be read" in caplog.text


def test_the_repr_of_a_saver_reads_no_file(tmp_path: Path) -> None:
    """It shows only what the saver has saved."""
    run(tmp_path, [1, 2, 3])
    saver = run(tmp_path, [], tmp_path / "m-3")
    assert repr(saver) == "Saver(1 entry, max_to_keep=3)" and len(saver.last_checkpoints) == 3
