"""Small files that are replaced atomically, and the directories they need."""

import os

from torch_tfckpt.storage.protocol import Buffer, Storage
from torch_tfckpt.storage.publication import Publication


def write_file(storage: Storage, path: str, contents: Buffer) -> None:
    """Put `contents` under `path`, durably and in one step: every reader finds the old file or the new one, whole.

    Raises:
        OSError: the system refused a step. The old file is in place, unless only the directory could not be synced.
    """
    with Publication(storage) as publication:
        publication.create(path).write(0, [contents])


def make_directories(storage: Storage, path: str) -> None:
    """Creates `path` and what is missing above it; fine where it exists. Raises OSError as the system gives it."""
    if path and not storage.is_directory(path):
        make_directories(storage, os.path.dirname(path))
        storage.make_directory(path)
