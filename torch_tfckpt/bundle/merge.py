"""Join several version 2 checkpoints into one, by renaming their data files and joining their indexes.

No tensor is read. The data files are linked under their new names, so the sources stay complete until the merged index
is in place: after a crash there are either the sources and the target's old checkpoint, or the merged one.

Source: MergeBundles in tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

import logging
import os
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from typing import Final

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.bundle.index_merge import MergedIndex, merge_indexes
from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.bundle.part_index import PartIndex
from torch_tfckpt.bundle.publish import BundlePublication, saving
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError
from torch_tfckpt.format.tensor_bundle import SplitEntry, index_filename
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import listed, printable
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES

_LISTED: Final = 8  # names that a message lists

_log = logging.getLogger(__name__)


def merge_bundles(
    storage: Storage,
    sources: Sequence[str],
    prefix: str,
    *,
    allow_missing_files: bool = False,
    delete_sources: bool = True,
    marker: Marker | None = None,
    equal_duplicates: bool = False,
    of_ranks: Collection[str] | None = None,
) -> None:
    """Merge the checkpoints `sources` (prefixes, in order) into `prefix`.

    A partitioned tensor may have slices in several sources; its list of slices is joined in their order.

    Args:
        allow_missing_files: Skip sources without an index.
        delete_sources: Remove the sources afterwards, and the directories that contained nothing else.
        marker: The marker of the save that this merge is part of; the merge ends that save.
        equal_duplicates: Allow a tensor or slice in several sources if type, shape, size and checksum are equal.
        of_ranks: The sources are what ranks have saved, in the order of the ranks. Tensors with these names must be in
            them, and all elements of every tensor.

    Raises:
        InvalidArgumentError: no source is given, or one is missing; a tensor or slice is in two of them; slices
            overlap; their endianness or format versions differ; with `of_ranks`, something is missing. Nothing was
            changed.
        DataLossError, NotFoundError: a source is damaged, or one of its data files is missing. Nothing was changed.
        IncompleteSaveError: a file operation failed. The sources and an existing target are unchanged.

    Cost: reads and writes the indexes; data files are linked, or copied where links are not supported.
    """
    with saving(prefix):
        present = [source for source in sources if _is_there(storage, source, allow_missing_files)]
        if not present:
            raise InvalidArgumentError(
                f"merge into {printable(prefix)}: At least one prefix checkpoint file must exist, but none existed. "
                f"Pass a prefix that exists"
            )
        data: list[str] = []  # position = shard number in the merged checkpoint
        parts = [_part(storage, source, data) for source in dict.fromkeys(present)]
        place, complete = f"merge into {printable(prefix)}", of_ranks is not None
        if complete:
            parts = [part._replace(name=f"rank {rank}") for rank, part in enumerate(parts)]
        merged = merge_indexes(parts, place, equal_duplicates=equal_duplicates, complete=complete)
        if of_ranks:
            _refuse_missing(place, merged, of_ranks)
        if not data:
            raise InvalidArgumentError(
                f"merge into {printable(prefix)}: no source has a tensor. Pass one that has some"
            )
        publication = BundlePublication(storage, prefix, marker)
        try:
            for path, name in zip(data, publication.new_data_names(len(data)), strict=True):
                _second_copy(storage, path, name)
            publication.publish(merged.encode)
        finally:
            publication.abandon()
    if delete_sources:
        _delete_sources(storage, [source for source in present if source != prefix], prefix)


def _refuse_missing(place: str, merged: MergedIndex, names: Collection[str]) -> None:
    stored = merged.names()
    missing = [name for name in names if key_of(name) not in stored and name[:1] != "\0"]
    if missing:
        raise InvalidArgumentError(
            f"{place}: no rank has saved {listed(missing, _LISTED)}. Of the copies of a part of a DTensor, the rank at "
            f"position 0 of the dimensions with copies saves one: it must be among the ranks that save"
        )


def _part(storage: Storage, source: str, data: list[str]) -> PartIndex:
    """Read the index of a source, and append the data files that it uses to `data`, in order of their first use."""
    with closing(BundleFiles(storage, source, lazy=True)) as files:
        index = files.index.read(0, files.index.size)
        part = PartIndex(printable(source), index, {})
        used = _used_shards(part, files.header.num_shards)
        paths = [files.shard(number).path for number in used]
    shards = {number: len(data) + position for position, number in enumerate(used)}
    data += paths
    return part._replace(shards=shards)


def _used_shards(part: PartIndex, count: int) -> list[int]:
    """Return the numbers of the data files that the entries of `part` refer to, in order of their first use."""
    entries = part.entries(part.table(), b"\0")  # after the header
    if count == 1:  # as of all parts of a sharded save
        return [0] if next(entries, None) is not None else []
    used: dict[int, None] = {}
    for key, value in entries:
        try:
            used[SplitEntry.decode(value).shard] = None
        except DataLossError as error:
            raise part.damaged(error, key) from error
    return list(used)


def _is_there(storage: Storage, source: str, allow_missing_files: bool) -> bool:
    if storage.exists(index_filename(source)):
        return True
    if allow_missing_files:
        return False
    raise InvalidArgumentError(
        f"{printable(source)}: allow_missing_files was set to false and {printable(index_filename(source))} did not "
        f"exist. Nothing was merged"
    )


def _second_copy(storage: Storage, path: str, target: str) -> None:
    """Make the contents of `path` available as `target`: by a link, or by a copy if linking fails.

    Linking fails where links are not supported, and across file systems.
    """
    try:
        storage.link(path, target)
        return
    except OSError:
        storage.remove(target)  # over a network, the link may exist although an error was reported
    source, copy = storage.open(path), storage.create(target)
    try:
        for offset in range(0, source.size, CHUNK_BYTES):
            copy.write(offset, [source.read(offset, min(CHUNK_BYTES, source.size - offset))])
        copy.sync()
    finally:
        source.close()
        copy.close()


def _delete_sources(storage: Storage, sources: Sequence[str], prefix: str) -> None:
    for source in dict.fromkeys(sources):
        try:
            remove_bundle(storage, source)
        except (OSError, CheckpointError) as error:
            _log.warning("merged, but could not remove the source: %s: %s", printable(source), error)
    for directory in {os.path.dirname(source) for source in sources} - {os.path.dirname(prefix), ""}:
        with suppress(OSError):
            storage.remove_directory(directory)
