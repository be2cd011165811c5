"""Encode collections as CollectionDef messages, and decode them.

A CollectionDef is a list of values of one kind. Collections whose values are messages (variables, savers, queue
runners, control flow contexts) are lists of bytes; for all others, the type of the first value determines the kind:

    str, bytes       bytes_list         float      float_list (32 bits)
    int              int64_list         Any        any_list
    an object with a name               node_list

Source: add_collection_def in tensorflow/python/framework/meta_graph.py; the calls of ops.register_proto_function in
tensorflow/python/ops/{ref_variable,control_flow_ops}.py and tensorflow/python/training/{saver,queue_runner_impl}.py.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from torch_tfckpt._proto.control_flow_pb2 import CondContextDef, WhileContextDef
from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.meta_graph.graph_collections import GraphKeys
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.scopes import in_scope, prepend_name_scope
from torch_tfckpt.text import quoted

# Collections of variables.
VARIABLE_COLLECTIONS: Final = (
    GraphKeys.GLOBAL_VARIABLES,
    GraphKeys.TRAINABLE_VARIABLES,
    GraphKeys.LOCAL_VARIABLES,
    GraphKeys.MODEL_VARIABLES,
    "moving_average_variables",
    "metric_variables",
    "global_step",
)

# Name of a collection -> the message type that its bytes encode. The bytes of all other collections are strings.
PROTO_COLLECTIONS: Final[Mapping[str, type[Message]]] = {
    **dict.fromkeys(VARIABLE_COLLECTIONS, VariableDef),
    GraphKeys.SAVERS: SaverDef,
    "queue_runners": QueueRunnerDef,
    "cond_context": CondContextDef,
    "while_context": WhileContextDef,
}


_log = logging.getLogger(__name__)
_NOT_WRITTEN: Final = "collection %s is not written: %s"

T = TypeVar("T")
ToProto = Callable[[object], Message | None]


class NodeName(str):
    """The name of a node, or of a tensor, in a collection of nodes."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The string itself, since collections store the name of objects that have one."""
        return str(self)


def encode_collections(
    collections: Mapping[Hashable, Sequence[object]], to_proto: ToProto, is_node: Callable[[str], bool]
) -> dict[str, CollectionDef]:
    """Return name -> message for all collections that can be written; log a warning for the others.

    Args:
        to_proto: Returns the message for a value in a collection of messages, or None to omit the value.
        is_node: Returns whether the graph has a node with a given name. TensorFlow refuses to import a graph if a
            collection names a node that the graph lacks.
    """
    found = {}
    for name, values in collections.items():
        if not isinstance(name, str):
            _log.warning(_NOT_WRITTEN, repr(name), "its name is not a str")
        elif values:
            try:
                name.encode()
                encoded = encode_collection(name, values, to_proto, is_node)
            except (TypeError, ValueError, OverflowError) as error:
                _log.warning(_NOT_WRITTEN, quoted(name), error)
            else:
                if encoded.WhichOneof("kind") is not None:  # None if no value is a node of the graph
                    found[name] = encoded
    return found


def encode_collection(
    name: str, values: Sequence[object], to_proto: ToProto, is_node: Callable[[str], bool]
) -> CollectionDef:
    """Encode one collection. REQUIRES: it is not empty.

    Raises:
        TypeError, ValueError, OverflowError: its values are of different kinds, or of a kind that cannot be written.
    """
    encoded = CollectionDef()
    first = values[0]
    if name in PROTO_COLLECTIONS:
        encoded.bytes_list.value.extend(
            message.SerializeToString(deterministic=True) for message in map(to_proto, values) if message is not None
        )
        encoded.bytes_list.SetInParent()
    elif isinstance(first, str | bytes) and not isinstance(first, NodeName):
        encoded.bytes_list.value.extend(_bytes(value) for value in values)
    elif any(isinstance(value, bool) for value in values):
        raise TypeError("a collection cannot store a bool; store 0 or 1 instead")
    elif isinstance(first, int):
        encoded.int64_list.value.extend(_only(int, values))
    elif isinstance(first, float):
        encoded.float_list.value.extend(map(float, _numbers(values)))
    elif isinstance(first, Any):
        encoded.any_list.value.extend(_only(Any, values))
    else:
        for node in map(_node_name, values):
            if is_node(node.removeprefix("^").partition(":")[0]):
                encoded.node_list.value.append(node)
            else:
                _log.warning(
                    "collection %s: %s is not written: it is not a node of the graph", quoted(name), quoted(node)
                )
    return encoded


def decode_collection(name: str, encoded: CollectionDef, scope: str | None) -> list[object]:
    """Return the values of one collection: int, float, Any, messages, NodeNames or bytes.

    Args:
        scope: Prefix for all names. With a scope, bytes become str, as in TensorFlow.
    """
    kind = encoded.WhichOneof("kind")
    if kind is None:
        _log.warning("collection %s has an unknown type, and is read as empty", quoted(name))
        return []
    values: Sequence[object] = getattr(encoded, kind).value
    if kind == "node_list":
        return [NodeName(prepend_name_scope(str(value), scope)) for value in values]
    if kind != "bytes_list":
        return list(values)
    proto = PROTO_COLLECTIONS.get(name)
    return [_decoded(name, value, proto, scope) for value in encoded.bytes_list.value]


def _decoded(name: str, value: bytes, proto: type[Message] | None, scope: str | None) -> object:
    """Return one element of a list of bytes: a message, a str with the scope added, or the bytes."""
    if proto is not None:
        message = proto()
        try:
            message.ParseFromString(value)
        except DecodeError as error:
            _log.warning("collection %s contains an invalid %s: %s", quoted(name), proto.DESCRIPTOR.name, error)
            return value
        return in_scope(message, scope)
    if not scope:
        return value
    try:
        return prepend_name_scope(value.decode(), scope)
    except UnicodeDecodeError:  # not a name
        return value


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"its first value is str or bytes, but a later one is {type(value).__name__}")


def _only(kind: type[T], values: Sequence[object]) -> Iterator[T]:
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"its first value is {type(values[0]).__name__}, but a later one is {type(value).__name__}")
        yield value


def _numbers(values: Sequence[object]) -> Iterator[float]:
    """Yield floats and ints; TensorFlow also accepts ints in a list of floats."""
    for value in values:
        yield from _only(int if isinstance(value, int) else float, [value])


def _node_name(value: object) -> str:
    if isinstance(value, GraphVariable):
        return f"{value.name}:0"
    try:
        name = getattr(value, "name", None)
    except Exception as error:  # `name` may be a property that raises any exception
        raise TypeError(f"the name of a value of type {type(value).__name__} cannot be read: {error}") from error
    if not isinstance(name, str):
        raise TypeError(f"a value of type {type(value).__name__} has no name, and is not a message, string or number")
    return name
