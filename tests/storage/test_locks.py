"""locks: one program at a time changes names in a directory; which programs see each other's locks."""

import errno
import fcntl
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

from torch_tfckpt.storage.local import LOCAL, LocalOutput
from torch_tfckpt.storage.locks import lock_domain, lock_file, locked_directory, open_to_lock


def test_one_thread_at_a_time_has_a_directory(tmp_path: Path) -> None:
    """Another one waits until it is free, or gives up; a third directory is not concerned."""
    (tmp_path / "other").mkdir()
    waited: list[bool] = []

    def try_it(directory: str, patience: float) -> None:
        with locked_directory(directory, patience) as locked:
            waited.append(locked)

    with locked_directory(str(tmp_path)) as locked:
        assert locked
        for directory, patience in ((str(tmp_path), 0.01), (str(tmp_path / "other"), 0.01)):
            thread = threading.Thread(target=try_it, args=(directory, patience))
            thread.start()
            thread.join()
        patient = threading.Thread(target=try_it, args=(str(tmp_path), 60))
        patient.start()
    patient.join()
    assert waited == [False, True, True]


def test_a_thread_does_not_wait_for_itself(tmp_path: Path) -> None:
    """A signal handler may save while the same thread is publishing; the outer lock is kept."""
    with LOCAL.exclusive(str(tmp_path)) as outer:
        with LOCAL.exclusive(str(tmp_path)) as inner:
            assert outer and not inner
        with LOCAL.exclusive(f"{tmp_path}/.") as again:
            assert not again
    with LOCAL.exclusive(str(tmp_path)) as locked:
        assert locked


def test_a_lock_is_released_after_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt), LOCAL.exclusive(str(tmp_path)):
        raise KeyboardInterrupt
    with LOCAL.exclusive(str(tmp_path)) as locked:
        assert locked
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a directory that does not exist."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "NFS cannot lock a directory")

    with LOCAL.exclusive(str(tmp_path / "none")) as locked:
        assert not locked
    monkeypatch.setattr(fcntl, "flock", refuse)
    with LOCAL.exclusive(str(tmp_path)) as locked:
        assert not locked
    (tmp_path / "a").touch()
    assert not LOCAL.detects_use(str(tmp_path / "a"))


def test_waiting_for_a_lock_has_an_end(tmp_path: Path) -> None:
    """Held, it is given up; released meanwhile, it is taken."""
    path = tmp_path / "f"
    path.write_bytes(b"")
    holder, other = open_to_lock(str(path)), open_to_lock(str(path))
    assert lock_file(holder)
    assert lock_file(other, 0.01) is False
    release = threading.Timer(0.05, os.close, [holder])
    release.start()
    assert lock_file(other, 60) is True
    release.join()
    os.close(other)


def hold_when_locked(path: str, held: list[int]) -> None:
    """Lock the file at `path` once, immediately before this thread would lock it, and keep the lock."""

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call" and argument is fcntl.flock and not held:
            sys.setprofile(None)
            held.append(open_to_lock(path))
            fcntl.flock(held[0], fcntl.LOCK_EX)

    sys.setprofile(profile)


def test_a_stopped_program_that_holds_the_lock_stops_nobody(tmp_path: Path) -> None:
    """It was stopped while it checked whether a file that had just been created is in use."""
    held: list[int] = []
    path = str(tmp_path / "f")
    hold_when_locked(path, held)
    try:
        file = LocalOutput(path, patience=0.01)
    finally:
        sys.setprofile(None)
    file.write(0, [b"contents"])
    assert len(held) == 1
    assert LOCAL.in_use(path)
    assert file.has_name(path)
    os.close(held[0])
    assert LOCAL.in_use(path)
    file.close()
    assert (tmp_path / "f").read_bytes() == b"contents"


@pytest.mark.parametrize("check", [LOCAL.in_use, LOCAL.detects_use, LOCAL.remove_unused])
def test_a_signal_handler_does_not_wait_for_the_check_it_interrupts(tmp_path: Path, check: object) -> None:
    """While the thread holds the lock of a file, its handler removes that file and creates it anew, and others."""
    path, other = str(tmp_path / "f"), str(tmp_path / "g")
    (tmp_path / "f").write_bytes(b"")
    created: list[bool] = []

    def handler(*_: object) -> None:
        for name in (path, other):
            LOCAL.remove(name)
            LocalOutput(name, patience=0).close()
            created.append(os.path.exists(name))

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_return" and argument is fcntl.flock:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    sys.setprofile(profile)
    try:
        assert callable(check)
        check(path)
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGUSR1, before)
    assert created == [True, True]


def test_the_domain_is_that_of_the_boot_and_the_mount(tmp_path: Path) -> None:
    """32 bits, the same for all directories of one mounted file system, and after the program is started again."""
    (tmp_path / "a").mkdir()
    domain = lock_domain(str(tmp_path))
    assert 0 <= domain < 2**32
    assert lock_domain(str(tmp_path / "a")) == domain
    if os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev:
        assert lock_domain("/dev/shm") != domain
