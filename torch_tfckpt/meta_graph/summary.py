"""Summarize the contents of a meta graph as plain values, for display and for JSON output.

    MetaGraphSummary
      ops, functions          operation -> number of nodes, for the graph and for each function
      variables               with their sizes, and their position if they are slices of larger tensors
      collections             name, kind and count; `collection_items` decodes the values
      signatures, assets      the functions that a SavedModel exports, and the files that it reads
      saver, savers           the meta graph's own saver, and those in its collection "savers"
      object_graph            the Python objects of a TF2 SavedModel

Source: tensorflow/core/protobuf/meta_graph.proto, saved_object_graph.proto; docs/formats/meta-graph.md.
"""

import base64
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef, SignatureDef, TensorInfo
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.errors import DataLossError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Function
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape
from torch_tfckpt.meta_graph.bound_variables import bound_variables
from torch_tfckpt.meta_graph.collection_defs import PROTO_COLLECTIONS
from torch_tfckpt.meta_graph.graph_collections import GraphKeys
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.scopes import tensor_names
from torch_tfckpt.meta_graph.variables import shape_of

Item = str | int | float | bytes | Message


@dataclass(frozen=True, slots=True)
class Vintage:
    """The TensorFlow version that wrote a graph (empty before 1.0), and the versions that can read it."""

    tensorflow_version: str
    tensorflow_git_version: str
    meta_graph_version: str
    producer: int
    min_consumer: int
    bad_consumers: Sequence[int]
    stripped_default_attrs: bool


@dataclass(frozen=True, slots=True)
class FunctionSummary:
    """A function of the graph's library."""

    name: str
    nodes: int
    ops: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PartSummary:
    """Position of a variable in the larger tensor that it is a slice of."""

    full_name: str
    full_shape: Shape
    offset: Shape
    shape: Shape


@dataclass(frozen=True, slots=True)
class VariableSummary:
    """A variable.

    Attributes:
        shape: None if even the number of dimensions is unknown; -1 for an unknown dimension.
        elements: Number of elements; None if it is unknown, or larger than an int64.
        nbytes: Size in bytes; None if `elements` is None, or the elements have no fixed size.
    """

    name: str
    dtype: DataType
    shape: Shape | None
    trainable: bool
    device: str
    part: PartSummary | None
    elements: int | None
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class CollectionSummary:
    """A collection.

    Attributes:
        kind: The field with the values: "bytes_list", "node_list" ...; "" for an empty entry.
        message: The message type that the bytes encode, e.g. "VariableDef"; "" if unknown.
    """

    name: str
    kind: str
    message: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """An input or output of a signature, or the tensor of an asset's path.

    Attributes:
        name: Name of the argument or result.
        shape: As in `VariableSummary`.
        tensors: Names such as "x:0". A sparse tensor has three (values, indices, shape), a composite tensor has the
            names of its components' tensors.
        encoding: "name", "coo_sparse" or "composite_tensor"; "" for an empty entry.
    """

    name: str
    dtype: DataType
    shape: Shape | None
    tensors: Sequence[str]
    encoding: str


@dataclass(frozen=True, slots=True)
class SignatureSummary:
    """A signature. `defaults` are its optional inputs."""

    name: str
    method_name: str
    inputs: Sequence[TensorSummary]
    outputs: Sequence[TensorSummary]
    defaults: Sequence[str]


@dataclass(frozen=True, slots=True)
class AssetSummary:
    """A file that the graph reads, and the tensors that its path is fed to."""

    filename: str
    tensors: Sequence[str]


@dataclass(frozen=True, slots=True)
class SaverSummary:
    """A SaverDef. `version` is "LEGACY", "V1", "V2", or the number of an unknown version."""

    filename_tensor_name: str
    save_tensor_name: str
    restore_op_name: str
    version: str
    sharded: bool
    max_to_keep: int
    keep_checkpoint_every_n_hours: float


@dataclass(frozen=True, slots=True)
class ObjectGraphSummary:
    """The Python objects of a TF2 SavedModel.

    Attributes:
        root: Identifier of the root object, e.g. "_tf_keras_sequential"; "" if it has none.
        kinds: "variable", "function" ... -> number of nodes.
        identifiers: Identifier of user objects -> number of nodes.
    """

    root: str
    nodes: int
    kinds: Mapping[str, int]
    identifiers: Mapping[str, int]
    concrete_functions: int


@dataclass(frozen=True, slots=True)
class MetaGraphSummary:
    """Summary of a meta graph. Counts of operations and kinds are sorted by frequency.

    Attributes:
        nbytes: Size of the meta graph in binary form.
        of_saved_model: Whether it has parts that savers never write: tags, signatures, assets or an object graph.
        function_ops: Operation -> number of nodes, in all functions together.
        variables_problem: Why the variables cannot be determined, so that none are listed; "" if they can.
    """

    nbytes: int
    of_saved_model: bool
    vintage: Vintage
    tags: Sequence[str]
    nodes: int
    ops: Mapping[str, int]
    functions: Sequence[FunctionSummary]
    function_ops: Mapping[str, int]
    function_aliases: Mapping[str, str]
    variables: Sequence[VariableSummary]
    variables_problem: str
    collections: Sequence[CollectionSummary]
    signatures: Sequence[SignatureSummary]
    assets: Sequence[AssetSummary]
    saver: SaverSummary | None
    savers: Sequence[SaverSummary]
    object_graph: ObjectGraphSummary | None


def summary_of(meta: RawMetaGraph) -> MetaGraphSummary:
    """Summarize a meta graph.

    Raises:
        DataLossError: a part of it is damaged.

    Cost: a walk over all nodes, including those of functions; constants are not decoded. Thread safety: may be called
    from several threads.
    """
    with error_context(meta.place):
        nodes, ops = len(meta.graph.nodes), meta.graph.op_counts()
        functions = [_function(each) for each in meta.graph.functions.values()]
        bodies = Counter(node.op for each in meta.graph.functions.values() for node in each.nodes.values())
        vintage = _vintage(meta)
    try:
        variables, problem = [_variable(each) for each in bound_variables(meta).variables], ""
    except DataLossError as error:  # collections and nodes contradict each other: still summarize everything else
        variables, problem = [], str(error)
    savers = meta.collections.get(GraphKeys.SAVERS, CollectionDef())
    return MetaGraphSummary(
        nbytes=len(meta.raw),
        of_saved_model=bool(meta.info.tags or meta.signatures or meta.assets or meta.object_graph is not None),
        vintage=vintage,
        tags=list(meta.info.tags),
        nodes=nodes,
        ops=_ranked(ops),
        functions=functions,
        function_ops=_ranked(bodies),
        function_aliases=dict(sorted(meta.info.function_aliases.items())),
        variables=variables,
        variables_problem=problem,
        collections=[_collection(name, each) for name, each in meta.collections.items()],
        signatures=[_signature(name, each) for name, each in meta.signatures.items()],
        assets=[AssetSummary(each.filename, _tensor("", each.tensor_info).tensors) for each in meta.assets],
        saver=None if meta.saver_def is None else _saver(meta.saver_def),
        savers=[_saver(each) for each in collection_items(GraphKeys.SAVERS, savers) if isinstance(each, SaverDef)],
        object_graph=_object_graph(meta),
    )


def collection_items(name: str, collection: CollectionDef, limit: int | None = None) -> list[Item]:
    """Return the first `limit` values of a collection, with messages decoded by the collection's name."""
    kind = collection.WhichOneof("kind")
    if kind is None:
        return []
    message = PROTO_COLLECTIONS.get(name) if kind == "bytes_list" else None
    return [_decoded(value, message) for value in getattr(collection, kind).value[:limit]]


def plain(item: Item) -> Any:
    """Convert a value of a collection to a value for JSON.

    Bytes become strings if they are UTF-8, else {"base64": ...}; numbers that JSON lacks become "NaN", "Infinity" or
    "-Infinity". Messages have protobuf's JSON form, with the names of the .proto files: fields with default values are
    omitted, and 64-bit integers are strings. An Any of any type becomes {"type_url": ..., "base64": ...}.
    """
    if isinstance(item, AnyMessage):
        return {"type_url": item.type_url, "base64": base64.b64encode(item.value).decode()}
    if isinstance(item, Message):
        return MessageToDict(item, preserving_proto_field_name=True)
    if isinstance(item, bytes):
        try:
            return item.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(item).decode()}
    if isinstance(item, float) and not math.isfinite(item):
        return "NaN" if math.isnan(item) else "Infinity" if item > 0 else "-Infinity"
    return item


def _decoded(value: Item, message: type[Message] | None) -> Item:
    if message is None or not isinstance(value, bytes):
        return value
    try:
        return message.FromString(value)
    except DecodeError:  # it may be a user's own collection of that name
        return value


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """Sort by descending count, then by name."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _vintage(meta: RawMetaGraph) -> Vintage:
    info, versions = meta.info, meta.graph.versions
    return Vintage(
        info.tensorflow_version,
        info.tensorflow_git_version,
        info.meta_graph_version,
        versions.producer,
        versions.min_consumer,
        list(versions.bad_consumers),
        info.stripped_default_attrs,
    )


def _function(function: Function) -> FunctionSummary:
    ops = Counter(node.op for node in function.nodes.values())
    return FunctionSummary(function.name, len(function.nodes), _ranked(ops))


def _variable(variable: GraphVariable) -> VariableSummary:
    elements = _elements(variable.shape)
    return VariableSummary(
        variable.name,
        variable.dtype,
        variable.shape,
        variable.trainable,
        variable.device,
        None if variable.part is None else _part(variable.part),
        elements,
        None if elements is None or not variable.dtype.itemsize else elements * variable.dtype.itemsize,
    )


def _part(part: SaveSliceInfoDef) -> PartSummary:
    return PartSummary(part.full_name, tuple(part.full_shape), tuple(part.var_offset), tuple(part.var_shape))


def _elements(shape: Shape | None) -> int | None:
    if shape is None or any(length < 0 for length in shape):
        return None
    count = 0 if 0 in shape else 1
    for length in shape:
        count *= length
        if count > MAX_INT64:  # stop before a hostile shape makes the product huge
            return None
    return count


def _collection(name: str, collection: CollectionDef) -> CollectionSummary:
    kind = collection.WhichOneof("kind")
    if kind is None:
        return CollectionSummary(name, "", "", 0)
    message = PROTO_COLLECTIONS.get(name) if kind == "bytes_list" else None
    return CollectionSummary(
        name, kind, "" if message is None else message.DESCRIPTOR.name, len(getattr(collection, kind).value)
    )


def _signature(name: str, signature: SignatureDef) -> SignatureSummary:
    return SignatureSummary(
        name,
        signature.method_name,
        list(_tensors(signature.inputs)),
        list(_tensors(signature.outputs)),
        sorted(signature.defaults),
    )


def _tensors(tensors: Mapping[str, TensorInfo]) -> Iterator[TensorSummary]:
    """Yield the tensors sorted by name, since a protobuf map has no order."""
    for name in sorted(tensors):
        yield _tensor(name, tensors[name])


def _tensor(name: str, info: TensorInfo) -> TensorSummary:
    shape = shape_of(info.tensor_shape) if info.HasField("tensor_shape") else None
    names = [getattr(holder, field) for holder, field in tensor_names([info])]
    return TensorSummary(name, DataType(info.dtype), shape, names, info.WhichOneof("encoding") or "")


def _saver(saver_def: SaverDef) -> SaverSummary:
    versions = SaverDef.CheckpointFormatVersion
    return SaverSummary(
        saver_def.filename_tensor_name,
        saver_def.save_tensor_name,
        saver_def.restore_op_name,
        versions.Name(saver_def.version) if saver_def.version in versions.values() else str(saver_def.version),
        saver_def.sharded,
        saver_def.max_to_keep,
        saver_def.keep_checkpoint_every_n_hours,
    )


def _object_graph(meta: RawMetaGraph) -> ObjectGraphSummary | None:
    graph = meta.object_graph
    if graph is None:
        return None
    kinds = Counter(node.WhichOneof("kind") or "none" for node in graph.nodes)
    users = Counter(node.user_object.identifier for node in graph.nodes if node.HasField("user_object"))
    root = graph.nodes[0].user_object.identifier if graph.nodes else ""
    return ObjectGraphSummary(root, len(graph.nodes), _ranked(kinds), _ranked(users), len(graph.concrete_functions))
