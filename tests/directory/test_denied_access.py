"""Files and directories that this user may not read: an error that says so, never "there is no checkpoint"."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from unprivileged import owned_directory, unprivileged

import torch_tfckpt as tfckpt
from torch_tfckpt import FailedPreconditionError, IncompleteSaveError, Saver
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.refusals import is_refusal

CALLS: dict[str, Callable[[Path], object]] = {
    "latest_checkpoint": lambda run: tfckpt.latest_checkpoint(run),
    "latest_checkpoint(valid=True)": lambda run: tfckpt.latest_checkpoint(run, valid=True),
    "get_checkpoint_state": lambda run: tfckpt.get_checkpoint_state(run),
    "checkpoints_iterator": lambda run: next(tfckpt.checkpoints_iterator(run, timeout=0)),
    "CheckpointManager": lambda run: tfckpt.CheckpointManager(tfckpt.Checkpoint(), run, 3),
}
PATHS: dict[str, Callable[[Path], object]] = {
    "checkpoint_exists": lambda run: tfckpt.checkpoint_exists(run / "m-2"),
    "get_checkpoint_mtimes": lambda run: tfckpt.get_checkpoint_mtimes([run / "m-2"]),
    "load_file": lambda run: tfckpt.load_file(run / "m-2"),
    "load_file of the directory": lambda run: tfckpt.load_file(run),
    "Saver.restore": lambda run: Saver({"v": torch.zeros(1)}).restore(run / "m-2"),
}


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what the calls import late, before the user changes who may not read the interpreter's files."""
    run = tmp_path_factory.mktemp("imported")
    Saver({"v": torch.zeros(1)}).save(run / "m", 2)
    for call in (*CALLS.values(), *PATHS.values()):
        call(run)


@pytest.fixture
def run() -> Iterator[Path]:
    """A directory with two checkpoints of the user without privileges."""
    with owned_directory() as directory:
        with unprivileged():
            saver = Saver({"v": torch.zeros(1)})
            (directory / "above").mkdir()
            for step in (1, 2):
                saver.save(directory / "above" / "run" / "m", step)
        yield directory / "above" / "run"


def denied(call: Callable[[Path], object], run: Path) -> str:
    """Return the message of the error that a call raises as a user without privileges."""
    error: BaseException | None = None
    with unprivileged():
        try:
            call(run)
        except FailedPreconditionError as raised:
            error = raised
    assert error is not None and is_refusal(error)
    return str(error)


@pytest.mark.parametrize("call", [*CALLS, *PATHS])
@pytest.mark.parametrize("mode", [0o000, 0o600], ids=["unreadable", "cannot be entered"])
@pytest.mark.parametrize("where", ["run", "above"])
def test_a_directory_that_may_not_be_entered(run: Path, where: str, mode: int, call: str) -> None:
    """Each function names the path, the system's reason and the fix; a first run is something else."""
    (run if where == "run" else run.parent).chmod(mode)
    message = denied({**CALLS, **PATHS}[call], run)
    assert str(run.parent) in message and "Permission denied" in message and "this user" in message


@pytest.mark.parametrize("call", ["latest_checkpoint", "get_checkpoint_state", "load_file of the directory"])
def test_a_state_file_that_may_not_be_read(run: Path, call: str) -> None:
    """It exists, so its contents are not taken for missing."""
    (run / "checkpoint").chmod(0o000)
    assert denied({**CALLS, **PATHS}[call], run).startswith(f"{run / 'checkpoint'}: Permission denied")


@pytest.mark.parametrize("name", ["checkpoint", "m-2.index"])
def test_valid_does_not_go_back_to_an_older_checkpoint(run: Path, name: str) -> None:
    """A state file or a newest checkpoint that may not be read is not a damaged one."""
    (run / name).chmod(0o000)
    assert f"{name}: Permission denied" in denied(CALLS["latest_checkpoint(valid=True)"], run)


def test_paths_of_another_user_in_the_state_file(run: Path) -> None:
    """A state file that was copied names absolute paths that this user may not see: those next to it are used."""
    private = run.parent / "private"
    private.mkdir()
    tfckpt.update_checkpoint_state(run, private / "m-2", [private / "m-1", private / "m-2"])
    (run / "checkpoint").chmod(0o644)
    private.chmod(0o000)
    with unprivileged():
        assert tfckpt.latest_checkpoint(run) == str(run / "m-2")
        saver = Saver({"v": torch.zeros(1)}, max_to_keep=2)
        saver.restore(run / "m-2")
        saver.save(run / "m", 3)
    assert saver.last_checkpoints == [str(run / "m-2"), str(run / "m-3")]


def test_an_earlier_checkpoint_that_may_not_be_seen_is_not_tracked(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is outside of the directory, so it is not even looked at: the save succeeds, and the log says so."""
    private = run.parent / "private"
    private.mkdir()
    tfckpt.update_checkpoint_state(run, run / "m-2", [private / "m-0", run / "m-1", run / "m-2"])
    (run / "checkpoint").chmod(0o644)
    private.chmod(0o000)
    with unprivileged(), caplog.at_level(logging.INFO):
        saver = Saver({"v": torch.zeros(1)}, max_to_keep=3)
        saver.restore(run / "m-2")
        saver.save(run / "m", 3)
    assert saver.last_checkpoints == [str(run / f"m-{step}") for step in (1, 2, 3)]
    assert "m-0 is not tracked" in caplog.text


@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("where", ["run", "above"])
@pytest.mark.parametrize("mode", [0o000, 0o500], ids=["cannot be entered", "read-only"])
def test_saving_where_nothing_may_be_written(run: Path, mode: int, where: str, asynchronously: bool) -> None:
    """The error gives the system's reason; it does not say that the parent directory does not exist."""
    (run if where == "run" else run.parent).chmod(mode)
    folder = run / "deeper" if where == "run" else run.parent / "new" / "deeper"
    error: OSError | None = None
    with unprivileged():
        saver = Saver({"v": torch.zeros(1)})
        try:
            if asynchronously:
                saver.save_async(folder / "m", 3).result()
            else:
                saver.save(folder / "m", 3)
        except IncompleteSaveError as raised:
            error = raised
    assert error is not None and error.errno == 13
    assert "Permission denied" in str(error) and "Nothing was published" in str(error)
    assert "doesn't exist" not in str(error)


def test_the_storage_of_local_files_does_not_take_denied_for_missing(run: Path) -> None:
    """`exists` and `is_directory` raise PermissionError below a directory that cannot be entered; others are False."""
    assert not LOCAL.exists(f"{run}/m-3") and not LOCAL.is_directory(f"{run}/m-2.index")
    assert not LOCAL.exists("\0") and not LOCAL.is_directory("\0") and not LOCAL.is_directory("")
    run.chmod(0o000)
    refused = []
    with unprivileged():
        assert LOCAL.exists(str(run)) and LOCAL.is_directory(str(run))
        for call in (LOCAL.exists, LOCAL.is_directory):
            try:
                call(f"{run}/m-2.index")
            except PermissionError as error:
                refused.append(error.filename)
    assert refused == [f"{run}/m-2.index"] * 2
