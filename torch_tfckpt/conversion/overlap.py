"""Refuse a target that would replace some files of its source, but not all.

Converting a checkpoint onto itself is allowed: the source stays open until the target is complete, and then the
target takes its place. But a target that takes the name of one shard, or of the index, would destroy the rest of the
source.
"""

import os

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource
from torch_tfckpt.foreign_files.sidecar import sidecar_of
from torch_tfckpt.storage.names import final_name
from torch_tfckpt.text import printable


def check_overlap(source: TensorSource, sink: TensorSink) -> None:
    """Raise InvalidArgumentError if `sink` would replace a part of `source`. Call `TensorSink.plan` first.

    Only names matter: a target that is a symbolic or hard link to a file of the source replaces the link.
    """
    targets = [*sink.files(), *sink.replaced(), sidecar_of(sink.path)]
    hit: list[str] = []
    kept: list[str] = []
    for path in map(final_name, source.files()):
        (hit if any(is_same_name(path, target) for target in targets) else kept).append(path)
    if hit and kept:
        raise InvalidArgumentError(
            f"{printable(sink.path)}: the conversion would replace {printable(hit[0])}, a file of the source, but not "
            f"{printable(kept[0])}. Choose another target"
        )


def is_same_name(path: str, other: str) -> bool:
    """Return whether two local paths, however spelled, are the same name in the same directory."""
    (directory, name), (other_directory, other_name) = os.path.split(path), os.path.split(other)
    if name.casefold() != other_name.casefold():
        return False
    try:
        if not os.path.samefile(directory or os.curdir, other_directory or os.curdir):
            return False
    except OSError:
        return False  # one of the directories does not exist
    return name == other_name or _ignores_case(path, other)


def _ignores_case(path: str, other: str) -> bool:
    """Return whether two paths that differ only in case lead to the same file, which has only one link."""
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other)) and os.lstat(path).st_nlink == 1
    except OSError:
        return False
