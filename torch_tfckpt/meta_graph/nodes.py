"""Nodes of a graph: unique names, NodeDefs as bytes, and the declarations of their operations.

    GraphDef    = node: NodeDef = 1 ... | versions = 4
    NodeDef     = name = 1 | op = 2 | input = 3 ... | device = 4 | attr: map = 5 ...

    0a 0d                     a node of 13 bytes
       0a 01 61               its name: "a"
       12 04 4e 6f 4f 70      its operation: "NoOp"
       1a 02 5e 62            it runs after node "b": "^b"

Nodes are kept as bytes, not as messages: the graph of 100,000 variables has a million nodes, and most of them share
attributes, which are encoded once. A meta graph contains the declarations of its operations (from ops.pbtxt), so that
an older TensorFlow can find out which unknown attributes it may drop.

Source: tensorflow/core/framework/{graph,node_def,attr_value}.proto; ops.Graph.unique_name in
tensorflow/python/framework/ops.py; the rule for names in node_def_util.cc; stripped_op_list_for_graph in
tensorflow/python/framework/meta_graph.py.
"""

import functools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Final

from google.protobuf import text_format

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.op_def_pb2 import OpDef, OpList
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt._proto.versions_pb2 import VersionDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_bundle import shape_to_proto
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.meta_graph.raw import MAX_MESSAGE
from torch_tfckpt.meta_graph.scopes import SAVER_NAMES

_INVALID: Final = re.compile(r"[^A-Za-z0-9_.\-/]")
_VALID_START: Final = re.compile(r"[A-Za-z0-9.]")


class UniqueNames:
    """A set of unique names.

    Args:
        taken: The initial names.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """Return `name`, or `name` with the first free suffix _1, _2, ..., and mark the result as taken."""
        # Continue from the last number: many nodes may ask for the same name.
        chosen, self._numbers[name] = numbered(name, self._taken, self._numbers.get(name, 0))
        self._taken.add(chosen)
        return chosen


class NodeNames(UniqueNames):
    """A set of unique and valid node names."""

    def unique(self, name: str) -> str:
        """Return a free node name for `name`: invalid characters become "_"; _1, _2, ... is added if needed."""
        valid = _INVALID.sub("_", name.removesuffix(":0")).strip("/")
        return super().unique(valid if _VALID_START.match(valid) else f"v{valid}")


def numbered(name: str, taken: Container[str], number: int = 0) -> tuple[str, int]:
    """Return `name` with the first free suffix, starting at `number` (0: no suffix), and its number."""
    chosen = name if not number else f"{name}_{number}"
    while chosen in taken:
        number += 1
        chosen = f"{name}_{number}"
    return chosen, number


def nodes_of(saver_def: SaverDef) -> list[str]:
    """Return the nodes that a SaverDef names."""
    return [getattr(saver_def, name).partition(":")[0] for name in SAVER_NAMES]


def with_distinct_nodes(saver_defs: Sequence[SaverDef]) -> list[SaverDef]:
    """Give each saver of a graph its own nodes, by adding _1, _2, ... to scopes that are already in use."""
    taken: set[str] = set()
    apart = []
    for saver_def in saver_defs:
        candidate, number = saver_def, 0
        while len({*nodes_of(candidate)}) < len(SAVER_NAMES) or not taken.isdisjoint(nodes_of(candidate)):
            number += 1
            candidate = _in_another_scope(saver_def, number)
        taken.update(nodes_of(candidate))
        apart.append(candidate)
    return apart


def _in_another_scope(saver_def: SaverDef, number: int) -> SaverDef:
    """Rename the nodes of a saver: "save/Const:0" becomes "save_1/Const:0"."""
    copy = SaverDef()
    copy.CopyFrom(saver_def)
    for name in SAVER_NAMES:
        scope, slash, rest = getattr(saver_def, name).rpartition("/")
        node, colon, output = rest.partition(":")
        setattr(copy, name, f"{scope}_{number}/{rest}" if slash else f"{node}_{number}{colon}{output}")
    return copy


@functools.cache
def known_ops() -> Mapping[str, OpDef]:
    """Return operation name -> its declaration, without descriptions. Cost: 10 ms, once."""
    text = (resources.files("torch_tfckpt.meta_graph") / "ops.pbtxt").read_text(encoding="utf-8")
    return MappingProxyType({op.name: op for op in text_format.Parse(text, OpList()).op})


def declarations(ops: Iterable[str]) -> OpList:
    """Return the declarations of some operations, sorted by name. REQUIRES: `known_ops` contains them."""
    known = known_ops()
    return OpList(op=[known[name] for name in sorted(ops)])


# The version that TensorFlow 2.21 writes into exported graphs. Readers use it to interpret missing attributes.
GRAPH_PRODUCER: Final = 2474

_NODE, _VERSIONS = b"\x0a", b"\x22"  # of a GraphDef
_NAME, _OP, _INPUT, _DEVICE, _ATTR = b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a"  # of a NodeDef
_KEY, _VALUE = b"\x0a", b"\x12"  # of an entry of a map
# The encodings of small sizes. They are precomputed because a graph has millions of sizes, and nearly all are small.
_SIZES: Final = tuple(encode_varint(size) for size in range(1024))


class Nodes(UniqueNames):
    """The nodes of a graph and their names, in the order in which they are added.

    Args:
        taken: Reserved names of nodes that are added later. `unique` never returns a reserved name.

    Attributes:
        ops: The operations of the nodes.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        super().__init__(taken)
        self._encoded: list[bytes] = []
        self.ops: set[str] = set()

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[str] = (),
        device: str = "",
        attrs: bytes = b"",
        after: Iterable[str] = (),
    ) -> None:
        """Write one node.

        Args:
            inputs: Outputs of other nodes: "a" is the first output of a, "a:1" the second.
            attrs: The result of `attributes`, or several results concatenated in the order of the attributes' names.
            after: Nodes that must run before this node.
        """
        self.ops.add(op)
        # Sorted as strings, as in TensorFlow: "b_10" comes before "b_2".
        fed = b"".join([sized(_INPUT, each.encode()) for each in (*inputs, *(f"^{node}" for node in sorted(after)))])
        placed = sized(_DEVICE, device.encode()) if device else b""
        self._encoded.append(sized(_NODE, sized(_NAME, name.encode()) + _operation(op) + fed + placed + attrs))

    def encoded_graph(self) -> bytes:
        """Return the GraphDef.

        Raises:
            InvalidArgumentError: it would be 2 GiB or larger.
        """
        versions = sized(_VERSIONS, VersionDef(producer=GRAPH_PRODUCER).SerializeToString())
        size = sum(map(len, self._encoded)) + len(versions)
        if size >= MAX_MESSAGE:
            raise InvalidArgumentError(
                f"GraphDef cannot be larger than 2GB, but {len(self._encoded)} nodes take {size} bytes. Save without a "
                f"meta graph (write_meta_graph=False), or with several savers"
            )
        return b"".join((*self._encoded, versions))


def sized(tag: bytes, payload: bytes) -> bytes:
    """Encode a length-delimited field."""
    try:
        return tag + _SIZES[len(payload)] + payload
    except IndexError:
        return tag + encode_varint(len(payload)) + payload


@functools.cache
def _operation(op: str) -> bytes:
    return sized(_OP, op.encode())


# The attributes of a node, and their values: encoded AttrValues.


def attributes(**values: bytes) -> bytes:
    """Encode the attributes of a node: name -> value."""
    # TensorFlow uses protobuf's deterministic serialization, which sorts the entries of a map by name, but puts
    # "Tshape" before "T".
    ordered = sorted(values, key=lambda name: f"{name}~")
    return b"".join([sized(_ATTR, sized(_KEY, name.encode()) + sized(_VALUE, values[name])) for name in ordered])


@functools.cache
def type_value(dtype: DataType) -> bytes:
    return AttrValue(type=dtype).SerializeToString()  # type: ignore[arg-type]  # the stub's own enum, same numbers


def type_list(dtypes: Sequence[DataType]) -> bytes:
    return AttrValue(list=AttrValue.ListValue(type=dtypes)).SerializeToString()  # type: ignore[arg-type]


def string_value(text: str) -> bytes:
    return sized(b"\x12", text.encode())  # AttrValue.s = 2


def number_value(number: int) -> bytes:
    return AttrValue(i=number).SerializeToString()


def shape_value(shape: Shape | None) -> bytes:
    return AttrValue(shape=shape_to_proto(shape)).SerializeToString()


def shape_list(*shapes: Shape | None) -> bytes:
    return AttrValue(list=AttrValue.ListValue(shape=map(shape_to_proto, shapes))).SerializeToString()


def colocated_with(node: str) -> bytes:
    """Return the `_class` attribute that places a node on the same device as `node`."""
    return sized(b"\x0a", string_value(f"loc:@{node}"))  # AttrValue.list = 1, ListValue.s = 2


TRUE: Final = AttrValue(b=True).SerializeToString()
FALSE: Final = AttrValue(b=False).SerializeToString()
EMPTY_LIST: Final = AttrValue(list=AttrValue.ListValue()).SerializeToString()


# Constants.


def constant(tensor: TensorProto) -> bytes:
    """Return the attributes of a Const."""
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    value = AttrValue(tensor=tensor).SerializeToString()
    return attributes(_output_shapes=shape_list(shape), dtype=type_value(DataType(tensor.dtype)), value=value)


def empty_tensor(dtype: DataType, shape: Shape) -> TensorProto:
    """Return a TensorProto without elements; the caller adds them."""
    return TensorProto(dtype=dtype, tensor_shape=shape_to_proto(shape))  # type: ignore[arg-type]  # the stub's own enum


def string_tensor(text: str) -> TensorProto:
    tensor = empty_tensor(DataType.DT_STRING, ())
    tensor.string_val.append(text.encode())
    return tensor


def strings_tensor(strings: Sequence[str]) -> TensorProto:
    tensor = empty_tensor(DataType.DT_STRING, (len(strings),))
    tensor.string_val.extend([string.encode() for string in strings])
    return tensor


def number_tensor(number: int) -> TensorProto:
    tensor = empty_tensor(DataType.DT_INT32, ())
    tensor.int_val.append(number)
    return tensor
