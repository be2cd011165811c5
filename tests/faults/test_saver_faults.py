"""Saver under faults: storage errors, kills and power failures at every operation of a save that also deletes an older
checkpoint.

Whatever happens, the checkpoints that the state file names restore bit for bit, error messages are true, and the next
save succeeds and leaves no unexpected files.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from claims import assert_helps
from numbered import State, assert_nothing_stray, assert_sound, latest_number, number_in
from storages import Counting, CrashingStorage, DropUnsyncedStorage, FailingStorage, Killed, SwitchedStorage

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, KeepBest, Saver, SaverDef
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage

SHARDED: Final = {"sharded": True, "max_to_keep": 2, "save_relative_paths": True}
PARTS: Final = {**SHARDED, "builder": BaseSaverBuilder()}
VERSION_1: Final = {**SHARDED, "write_version": SaverDef.V1}
BEST: Final = {**SHARDED, "keep_best": KeepBest("loss", "min", 1)}
SHARDS: Final = 2
BEFORE, NEW, NEXT = 2, 3, 4  # numbers of the newest checkpoint before the failing save, of that save, and of the next


class Way(NamedTuple):
    """How a saver saves."""

    options: dict[str, Any]
    again: bool = False  # to the path of the newest checkpoint instead of a new one
    beside_training: bool = False


WAYS: Final = {
    "sharded": Way(SHARDED),
    "sharded, again": Way(SHARDED, again=True),
    "sharded, async": Way(SHARDED, beside_training=True),
    "plain, again, async": Way({**SHARDED, "sharded": False}, again=True, beside_training=True),
    "parts": Way(PARTS),
    "parts, again": Way(PARTS, again=True),
    "keep best": Way(BEST),
    "version 1": Way({**VERSION_1, "sharded": False}),
    "version 1, again": Way({**VERSION_1, "sharded": False}, again=True),
    "version 1, sharded": Way(VERSION_1),
}
MAIN: Final = ["sharded", "sharded, again", "sharded, async", "parts", "parts, again", "keep best", "version 1"]

# One way of each kind; the others are among the heavy tests.
USUAL: Final = {"sharded", "plain, again, async", "parts", "keep best", "version 1, sharded"}


def in_turn(names: Iterable[str], *more: object) -> list[Any]:
    """The cases of a test: each way, with `more` arguments if any."""
    marks = {name: () if name in USUAL else (pytest.mark.heavy,) for name in names}
    return [pytest.param(name, *more, marks=marked) for name, marked in marks.items()]


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: only the number of operations matters here; a disk in memory tests what fsync achieves."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Run:
    """A training run that has saved numbers 1 and 2 and is about to save again."""

    def __init__(self, way: Way, folder: Path) -> None:
        self.way, self.folder = way, folder
        self.state = State()
        self.storage = SwitchedStorage()
        self.saver = self.state.saver(**way.options, storage=self.storage)
        self.stray: list[str] = []

    def prepare(self) -> "Run":
        for number in (1, BEFORE):
            self.state.fill(number)
            self.saver.save(self.folder / "m", number, metrics=self._metrics(number))
        return self

    def copy(self, folder: Path) -> "Run":
        """Return the same run in another directory, as if in another process."""
        shutil.copytree(self.folder, folder)
        return self.resumed(folder)

    def resumed(self, folder: Path) -> "Run":
        copy = Run(self.way, folder)
        names = [os.path.basename(path) for path in self.saver.last_checkpoints]
        copy.saver.set_last_checkpoints_with_time([(str(folder / name), 0.0) for name in names])
        return copy

    def save(self, number: int, storage: Storage) -> str | None:
        self.state.fill(number)
        step = BEFORE if self.way.again else number
        with self.storage.using(storage):
            if self.way.beside_training:
                handle = self.saver.save_async(self.folder / "m", step, metrics=self._metrics(number))
                self.state.fill(10_000 + number)
                return handle.result()
            return self.saver.save(self.folder / "m", step, metrics=self._metrics(number))

    @property
    def target(self) -> Path:
        """The path of NEW."""
        path = self.folder / f"m-{BEFORE if self.way.again else NEW}"
        return Path(f"{path}-?????-of-00002") if self.way.options is VERSION_1 else path

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))

    def files_that_should_be(self) -> list[str]:
        """The files after a successful save: those of the kept checkpoints, and no others."""
        names = {"checkpoint"}
        if "keep_best" in self.way.options:
            names.add("checkpoint.retention.json")
        paths = [*self.saver.last_checkpoints, *self.set_aside()]
        for path in map(os.path.basename, paths):
            names.add(tfckpt.meta_graph_filename(path))
            if self.way.options is VERSION_1:
                names |= {path.replace("?????", f"{shard:05d}") for shard in range(SHARDS)}
            elif self.way.options.get("write_version") == SaverDef.V1:
                names.add(path)
            else:
                count = SHARDS if self.way.options["sharded"] else 1
                names |= {index_filename(path), *(data_filename(path, shard, count) for shard in range(count))}
        return sorted(names)

    def note_stray(self) -> None:
        """The files that stay although a save failed: a checkpoint published before the saver recorded it.

        Shards of version 1 may still have temporary names; the next save renames them.
        """
        if str(self.target) not in self.saver.last_checkpoints and number_at(self.target) == NEW:
            self.stray = [name for name in self.files() if name.startswith(f"m-{NEW}")]
            if self.way.options is VERSION_1:
                self.stray = [self.target.name.replace("?????", f"{shard:05d}") for shard in range(SHARDS)]
        self.stray = [name for name in self.stray if "tempstate" not in name and "_temp" not in name]

    def pinned(self) -> list[str]:
        """The files that stay because the file that lists pinned checkpoints could not be read."""
        file = self.folder / "checkpoint.retention.json"
        pins = json.loads(file.read_text())["pins"] if file.exists() else []
        kept = [name for pin in pins for name in self.files() if _is_of(name, pin.removesuffix("-?????-of-00002"))]
        return [*kept, file.name] if pins else []

    def set_aside(self) -> list[str]:
        """The files protected because of their metric: number 1, the best one."""
        return [str(self.folder / "m-1")] if "keep_best" in self.way.options else []

    def _metrics(self, number: int) -> dict[str, float] | None:
        return {"loss": float(number)} if "keep_best" in self.way.options else None


def _is_of(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith((f"{prefix}.", f"{prefix}-0"))


def number_at(path: Path) -> int | None:
    """Return the number of the checkpoint at `path`; None if it is missing."""
    try:
        return number_in(path)
    except tfckpt.NotFoundError:
        return None


def assert_true(error: BaseException, run: Run, failed: str) -> None:
    """Assert that the message is helpful, and that its statements about the checkpoint are true."""
    assert isinstance(error, tfckpt.IncompleteSaveError | tfckpt.InvalidArgumentError), f"{failed}: {error!r}"
    assert_helps(error, str(run.folder))
    text = str(error)
    assert "No space left on device" in text, text
    there = number_at(run.target)
    if "othing was published" in text:
        assert there == (BEFORE if run.way.again else None), f"{failed} failed, {there} exists: {text}"
    if "is in place" in text:
        assert there == NEW, f"{failed} failed, {there} exists: {text}"
    if "has no meta graph" in text:
        assert latest_number(run.folder) == NEW, f"{failed} failed: {text}"


def assert_goes_on(run: Run, storage: FailingStorage) -> None:
    """Assert that a save succeeds once the storage works again, and that exactly the expected files exist."""
    failed = storage.failed
    run.note_stray()
    storage.heal()
    run.save(NEXT, storage)
    assert assert_sound(run.folder) == NEXT
    # A failed save does not write a meta graph.
    without = {f"m-{NEW}.meta", f"m-{BEFORE}.meta"} if failed else set()
    there, expected = set(run.files()), {*run.stray, *run.pinned(), *run.files_that_should_be()}
    assert there - without == expected - without, f"after {failed}: {sorted(there ^ expected)}"


def cases(tmp_path: Path, way: Way) -> Iterator[tuple[int, Run]]:
    """Yield the run, about to save NEW, once for each number from 0 on."""
    (tmp_path / "run").mkdir()
    prepared = Run(way, tmp_path / "run").prepare()
    for number in itertools.count():
        run = prepared.copy(tmp_path / str(number))
        yield number, run
        shutil.rmtree(run.folder)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("what", in_turn(WAYS))
def test_a_failure_at_any_operation(what: str, forever: bool, tmp_path: Path) -> None:
    """Whichever operation fails: a consistent state, a true message, and a next save that succeeds and cleans up."""
    way = WAYS[what]
    for number, run in cases(tmp_path, way):
        storage = FailingStorage(LOCAL, number, forever=forever)
        try:
            run.save(NEW, storage)
        except Exception as error:
            assert_true(error, run, storage.failed)
            assert assert_sound(run.folder) in (BEFORE, NEW), f"after {storage.failed}"
        else:
            assert assert_sound(run.folder) == NEW, f"the save returned, although {storage.failed} failed"
        assert_goes_on(run, storage)
        if not storage.failed:
            _assert_all_was_tried(storage, way)
            break
    assert number > 20


def _assert_all_was_tried(storage: Counting, way: Way) -> None:
    """Assert that the save without a fault wrote, synced, renamed, recorded, and deleted an older checkpoint."""
    for operation in ("create", "write", "sync", "replace", "sync_directory", "list"):
        assert any(entry.startswith(operation) for entry in storage.log), f"no {operation} in {storage.log}"
    if not way.again and "keep_best" not in way.options:
        assert any(entry.startswith("remove m-1") for entry in storage.log), storage.log


@pytest.mark.parametrize(("what", "error"), [*in_turn(WAYS, OSError), *in_turn(MAIN, KeyboardInterrupt)])
def test_an_operation_that_takes_effect_but_fails(what: str, error: type[BaseException], tmp_path: Path) -> None:
    """As a rename over a network may, or when Ctrl-C immediately follows: the same guarantees."""
    for number, run in cases(tmp_path, WAYS[what]):
        storage = FailingStorage(LOCAL, number, late=True, error=error)
        try:
            run.save(NEW, storage)
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt
            assert assert_sound(run.folder) in (BEFORE, NEW), f"after {storage.failed}"
        except Exception as found:
            assert_true(found, run, storage.failed)
            assert assert_sound(run.folder) in (BEFORE, NEW), f"after {storage.failed}"
        else:
            assert assert_sound(run.folder) == NEW, f"the save returned, although {storage.failed} failed"
        assert_goes_on(run, storage)
        if not storage.failed:
            break


@pytest.mark.parametrize("what", in_turn(MAIN))
def test_ctrl_c_before_any_operation(what: str, tmp_path: Path) -> None:
    """KeyboardInterrupt is raised; the state is consistent; the next save succeeds and cleans up."""
    for number, run in cases(tmp_path, WAYS[what]):
        storage = FailingStorage(LOCAL, number, error=KeyboardInterrupt)
        try:
            run.save(NEW, storage)
        except KeyboardInterrupt:
            assert assert_sound(run.folder) in (BEFORE, NEW), f"before {storage.failed}"
        else:
            assert not storage.failed, f"{storage.failed} swallows Ctrl-C"
            assert assert_sound(run.folder) == NEW
        assert_goes_on(run, storage)
        if not storage.failed:
            break


@pytest.mark.parametrize("what", in_turn(WAYS))
def test_a_kill_at_any_operation(what: str, tmp_path: Path) -> None:
    """Without cleanup, a new process finds a consistent state, saves, and leaves no unexpected files."""
    way = WAYS[what]
    for number, run in cases(tmp_path, way):
        storage = CrashingStorage(LOCAL, number)
        try:
            run.save(NEW, storage)
        except Killed:
            assert assert_sound(run.folder) in (BEFORE, NEW), f"killed at {storage.crashed}"
        else:
            assert not storage.crashed
            break
        storage.end_process()
        restarted = Run(Way({**way.options, "recover": True}), run.folder)
        restarted.save(NEXT, LOCAL)
        assert assert_sound(run.folder) == NEXT
        if way.options is not VERSION_1:  # whose shards do not refer to each other
            assert_nothing_stray(run.folder)


@pytest.mark.parametrize("what", in_turn(MAIN))
def test_a_power_failure_at_any_operation(what: str, tmp_path: Path) -> None:
    """Unsynced bytes and names may be lost in any combination: what the state file names always restores.

    Once the save has returned, that is the new checkpoint.
    """
    (tmp_path / "run").mkdir()
    prepared = Run(WAYS[what], tmp_path / "run").prepare()
    found: dict[tuple[tuple[str, bytes], ...], int] = {}
    for number in itertools.count():
        run = prepared.resumed(prepared.folder)
        disk = DropUnsyncedStorage(prepared.folder)
        storage = CrashingStorage(disk, number)
        try:
            run.save(NEW, storage)
        except Killed:
            expected = {BEFORE, NEW}
        else:
            expected = {NEW}
        for survived in disk.states():
            files = {str(Path(path).relative_to(run.folder)): data for path, data in survived.items()}
            # Temporary names differ from run to run and do not matter to a reader.
            key = tuple(sorted((name, data) for name, data in files.items() if "tempstate" not in name))
            if key not in found:
                found[key] = assert_sound(_written(tmp_path / f"state-{len(found)}", dict(key)))
            assert found[key] in expected, f"power failure at {storage.crashed or 'the end'}: {sorted(files)}"
        if not storage.crashed:
            break
    assert set(found.values()) == {BEFORE, NEW}


@pytest.mark.parametrize("what", in_turn(what for what in MAIN if "version 1" not in what))
def test_a_save_after_a_power_failure(what: str, tmp_path: Path) -> None:
    """Names survived in order, as on a journaling file system, but bytes may be lost: the next save cleans up."""
    (tmp_path / "run").mkdir()
    way = WAYS[what]
    prepared = Run(way, tmp_path / "run").prepare()
    seen: set[tuple[tuple[str, bytes], ...]] = set()
    for number in itertools.count():
        run = prepared.resumed(prepared.folder)
        disk = DropUnsyncedStorage(prepared.folder)
        storage = CrashingStorage(disk, number)
        with suppress(Killed):
            run.save(NEW, storage)
        for survived in disk.states_in_order():
            files = {str(Path(path).relative_to(run.folder)): data for path, data in survived.items()}
            key = tuple(sorted((re.sub("tempstate[0-9]+", "tempstate", name), data) for name, data in files.items()))
            if key in seen:
                continue
            seen.add(key)
            folder = _written(tmp_path / f"state-{len(seen)}", files)
            restarted = Run(Way({**way.options, "recover": True}), folder)
            restarted.save(NEXT, LOCAL)
            assert assert_sound(folder) == NEXT
            assert_nothing_stray(folder)
        if not storage.crashed:
            break


def _written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_disk_without_links_still_saves(tmp_path: Path) -> None:
    """If links are not supported, saves succeed, and leave as many files as they should."""

    class Linkless(Counting):
        def link(self, source: str, target: str) -> None:
            raise OSError(95, "Operation not supported")

    for number, what in enumerate(("sharded, again", "parts, again", "parts")):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = Run(WAYS[what], folder).prepare()
        for saved in range(NEW, NEW + 3):
            run.save(saved, Linkless(LOCAL))
            assert assert_sound(folder) == saved
            assert len(run.files()) == len(run.files_that_should_be()), run.files()


def test_recover_with_a_damaged_state_file(tmp_path: Path) -> None:
    """recover=True with a state file that names nothing, as a full disk leaves it: the save succeeds and fixes it."""
    run = Run(WAYS["sharded"], tmp_path).prepare()
    (tmp_path / "checkpoint").write_bytes(b"")
    saver: Saver = run.state.saver(**SHARDED, recover=True)
    run.state.fill(NEW)
    saver.save(tmp_path / "m", NEW)
    assert assert_sound(tmp_path) == NEW
