"""locks: one program at a time changes names in a directory; which programs see each other's locks."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.locks import lock_domain, locked_directory


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


def test_the_domain_is_that_of_the_boot_and_the_mount(tmp_path: Path) -> None:
    """32 bits, the same for all directories of one mounted file system, and after the program is started again."""
    (tmp_path / "a").mkdir()
    domain = lock_domain(str(tmp_path))
    assert 0 <= domain < 2**32
    assert lock_domain(str(tmp_path / "a")) == domain
    if os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev:
        assert lock_domain("/dev/shm") != domain
