"""A MetaGraphDef kept as bytes, whose parts are decoded when they are needed.

A meta graph may be as large as its model, and what is not looked at is written again byte for byte, whatever later
versions put into it.

    1 meta_info_def   2 graph_def   3 saver_def   4 collection_def: map ...   5 signature_def: map ...
    6 asset_file_def ...   7 object_graph_def

Source: tensorflow/core/protobuf/meta_graph.proto; spec: FORMATS 5.
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
from torch_tfckpt.text import quoted

META_INFO, GRAPH, SAVER, COLLECTION, SIGNATURE, ASSET, OBJECT_GRAPH = range(1, 8)
# A message of this size or more is none for any protobuf library.
MAX_MESSAGE: Final = 1 << 31

# Of a SavedModel: field 2, and field 1 of value 1 before it, which is how TensorFlow writes it.
_META_GRAPHS: Final = 2
_FIRST_SCHEMA: Final = tag(1, WireType.VARINT) + b"\x01"
_ASSETS: Final = "saved_model_assets"
# Each costs a hundred times the two bytes that an empty one takes in a file.
_MAX_FIELDS: Final = 100_000

M = TypeVar("M", bound=Message)


class RawMetaGraph:
    """A MetaGraphDef.

    Args:
        raw: Its bytes. Nothing is copied, and they must not change.
        place: What errors name: the file.
        around: Of a SavedModel: its bytes before and behind the meta graph.

    Raises:
        DataLossError: the bytes are no message. That a part of it is none is told when the part is asked for.

    Cost: a walk over the outermost fields. Threads: safe.
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
                        f"more than {_MAX_FIELDS} collections, signatures and assets, which no graph has"
                    )
                if field.wire_type == WireType.BYTES:
                    self._parts.setdefault(field.number, []).append(field.payload)

    @cached_property
    def info(self) -> MetaGraphDef.MetaInfoDef:
        """Versions, tags, and which operations there are."""
        return self._decoded(MetaGraphDef.MetaInfoDef, self._joined(META_INFO), "meta_info_def")

    @cached_property
    def graph(self) -> Graph:
        """The graph. Its nodes are walked when they are asked for; use `error_context(place)` around that."""
        return Graph(self._joined(GRAPH))

    @cached_property
    def saver_def(self) -> SaverDef | None:
        """The saver's settings; None where the meta graph has no saver."""
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
        """Files that the graph reads, and the tensors that hold their paths; SavedModels of version 1 list them in a
        collection."""
        found = [self._decoded(AssetFileDef, part, "asset_file_def") for part in self._parts.get(ASSET, ())]
        listed = () if found else self._entries(COLLECTION, CollectionDef, "collection", only=_ASSETS)
        for item in (item for _, collection in listed for item in collection.any_list.value):
            if item.type_url.rpartition(".")[2] == AssetFileDef.DESCRIPTOR.name:
                found.append(self._decoded(AssetFileDef, memoryview(item.value), f"collection {quoted(_ASSETS)}"))
        return found

    @cached_property
    def object_graph(self) -> SavedObjectGraph | None:
        """The Python objects of a TF2 SavedModel; None elsewhere."""
        if OBJECT_GRAPH not in self._parts:
            return None
        return self._decoded(SavedObjectGraph, self._joined(OBJECT_GRAPH), "object_graph_def")

    def saved_model(self) -> bytes:
        """The SavedModel that it is in, with its other meta graphs; one of its own where it is in none."""
        before, behind = self.around if self.around is not None else (_FIRST_SCHEMA, b"")
        return b"".join((before, sized_tag(_META_GRAPHS, len(self.raw)), self.raw, behind))

    def message(self) -> MetaGraphDef:
        """All of it as one message. Cost: decoding, and as much memory again.

        Raises:
            DataLossError: a part is broken, or it is larger than any protobuf library takes (2 GiB).
        """
        if len(self.raw) >= MAX_MESSAGE:
            raise DataLossError(f"{self.place}: {len(self.raw)} bytes, but a message is shorter than {MAX_MESSAGE}")
        return self._decoded(MetaGraphDef, self.raw, "the meta graph")

    def _joined(self, number: int) -> memoryview:
        """All of a field that occurs once: what occurs again adds to it."""
        parts = self._parts.get(number, [memoryview(b"")])
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _entries(self, number: int, kind: type[M], what: str, only: str | None = None) -> Iterator[tuple[str, M]]:
        """The entries of a map, or those of one name, a later one of the same name last."""
        for part in self._parts.get(number, ()):
            with error_context(self.place):
                entry = {each.number: each.payload for each in fields(part) if each.wire_type == WireType.BYTES}
                try:
                    name = str(entry.get(1, b""), "utf-8")
                except UnicodeDecodeError as error:
                    raise DataLossError(f"the name of a {what} is no UTF-8: {bytes(entry[1])!r}") from error
            if only is None or name == only:
                yield name, self._decoded(kind, entry.get(2, memoryview(b"")), f"{what} {quoted(name)}")

    def _decoded(self, kind: type[M], part: memoryview, what: str) -> M:
        with error_context(f"{self.place}: {what}", "The file is damaged or half copied. Copy it again"):
            return decoded(kind, part)


def decoded(kind: type[M], payload: memoryview | bytes) -> M:
    """A message; DataLossError where the bytes are none."""
    message = kind()
    try:
        message.ParseFromString(payload)  # type: ignore[arg-type]  # takes views, its stub says bytes
    except DecodeError as error:
        raise DataLossError(f"{len(payload)} bytes are no {kind.DESCRIPTOR.name}: {error}") from error
    return message
