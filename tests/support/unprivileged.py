"""A directory and a user that file permissions apply to: root, under which tests may run, can read everything."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Let the block run as a user without privileges. Modules that it needs must have been imported before."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def owned_directory() -> Iterator[Path]:
    """Yield an empty directory that belongs to the user of `unprivileged`, below directories that it may enter."""
    with unprivileged():
        directory = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        yield directory
    finally:
        for path in (directory, *directory.rglob("*")):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(directory)
