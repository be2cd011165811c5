"""Opening the files that hold meta graphs: `.meta` files and SavedModels, binary or text.

    SavedModel = saved_model_schema_version: varint = 1 | meta_graphs: MetaGraphDef = 2 ...

Which of the two a file is, its contents say, since field 1 of a MetaGraphDef is a message; its name only where nothing
else does. The meta graphs of a SavedModel differ by their sets of tags, such as {"serve"} and {"train"}.

Source: tensorflow/python/framework/meta_graph.py, tensorflow/python/saved_model/loader_impl.py; spec: SAVER 6.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import DecodeError, EncodeError, Message

from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt.bundle.files import LFS_POINTER, lfs_error
from torch_tfckpt.directory.locate import find_checkpoint, is_table
from torch_tfckpt.directory.names import V1_SHARD
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.tensor_bundle import parse_data_filename
from torch_tfckpt.format.wire import Field, WireType, fields
from torch_tfckpt.meta_graph.raw import MAX_MESSAGE, RawMetaGraph
from torch_tfckpt.meta_graph.text import META_GRAPH, SAVED_MODEL, encode_text, first_name, looks_like_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.text import did_you_mean, listed, printable, quoted

BINARY_SAVED_MODEL: Final = "saved_model.pb"
TEXT_SAVED_MODEL: Final = "saved_model.pbtxt"
SAVED_MODEL_FILES: Final = (BINARY_SAVED_MODEL, TEXT_SAVED_MODEL)
_SAVED_MODEL_FIELDS: Final = ("saved_model_schema_version", "meta_graphs")
_GRAPH_DEF_FIELDS: Final = ("node", "library", "versions", "version")
_CHUNKED: Final = "saved_model.cpb"
_SERVING: Final = frozenset({"serve"})
# Real ones have one or two. Each costs a hundred times the two bytes that an empty one takes in a file.
_MAX_META_GRAPHS: Final = 10_000
_LISTED: Final = 10
# Decoded while opening, so that most of what is broken is told then. The graph may be as large as the model.
_DECODED_AT_ONCE: Final = ("info", "saver_def", "collections", "signatures", "assets")
_HINT: Final = "Copy it again, or name a .meta file or a saved_model.pb"


class MissingMetaGraphError(NotFoundError, FileNotFoundError):
    """There is no such file. An OSError, as TensorFlow's is."""


class UnreadableMetaGraphError(DataLossError, OSError):
    """The file is something else, or damaged. An OSError, as TensorFlow's is."""


def open_meta_graph(
    path: AnyPath, tags: str | Iterable[str] | None = None, *, storage: Storage | None = None
) -> RawMetaGraph:
    """The meta graph in a file.

    Args:
        path: A `.meta` file, binary or text, whatever it is called; saved_model.pb, saved_model.pbtxt, or the directory
            of one; a checkpoint (its prefix, one of its files, or a directory, for the latest in it), for its `.meta`
            file.
        tags: Which meta graph of a SavedModel: the one that has these tags and no others. None: the only one, or of
            several the one that has the tag "serve" and no other.
        storage: Where it lies; None tells by the path.

    Raises:
        NotFoundError: no such file (also a FileNotFoundError), or no meta graph that has these tags.
        DataLossError: the file is no meta graph (also an OSError).
        InvalidArgumentError: it holds several meta graphs and `tags` is None; or `tags` are asked for, and the only one
            has none at all, as in most `.meta` files.
        UnimplementedError: a SavedModel that is split into several files.

    Cost: one read of the file; everything but the graph and the object graph is decoded. Nothing else is copied.
    """
    return chosen(meta_graphs_in(path, storage=storage), tags, printable(fspath(path)))


def chosen(found: Sequence[RawMetaGraph], tags: str | Iterable[str] | None, place: str) -> RawMetaGraph:
    """One of the meta graphs of a file by its tags, as `open_meta_graph` chooses. REQUIRES: there is one at least."""
    if tags is None:
        serving = [each for each in found if len(found) == 1 or frozenset(each.info.tags) == _SERVING]
        if serving:
            return serving[0]
        raise InvalidArgumentError(f"{place} holds {len(found)} meta graphs. Choose by `tags`: {_tags_of(found)}")
    wanted = frozenset([tags] if isinstance(tags, str) else tags)
    for each in found:
        if frozenset(each.info.tags) == wanted:
            return each
    shown = _shown(wanted)
    if len(found) == 1 and not found[0].info.tags:
        raise InvalidArgumentError(f"{place}: the meta graph has no tags, but {shown} are asked for. Leave `tags` out")
    raise NotFoundError(f"{place}: no meta graph has the tags {shown}. There are {_tags_of(found)}")


def meta_graphs_in(path: AnyPath, *, storage: Storage | None = None) -> list[RawMetaGraph]:
    """All meta graphs in a file, at least one: that of a `.meta` file, each of a SavedModel.

    Args, raises and cost as for `open_meta_graph`.
    """
    text = fspath(path)
    storage = storage_of(text) if storage is None else storage
    try:
        file = _file_meant(storage, text)
        content = _read(storage, file)
    except MissingMetaGraphError:
        raise
    except NotFoundError as error:  # a link that leads nowhere, or a file that is gone meanwhile
        raise MissingMetaGraphError(f"{printable(text)} does not exist: {error}") from error
    found = _decoded(content, file)
    if not found:
        raise UnreadableMetaGraphError(
            f"Cannot parse file {printable(file)}: a SavedModel without a meta graph. {_HINT}"
        )
    return found


def meta_graph_of(source: Message | bytes | bytearray | memoryview) -> RawMetaGraph:
    """A meta graph from a message or its bytes.

    Args:
        source: A MetaGraphDef, ours or TensorFlow's own, or one serialised.

    Raises:
        InvalidArgumentError: it is something else.
        DataLossError: the bytes are no MetaGraphDef.
    """
    if isinstance(source, Message):
        name = source.DESCRIPTOR.name
        if name != META_GRAPH:
            hint = ". Pass one of its meta_graphs" if name == SAVED_MODEL else ""
            raise InvalidArgumentError(f"expected a MetaGraphDef, got a {name}{hint}")
        try:
            source = source.SerializeToString(deterministic=True)
        except EncodeError as error:
            raise InvalidArgumentError(f"the MetaGraphDef cannot be serialised: {error}. Make it smaller") from error
    if not isinstance(source, bytes | bytearray | memoryview):
        raise InvalidArgumentError(
            f"expected a MetaGraphDef or its bytes, got {type(source).__name__}. Open files by path"
        )
    return _checked(memoryview(bytes(source)), "MetaGraphDef")


# Which file.


def _file_meant(storage: Storage, path: str) -> str:
    beside = _meta_path(path)
    if storage.is_directory(path):
        names = storage.list(path)
        for name in SAVED_MODEL_FILES:
            if name in names:
                return os.path.join(path, name)
        if storage.exists(beside):
            return beside
        return _of_checkpoint_in(storage, path, names)
    exists = storage.exists(path)
    if exists and not _is_of_checkpoint(storage, path):
        return path
    if storage.exists(beside):
        return beside
    if exists:
        raise UnreadableMetaGraphError(
            f"Cannot parse file {printable(path)}: this is a checkpoint, which holds values, and not its meta graph. "
            f"Copy {quoted(printable(beside))} here, or name another"
        )
    raise _missing(storage, path)


def _of_checkpoint_in(storage: Storage, directory: str, names: Sequence[str]) -> str:
    """Return the `.meta` file of the checkpoint that a directory stands for, the latest in it."""
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
        f"{_there_are(_meta_graph_names(names))}"
    )


def _meta_path(path: str) -> str:
    """The `.meta` file of the checkpoint that `path` may be the prefix, or a file, of."""
    data = parse_data_filename(path)
    if data is not None:
        return f"{data[0]}.meta"
    shard = V1_SHARD.fullmatch(path)
    if shard is not None:
        return f"{shard['prefix']}.meta"
    return f"{path.removesuffix('.index')}.meta"


def _is_of_checkpoint(storage: Storage, path: str) -> bool:
    # By name first: data files may be large, and hold anything.
    return path.endswith(".index") or parse_data_filename(path) is not None or is_table(storage, path)


def _missing(storage: Storage, path: str) -> MissingMetaGraphError:
    directory, name = os.path.split(path)
    if directory and not storage.is_directory(directory):
        return MissingMetaGraphError(
            f"{printable(path)} does not exist, and there is no directory {quoted(printable(directory))}"
        )
    names = _meta_graph_names(storage.list(directory))
    hint = did_you_mean(printable(name), names) or _there_are(names)
    return MissingMetaGraphError(f"{printable(path)} does not exist. {hint}")


def _nothing_in(directory: str, names: Sequence[str]) -> CheckpointError:
    if _CHUNKED in names:
        return UnimplementedError(
            f"{printable(directory)} holds {_CHUNKED}, a SavedModel split into chunks, which cannot be read yet. Save "
            f"it in TensorFlow without `experimental_image_format`"
        )
    there = _there_are(_meta_graph_names(names) or [printable(name) for name in names])
    return MissingMetaGraphError(f"{printable(directory)}: {SAVED_MODEL_FILES[0]} does not exist in it. {there}")


def _meta_graph_names(names: Iterable[str]) -> list[str]:
    return [printable(name) for name in names if name.endswith((".meta", ".pb", ".pbtxt"))]


def _there_are(names: Sequence[str]) -> str:
    if not names:
        return "There is no meta graph in this directory"
    return f"There are {listed(names, _LISTED)}"


# What is in it.


def _read(storage: Storage, path: str) -> bytes:
    try:
        content = read_small(storage, path, MAX_MESSAGE - 1, "a meta graph", "Name another file")
    except DataLossError as error:
        raise UnreadableMetaGraphError(f"Cannot parse file {error}") from error
    if content.startswith(LFS_POINTER):
        raise UnreadableMetaGraphError(f"Cannot parse file {printable(path)}: {lfs_error(path)}")
    return content


def _decoded(content: bytes, path: str) -> list[RawMetaGraph]:
    """The meta graphs in a file of either kind, in either form."""
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
    text = f"Cannot parse file {printable(path)}"
    if _is_graph_def(content):
        return (
            f"{text}: it is a GraphDef, such as a frozen graph, and holds neither saver nor variables. "
            f"Name a .meta file or a saved_model.pb"
        )
    return f"{text}: {finding.rstrip('.')}. {_HINT}"


def _is_graph_def(content: bytes) -> bool:
    if looks_like_text(content):
        return first_name(content) in _GRAPH_DEF_FIELDS
    try:
        first = next(fields(memoryview(content)))
        node = NodeDef.FromString(bytes(first.payload))
    except (CheckpointError, DecodeError):
        return False
    return first.number == 1 and bool(node.name and node.op)


def _from_binary(content: bytes, path: str) -> list[RawMetaGraph]:
    view, place = memoryview(content), printable(path)
    if not _is_saved_model(view, os.path.basename(path)):
        return [_checked(view, place)]
    parts: list[Field] = []
    for field in fields(view):
        if field.number == 2 and field.wire_type == WireType.BYTES:
            parts.append(field)
            if len(parts) > _MAX_META_GRAPHS:
                raise DataLossError(f"{place}: a SavedModel of more than {_MAX_META_GRAPHS} meta graphs")
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
