"""Open the files that contain meta graphs: `.meta` files and SavedModels, binary or text.

    SavedModel = saved_model_schema_version: varint = 1 | meta_graphs: MetaGraphDef = 2 ...

The contents decide which of the two a file is, since field 1 of a MetaGraphDef is a message; the file's name decides
only if field 1 is missing. The meta graphs of a SavedModel have different sets of tags, e.g. {"serve"} and {"train"}.

Source: tensorflow/python/framework/meta_graph.py, tensorflow/python/saved_model/loader_impl.py.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import EncodeError, Message

from torch_tfckpt.bundle.files import lfs_error
from torch_tfckpt.directory.locate import find_checkpoint, is_table
from torch_tfckpt.directory.names import V1_SHARD
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.file_kind import FileKind, not_wanted
from torch_tfckpt.format.recognise import recognise_bytes
from torch_tfckpt.format.recognise_text import LFS_POINTER, first_name, looks_like_text
from torch_tfckpt.format.tensor_bundle import parse_data_filename
from torch_tfckpt.format.wire import Field, WireType, fields
from torch_tfckpt.meta_graph.raw import MAX_MESSAGE, RawMetaGraph
from torch_tfckpt.meta_graph.text import META_GRAPH, SAVED_MODEL, encode_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.text import did_you_mean, listed, printable, quoted

BINARY_SAVED_MODEL: Final = "saved_model.pb"
TEXT_SAVED_MODEL: Final = "saved_model.pbtxt"
SAVED_MODEL_FILES: Final = (BINARY_SAVED_MODEL, TEXT_SAVED_MODEL)
_SAVED_MODEL_FIELDS: Final = ("saved_model_schema_version", "meta_graphs")
# If a file of one of these kinds cannot be parsed, it is reported as a damaged meta graph. TEXT is any other text,
# which may be a damaged meta graph, too.
_META_GRAPHS: Final = frozenset(
    {
        FileKind.META_GRAPH, FileKind.META_GRAPH_TEXT, FileKind.SAVED_MODEL, FileKind.SAVED_MODEL_TEXT, FileKind.TEXT,
    }
)  # fmt: skip
_CHUNKED: Final = "saved_model.cpb"
_SERVING: Final = frozenset({"serve"})
# Real files have one or two meta graphs. An empty meta graph takes two bytes in the file, but a hundred times as many
# in memory.
_MAX_META_GRAPHS: Final = 10_000
_LISTED: Final = 10
# These parts are decoded when the file is opened, so that most damage is reported immediately. The graph is decoded
# later, because it may be as large as the model.
_DECODED_AT_ONCE: Final = ("info", "saver_def", "collections", "signatures", "assets")
_HINT: Final = "Copy it again, or pass a .meta file or a saved_model.pb"


class MissingMetaGraphError(NotFoundError, FileNotFoundError):
    """There is no such file. Also an OSError, as in TensorFlow."""


class UnreadableMetaGraphError(DataLossError, OSError):
    """The file is not a meta graph, or it is damaged. Also an OSError, as in TensorFlow."""


def open_meta_graph(
    path: AnyPath, tags: str | Iterable[str] | None = None, *, storage: Storage | None = None
) -> RawMetaGraph:
    """Open the meta graph in a file.

    Args:
        path: A `.meta` file, binary or text, of any name; saved_model.pb, saved_model.pbtxt, or their directory; or a
            checkpoint whose `.meta` file is opened (given by its prefix, by one of its files, or by the directory
            in which it is the latest checkpoint).
        tags: Open the meta graph of a SavedModel that has exactly these tags. Default: the only meta graph, or if there
            are several, the one whose only tag is "serve".
        storage: The storage to read from; default: chosen by the path.

    Raises:
        NotFoundError: no such file (also a FileNotFoundError), or no meta graph with these tags.
        DataLossError: the file is not a meta graph (also an OSError).
        InvalidArgumentError: it contains several meta graphs and `tags` is None; or `tags` is given, but the only meta
            graph has no tags, as in most `.meta` files.
        UnimplementedError: a SavedModel that is split into several files.

    Cost: one read of the file; all parts except the graph and the object graph are decoded. These two are not copied.
    """
    return chosen(meta_graphs_in(path, storage=storage), tags, printable(fspath(path)))


def chosen(found: Sequence[RawMetaGraph], tags: str | Iterable[str] | None, place: str) -> RawMetaGraph:
    """Choose a meta graph by its tags, as `open_meta_graph` does. REQUIRES: `found` is not empty."""
    if tags is None:
        serving = [each for each in found if len(found) == 1 or frozenset(each.info.tags) == _SERVING]
        if serving:
            return serving[0]
        raise InvalidArgumentError(
            f"{place} contains {len(found)} meta graphs. Choose one by `tags`: {_tags_of(found)}"
        )
    wanted = frozenset([tags] if isinstance(tags, str) else tags)
    for each in found:
        if frozenset(each.info.tags) == wanted:
            return each
    shown = _shown(wanted)
    if len(found) == 1 and not found[0].info.tags:
        raise InvalidArgumentError(f"{place}: the meta graph has no tags, but {shown} was requested. Omit `tags`")
    raise NotFoundError(f"{place}: no meta graph has the tags {shown}. Available: {_tags_of(found)}")


def meta_graphs_in(path: AnyPath, *, storage: Storage | None = None) -> list[RawMetaGraph]:
    """Return all meta graphs in a file: one for a `.meta` file, one or several for a SavedModel.

    Args, errors and cost are those of `open_meta_graph`.
    """
    text = fspath(path)
    storage = storage_of(text) if storage is None else storage
    try:
        file = _file_meant(storage, text)
        content = read_meta_graph(storage, file)
    except MissingMetaGraphError:
        raise
    except NotFoundError as error:  # a broken symbolic link, or a file that has just been deleted
        raise MissingMetaGraphError(f"{printable(text)} does not exist: {error}") from error
    found = _decoded(content, file)
    if not found:
        raise UnreadableMetaGraphError(
            f"Cannot parse file {printable(file)}: a SavedModel without a meta graph. {_HINT}"
        )
    return found


def saved_model_directory(path: AnyPath, *, storage: Storage | None = None) -> str | None:
    """Return the directory of the SavedModel that `open_meta_graph` opens; None if it opens a `.meta` file.

    Raises:
        NotFoundError, DataLossError, UnimplementedError: as `open_meta_graph`, if there is no such file.
    """
    text = fspath(path)
    file = _file_meant(storage_of(text) if storage is None else storage, text)
    return os.path.dirname(file) if os.path.basename(file) in SAVED_MODEL_FILES else None


def meta_graph_of(source: Message | bytes | bytearray | memoryview) -> RawMetaGraph:
    """Return a meta graph from a message or its bytes.

    Args:
        source: A MetaGraphDef, of our or TensorFlow's class, or its serialised bytes.

    Raises:
        InvalidArgumentError: `source` has a different type.
        DataLossError: the bytes are not a MetaGraphDef.
    """
    if isinstance(source, Message):
        name = source.DESCRIPTOR.name
        if name != META_GRAPH:
            hint = ". Pass one of its meta_graphs" if name == SAVED_MODEL else ""
            raise InvalidArgumentError(f"expected a MetaGraphDef, got {name}{hint}")
        try:
            source = source.SerializeToString(deterministic=True)
        except EncodeError as error:
            raise InvalidArgumentError(f"the MetaGraphDef cannot be serialised: {error}. Make it smaller") from error
    if not isinstance(source, bytes | bytearray | memoryview):
        raise InvalidArgumentError(
            f"expected a MetaGraphDef or its bytes, got {type(source).__name__}. Import files with import_meta_graph"
        )
    return _checked(memoryview(bytes(source)), "MetaGraphDef")


# Finding the file.


def _file_meant(storage: Storage, path: str) -> str:
    meta = _meta_path(path)
    if storage.is_directory(path):
        names = storage.list(path)
        for name in SAVED_MODEL_FILES:
            if name in names:
                return os.path.join(path, name)
        if storage.exists(meta):
            return meta
        return _of_checkpoint_in(storage, path, names)
    exists = storage.exists(path)
    if exists and not _is_of_checkpoint(storage, path):
        return path
    if storage.exists(meta):
        return meta
    if exists:
        raise UnreadableMetaGraphError(
            f"Cannot parse file {printable(path)}: this is a checkpoint, which contains values, not a meta graph. "
            f"Copy its meta graph {quoted(printable(meta))} to this directory, or pass another file"
        )
    raise missing_file(storage, path)


def _of_checkpoint_in(storage: Storage, directory: str, names: Sequence[str]) -> str:
    """Return the `.meta` file of the latest checkpoint in a directory."""
    try:
        prefix = find_checkpoint(storage, directory).prefix
    except (NotFoundError, DataLossError):
        raise _nothing_in(directory, names) from None
    path = _meta_path(prefix)
    if storage.exists(path):
        return path
    latest = printable(os.path.basename(prefix))
    raise MissingMetaGraphError(
        f"{printable(directory)}: its latest checkpoint, {latest}, has no .meta file. "
        f"{_files_there(_meta_graph_names(names))}"
    )


def _meta_path(path: str) -> str:
    """Return the `.meta` file of a checkpoint, given its prefix or one of its files."""
    data = parse_data_filename(path)
    if data is not None:
        return f"{data[0]}.meta"
    shard = V1_SHARD.fullmatch(path)
    if shard is not None:
        return f"{shard['prefix']}.meta"
    return f"{path.removesuffix('.index')}.meta"


def _is_of_checkpoint(storage: Storage, path: str) -> bool:
    # Check the name first: data files may be large, and may contain anything.
    return path.endswith(".index") or parse_data_filename(path) is not None or is_table(storage, path)


def missing_file(storage: Storage, path: str) -> MissingMetaGraphError:
    """Return the error for a file that does not exist, with a suggestion from its directory."""
    directory, name = os.path.split(path)
    if directory and not storage.is_directory(directory):
        return MissingMetaGraphError(
            f"{printable(path)} does not exist: there is no directory {quoted(printable(directory))}"
        )
    names = _meta_graph_names(storage.list(directory))
    hint = did_you_mean(printable(name), names) or _files_there(names)
    return MissingMetaGraphError(f"{printable(path)} does not exist. {hint}")


def _nothing_in(directory: str, names: Sequence[str]) -> CheckpointError:
    if _CHUNKED in names:
        return UnimplementedError(
            f"{printable(directory)} contains {_CHUNKED}, a SavedModel split into chunks, which cannot be read yet. "
            f"Save it in TensorFlow without `experimental_image_format`"
        )
    there = _files_there(_meta_graph_names(names) or [printable(name) for name in names])
    return MissingMetaGraphError(f"{printable(directory)} is a directory without {SAVED_MODEL_FILES[0]}. {there}")


def _meta_graph_names(names: Iterable[str]) -> list[str]:
    return [printable(name) for name in names if name.endswith((".meta", ".pb", ".pbtxt"))]


def _files_there(names: Sequence[str]) -> str:
    if not names:
        return "There is no meta graph in this directory"
    return f"This directory contains {listed(names, _LISTED)}"


# Decoding the contents of the file.


def read_meta_graph(storage: Storage, path: str) -> bytes:
    """Return the contents of a file; UnreadableMetaGraphError if it is too large, or only a pointer of git-lfs."""
    try:
        content = read_small(storage, path, MAX_MESSAGE - 1, "a meta graph", "Pass another file")
    except DataLossError as error:
        raise UnreadableMetaGraphError(f"Cannot parse file {error}") from error
    if content.startswith(LFS_POINTER):
        raise UnreadableMetaGraphError(f"Cannot parse file {printable(path)}: {lfs_error(path)}")
    return content


def _decoded(content: bytes, path: str) -> list[RawMetaGraph]:
    """Return the meta graphs in a `.meta` file or SavedModel, binary or text."""
    try:
        return _from_binary(content, path)
    except DataLossError as error:
        finding = f"as a binary message: {str(error).removeprefix(f'{printable(path)}: ')}"
        if not looks_like_text(content):
            raise UnreadableMetaGraphError(_unparsable(content, path, finding)) from error
    kind = SAVED_MODEL if first_name(content) in _SAVED_MODEL_FIELDS else META_GRAPH
    try:
        return _from_binary(encode_text(content, kind), path)
    except DataLossError as error:
        finding = f"as text: {error}; {finding}"
        raise UnreadableMetaGraphError(_unparsable(content, path, finding)) from error


def _unparsable(content: bytes, path: str, finding: str) -> str:
    summary = f"Cannot parse file {printable(path)}"
    kind = recognise_bytes(content)
    if kind in (FileKind.GRAPH, FileKind.GRAPH_TEXT):
        return (
            f"{summary}: it is a GraphDef, such as a frozen graph. Import it with import_graph_def, "
            f"or pass a .meta file or a saved_model.pb"
        )
    if kind.is_foreign and kind not in _META_GRAPHS:
        return f"{summary}: {finding.rstrip('.')}. {not_wanted('The file', kind, 'a meta graph')}"
    return f"{summary}: {finding.rstrip('.')}. {_HINT}"


def _from_binary(content: bytes, path: str) -> list[RawMetaGraph]:
    view, place = memoryview(content), printable(path)
    if not _is_saved_model(view, os.path.basename(path)):
        return [_checked(view, place)]
    parts: list[Field] = []
    for field in fields(view):
        if field.number == 2 and field.wire_type == WireType.BYTES:
            parts.append(field)
            if len(parts) > _MAX_META_GRAPHS:
                raise DataLossError(f"{place}: a SavedModel with more than {_MAX_META_GRAPHS} meta graphs")
    places = [place] if len(parts) == 1 else [f"{place}, meta graph {index}" for index in range(len(parts))]
    return [
        _checked(part.payload, where, (view[: part.start], view[part.stop :]))
        for part, where in zip(parts, places, strict=True)
    ]


def _is_saved_model(view: memoryview, name: str) -> bool:
    for field in fields(view):
        if field.number == 1:
            return field.wire_type == WireType.VARINT
        if field.number > 2:
            return False
    return name in SAVED_MODEL_FILES


def _checked(raw: memoryview, place: str, around: tuple[memoryview, memoryview] | None = None) -> RawMetaGraph:
    found = RawMetaGraph(raw, place, around)
    for part in _DECODED_AT_ONCE:
        getattr(found, part)
    return found


def _tags_of(found: Iterable[RawMetaGraph]) -> str:
    return listed([_shown(each.info.tags) for each in found], _LISTED, str)


def _shown(tags: Iterable[str]) -> str:
    return f"{{{', '.join(quoted(tag) for tag in sorted(set(tags)))}}}"
