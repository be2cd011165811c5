"""Join several version 2 checkpoints into one, by renaming their data files and joining their indexes.

No tensor is read. The data files are linked under their new names, so the sources stay complete until the merged index
is in place: after a crash there are either the sources and the target's old checkpoint, or the merged one.

Source: MergeBundles in tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.index import name_of
from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.bundle.publish import BundlePublication, saving
from torch_tfckpt.bundle.removal import remove_bundle
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError
from torch_tfckpt.format.tensor_bundle import (
    BundleEntry,
    BundleHeader,
    encode_index,
    index_filename,
)
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES

_log = logging.getLogger(__name__)


def merge_bundles(
    storage: Storage,
    sources: Sequence[str],
    prefix: str,
    *,
    allow_missing_files: bool = False,
    delete_sources: bool = True,
    marker: Marker | None = None,
) -> None:
    """Merge the checkpoints `sources` (prefixes, in order) into `prefix`.

    A partitioned tensor may have slices in several sources; its list of slices is joined in their order.

    Args:
        allow_missing_files: Skip sources without an index.
        delete_sources: Remove the sources afterwards, and the directories that contained nothing else.
        marker: The marker of the save that this merge is part of; the merge ends that save.

    Raises:
        InvalidArgumentError: no source is given, or one is missing; a tensor or slice is in two of them; their
            endianness or format versions differ. Nothing was changed.
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
        merged = _Merged(prefix)
        for source in dict.fromkeys(present):
            files = BundleFiles(storage, source)
            try:
                merged.add_source(source, files)
            finally:
                files.close()
        merged.publish(storage, BundlePublication(storage, prefix, marker))
    if delete_sources:
        _delete_sources(storage, [source for source in present if source != prefix], prefix)


class _Merged:
    """Entries of the merged checkpoint."""

    def __init__(self, prefix: str) -> None:
        self._place = f"merge into {printable(prefix)}"
        self._entries: dict[bytes, BundleEntry] = {}
        self._header: BundleHeader | None = None
        self.data_files: list[str] = []  # position = shard number in the merged checkpoint

    def add_source(self, source: str, files: BundleFiles) -> None:
        self._join_header(source, files.header)
        shards: dict[int, int] = {}  # number in the source -> number in the merged checkpoint
        for key, value in files.table.items(start=b"\0"):
            try:
                entry = BundleEntry.decode(value)
            except DataLossError as error:
                raise DataLossError(f"{printable(source)}: tensor {quoted(name_of(key))}: {error}") from error
            if entry.shard not in shards:
                shards[entry.shard] = len(self.data_files)
                self.data_files.append(files.shard(entry.shard).path)
            self._join_entry(source, key, entry._replace(shard=shards[entry.shard]))

    def encode_index(self, num_shards: int) -> bytes:
        assert self._header is not None, "encode_index before the first source"
        entries = {key: entry.encode() for key, entry in self._entries.items()}
        return encode_index(self._header._replace(num_shards=num_shards), entries)

    def publish(self, storage: Storage, publication: BundlePublication) -> None:
        """Link the data files and publish them; the sources stay unchanged."""
        try:
            names = publication.new_data_names(len(self.data_files))
            for path, name in zip(self.data_files, names, strict=True):
                _second_copy(storage, path, name)
            publication.publish(self.encode_index)
        finally:
            publication.abandon()

    def _join_header(self, source: str, header: BundleHeader) -> None:
        first = self._header = self._header or header
        if header.big_endian != first.big_endian:
            raise InvalidArgumentError(
                f"{self._place}: Merging bundles with conflicting endianness: {printable(source)}"
            )
        if header[2:] != first[2:]:
            raise InvalidArgumentError(
                f"{self._place}: Merging bundles with different format versions: {printable(source)}"
            )

    def _join_entry(self, source: str, key: bytes, entry: BundleEntry) -> None:
        before = self._entries.get(key)
        if before is not None:
            name = quoted(name_of(key))
            if not before.slices:
                raise InvalidArgumentError(
                    f"{self._place}: Duplicate tensor keyed by {name} encountered, when merging prefix: "
                    f"{printable(source)}"
                )
            if not entry.slices:
                raise InvalidArgumentError(
                    f"{self._place}: Duplicate tensor keyed by {name}; attempting to merge in a non-slice bundle entry "
                    f"from {printable(source)}"
                )
            if (before.dtype, before.shape) != (entry.dtype, entry.shape):
                raise InvalidArgumentError(
                    f"{self._place}: the slices of {name} in {printable(source)} have a different dtype or shape"
                )
            entry = before._replace(slices=before.slices + entry.slices)
        self._entries[key] = entry


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
