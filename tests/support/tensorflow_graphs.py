"""Functions for the tests of meta graphs. Runs in the TensorFlow process only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.core.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    graph_pb2,
    op_def_pb2,
)
from tensorflow.core.protobuf import saver_pb2  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    op_def_registry,
)
from tensorflow.python.ops import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    resource_variable_ops,
)
from tensorflow_process import RawTensor

v1 = tf.compat.v1

# name, dtype, shape, device, (full_name, full_shape, offset) of the tensor that it is a part of
Described = tuple[str, str, Sequence[int] | None, str, tuple[str, Sequence[int], Sequence[int]] | None]


def saver_graph(variables: Sequence[Described], savers: Sequence[Mapping[str, Any]]) -> tuple[bytes, list[bytes]]:
    """The meta graph of resource variables and tf.compat.v1.train.Savers with these options, and their SaverDefs.

    The option `names` lists the variables of one saver; without it, it saves all.
    """
    with tf.Graph().as_default() as graph:
        made = {described[0]: _variable(*described) for described in variables}
        definitions = []
        for options in savers:
            names = options.get("names", list(made))
            rest = {key: value for key, value in options.items() if key != "names"}
            definitions.append(v1.train.Saver([made[name] for name in names], **rest).as_saver_def())
        meta = v1.train.export_meta_graph(graph=graph)
    return meta.SerializeToString(deterministic=True), [each.SerializeToString() for each in definitions]


def saver_meta_graph(variables: Sequence[Described], options: Mapping[str, Any]) -> bytes:
    """The meta graph that a tf.compat.v1.train.Saver of resource variables exports."""
    with tf.Graph().as_default():
        made = [_variable(*described) for described in variables]
        meta = v1.train.Saver(made, **options).export_meta_graph()
    data: bytes = meta.SerializeToString(deterministic=True)
    return data


def _variable(
    name: str, dtype: str, shape: Sequence[int] | None, device: str, part: tuple[Any, Any, Any] | None
) -> Any:
    with tf.device(device or None):
        if shape is None or -1 in shape:
            declared = tf.TensorShape(None if shape is None else [None if size < 0 else size for size in shape])
            first = [max(size, 0) for size in shape or ()]
            return resource_variable_ops.ResourceVariable(
                lambda: tf.zeros(first, tf.as_dtype(dtype)), name=name, shape=declared
            )
        variable = v1.get_variable(name, shape, tf.as_dtype(dtype), v1.zeros_initializer(), use_resource=True)
    if part is not None:
        full_name, full_shape, offset = part
        variable._set_save_slice_info(tf.Variable.SaveSliceInfo(full_name, full_shape, offset, shape))
    return variable


def run_saver(
    graph: bytes, saver_def: bytes, nodes: Sequence[tuple[str, str]], read_from: str | None, save_as: str
) -> tuple[list[RawTensor], str]:
    """Import a graph, initialize its variables, restore them, and save them; return their values and the saved path.

    Args:
        nodes: (initializer, value tensor) of each variable.
        read_from: The checkpoint to restore, or None.
    """
    saver = saver_pb2.SaverDef.FromString(saver_def)
    # A session has its own devices: this process needs no more than the default one.
    config = v1.ConfigProto(device_count={"CPU": 4})
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        tf.import_graph_def(graph_pb2.GraphDef.FromString(graph), name="")
        session.run([initializer for initializer, _ in nodes])
        if read_from is not None:
            session.run(saver.restore_op_name, {saver.filename_tensor_name: read_from})
        tensors = [v1.get_default_graph().get_tensor_by_name(name) for _, name in nodes]
        values = [_raw(tensor, value) for tensor, value in zip(tensors, session.run(tensors), strict=True)]
        path = session.run(saver.save_tensor_name, {saver.filename_tensor_name: save_as})
    return values, path.decode()


def _raw(tensor: Any, value: Any) -> RawTensor:
    if tensor.dtype == tf.string:
        return RawTensor.of(np.array(value, dtype=object))
    return RawTensor(tensor.dtype.name, np.shape(value), np.asarray(value).tobytes())


def declarations(names: list[str]) -> bytes:
    """An OpList of this TensorFlow's declarations of some operations, without descriptions."""
    ops = op_def_pb2.OpList(op=[op_def_registry.get(name) for name in names])
    data: bytes = ops.SerializeToString(deterministic=True)
    return data
