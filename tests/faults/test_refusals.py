"""The system refuses one operation: what is unknown is never taken for missing.

Whichever operation fails, with whatever error: no older checkpoint is returned or restored, no training starts anew,
and no checkpoint is overwritten. Once the system answers again, everything works as before.
"""

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import torch
from storages import Counting

import torch_tfckpt as tfckpt
from torch_tfckpt import CheckpointManager, Saver
from torch_tfckpt.directory.unlisted import SUFFIX
from torch_tfckpt.errors import CheckpointError, DataLossError, FailedPreconditionError
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage

CODES: Final = [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.ETIMEDOUT, errno.ESTALE]
NEWEST: Final = 3
KEPT: Final = 2


class Refusal(NamedTuple):
    """How operations fail."""

    code: int
    forever: bool = False  # all later operations, too
    as_local: bool = False  # with the errors that LocalStorage raises; otherwise with the system's own


class RefusingStorage(Counting):
    """Operation `at` fails."""

    def __init__(self, at: int, refusal: Refusal) -> None:
        super().__init__(LOCAL)
        self.at, self.refusal = at, refusal
        self.refused = ""

    def before(self, number: int, what: str) -> None:
        if number == self.at or (self.refusal.forever and number > self.at):
            self.refused = self.refused or what
            error = OSError(self.refusal.code, os.strerror(self.refusal.code), what)
            if self.refusal.as_local and what.startswith(("open", "list")):
                raise FailedPreconditionError(f"{what}: {error}. Try again") from error
            if self.refusal.as_local and what.startswith("read"):
                raise DataLossError(f"{what}: {error}. Try again") from error
            raise error


WAYS: Final = [
    *(Refusal(code) for code in CODES),
    Refusal(errno.EIO, forever=True),
    Refusal(errno.EIO, as_local=True),
    Refusal(errno.EMFILE, as_local=True),
]
SOME: Final = [Refusal(errno.EIO), Refusal(errno.EACCES), Refusal(errno.EMFILE, as_local=True)]


def name_of(way: object) -> str:
    if not isinstance(way, Refusal):
        return str(way)
    return f"{errno.errorcode[way.code]}{', for good' * way.forever}{', as LocalStorage' * way.as_local}"


def ways(*first: object) -> pytest.MarkDecorator:
    """Parametrize by the first argument and by refusals: some for the first, one for the others; the rest is heavy."""
    cases = [
        pytest.param(
            each, way, marks=() if way == SOME[0] or (way in SOME and each == first[0]) else (pytest.mark.heavy,)
        )
        for each in first
        for way in WAYS
    ]
    return pytest.mark.parametrize(("case", "refusal"), cases, ids=name_of)


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a run of a Saver and one of a manager; the newest checkpoint of each has the value 3."""
    folder = tmp_path_factory.mktemp("runs")
    value = torch.zeros(2)
    saver = Saver({"value": value}, max_to_keep=KEPT, save_relative_paths=True)
    manager = CheckpointManager({"value": value}, folder / "manager", KEPT)
    for number in range(1, NEWEST + 1):
        value.fill_(number)
        manager.save(metrics={"loss": float(number)})
        saver.save(folder / "saver" / "ckpt", number, write_meta_graph=False, metrics={"loss": float(number)})
    return folder


def cases(run: Path, tmp_path: Path, refusal: Refusal) -> Iterator[tuple[Path, RefusingStorage]]:
    """Yield a copy of the run, and a storage whose k-th operation fails, for k = 0, 1, ... until none fails."""
    for number in itertools.count():
        folder = tmp_path / "run"
        shutil.copytree(run, folder)
        storage = RefusingStorage(number, refusal)
        yield folder, storage
        shutil.rmtree(folder)
        if not storage.refused:
            assert number > 0
            return


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of checkpoints: name -> bytes. Data without an index is what a failed save left."""
    names = {path.stem for path in folder.glob("ckpt-*.index")}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.partition(".")[0] in names}


def assert_none_was_overwritten(before: dict[str, bytes], folder: Path) -> None:
    """Assert that no file of an earlier checkpoint has changed, and that one of value 3 or more is complete."""
    after = contents(folder)
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == set()
    newest = tfckpt.latest_checkpoint(folder, valid=True)
    assert newest is not None and value_of(newest) >= NEWEST


def value_of(path: str) -> float:
    value = tfckpt.load_variable(path, "value")
    assert isinstance(value, torch.Tensor)
    return float(value[0])


QUESTIONS: Final[dict[str, Callable[[Path, Storage], object]]] = {
    "latest": lambda folder, storage: tfckpt.latest_checkpoint(folder, storage=storage),
    "latest, valid": lambda folder, storage: tfckpt.latest_checkpoint(folder, valid=True, storage=storage),
    "state": lambda folder, storage: str(tfckpt.get_checkpoint_state(folder, storage=storage)),
    "exists": lambda folder, storage: tfckpt.checkpoint_exists(folder / f"ckpt-{NEWEST}", storage=storage),
    "times": lambda folder, storage: tfckpt.get_checkpoint_mtimes(
        [folder / f"ckpt-{number}" for number in (2, NEWEST)], storage=storage
    ),
    "iterator": lambda folder, storage: list(tfckpt.checkpoints_iterator(folder, timeout=0, storage=storage)),
    "values": lambda folder, storage: sorted(tfckpt.load_file(folder, storage=storage)),
    "manager": lambda folder, storage: (
        CheckpointManager({"value": torch.zeros(2)}, folder, KEPT, storage=storage).latest_checkpoint
    ),
}


@pytest.mark.parametrize("refusal", WAYS, ids=name_of)
@pytest.mark.parametrize("state", [True, False], ids=["", "without a state file"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_right_or_an_error(
    question: str, state: bool, runs: Path, tmp_path: Path, refusal: Refusal
) -> None:
    """Each function returns what it returns without the refusal, or raises an error that names the cause."""
    ask = QUESTIONS[question]
    if question == "values" and not state:
        return  # a directory of several checkpoints without a state file is an error
    expected: object = None
    for folder, storage in cases(runs / "manager", tmp_path, refusal):
        if not state:
            (folder / "checkpoint").unlink()
        expected = expected or ask(folder, LOCAL)
        try:
            answer = ask(folder, storage)
        except (CheckpointError, OSError) as error:
            assert os.strerror(refusal.code) in str(error), f"{storage.refused}: {error}"
            assert isinstance(error, CheckpointError) or question == "values"
        else:
            assert answer == expected, f"{storage.refused} was refused"


@ways("", "missing", "empty", "stale")
def test_a_manager(case: str, runs: Path, tmp_path: Path, refusal: Refusal) -> None:
    """Construction, restore and save either raise or continue from the newest; the next manager does so, too."""
    for folder, storage in cases(runs / "manager", tmp_path, refusal):
        if case:
            (folder / "checkpoint").unlink()
        if case == "empty":
            (folder / "checkpoint").touch()
        if case == "stale":
            (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-9"\n')
        before = contents(folder)
        value = torch.zeros(2)
        restored = "not yet"
        try:
            manager = CheckpointManager({"value": value}, folder, KEPT, storage=storage)
            restored = manager.restore_or_initialize() or "nothing"
            value += 1
            manager.save()
        except (OSError, CheckpointError) as error:
            assert os.strerror(refusal.code) in str(error), f"{storage.refused}: {error}"
        assert restored in ("not yet", str(folder / f"ckpt-{NEWEST}")), f"{storage.refused} was refused"
        assert_none_was_overwritten(before, folder)
        before = contents(folder)
        again = CheckpointManager({"value": value}, folder, KEPT)
        assert again.restore_or_initialize() is not None
        assert value[0] >= NEWEST, f"{storage.refused} was refused"
        again.save()
        assert_none_was_overwritten(before, folder)
        assert not [path.name for path in folder.iterdir() if path.name.endswith(SUFFIX) or "tempstate" in path.name]
        if not case:
            assert len(list(folder.glob("*.index"))) <= KEPT


@ways(None, True)
def test_a_saver(case: bool | None, runs: Path, tmp_path: Path, refusal: Refusal) -> None:
    """Restore and save either raise or succeed; the next saves succeed and delete what is too old."""
    recover = case
    for folder, storage in cases(runs / "saver", tmp_path, refusal):
        before = contents(folder)
        value = torch.zeros(2)
        saver = Saver({"value": value}, max_to_keep=KEPT, recover=recover, save_relative_paths=True, storage=storage)
        try:
            saver.restore(tfckpt.latest_checkpoint(folder, storage=storage))
            assert value[0] == NEWEST, f"{storage.refused} was refused"
            value += 1
            saver.save(folder / "ckpt", NEWEST + 1, write_meta_graph=False)
        except (OSError, CheckpointError) as error:
            assert os.strerror(refusal.code) in str(error), f"{storage.refused}: {error}"
        assert_none_was_overwritten(before, folder)
        for step in (NEWEST + 2, NEWEST + 3):
            later = Saver({"value": value}, max_to_keep=KEPT, recover=recover, save_relative_paths=True)
            later.restore(tfckpt.latest_checkpoint(folder))
            assert value[0] >= NEWEST, f"{storage.refused} was refused"
            later.save(folder / "ckpt", step, write_meta_graph=False)
        assert later.last_checkpoints == [str(folder / f"ckpt-{NEWEST + number}") for number in (2, 3)]
        assert not [path.name for path in folder.iterdir() if path.name.endswith(SUFFIX) or "tempstate" in path.name]
