"""What a meta graph holds, counted and listed as plain values: for a person to look at and for a program to read.

    MetaGraphSummary
      ops, functions          operation -> nodes, of the graph and in each function
      variables               with sizes; parts of larger tensors say which
      collections             name, kind and count; `collection_items` decodes the values
      signatures, assets      what a SavedModel can be asked, and the files that it reads
      saver, savers           of the meta graph itself, and of its collection "savers"
      object_graph            of a TF2 SavedModel

Source: tensorflow/core/protobuf/meta_graph.proto, saved_object_graph.proto; spec: SAVER 6, FORMATS 5.
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
from torch_tfckpt.meta_graph.collection_defs import PROTO_COLLECTIONS
from torch_tfckpt.meta_graph.graph_collections import GraphKeys
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.scopes import tensor_names
from torch_tfckpt.meta_graph.variables import graph_variables, saver_values, shape_of

Item = str | int | float | bytes | Message


@dataclass(frozen=True, slots=True)
class Vintage:
    """Which TensorFlow a graph is from, and which can read it. Versions before 1.0 wrote no name of themselves."""

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
    """Which part of which tensor a variable is."""

    full_name: str
    full_shape: Shape
    offset: Shape
    shape: Shape


@dataclass(frozen=True, slots=True)
class VariableSummary:
    """A variable.

    Attributes:
        shape: None: not even the number of dimensions is known; -1 in it: a dimension that is not.
        elements: None where the shape does not say it, or says more than there can be.
        nbytes: None where `elements` is, or an element has no fixed size.
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
        kind: The field that holds the values: "bytes_list", "node_list" ...; "" of an empty entry.
        message: Of which messages they are the bytes: "VariableDef"; "" where that is not known.
    """

    name: str
    kind: str
    message: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """A tensor that goes into or out of a signature, or names an asset.

    Attributes:
        name: Of the argument or result.
        shape: As that of a variable.
        tensors: "x:0". A sparse tensor is three: values, indices, shape; a composite one is its components.
        encoding: How it is made of these: "name", "coo_sparse", "composite_tensor"; "" of an empty entry.
    """

    name: str
    dtype: DataType
    shape: Shape | None
    tensors: Sequence[str]
    encoding: str


@dataclass(frozen=True, slots=True)
class SignatureSummary:
    """A signature. `defaults`: the inputs that may be left out."""

    name: str
    method_name: str
    inputs: Sequence[TensorSummary]
    outputs: Sequence[TensorSummary]
    defaults: Sequence[str]


@dataclass(frozen=True, slots=True)
class AssetSummary:
    """A file that the graph reads, and the tensor that is fed its path."""

    filename: str
    tensors: Sequence[str]


@dataclass(frozen=True, slots=True)
class SaverSummary:
    """A SaverDef. `version`: "LEGACY", "V1", "V2", or the number where there is no such version."""

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
        root: What the first one was: "_tf_keras_sequential"; "" where it does not say.
        kinds: "variable", "function" ... -> how many.
        identifiers: What user objects were -> how many.
    """

    root: str
    nodes: int
    kinds: Mapping[str, int]
    identifiers: Mapping[str, int]
    concrete_functions: int


@dataclass(frozen=True, slots=True)
class MetaGraphSummary:
    """All of it; counts of operations and kinds have the most frequent first.

    Attributes:
        nbytes: Of the meta graph in binary form.
        of_saved_model: Whether it has what savers never write: tags, signatures, assets or an object graph.
        function_ops: Operation -> nodes, of all functions together.
        variables_problem: Why the variables cannot be told, and none are listed; "" where they can.
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
    """The summary of a meta graph.

    Raises:
        DataLossError: a part of it is broken.

    Cost: a walk over all nodes, those of functions included; no constant is decoded. Threads: safe.
    """
    with error_context(meta.place):
        nodes, ops = len(meta.graph.nodes), meta.graph.op_counts()
        functions = [_function(each) for each in meta.graph.functions.values()]
        bodies = Counter(node.op for each in meta.graph.functions.values() for node in each.nodes.values())
        vintage = _vintage(meta)
    try:
        variables, problem = [_variable(each) for each in graph_variables(meta, saver_values(meta))], ""
    except DataLossError as error:  # collections and nodes that contradict each other: the rest is worth a look
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
    """The values of a collection, `limit` of them; bytes that are messages, by the collection's name, decoded."""
    kind = collection.WhichOneof("kind")
    if kind is None:
        return []
    message = PROTO_COLLECTIONS.get(name) if kind == "bytes_list" else None
    return [_decoded(value, message) for value in getattr(collection, kind).value[:limit]]


def plain(item: Item) -> Any:
    """A value of a collection as JSON has it.

    Bytes are text where they are UTF-8, else {"base64": ...}; numbers that JSON lacks are "NaN", "Infinity",
    "-Infinity". Messages are as protobuf's JSON form has them, under the names of the .proto files: what has its
    default is left out, 64-bit integers are text. An Any, of whatever type, is {"type_url": ..., "base64": ...}.
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
    except DecodeError:  # a user's own collection may have the name
        return value


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, equally frequent ones by name."""
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
        if count > MAX_INT64:  # before a file's numbers grow beyond all that can be multiplied or shown
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
    """By name: a map of protobuf has no order of its own."""
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
