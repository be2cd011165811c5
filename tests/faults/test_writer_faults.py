"""Writers under faults: storage errors, kills and power failures at every operation.

Whatever happens, the prefix refers to the old checkpoint or the new one, complete and verified; never to a mix, and
never to nothing if there was an old one.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from claims import assert_right, survey
from samples import strings
from storages import Counting, CrashingStorage, DropUnsyncedStorage, FailingStorage, Killed

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.v1.writer import SlicesWriter
from torch_tfckpt.values import Value

Values = dict[str, Value]

OLD: Values = {"a": torch.arange(5.0), "b": strings(b"old"), "gone": torch.ones(2), "w": torch.zeros(4, 2)}
NEW: Values = {"a": torch.arange(7.0) + 100, "b": strings(b"new", b"er"), "c": torch.ones(3), "w": torch.ones(4, 2)}


def save(storage: Storage, path: Path, values: Values, shards: int = 1) -> None:
    with BundleWriter(storage, str(path), num_shards=shards) as writer:
        for number, (name, value) in enumerate(sorted(values.items())):
            if name == "w" and shards > 1:
                assert isinstance(value, torch.Tensor)
                for shard, text in enumerate(("0,2:-", "2,2:-")):
                    part = TensorSlice.parse(text)
                    writer.add_slice(name, (4, 2), part, value[part.to_index()], shard=shard)
            else:
                writer.add(name, value, shard=number % shards)


def save_v1(storage: Storage, path: Path, values: Values) -> None:
    with SlicesWriter(storage, str(path)) as writer:
        for name, value in values.items():
            writer.add(name, value)


def sources(path: Path) -> list[Path]:
    return [path.parent / "parts" / f"part-{number}" for number in range(2)]


def make_sources(path: Path) -> None:
    """Create two checkpoints that merge to NEW, in their own directory."""
    halves = dict(list(NEW.items())[:2]), dict(list(NEW.items())[2:])
    (path.parent / "parts").mkdir()
    for source, values in zip(sources(path), halves, strict=True):
        save(LOCAL, source, values)


def merge(storage: Storage, path: Path) -> None:
    merge_bundles(storage, [str(source) for source in sources(path)], str(path))


class Way(NamedTuple):
    """One way for NEW to be written to a path."""

    prepare: Callable[[Path], object]
    write: Callable[[Storage, Path], None]
    replaces: bool


def old(path: Path, shards: int = 1) -> None:
    save(LOCAL, path, OLD, shards)


def old_and_sources(path: Path) -> None:
    old(path)
    make_sources(path)


WAYS: dict[str, Way] = {
    "save": Way(lambda path: None, lambda storage, path: save(storage, path, NEW), False),
    "save in two shards": Way(lambda path: None, lambda storage, path: save(storage, path, NEW, 2), False),
    "save over one shard": Way(old, lambda storage, path: save(storage, path, NEW), True),
    "save two shards over one": Way(old, lambda storage, path: save(storage, path, NEW, 2), True),
    "save one shard over two": Way(
        lambda path: old(path, 2), lambda storage, path: save(storage, path, NEW, 1), True
    ),
    "save three shards over two": Way(
        lambda path: old(path, 2), lambda storage, path: save(storage, path, NEW, 3), True
    ),
    "merge": Way(make_sources, merge, False),
    "merge over one shard": Way(old_and_sources, merge, True),
    "save version 1": Way(lambda path: None, lambda storage, path: save_v1(storage, path, NEW), False),
    "save over version 1": Way(
        lambda path: save_v1(LOCAL, path, OLD), lambda storage, path: save_v1(storage, path, NEW), True
    ),
}  # fmt: skip
# One way of each kind; the others are among the heavy tests.
USUAL = {"save two shards over one", "merge over one shard", "save over version 1"}
IN_TURN = [name if name in USUAL else pytest.param(name, marks=pytest.mark.heavy) for name in WAYS]
VERSION_2 = [name for name in WAYS if "version 1" not in name]
MERGES = [name for name in WAYS if "merge" in name]


def state_of(path: Path) -> str:
    """Return "old", "new" or "nothing"; fail for anything else, such as a partial checkpoint."""
    try:
        values = tfckpt.load_file(path)
    except tfckpt.NotFoundError:
        return "nothing"
    expected, name = (NEW, "new") if "c" in values else (OLD, "old")
    assert_right(values, expected)
    found = survey(path, expected)
    assert not found.detected, found
    return name


def allowed(way: Way) -> set[str]:
    return {"old", "new"} if way.replaces else {"nothing", "new"}


def runs(tmp_path: Path, way: Way) -> Iterator[tuple[int, Path]]:
    """Yield a fresh, prepared directory for each number from 0 on."""
    for number in itertools.count():
        folder = tmp_path / str(number)
        folder.mkdir()
        way.prepare(folder / "model")
        yield number, folder / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("what", IN_TURN)
def test_a_failure_at_any_operation_leaves_old_or_new(what: str, forever: bool, tmp_path: Path) -> None:
    """Whichever operation fails, the old or the new checkpoint exists; if the save returned, the new one."""
    way = WAYS[what]
    for number, path in runs(tmp_path, way):
        storage = FailingStorage(LOCAL, number, forever=forever)
        try:
            way.write(storage, path)
        except (tfckpt.CheckpointError, OSError):
            assert state_of(path) in allowed(way), f"after {storage.failed}"
        else:
            assert state_of(path) == "new", f"the save returned although {storage.failed} failed"
        if not storage.failed:
            break
    assert number > 5


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("what", IN_TURN)
def test_error_messages_are_true(what: str, forever: bool, tmp_path: Path) -> None:
    """IncompleteSaveError with the cause; if it reports that nothing was published, nothing was."""
    way = WAYS[what]
    for number, path in runs(tmp_path, way):
        storage = FailingStorage(LOCAL, number, forever=forever)
        before = state_of(path)
        try:
            way.write(storage, path)
        except tfckpt.IncompleteSaveError as error:
            assert "model" in str(error) and "No space left on device" in str(error), str(error)
            if "othing was published" in str(error):
                assert state_of(path) == before, (
                    f"{storage.failed} failed after the switch, but the message is: {error}"
                )
        except (tfckpt.CheckpointError, OSError) as error:
            raise AssertionError(f"{storage.failed} failed: {type(error).__name__}: {error}") from error
        if not storage.failed:
            break


@pytest.mark.parametrize("late", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("what", IN_TURN)
def test_an_interruption_at_any_operation_leaves_old_or_new(
    what: str, error: type[BaseException], late: bool, tmp_path: Path
) -> None:
    """Ctrl-C right before or after any operation, or an operation that takes effect but reports an error.

    Renames over a network may do the latter. The cleanup removes nothing that a reader needs.
    """
    way = WAYS[what]
    for number, path in runs(tmp_path, way):
        storage = FailingStorage(LOCAL, number, late=late, error=error)
        try:
            way.write(storage, path)
        except (tfckpt.CheckpointError, OSError, KeyboardInterrupt):
            assert state_of(path) in allowed(way), f"{'after' if late else 'before'} {storage.failed}"
        if not storage.failed:
            break


@pytest.mark.parametrize("what", IN_TURN)
def test_a_failure_leaves_no_files(what: str, tmp_path: Path) -> None:
    """After a failed operation no temporary file is left, and after the next save exactly that save's files.

    Except if that very operation was to remove the file, or the file marks older data for the next save to remove.
    """
    way = WAYS[what]
    for number, path in runs(tmp_path, way):
        storage = FailingStorage(LOCAL, number)
        try:
            way.write(storage, path)
        except (tfckpt.CheckpointError, OSError):
            if not storage.failed.startswith("remove"):
                left = [name for name in names(path.parent) if "tempstate" in name]
                assert not left or _tells_of_older_data(path), f"after {storage.failed} failed: {left}"
        way.write(LOCAL, path) if what not in MERGES else save(LOCAL, path, NEW)
        assert state_of(path) == "new"
        data = [name for name in names(path.parent) if name.startswith("model") and "tempstate" not in name]
        if what in VERSION_2:
            count = sum(".data-" in name for name in data)
            assert data == ["model." + name.split(".", 1)[1] for name in data]
            assert all(name.endswith(f"-of-{count:05d}") for name in data if ".data-" in name), (
                f"{data} after {storage.failed} failed"
            )
        if not storage.failed:
            break


def _tells_of_older_data(path: Path) -> bool:
    """Return whether the new checkpoint is in place and the leftover makes the next save remove older data."""
    assert state_of(path) == "new"
    before = names(path.parent)
    remove_leftovers(LOCAL, str(path.parent))
    assert not [name for name in names(path.parent) if "tempstate" in name]
    assert state_of(path) == "new"
    return any(".data-" in name for name in set(before) - set(names(path.parent)) if "tempstate" not in name)


@pytest.mark.parametrize("what", MERGES)
def test_a_failed_merge_keeps_its_sources(what: str, tmp_path: Path) -> None:
    """Until the merged checkpoint is in place, all sources can be read."""
    way = WAYS[what]
    for number, path in runs(tmp_path, way):
        storage = FailingStorage(LOCAL, number)
        try:
            way.write(storage, path)
        except (tfckpt.CheckpointError, OSError):
            if state_of(path) != "new":
                together: Values = {}
                for source in sources(path):
                    together |= tfckpt.load_file(source)
                assert_right(together, NEW)
        if not storage.failed:
            assert not (path.parent / "parts").exists()
            break


@pytest.mark.parametrize("what", IN_TURN)
def test_a_kill_at_any_operation_leaves_old_or_new(what: str, tmp_path: Path) -> None:
    """Without cleanup, the old or the new checkpoint exists, and the next save succeeds."""
    way = WAYS[what]
    for number, path in runs(tmp_path, way):
        storage = CrashingStorage(LOCAL, number)
        try:
            way.write(storage, path)
        except Killed:
            assert state_of(path) in allowed(way), f"killed at {storage.crashed}"
            if what in MERGES and state_of(path) != "new":
                together: Values = {}
                for source in sources(path):
                    together |= tfckpt.load_file(source)
                assert_right(together, NEW)
        else:
            assert not storage.crashed
            assert state_of(path) == "new"
            break
        way.write(LOCAL, path) if what not in MERGES else save(LOCAL, path, NEW)
        assert state_of(path) == "new"


@pytest.mark.parametrize("what", IN_TURN)
def test_a_power_failure_at_any_operation_leaves_old_or_new(what: str, tmp_path: Path) -> None:
    """Unsynced bytes and names may be lost in any combination: the old or the new checkpoint always exists.

    Once the save has returned it is the new one.
    """
    way = WAYS[what]
    seen: dict[tuple[tuple[str, bytes], ...], str] = {}
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "model"
    way.prepare(path)
    for number in itertools.count():
        disk = DropUnsyncedStorage(folder)
        storage = CrashingStorage(disk, number)
        try:
            way.write(storage, path)
        except Killed:
            expected = allowed(way)
        else:
            expected = {"new"}
        for state in disk.states():
            found = _found_in(state, folder, tmp_path, seen, what in MERGES)
            assert found in expected, f"power failure at {storage.crashed or 'the end'}: {sorted(state)}"
        if not storage.crashed:
            break
    assert {"new"} < set(seen.values())


def _found_in(
    state: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    seen: dict[tuple[tuple[str, bytes], ...], str],
    is_merge: bool,
) -> str:
    """Return what a reader finds on a disk in that state. Temporary names differ from run to run and do not matter."""
    content = {str(Path(path).relative_to(folder)): data for path, data in state.items() if "tempstate" not in path}
    key = tuple(sorted(content.items()))
    if key not in seen:
        copy = tmp_path / f"state-{len(seen)}"
        for name, data in content.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)
        copy.mkdir(exist_ok=True)
        seen[key] = state_of(copy / "model")
        if is_merge and seen[key] != "new":
            together: Values = {}
            for source in sources(copy / "model"):
                together |= tfckpt.load_file(source)
            assert_right(together, NEW)
    return seen[key]


def test_the_power_failure_test_detects_a_writer_that_does_not_sync(tmp_path: Path) -> None:
    """The simulated disk can detect errors: it does so for a writer that only renames."""
    save(LOCAL, tmp_path / "model", OLD)
    disk = DropUnsyncedStorage(tmp_path)
    path = str(tmp_path / "model.index")
    file = disk.create(f"{path}.new")
    file.write(0, [b"bytes"])
    disk.replace(f"{path}.new", path)
    contents = {state[path] for state in disk.states()}
    assert contents == {(tmp_path / "model.index").read_bytes(), b"", b"bytes"}
    file.sync()
    disk.sync_directory(str(tmp_path))
    assert [state[path] for state in disk.states()] == [b"bytes", b"bytes"]


def test_a_final_name_taken_by_another_program_is_harmless(tmp_path: Path) -> None:
    """A link never replaces a file: if the final name is taken at the last moment, the checkpoint keeps its names.

    The file stays, because it may be data of another host's save that has no index yet. The next save uses the final
    names.
    """

    class Meddling(Counting):
        def link(self, source: str, target: str) -> None:
            if target.endswith("-of-00001"):
                Path(target).write_bytes(b"somebody else's")
            super().link(source, target)

    path = tmp_path / "model"
    save(LOCAL, path, OLD)
    for values in (NEW, OLD, NEW):
        save(Meddling(LOCAL), path, values)
        assert state_of(path) == ("new" if values is NEW else "old")
        assert (tmp_path / "model.data-00000-of-00001").read_bytes() == b"somebody else's"
        assert len(names(tmp_path)) == 3, "files that no index refers to are left"
    save(LOCAL, path, NEW)
    assert state_of(path) == "new"
    assert names(tmp_path) == ["model.data-00000-of-00001", "model.index"]


def test_a_disk_without_links_still_saves(tmp_path: Path) -> None:
    """If links are not supported the checkpoint keeps its temporary shard count, and the next save replaces it."""

    class Linkless(FailingStorage):
        def link(self, source: str, target: str) -> None:
            raise OSError(95, "Operation not supported")

    path = tmp_path / "model"
    for values in (OLD, NEW, OLD, NEW):
        save(Linkless(LOCAL, -1), path, values, 2)
        assert state_of(path) == ("new" if values is NEW else "old")
        assert len(names(tmp_path)) == 3
