"""Directories, whichever storage they are in."""

import os

from torch_tfckpt.storage.protocol import Storage


def make_directories(storage: Storage, path: str) -> None:
    """Creates `path` and what is missing above it; fine where it exists. Raises OSError as the system gives it."""
    if path and not storage.is_directory(path):
        make_directories(storage, os.path.dirname(path))
        storage.make_directory(path)
