"""The groups and datasets of a Keras file of any form, and its configuration.

    m.keras           a zip archive, members not compressed: metadata.json, config.json, model.weights.h5
    m.weights.h5      one HDF5 file
    m.weights.json    {"weight_map": {"/layers/dense/vars": "m_00000.weights.h5" or a list of files}}
    m.h5              one HDF5 file of the older form; transformers has parts of it, and an index like m.weights.json
    m/                a directory with the members of a .keras file, as files

HDF5 files are read in place, even inside the archive: nothing is unpacked.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from torch_tfckpt.errors import DataLossError, NotFoundError, UnimplementedError, error_context
from torch_tfckpt.format.file_kind import KERAS_CONFIG_FILE, KERAS_WEIGHTS_FILES, FileKind
from torch_tfckpt.format.hdf5 import Hdf5Array, Hdf5File, Hdf5Group
from torch_tfckpt.keras_files.layers import MAX_CONFIG_BYTES, KerasConfig, parse_config
from torch_tfckpt.storage.protocol import ReadableFile, Storage
from torch_tfckpt.storage.small_files import kind_of_file, read_small
from torch_tfckpt.storage.zip_archive import ZipArchive, name_fault
from torch_tfckpt.text import printable, quoted, shortened

WEIGHTS: Final = "model.weights.h5"
_METADATA: Final = "metadata.json"
_MAX_METADATA: Final = 64 * 1024
_MAX_INDEX_BYTES: Final = 16 * 1024 * 1024
_MAX_SHARDS: Final = 10_000


class SavedArray(NamedTuple):
    """A dataset and the file that it is in."""

    array: Hdf5Array
    file: ReadableFile
    offset: int  # of its first byte in `file`


@dataclass(slots=True)
class SavedGroup:
    """A group: its groups and datasets by name. `texts` returns the strings of an attribute, [] if absent."""

    texts: Callable[[str], list[str]] = field(default=lambda name: [])
    has: Callable[[str], bool] = field(default=lambda name: False)
    groups: dict[str, "SavedGroup"] = field(default_factory=dict)
    arrays: dict[str, SavedArray] = field(default_factory=dict)

    def at(self, path: str) -> "SavedGroup | None":
        """Return the group at a path below this one; None if there is no such group."""
        group: SavedGroup | None = self
        for name in path.split("/") if path else ():
            group = None if group is None else group.groups.get(name)
        return group

    @property
    def name(self) -> str:
        """The attribute `name`, with the name of a layer or optimizer; "" if absent."""
        return "".join(self.texts("name")[:1])


@dataclass(slots=True)
class KerasContents:
    """An open Keras file.

    Attributes:
        format: The form of the file in words.
        root: The root group; for several shards, their root groups merged into one.
        config: The configuration of the model; None if the file has none.
        keras_2: Whether Keras 2 wrote the file.
        files: All files, beginning with the one that the caller named.
        archive: The zip archive; None if the file is not an archive.
    """

    format: str
    root: SavedGroup
    config: KerasConfig | None
    keras_2: bool
    files: list[ReadableFile]
    archive: ZipArchive | None = None

    def close(self) -> None:
        if self.archive is not None:
            self.archive.close()
        for file in self.files:
            file.close()


def open_contents(storage: Storage, path: str) -> KerasContents:
    """Open a Keras file of any form.

    Raises:
        DataLossError: it is damaged, or not a file of Keras.
        UnimplementedError: it uses a part of HDF5 or zip that Keras does not use.
        NotFoundError: a shard is missing.

    Cost: reads the structure of all files, and no values.
    """
    kind = kind_of_file(storage, path)
    place = f"{printable(path)}: {kind.what}" if kind is FileKind.HDF5 else printable(path)
    with ExitStack() as stack, error_context(place):
        if kind is FileKind.KERAS_INDEX:
            contents = _of_shards(storage, path, stack)
        else:
            file = storage.open(path)
            stack.callback(file.close)
            contents = _of_archive(file, stack) if kind is FileKind.KERAS else _of_hdf5(file)
            if contents.config is None and os.path.basename(path) in KERAS_WEIGHTS_FILES:
                _add_config(storage, os.path.dirname(path), contents)
        stack.pop_all()
        return contents


def _of_archive(file: ReadableFile, stack: ExitStack) -> KerasContents:
    archive = ZipArchive(file)
    stack.callback(archive.close)
    members = {member.orig_filename: member for member in archive.members}
    for name in members:
        fault = name_fault(name)
        if fault is not None:
            raise DataLossError(f"the archive has a member named {quoted(name)}: {fault}")
    if WEIGHTS not in members:
        others = [name for name in members if ".weights." in name]
        found = f"; it has {quoted(others[0])}, which is not supported" if others else ""
        raise DataLossError(f"the archive has no {WEIGHTS}{found}. Save the model with Keras again")
    start, size = archive.place(members[WEIGHTS])
    with error_context(WEIGHTS):
        opened = Hdf5File(partial(_read_at, file, start), size)
        root = _saved(opened, opened.root, file, start)
    config = archive.read(members[KERAS_CONFIG_FILE], MAX_CONFIG_BYTES) if KERAS_CONFIG_FILE in members else None
    metadata = archive.read(members[_METADATA], _MAX_METADATA) if _METADATA in members else b"{}"
    with error_context(KERAS_CONFIG_FILE):
        parsed = None if config is None else parse_config(config)
    return KerasContents("Keras model", root, parsed, _is_keras_2(metadata), [file], archive)


def _of_hdf5(file: ReadableFile) -> KerasContents:
    opened = Hdf5File(file.read, file.size)
    root = _saved(opened, opened.root, file, 0)
    config = "".join(attribute_strings(root, "model_config"))
    compiled = "".join(attribute_strings(root, "training_config"))
    parsed = parse_config(config, compiled) if config else None
    versions = root.texts("keras_version") or [
        version for group in root.groups.values() for version in group.texts("keras_version")
    ]
    keras_2 = bool(versions) and not versions[0].startswith("3")
    form = "Keras model, HDF5" if parsed is not None else "Keras weights, HDF5"
    return KerasContents(form, root, parsed, keras_2, [file])


def _add_config(storage: Storage, directory: str, contents: KerasContents) -> None:
    """Add the configuration from the directory of the weights, if it is there as Keras writes it."""
    where = os.path.join(directory, KERAS_CONFIG_FILE)
    if not storage.exists(where) or kind_of_file(storage, where) is not FileKind.KERAS_CONFIG:
        return
    with error_context(KERAS_CONFIG_FILE):
        contents.config = parse_config(read_small(storage, where, MAX_CONFIG_BYTES, "the description of a Keras model"))
    where = os.path.join(directory, _METADATA)
    metadata = read_small(storage, where, _MAX_METADATA, "a metadata.json of Keras") if storage.exists(where) else b"{}"
    contents.keras_2 = contents.keras_2 or _is_keras_2(metadata)
    contents.format = "Keras model in a directory"


def _of_shards(storage: Storage, path: str, stack: ExitStack) -> KerasContents:
    names = _shard_names(read_small(storage, path, _MAX_INDEX_BYTES, "an index of Keras weights"))
    index = storage.open(path)
    stack.callback(index.close)
    files, roots, root = [index], [], SavedGroup()
    for name in names:
        where = os.path.join(os.path.dirname(path), name)
        if not storage.exists(where):
            raise NotFoundError(f"the file {quoted(name)} is missing. Copy all files of the weights to one directory")
        file = storage.open(where)
        stack.callback(file.close)
        files.append(file)
        with error_context(printable(name)):
            opened = Hdf5File(file.read, file.size)
            roots.append(_saved(opened, opened.root, file, 0))
            _merge(root, roots[-1], "")
    # In the older form, each file lists its own weights.
    root.texts = lambda name: [text for each in roots for text in each.texts(name)]
    root.has = lambda name: any(each.has(name) for each in roots)
    return KerasContents(f"Keras weights in {len(names)} HDF5 files", root, None, False, files)


def _shard_names(content: bytes) -> list[str]:
    """Return the names of the files that an index lists, each once, in the order of the index."""
    try:
        index: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"not valid JSON: {error}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataLossError('it has no "weight_map" with the names of the files')
    names: dict[str, None] = {}
    for value in weight_map.values():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str) or not name or "/" in name or name_fault(name) is not None:
                raise DataLossError(f"weight_map has {shortened(name)}, which is not a plain file name")
            names[name] = None
    if len(names) > _MAX_SHARDS:
        raise UnimplementedError(f"the index lists {len(names)} files; at most {_MAX_SHARDS} are opened")
    return list(names)


def _saved(opened: Hdf5File, group: Hdf5Group, file: ReadableFile, start: int) -> SavedGroup:
    def texts(name: str) -> list[str]:
        attribute = group.attributes.get(name)
        return [] if attribute is None else opened.strings(attribute)

    return SavedGroup(
        texts,
        lambda name: name in group.attributes,
        {name: _saved(opened, inner, file, start) for name, inner in group.groups.items()},
        {name: SavedArray(array, file, start + array.offset) for name, array in group.arrays.items()},
    )


def _merge(into: SavedGroup, other: SavedGroup, path: str) -> None:
    """Add the groups and datasets of another shard."""
    for name, array in other.arrays.items():
        if name in into.arrays:
            raise DataLossError(f"{quoted(f'{path}{name}')} is in several files")
        into.arrays[name] = array
    for name, group in other.groups.items():
        if name not in into.groups:
            into.groups[name] = group
        else:
            _merge(into.groups[name], group, f"{path}{name}/")
    if not into.has("name"):
        into.texts, into.has = other.texts, other.has


def attribute_strings(group: SavedGroup, name: str) -> list[str]:
    """Return the strings of an attribute that Keras splits if it is large: `name`, or `name0`, `name1`, ..."""
    if group.has(name):
        return group.texts(name)
    return list(_chunks(group, name))


def _chunks(group: SavedGroup, name: str) -> Iterator[str]:
    number = 0
    while group.has(f"{name}{number}"):
        yield from group.texts(f"{name}{number}")
        number += 1


def _is_keras_2(metadata: bytes) -> bool:
    try:
        parsed: Any = json.loads(metadata)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"{_METADATA} is not valid JSON: {error}") from None
    version = parsed.get("keras_version") if isinstance(parsed, dict) else None
    return isinstance(version, str) and version.startswith(("1.", "2."))


def _read_at(file: ReadableFile, start: int, offset: int, size: int) -> bytes:
    return file.read(start + offset, size)
