"""A MetaGraphDef kept as bytes, whose parts are decoded when they are needed.

A meta graph may be as large as its model. Parts that are not read are written back byte for byte, including fields
of later versions.

    1 meta_info_def   2 graph_def   3 saver_def   4 collection_def: map ...   5 signature_def: map ...
    6 asset_file_def ...   7 object_graph_def

Source: tensorflow/core/protobuf/meta_graph.proto; docs/formats/meta-graph.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from torch_tfckpt._proto.meta_graph_pb2 import AssetFileDef, CollectionDef, MetaGraphDef, SignatureDef
from torch_tfckpt._proto.saved_object_graph_pb2 import SavedObjectGraph
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import DataLossError, error_context
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.format.wire import WireType, fields, sized_tag, tag
from torch_tfckpt.text import counted, quoted

META_INFO, GRAPH, SAVER, COLLECTION, SIGNATURE, ASSET, OBJECT_GRAPH = range(1, 8)
# Protobuf libraries reject messages of this size or more.
MAX_MESSAGE: Final = 1 << 31

# A SavedModel contains meta graphs as field 2. TensorFlow writes field 1 before them, with value 1.
_META_GRAPHS: Final = 2
_FIRST_SCHEMA: Final = tag(1, WireType.VARINT) + b"\x01"
_ASSETS: Final = "saved_model_assets"
# An empty field takes two bytes in the file, but a hundred times as many in memory.
_MAX_FIELDS: Final = 100_000

M = TypeVar("M", bound=Message)


class RawMetaGraph:
    """A MetaGraphDef, decoded part by part on demand.

    Args:
        raw: Its bytes. They are not copied, and must not change.
        place: The file name for error messages.
        around: The bytes of a SavedModel before and after the meta graph.

    Raises:
        DataLossError: the bytes are not a message. Damage inside a part is reported when the part is accessed.

    Cost: a walk over the outermost fields. Thread safety: may be used from several threads.
    """

    def __init__(self, raw: memoryview, place: str, around: tuple[memoryview, memoryview] | None = None) -> None:
        self.raw = raw
        self.place = place
        self.around = around
        self._parts: dict[int, list[memoryview]] = {}
        with error_context(place):
            for count, field in enumerate(fields(raw)):
                if count >= _MAX_FIELDS:
                    raise DataLossError(
                        f"more than {_MAX_FIELDS} collections, signatures and assets; no known graph has that many"
                    )
                if field.wire_type == WireType.BYTES:
                    self._parts.setdefault(field.number, []).append(field.payload)

    @cached_property
    def info(self) -> MetaGraphDef.MetaInfoDef:
        """Versions, tags, and declarations of the operations."""
        return self._decoded(MetaGraphDef.MetaInfoDef, self._joined(META_INFO), "meta_info_def")

    @cached_property
    def graph(self) -> Graph:
        """The graph. Its nodes are decoded on access; wrap the access in `error_context(place)`."""
        return Graph(self._joined(GRAPH))

    @cached_property
    def saver_def(self) -> SaverDef | None:
        """The saver's settings; None if the meta graph has no saver."""
        return self._decoded(SaverDef, self._joined(SAVER), "saver_def") if SAVER in self._parts else None

    @cached_property
    def collections(self) -> Mapping[str, CollectionDef]:
        """Name -> collection, in the file's order."""
        return dict(self._entries(COLLECTION, CollectionDef, "collection"))

    @cached_property
    def signatures(self) -> Mapping[str, SignatureDef]:
        """Name -> signature, in the file's order."""
        return dict(self._entries(SIGNATURE, SignatureDef, "signature"))

    @cached_property
    def assets(self) -> Sequence[AssetFileDef]:
        """Asset files that the graph reads, and the tensors for their paths.

        A SavedModel of TensorFlow 1 lists them in a collection.
        """
        found = [self._decoded(AssetFileDef, part, "asset_file_def") for part in self._parts.get(ASSET, ())]
        listed = () if found else self._entries(COLLECTION, CollectionDef, "collection", only=_ASSETS)
        for item in (item for _, collection in listed for item in collection.any_list.value):
            if item.type_url.rpartition(".")[2] == AssetFileDef.DESCRIPTOR.name:
                found.append(self._decoded(AssetFileDef, memoryview(item.value), f"collection {quoted(_ASSETS)}"))
        return found

    @cached_property
    def object_graph(self) -> SavedObjectGraph | None:
        """The Python objects of a TF2 SavedModel; None for other meta graphs."""
        if OBJECT_GRAPH not in self._parts:
            return None
        return self._decoded(SavedObjectGraph, self._joined(OBJECT_GRAPH), "object_graph_def")

    def saved_model(self) -> bytes:
        """Return the SavedModel that this meta graph is from, with its other meta graphs, or a new SavedModel."""
        before, after = self.around if self.around is not None else (_FIRST_SCHEMA, b"")
        return b"".join((before, sized_tag(_META_GRAPHS, len(self.raw)), self.raw, after))

    def message(self) -> MetaGraphDef:
        """Return the whole meta graph as one message. Cost: decodes it, and takes as much memory again.

        Raises:
            DataLossError: a part is damaged, or the meta graph is larger than protobuf libraries accept (2 GiB).
        """
        if len(self.raw) >= MAX_MESSAGE:
            size, limit = counted(len(self.raw), "byte"), counted(MAX_MESSAGE, "byte")
            raise DataLossError(f"{self.place}: the meta graph is {size}, but must be smaller than {limit}")
        return self._decoded(MetaGraphDef, self.raw, "the meta graph")

    def _joined(self, number: int) -> memoryview:
        """Return a singular message field; further occurrences are merged, as protobuf does."""
        parts = self._parts.get(number, [memoryview(b"")])
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _entries(self, number: int, kind: type[M], what: str, only: str | None = None) -> Iterator[tuple[str, M]]:
        """Yield the entries of a map, or only those with the name `only`, in the order of the file."""
        for part in self._parts.get(number, ()):
            with error_context(self.place):
                entry = {each.number: each.payload for each in fields(part) if each.wire_type == WireType.BYTES}
                try:
                    name = str(entry.get(1, b""), "utf-8")
                except UnicodeDecodeError as error:
                    raise DataLossError(f"the name of a {what} is not UTF-8: {bytes(entry[1])!r}") from error
            if only is None or name == only:
                yield name, self._decoded(kind, entry.get(2, memoryview(b"")), f"{what} {quoted(name)}")

    def _decoded(self, kind: type[M], part: memoryview, what: str) -> M:
        with error_context(f"{self.place}: {what}", "The file is damaged or incomplete. Copy it again"):
            return decoded(kind, part)


def decoded(kind: type[M], payload: memoryview | bytes) -> M:
    """Decode a message; DataLossError if the bytes are not a message of this kind."""
    message = kind()
    try:
        message.ParseFromString(payload)  # type: ignore[arg-type]  # accepts views, but its stub declares bytes
    except DecodeError as error:
        size = counted(len(payload), "byte")
        raise DataLossError(f"invalid {kind.DESCRIPTOR.name} of {size}: {error}") from error
    return message
