"""The files of this machine: they keep what every storage promises, and what only they promise."""

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
from torch_tfckpt.storage.names import Temporary, fspath, new_save_number, parse_temporary_name, temporary_name
from torch_tfckpt.storage.protocol import Storage


class TestLocalStorage(RenamingStorageTests):
    """The files of this machine keep those promises."""

    @pytest.fixture
    def storage(self) -> Storage:
        return LocalStorage()


# Files of this machine: short reads and writes.


def _some(limits: Sequence[int]) -> Callable[[Sequence[memoryview]], list[memoryview]]:
    """Cuts lists of buffers to the next of `limits` bytes each time, and takes all once they are used up."""
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
    """The system may give fewer bytes than asked for, at any place of any buffer; the caller sees all of them."""
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
    """A disk that is nearly full, or a signal: every byte still lands in its place, once."""
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


def test_a_read_that_the_kernel_cuts_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux stops at 2 GiB - 4 KiB a call; `read` goes on where it stopped."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    system = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: system(descriptor, min(size, 30), offset))
    with LocalFile(str(tmp_path / "a")) as file:
        assert file.read(5, 90) == bytes(range(5, 95))


@pytest.mark.parametrize("call", ["read", "read_into"])
def test_a_file_cut_while_open_is_told_with_its_present_end(tmp_path: Path, call: str) -> None:
    """The size at opening was larger: a writer that truncates in place, or a copy that started over."""
    (tmp_path / "a").write_bytes(bytes(100))
    with LocalFile(str(tmp_path / "a")) as file:
        os.truncate(tmp_path / "a", 60)
        with pytest.raises(DataLossError, match="Read less bytes than requested: the file ends at 60"):
            file.read(50, 50) if call == "read" else file.read_into(50, [memoryview(bytearray(50))])
        assert file.size == 100


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system while reading says which bytes of which file."""

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


def test_a_full_disk_is_the_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC after half of the bytes: OSError, not a file that looks written."""
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


# Files of this machine: names and handles.


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    """Its descriptor may belong to another file by now, and is not read."""
    (tmp_path / "a").write_bytes(b"x")
    file = LOCAL.open(str(tmp_path / "a"))
    file.close()
    with pytest.raises(FailedPreconditionError, match="the file was closed"):
        file.read(0, 1)
    with pytest.raises(FailedPreconditionError, match="the file was closed"):
        file.read_into(0, [memoryview(bytearray(1))])


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A named pipe in the place of a checkpoint neither hangs nor is read."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgumentError) as raised:
        LOCAL.open(str(tmp_path / "pipe"))
    assert str(raised.value) == (
        f"{tmp_path / 'pipe'}: is no regular file, expected a file. Name a checkpoint by its prefix"
    )


def test_names_that_lead_nowhere_are_not_found(tmp_path: Path) -> None:
    """A link onto itself, a link to nothing, a name that no file system takes."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("loop", "dangling", "x" * 5000, "loop/x"):
        with pytest.raises(NotFoundError, match="no such file"):
            LOCAL.open(str(tmp_path / name))
        assert LOCAL.list(str(tmp_path / name)) == []
    assert LOCAL.exists(str(tmp_path / "dangling"))  # it can be removed, and is in the way of a new file
    with pytest.raises(FileExistsError):
        LOCAL.create(str(tmp_path / "dangling"))


def test_what_may_not_be_read_is_refused_with_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No permission, or no descriptor left: FailedPreconditionError, with what to do."""

    def refuse(path: str, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    # Patched, since a test that runs as root may read everything.
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    for call in (LOCAL.open, LOCAL.list):
        with pytest.raises(FailedPreconditionError) as raised:
            call(str(tmp_path))
        assert str(raised.value) == (
            f"{tmp_path}: Permission denied. Make it readable for this user, or free what the system ran out of"
        )


def test_the_working_directory_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.path.dirname("model.ckpt") is "", and means here."""
    monkeypatch.chdir(tmp_path)
    write(LOCAL, "a", b"x")
    assert LOCAL.list("") == ["a"]
    LOCAL.make_directory("")
    LOCAL.sync_directory("")
    LOCAL.remove_directory("")
    assert tmp_path.is_dir()


def test_a_link_of_a_symbolic_link_is_a_name_of_the_bytes(tmp_path: Path) -> None:
    """Caches of downloaded models are folders of symbolic links: the bytes have to outlive the link."""
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "snapshot" / "model").symlink_to("../blob")
    (tmp_path / "out" / "deeper").mkdir(parents=True)
    LOCAL.link(str(tmp_path / "snapshot" / "model"), str(tmp_path / "out" / "deeper" / "model"))
    LOCAL.remove(str(tmp_path / "snapshot" / "model"))
    assert read(LOCAL, str(tmp_path / "out" / "deeper" / "model")) == b"weights"


def test_a_new_file_gets_the_mode_of_the_user(tmp_path: Path) -> None:
    """As `open` gives it: 0o666 less the umask, so that a group that shares a folder can read the checkpoint."""
    before = os.umask(0o027)
    try:
        write(LOCAL, str(tmp_path / "a"), b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_no_descriptor_reaches_a_child_process(tmp_path: Path) -> None:
    """A data loader started during a save does not keep the old checkpoint's files open."""
    (tmp_path / "a").write_bytes(b"")
    with LocalFile(str(tmp_path / "a")) as file:
        assert not os.get_inheritable(file.fileno())


def test_a_local_file_can_be_mapped(tmp_path: Path) -> None:
    """Its descriptor is that of the bytes, also after the name is gone."""
    path = write(LOCAL, str(tmp_path / "a"), b"mapped")
    with LocalFile(path) as file:
        LOCAL.remove(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert view[:] == b"mapped"


# Files of this machine: who is writing.

# The package's own __init__ is the public face, and takes seconds to import.
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
    """Nor is one that others read, or that was never there, or that was written by other means."""
    path = write(LOCAL, str(tmp_path / "a"), b"x")
    assert not LOCAL.in_use(path)
    with LocalFile(path):
        assert not LOCAL.in_use(path)
    assert not LOCAL.in_use(str(tmp_path / "none"))
    (tmp_path / "other").write_bytes(b"x")
    assert not LOCAL.in_use(str(tmp_path / "other"))


def test_asking_leaves_no_lock(tmp_path: Path) -> None:
    """Whoever asks next gets the same answer, in the same process or another one."""
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
    """A writer that renames before it closes: at no moment is the file one that nobody uses."""
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


def test_what_a_killed_process_wrote_is_not_in_use(tmp_path: Path) -> None:
    """SIGKILL leaves it no chance to tidy up; the system takes the lock."""
    with start(HOLD, tmp_path / "a") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        assert LOCAL.in_use(str(tmp_path / "a"))
        process.kill()
        process.wait(60)
    assert LOCAL.exists(str(tmp_path / "a"))
    assert not LOCAL.in_use(str(tmp_path / "a"))


def test_without_locks_every_file_may_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: files are written there all the same, and never taken for leftovers."""

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    path = write(LOCAL, str(tmp_path / "a"), b"x")
    assert read(LOCAL, path) == b"x"
    assert LOCAL.in_use(path)
    assert not LOCAL.in_use(str(tmp_path / "none"))


def test_what_may_not_be_opened_may_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that cannot be told, the careful answer."""

    def refuse(path: str, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    assert LOCAL.in_use(str(tmp_path / "a"))


def test_a_file_that_was_cleared_up_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open(2) and flock(2) another program may take a new file for a leftover."""
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


def test_the_time_of_change_is_that_of_the_file_itself(tmp_path: Path) -> None:
    """To the fraction of a second; of a symbolic link's target, whose bytes they are."""
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
    """EINVAL and ENOTSUP say that it cannot; any other error is one, and no descriptor stays open."""
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


def test_a_refused_directory_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through many folders for checkpoints does not run out of descriptors."""
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


def test_temporary_names_stand_beside_the_file_and_differ() -> None:
    """The same file system, so that a rename publishes; TensorFlow's pattern, and a mark of ours behind it."""
    # FORMATS 2.6: .tempstate and a 64-bit number
    names = {temporary_name("dir/model.index") for _ in range(100)}
    assert len(names) == 100
    for name in names:
        prefix, _, number = name.rpartition(".tempstate")
        assert prefix == "dir/model.index"
        assert 0 <= int(number.removesuffix("-tfckpt")) < 2**64
        assert number.endswith("-tfckpt")


@given(path=st.text(min_size=1), save=st.integers(0, 2**64 - 1))
def test_temporary_names_say_what_they_are_of(path: str, save: int) -> None:
    """The name it will have and the save it belongs to, whatever characters are in them."""
    assert parse_temporary_name(temporary_name(path, save)) == Temporary(path, save)


@pytest.mark.parametrize(
    "name",
    [
        "model.index",
        "model.index.tempstate12345",  # TensorFlow's own: it may be in use
        ".tempstate1-tfckpt",
        "model.tempstate-tfckpt",
        "model.tempstate1-tfckpt.index",
        "model.tempstate1-tfckpt\n",
        "model.tempstate-1-tfckpt",
    ],
)
def test_other_names_are_no_temporary_ones_of_ours(name: str) -> None:
    """They are never taken for leftovers."""
    assert parse_temporary_name(name) is None


def test_saves_have_numbers_apart() -> None:
    """64 bits of chance: also of two machines that save into one directory."""
    assert len({new_save_number() for _ in range(1000)}) == 1000


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
def test_any_spelling_of_a_path_is_taken(path: str | bytes | os.PathLike[str], text: str) -> None:
    """str, bytes, PathLike, and the URL of a local file."""
    assert fspath(path) == text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", '"" is no path: it is empty or holds a null character'),
        (b"", '"" is no path: it is empty or holds a null character'),
        ("a\0b", '"a\\x00b" is no path: it is empty or holds a null character'),
        ("file://", "is no path: it is empty or holds a null character"),
        (3, "expected a path (str, bytes or PathLike), got int"),
        (None, "expected a path (str, bytes or PathLike), got NoneType"),
        (["a"], "expected a path (str, bytes or PathLike), got list"),
    ],
)
def test_what_is_no_path_is_refused(path: object, text: str) -> None:
    """InvalidArgumentError, before the system is asked and answers for the working directory."""
    with pytest.raises(InvalidArgumentError) as raised:
        fspath(path)  # type: ignore[arg-type]
    assert text in str(raised.value)


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=6))
def test_any_text_is_a_path_that_the_system_takes_or_none(text: str) -> None:
    """What comes out can be given to the system; halves of surrogate pairs are refused before."""
    try:
        path = fspath(text)
    except InvalidArgumentError:
        return
    assert os.fsencode(path)


def test_threads_do_not_disturb_a_read_that_is_under_way(tmp_path: Path) -> None:
    """Positions belong to calls, not to the file: a reader at the end does not move one at the beginning."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 100)
    ready = threading.Barrier(2)
    with LocalFile(str(tmp_path / "a")) as file, ThreadPoolExecutor(2) as threads:

        def reads(start: int) -> list[bytes]:
            ready.wait()
            return [file.read(start, 256) for _ in range(200)]

        for result in threads.map(reads, (0, 256 * 99)):
            assert result == [bytes(range(256))] * 200
