"""Find the variables of a graph, from the collections that list them and from their nodes.

Source: tensorflow/core/framework/variable.proto, RefVariable and ResourceVariable in tensorflow/python/ops.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from torch_tfckpt._proto.tensor_shape_pb2 import TensorShapeProto
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, as_data_loss, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.device_spec import canonical_device_spec
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.meta_graph.graph_collections import GraphKeys
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.saver_values import VARIABLE_OPS, StoredValue, stored_values
from torch_tfckpt.meta_graph.scopes import prepend_name_scope
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.text import quoted

# Collections of the model's variables. Local and metric variables belong to a session, not to checkpoints.
_OF_THE_MODEL: Final = (
    GraphKeys.GLOBAL_VARIABLES,
    GraphKeys.TRAINABLE_VARIABLES,
    GraphKeys.MODEL_VARIABLES,
    "moving_average_variables",
    "global_step",
)
_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})")


def graph_variables(meta: RawMetaGraph, stored: Sequence[StoredValue] | None) -> list[GraphVariable]:
    """Return the variables of the model, in the order of the collections or else of the graph.

    These are the variables in the collections of global, trainable and model variables, and the variables that the
    saver restores. Variables whose values the graph computes from restored values are omitted. If there are neither
    collections nor a saver, all variable nodes of the graph are returned.

    Args:
        stored: The result of `saver_values` for `meta`.

    Raises:
        DataLossError: a part is damaged, or a collection lists a variable that is not a node.

    Cost: a walk over the graph's nodes. Thread safety: may be called from several threads.
    """
    definitions = {name: each for key in _OF_THE_MODEL for name, each in variable_defs(meta, key).items()}
    names = dict.fromkeys(definitions)
    names |= dict.fromkeys(name for value in stored or () for name in value.variables)
    with error_context(meta.place):
        for name in (name for value in stored or () for name in value.computing):
            names.pop(name, None)
        if not names and not stored:
            names = dict.fromkeys(node.name for node in meta.graph.nodes.values() if node.op in VARIABLE_OPS)
        parts = _parts(definitions.values(), stored or ())
        trainable = _trainable(meta, definitions)
        return [variable_of(meta, name, name in trainable, parts.get(name)) for name in names]


def saver_values(meta: RawMetaGraph) -> list[StoredValue] | None:
    """Return the values that the meta graph's saver stores; None if there is no saver, or it has no nodes."""
    if meta.saver_def is None:
        return None
    with error_context(meta.place):
        return stored_values(meta.graph, meta.saver_def)


def values_by_name(variables: Iterable[GraphVariable], scope: str) -> list[StoredValue]:
    """Return the values of a saver that stores variables under their names, with `scope` added."""
    return [
        StoredValue(prepend_name_scope(variable.name, scope), "", variable.dtype, (variable.name,))
        if variable.part is None
        else StoredValue(
            prepend_name_scope(variable.part.full_name, scope),
            _slice_spec(variable.part),
            variable.dtype,
            (variable.name,),
        )
        for variable in variables
    ]


def variable_defs(meta: RawMetaGraph, key: str) -> dict[str, VariableDef]:
    """Return node name -> VariableDef, for a collection of variables; empty if it is not a list of bytes."""
    collection = meta.collections.get(key)
    found = {}
    for encoded in collection.bytes_list.value if collection is not None else ():
        try:
            definition = VariableDef.FromString(encoded)
        except DecodeError as error:
            raise DataLossError(f"{meta.place}: collection {quoted(key)}: invalid VariableDef: {error}") from error
        found[definition.variable_name.partition(":")[0]] = definition
    return found


def variable_of(meta: RawMetaGraph, name: str, trainable: bool, part: SaveSliceInfoDef | None) -> GraphVariable:
    """Return the variable of the node `name`; DataLossError if the node is missing or has no dtype."""
    node = meta.graph.nodes.get(name)
    if node is None:
        raise DataLossError(f"variable {quoted(name)} is in a collection, but no node of the graph has that name")
    dtype = node.attr("dtype")
    if dtype is None or not dtype.type:
        raise DataLossError(f"variable {quoted(name)}: its node (operation {quoted(node.op)}) has no dtype")
    return GraphVariable(name, DataType(dtype.type), _shape_of(node), _device_of(node), trainable, part)


def _shape_of(node: Node) -> Shape | None:
    shape = node.attr("shape")
    if shape is None:
        return None
    if node.op == "Variable" and not shape.shape.dim:  # in the oldest graphs, [] also means an unknown shape
        return None
    return shape_of(shape.shape)


def shape_of(shape: TensorShapeProto) -> Shape | None:
    """Decode a shape: None if even the number of dimensions is unknown, -1 for an unknown dimension."""
    return None if shape.unknown_rank else tuple(max(dim.size, -1) for dim in shape.dim)


def _device_of(node: Node) -> str:
    try:
        return canonical_device_spec(node.device)
    except InvalidArgumentError:  # an unknown device type; the variable's original device is not needed
        return ""


def _trainable(meta: RawMetaGraph, definitions: dict[str, VariableDef]) -> set[str]:
    """Return the trainable variables.

    Before TensorFlow 1.9, only the collection "trainable_variables" recorded which variables are trainable.
    """
    version = _VERSION.match(meta.info.tensorflow_version)
    if version is None or (int(version[1]), int(version[2])) < (1, 9):
        return set(variable_defs(meta, GraphKeys.TRAINABLE_VARIABLES))
    return {name for name, definition in definitions.items() if definition.trainable}


def _parts(definitions: Iterable[VariableDef], stored: Sequence[StoredValue]) -> dict[str, SaveSliceInfoDef]:
    """Return variable -> slice of a larger tensor, from its definition or else from the saver."""
    parts = dict(parts_stored(stored))
    for definition in definitions:
        if definition.HasField("save_slice_info_def"):
            parts[definition.variable_name.partition(":")[0]] = definition.save_slice_info_def
    return parts


def parts_stored(stored: Sequence[StoredValue]) -> Iterator[tuple[str, SaveSliceInfoDef]]:
    """Yield (variable, slice of a larger tensor) for the slices that a saver stores."""
    for value in stored:
        if value.slice_spec and value.variables:
            with as_data_loss(f"tensor {quoted(value.key)}"):
                part = slice_info_def(SaveSliceInfo.of_spec(value.key, value.slice_spec))
            yield from ((name, part) for name in value.variables)


def _slice_spec(part: SaveSliceInfoDef) -> str:
    with as_data_loss(f"part of {quoted(part.full_name)}"):
        return SaveSliceInfo(part.full_name, part.full_shape, part.var_offset, part.var_shape).spec


def slice_info_def(info: SaveSliceInfo) -> SaveSliceInfoDef:
    """Encode the position of a variable in a larger tensor as a message."""
    return SaveSliceInfoDef(
        full_name=info.full_name, full_shape=info.full_shape, var_offset=info.var_offset, var_shape=info.var_shape
    )
