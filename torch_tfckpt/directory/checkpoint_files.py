"""The list of a checkpoint's files, for programs that copy, upload or archive it."""

import os
from collections.abc import Iterator

from torch_tfckpt.bundle.files import read_header
from torch_tfckpt.bundle.unfinished import count_in_names, data_files_of
from torch_tfckpt.directory.completeness import check_complete
from torch_tfckpt.directory.locate import CheckpointFiles, find_checkpoint
from torch_tfckpt.directory.management import meta_graph_filename
from torch_tfckpt.directory.opening import open_files
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import refusals_named


def checkpoint_files(path: AnyPath, *, storage: Storage | None = None) -> list[str]:
    """Return the paths of all files of one checkpoint, and of no others.

    Args:
        path: A checkpoint, in any form that CheckpointReader accepts.
        storage: Where files are stored; None chooses by the path.

    Returns:
        For version 2, the index and the data files in order; for version 1, its files; for Keras, the file, or the
        files of a directory or of a sharded one. The meta graph (.meta) follows if there is one. Left-over data files
        of other saves, the `checkpoint` file, and everything else in the directory are not in the list.

    Raises:
        NotFoundError: there is no checkpoint, or one of its files is missing.
        DataLossError: an index is damaged, or a data file is too short.
        InvalidArgumentError: the directory holds several checkpoints.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("run/m", 7)
        >>> tfckpt.checkpoint_files(path)
        ['run/m-7.index', 'run/m-7.data-00000-of-00001', 'run/m-7.meta']

    Cost: lists the directory and reads the index.
    """
    where = fspath(path)
    storage = storage or storage_of(where)
    found = find_checkpoint(storage, where)
    with refusals_named(where):
        if not found.version:
            return list(dict.fromkeys(_keras_files(storage, found)))
        check_complete(storage, found.prefix)
        files = list(found.paths)
        if found.version == 2:
            count = read_header(storage, found.prefix).num_shards
            data = sorted(path for path in data_files_of(storage, found.prefix) if count_in_names(path) == count)
            files = [index_filename(found.prefix), *data]
        meta = meta_graph_filename(found.prefix)
        return [*files, meta] if storage.exists(meta) else files


def _keras_files(storage: Storage, found: CheckpointFiles) -> Iterator[str]:
    for path in found.paths:
        yield from _files_in(storage, path) if storage.is_directory(path) else [path]
    _, reader = open_files(storage, found, verify=False)
    with reader:
        for name in reader.keys():
            for path in reader.locate(name):
                if storage.exists(path):  # the member of an archive has no file of its own
                    yield path


def _files_in(storage: Storage, directory: str) -> Iterator[str]:
    for name in storage.list(directory):
        path = os.path.join(directory, name)
        yield from _files_in(storage, path) if storage.is_directory(path) else [path]
