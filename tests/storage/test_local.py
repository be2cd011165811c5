"""Local files: the guarantees of every storage, and those specific to local files."""

import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_suite import NOT_UTF8, RenamingStorageTests, read, write

import torch_tfckpt
from torch_tfckpt.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.local import LOCAL, LocalFile, LocalStorage
from torch_tfckpt.storage.names import Temporary, fspath, new_save_number, parse_temporary_name, stem, temporary_name
from torch_tfckpt.storage.protocol import Storage


class TestLocalStorage(RenamingStorageTests):
    """Local files satisfy the Storage protocol."""

    @pytest.fixture
    def storage(self) -> Storage:
        return LocalStorage()


# Short reads and writes.


def _some(limits: Sequence[int]) -> Callable[[Sequence[memoryview]], list[memoryview]]:
    """Return a function that cuts buffer lists to the next of `limits` bytes, then to full size."""
    left = list(limits)

    def cut(buffers: Sequence[memoryview]) -> list[memoryview]:
        room = left.pop(0) if left else sys.maxsize
        taken = []
        for buffer in buffers:
            taken.append(memoryview(buffer)[:room])
            room -= len(taken[-1])
        return taken

    return cut


SIZES = st.lists(st.integers(0, 6), max_size=8)
LIMITS = st.lists(st.integers(1, 5), max_size=20)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@settings(deadline=None)
@given(sizes=SIZES, limits=LIMITS, bound=st.integers(1, 9))
def test_short_reads_are_continued(scratch: Path, sizes: list[int], limits: list[int], bound: int) -> None:
    """The system may return fewer bytes than requested, at any point of any buffer; the caller gets all of them."""
    contents = bytes(range(1, sum(sizes) + 8))
    (scratch / "r").write_bytes(contents)
    targets = [memoryview(bytearray(size)) for size in sizes]
    cut, system = _some(limits), os.preadv
    with pytest.MonkeyPatch.context() as patch, LocalFile(str(scratch / "r")) as file:
        patch.setattr(LocalFile, "MAX_BUFFERS", bound)
        patch.setattr(os, "preadv", lambda descriptor, buffers, offset: system(descriptor, cut(buffers), offset))
        patch.setattr(os, "pread", lambda descriptor, size, offset: contents[offset : offset + min(size, 2)])
        file.read_into(3, targets)
        assert b"".join(targets) == contents[3 : 3 + sum(sizes)]
        assert file.read(3, sum(sizes)) == contents[3 : 3 + sum(sizes)]


@settings(deadline=None)
@given(sizes=SIZES, limits=LIMITS, bound=st.integers(1, 9))
def test_short_writes_are_continued(scratch: Path, sizes: list[int], limits: list[int], bound: int) -> None:
    """On a nearly full disk or after a signal, every byte is still written to its place, once."""
    contents = bytes(range(1, sum(sizes) + 1))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(contents[at : at + size])
        at += size
    (scratch / "w").unlink(missing_ok=True)
    cut, system = _some(limits), os.pwritev
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFile, "MAX_BUFFERS", bound)
        patch.setattr(os, "pwritev", lambda descriptor, buffers, offset: system(descriptor, cut(buffers), offset))
        file = LOCAL.create(str(scratch / "w"))
        file.write(2, pieces)
        file.close()
    assert (scratch / "w").read_bytes() == (b"\0\0" + contents if contents else b"")


def test_a_read_cut_short_by_the_kernel_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reads at most 2 GiB - 4 KiB per call; `read` continues from there."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    system = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: system(descriptor, min(size, 30), offset))
    with LocalFile(str(tmp_path / "a")) as file:
        assert file.read(5, 90) == bytes(range(5, 95))


@pytest.mark.parametrize("call", ["read", "read_into"])
def test_the_error_for_a_file_truncated_while_open_names_its_current_end(tmp_path: Path, call: str) -> None:
    """The file was larger when it was opened: it was truncated in place, or a copy started over."""
    (tmp_path / "a").write_bytes(bytes(100))
    with LocalFile(str(tmp_path / "a")) as file:
        os.truncate(tmp_path / "a", 60)
        with pytest.raises(DataLossError, match="Read less bytes than requested: the file ends at 60"):
            file.read(50, 50) if call == "read" else file.read_into(50, [memoryview(bytearray(50))])
        assert file.size == 100


def test_a_disk_failure_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file and the bytes being read."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_bytes(bytes(100))
    with LocalFile(str(tmp_path / "a")) as file:
        monkeypatch.setattr(os, "pread", fail)
        monkeypatch.setattr(os, "preadv", fail)
        for attempt in (lambda: file.read(10, 5), lambda: file.read_into(10, [memoryview(bytearray(5))])):
            with pytest.raises(DataLossError) as raised:
                attempt()
            assert str(raised.value).startswith(f"{tmp_path / 'a'}, bytes 10:15: Input/output error. ")
            assert isinstance(raised.value.__cause__, OSError)


def test_a_full_disk_raises_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC after half of the bytes raises OSError; the write does not appear to have succeeded."""
    system = os.pwritev
    calls = []

    def nearly_full(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return system(descriptor, [buffers[0][:5]], offset)

    monkeypatch.setattr(os, "pwritev", nearly_full)
    file = LOCAL.create(str(tmp_path / "a"))
    with pytest.raises(OSError, match="No space left on device"):
        file.write(0, [bytes(10)])
    assert calls == [0, 5]
    file.close()


# Names and handles.


def test_using_a_closed_file_raises(tmp_path: Path) -> None:
    """Its descriptor may already belong to another file and must not be used."""
    (tmp_path / "a").write_bytes(b"x")
    file = LOCAL.open(str(tmp_path / "a"))
    file.close()
    with pytest.raises(FailedPreconditionError, match="the file was closed"):
        file.read(0, 1)
    with pytest.raises(FailedPreconditionError, match="the file was closed"):
        file.read_into(0, [memoryview(bytearray(1))])


def test_a_file_that_is_not_regular_is_refused(tmp_path: Path) -> None:
    """A named pipe in place of a checkpoint neither hangs nor is read."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgumentError) as raised:
        LOCAL.open(str(tmp_path / "pipe"))
    assert str(raised.value) == (
        f"{tmp_path / 'pipe'}: is not a regular file, expected a file. Pass the checkpoint's prefix"
    )


def test_unresolvable_names_are_not_found(tmp_path: Path) -> None:
    """A symbolic link to itself, a dangling link, an overlong name."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("loop", "dangling", "x" * 5000, "loop/x"):
        with pytest.raises(NotFoundError, match="no such file"):
            LOCAL.open(str(tmp_path / name))
        assert LOCAL.list(str(tmp_path / name)) == []
    assert LOCAL.exists(str(tmp_path / "dangling"))  # it can be removed, and blocks creating a file
    with pytest.raises(FileExistsError):
        LOCAL.create(str(tmp_path / "dangling"))


def test_an_unreadable_path_is_refused_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No permission, or no file descriptor left: FailedPreconditionError with a fix."""

    def refuse(path: str, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    # Patched because root, under which the tests may run, can read everything.
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    for call in (LOCAL.open, LOCAL.list):
        with pytest.raises(FailedPreconditionError) as raised:
            call(str(tmp_path))
        assert str(raised.value) == (
            f"{tmp_path}: Permission denied. Make it readable by this user, or free the exhausted resource"
        )


def test_the_working_directory_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.path.dirname("model.ckpt") is "", which means the working directory."""
    monkeypatch.chdir(tmp_path)
    write(LOCAL, "a", b"x")
    assert LOCAL.list("") == ["a"]
    LOCAL.make_directory("")
    LOCAL.sync_directory("")
    LOCAL.remove_directory("")
    assert tmp_path.is_dir()


def test_linking_a_symbolic_link_links_its_target(tmp_path: Path) -> None:
    """Caches of downloaded models consist of symbolic links: the bytes must outlive the link."""
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "snapshot" / "model").symlink_to("../blob")
    (tmp_path / "out" / "deeper").mkdir(parents=True)
    LOCAL.link(str(tmp_path / "snapshot" / "model"), str(tmp_path / "out" / "deeper" / "model"))
    LOCAL.remove(str(tmp_path / "snapshot" / "model"))
    assert read(LOCAL, str(tmp_path / "out" / "deeper" / "model")) == b"weights"


def test_a_new_file_respects_the_umask(tmp_path: Path) -> None:
    """As with `open`: 0o666 minus the umask, so that a group sharing a directory can read the checkpoint."""
    before = os.umask(0o027)
    try:
        write(LOCAL, str(tmp_path / "a"), b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_child_processes_inherit_no_descriptors(tmp_path: Path) -> None:
    """A data loader started during a save does not keep the old checkpoint's files open."""
    (tmp_path / "a").write_bytes(b"")
    with LocalFile(str(tmp_path / "a")) as file:
        assert not os.get_inheritable(file.fileno())


def test_a_local_file_can_be_mapped(tmp_path: Path) -> None:
    """The descriptor still refers to the bytes after the name is deleted."""
    path = write(LOCAL, str(tmp_path / "a"), b"mapped")
    with LocalFile(path) as file:
        LOCAL.remove(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert view[:] == b"mapped"


# Detecting which files are being written.

# The package's own __init__ imports everything, which takes seconds.
PROGRAM = """
import sys, types
package = types.ModuleType("torch_tfckpt")
package.__path__ = [sys.argv[1]]
sys.modules["torch_tfckpt"] = package
from torch_tfckpt.storage.local import LOCAL
"""
HOLD = f"{PROGRAM}file = LOCAL.create(sys.argv[2]); print('holding', flush=True); sys.stdin.read()"
ASK = f"{PROGRAM}print(LOCAL.in_use(sys.argv[2]))"


def start(program: str, path: Path) -> "subprocess.Popen[str]":
    package = Path(torch_tfckpt.__file__).parent
    command = [sys.executable, "-c", program, str(package), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_closed_file_is_not_in_use(tmp_path: Path) -> None:
    """Nor is a file that is open for reading, does not exist, or was written by other means."""
    path = write(LOCAL, str(tmp_path / "a"), b"x")
    assert not LOCAL.in_use(path)
    with LocalFile(path):
        assert not LOCAL.in_use(path)
    assert not LOCAL.in_use(str(tmp_path / "none"))
    (tmp_path / "other").write_bytes(b"x")
    assert not LOCAL.in_use(str(tmp_path / "other"))


def test_in_use_leaves_no_lock(tmp_path: Path) -> None:
    """The next call gets the same answer, in the same or another process."""
    path = write(LOCAL, str(tmp_path / "a"), b"x")
    file = LOCAL.create(str(tmp_path / "b"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert not LOCAL.in_use(path)
        assert LOCAL.in_use(file.path)
    assert len(os.listdir("/proc/self/fd")) == before
    file.close()
    assert not LOCAL.in_use(file.path)


def test_a_file_stays_in_use_under_its_new_name(tmp_path: Path) -> None:
    """A writer that renames before it closes: the file is in use at every moment."""
    file = LOCAL.create(str(tmp_path / "a"))
    LOCAL.replace(file.path, str(tmp_path / "b"))
    assert LOCAL.in_use(str(tmp_path / "b"))
    assert not LOCAL.in_use(str(tmp_path / "a"))
    file.close()
    assert not LOCAL.in_use(str(tmp_path / "b"))


def test_another_process_sees_what_is_in_use(tmp_path: Path) -> None:
    """While the file is open, and not afterwards."""
    file = LOCAL.create(str(tmp_path / "a"))
    assert start(ASK, tmp_path / "a").communicate(timeout=60)[0] == "True\n"
    file.close()
    assert start(ASK, tmp_path / "a").communicate(timeout=60)[0] == "False\n"


def test_a_file_of_a_killed_process_is_not_in_use(tmp_path: Path) -> None:
    """SIGKILL prevents any cleanup; the system releases the lock."""
    with start(HOLD, tmp_path / "a") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        assert LOCAL.in_use(str(tmp_path / "a"))
        process.kill()
        process.wait(60)
    assert LOCAL.exists(str(tmp_path / "a"))
    assert not LOCAL.in_use(str(tmp_path / "a"))


def test_without_locks_every_file_may_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems lack locks: files can be written there, but never count as leftovers."""

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    path = write(LOCAL, str(tmp_path / "a"), b"x")
    assert read(LOCAL, path) == b"x"
    assert LOCAL.in_use(path)
    assert not LOCAL.in_use(str(tmp_path / "none"))


def test_a_file_that_cannot_be_opened_may_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it cannot be determined, the answer is the safe one."""

    def refuse(path: str, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    assert LOCAL.in_use(str(tmp_path / "a"))


def test_a_file_removed_before_it_is_locked_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between open(2) and flock(2) another program may mistake a new file for a leftover."""
    system = fcntl.flock
    removed: list[int] = []

    def meddle(descriptor: int, operation: int) -> None:
        if len(removed) < 3:
            removed.append(descriptor)
            os.unlink(tmp_path / "a")
        system(descriptor, operation)

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", meddle)
        file = LOCAL.create(str(tmp_path / "a"))
    assert len(removed) == 3
    file.write(0, [b"kept"])
    assert LOCAL.in_use(str(tmp_path / "a"))
    file.close()
    assert read(LOCAL, str(tmp_path / "a")) == b"kept"
    assert len(os.listdir("/proc/self/fd")) == before


def test_modified_is_the_modification_time_of_the_target(tmp_path: Path) -> None:
    """With fractions of a second; for a symbolic link, the time of its target."""
    path = write(LOCAL, str(tmp_path / "a"), b"x")
    os.utime(path, ns=(0, 1_234_567_890_500_000_000))
    (tmp_path / "link").symlink_to("a")
    assert LOCAL.modified(path) == LOCAL.modified(str(tmp_path / "link")) == 1_234_567_890.5


def watch_closing(monkeypatch: pytest.MonkeyPatch, closed: list[int]) -> None:
    system = os.close

    def watched(descriptor: int) -> None:
        closed.append(descriptor)
        system(descriptor)

    monkeypatch.setattr(os, "close", watched)


def test_a_file_system_that_cannot_sync_directories_is_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL and ENOTSUP mean that it cannot; other errors are raised, and no descriptor is leaked."""
    closed: list[int] = []
    watch_closing(monkeypatch, closed)
    for number, tolerated in ((errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)):

        def fail(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        if tolerated:
            LOCAL.sync_directory(str(tmp_path))
        else:
            with pytest.raises(OSError, match="Input/output error"):
                LOCAL.sync_directory(str(tmp_path))
    assert len(closed) == 3


def test_a_refused_directory_leaks_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching many directories for checkpoints does not exhaust the descriptors."""
    opened: list[int] = []
    closed: list[int] = []
    system = os.open

    def watched(path: str, flags: int) -> int:
        opened.append(system(path, flags))
        return opened[-1]

    monkeypatch.setattr(os, "open", watched)
    watch_closing(monkeypatch, closed)
    with pytest.raises(InvalidArgumentError):
        LOCAL.open(str(tmp_path))
    assert opened == closed
    assert len(opened) == 1


# Paths.


def test_temporary_names_are_unique_and_in_the_same_directory() -> None:
    """On the same file system, so that a rename publishes; TensorFlow's ".tempstate" and a number, then our mark."""
    names = {temporary_name("dir/model.index", new_save_number(0)) for _ in range(100)}
    assert len(names) == 100
    for name in names:
        prefix, _, number = name.rpartition(".tempstate")
        assert prefix == "dir/model.index"
        assert 0 <= int(number.removesuffix("-tfckpt")) < 2**64
        assert number.endswith("-tfckpt")


@given(path=st.text(min_size=1), save=st.integers(0, 2**64 - 1))
def test_temporary_names_can_be_parsed(path: str, save: int) -> None:
    """The final name and the save number are recovered, whatever characters the name contains (if it is not long)."""
    assert parse_temporary_name(temporary_name(path, save)) == Temporary(stem(path), save)


@given(path=st.text(min_size=1, max_size=54), save=st.integers(0, 2**64 - 1))
def test_names_that_are_not_long_are_recovered(path: str, save: int) -> None:
    """A character has at most four bytes."""
    assert parse_temporary_name(temporary_name(path, save)) == Temporary(path, save)


@pytest.mark.parametrize("end", [".index", ".data-00000-of-00001", "_temp", ""])
@pytest.mark.parametrize("character", ["a", "é", "🙂", os.fsdecode(b"\xff")])
def test_temporary_names_of_long_names_fit(character: str, end: str) -> None:
    """At most 255 bytes, with the end of the name; different names, also in the middle, have different ones."""
    room = 255 - len(end)
    full = character * (room // len(os.fsencode(character)))
    other = f"{full[:20]}b{full[21:]}"
    names = [temporary_name(f"dir/{name}{end}", 2**64 - 1) for name in (full, full[:-1], other)]
    assert len(set(names)) == 3
    for name in names:
        assert len(os.fsencode(name.removeprefix("dir/"))) <= 255
        parsed = parse_temporary_name(name)
        assert parsed is not None
        assert parsed.path.endswith(end)
        assert stem(parsed.path) == parsed.path
    with pytest.raises(InvalidArgumentError, match="has 300 bytes, and file systems accept at most 255"):
        temporary_name("dir/" + "x" * (300 - len(end)) + end, 1)


@pytest.mark.parametrize(
    "name",
    [
        "model.index",
        "model.index.tempstate12345",  # TensorFlow's own file, which may be in use
        ".tempstate1-tfckpt",
        "model.tempstate-tfckpt",
        "model.tempstate1-tfckpt.index",
        "model.tempstate1-tfckpt\n",
        "model.tempstate-1-tfckpt",
    ],
)
def test_other_names_are_not_our_temporary_names(name: str) -> None:
    """They never count as leftovers."""
    assert parse_temporary_name(name) is None


def test_save_numbers_are_unique() -> None:
    """64 random bits: unique even for two machines that save into one directory."""
    assert len({new_save_number(5) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dir/model.ckpt", "dir/model.ckpt"),
        (Path("dir/model.ckpt"), "dir/model.ckpt"),
        (b"dir/w\xff\xfe", f"dir/{NOT_UTF8}"),
        ("file:///ckpt/model", "/ckpt/model"),  # CASES 32
        (b"file:///ckpt/model", "/ckpt/model"),
        ("a/file://b", "a/file://b"),
    ],
)
def test_every_kind_of_path_is_accepted(path: str | bytes | os.PathLike[str], text: str) -> None:
    """str, bytes, PathLike, and the URL of a local file."""
    assert fspath(path) == text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", '"" is not a path: it is empty or contains a null character'),
        (b"", '"" is not a path: it is empty or contains a null character'),
        ("a\0b", '"a\\x00b" is not a path: it is empty or contains a null character'),
        ("file://", "is not a path: it is empty or contains a null character"),
        (3, "expected a path (str, bytes or PathLike), got int"),
        (None, "expected a path (str, bytes or PathLike), got NoneType"),
        (["a"], "expected a path (str, bytes or PathLike), got list"),
    ],
)
def test_an_invalid_path_is_refused(path: object, text: str) -> None:
    """InvalidArgumentError, raised before the system would interpret it as the working directory."""
    with pytest.raises(InvalidArgumentError) as raised:
        fspath(path)  # type: ignore[arg-type]
    assert text in str(raised.value)


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=6))
def test_every_string_is_a_usable_path_or_refused(text: str) -> None:
    """An accepted path can be passed to the system; lone surrogates are refused."""
    try:
        path = fspath(text)
    except InvalidArgumentError:
        return
    assert os.fsencode(path)


def test_concurrent_reads_do_not_interfere(tmp_path: Path) -> None:
    """Each call has its own offset: a read at the end does not move one at the beginning."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 100)
    ready = threading.Barrier(2)
    with LocalFile(str(tmp_path / "a")) as file, ThreadPoolExecutor(2) as threads:

        def reads(start: int) -> list[bytes]:
            ready.wait()
            return [file.read(start, 256) for _ in range(200)]

        for result in threads.map(reads, (0, 256 * 99)):
            assert result == [bytes(range(256))] * 200
