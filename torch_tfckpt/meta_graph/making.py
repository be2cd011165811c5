"""The `.meta` file of a checkpoint: the saver and the variables, as a MetaGraphDef that TensorFlow's tools can read.

It holds no operations: what a torch model computes is not a graph of TensorFlow. It says which variables there are, how
they are sliced, and how the saver that wrote them was set up.

Source: tensorflow/core/protobuf/meta_graph.proto; spec: SAVER 6, FORMATS 5.
"""

from collections.abc import Iterable
from importlib import metadata
from typing import Final

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.format.tensor_slice import parse_shape_and_slice
from torch_tfckpt.graph_collections import GraphKeys
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable

# The version whose files these equal: readers of old meta graphs decide by it what a missing field means.
TENSORFLOW_VERSION: Final = "2.21.0"
# tensorflow/core/public/version.h of that version, TF_GRAPH_DEF_VERSION and _MIN_CONSUMER.
GRAPH_PRODUCER: Final = 2336
GRAPH_MIN_CONSUMER: Final = 12


def make_meta_graph(
    saver_def: SaverDef | None, saveables: Iterable[SaveableObject], *, stripped_default_attrs: bool = False
) -> MetaGraphDef:
    """A meta graph of what a saver saves. `saver_def` None: of no saver.

    Its variables are the tensors; strings, such as the state of a scheduler, are none.
    """
    meta = MetaGraphDef()
    meta.meta_info_def.tensorflow_version = TENSORFLOW_VERSION
    meta.meta_info_def.tensorflow_git_version = f"torch_tfckpt {_own_version()}"
    meta.meta_info_def.stripped_default_attrs = stripped_default_attrs
    meta.graph_def.versions.producer = GRAPH_PRODUCER
    meta.graph_def.versions.min_consumer = GRAPH_MIN_CONSUMER
    if saver_def is not None:
        meta.saver_def.CopyFrom(saver_def)
    for saveable in saveables:
        if isinstance(saveable, VariableSaveable):
            [spec] = saveable.specs
            encoded = _variable_def(spec, saveable.trainable).SerializeToString(deterministic=True)
            meta.collection_def[GraphKeys.GLOBAL_VARIABLES].bytes_list.value.append(encoded)
            if saveable.trainable:
                meta.collection_def[GraphKeys.TRAINABLE_VARIABLES].bytes_list.value.append(encoded)
    return meta


def encode_meta_graph(meta: MetaGraphDef) -> bytes:
    """The bytes of the file; equal meta graphs have equal bytes."""
    return meta.SerializeToString(deterministic=True)


def _own_version() -> str:
    try:
        return metadata.version("torch-tfckpt")
    except metadata.PackageNotFoundError:  # copied somewhere, not installed: no reason for a save to fail
        return "unknown"


def _variable_def(spec: SaveSpec, trainable: bool) -> VariableDef:
    name = spec.name
    definition = VariableDef(
        variable_name=f"{name}:0",
        initializer_name=f"{name}/Assign",
        snapshot_name=f"{name}/Read/ReadVariableOp:0",
        initial_value_name=f"{name}/Initializer:0",
        is_resource=True,
        trainable=trainable,
    )
    if spec.slice_spec:
        full_shape, part, _ = parse_shape_and_slice(spec.slice_spec)
        resolved = part.resolve(full_shape)
        definition.save_slice_info_def.CopyFrom(
            SaveSliceInfoDef(
                full_name=name,
                full_shape=full_shape,
                var_offset=[extent.start for extent in resolved.extents],
                var_shape=[extent.length for extent in resolved.extents],
            )
        )
    return definition
