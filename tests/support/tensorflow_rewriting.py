"""TensorFlow 1 graphs of all kinds, and the results of TensorFlow's export_meta_graph and import_meta_graph.

Runs in the TensorFlow process only, like tensorflow_side.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from google.protobuf import any_pb2, wrappers_pb2
from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph_pb2,
)
from tensorflow.python.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph,
    op_def_registry,
    ops,
)

v1 = tf.compat.v1


def _plain() -> None:
    """Variables of both kinds, an optimizer with slots, devices, two savers."""
    with v1.device("/cpu:0"):
        w = v1.get_variable("w", [2, 3], use_resource=True)
    with v1.device("/job:ps/task:1/gpu:1"), v1.variable_scope("layer"):
        b = v1.get_variable("b", [3], use_resource=False)
    step = v1.train.create_global_step()
    loss = tf.reduce_sum(tf.matmul(tf.ones([1, 2]), w) + b, name="loss")
    v1.train.AdamOptimizer().minimize(loss, global_step=step)
    v1.add_to_collection("losses", loss)
    v1.add_to_collection("losses", loss.op)
    v1.add_to_collection("savers", v1.train.Saver(sharded=True))
    v1.add_to_collection("savers", v1.train.Saver([b], name="other/saver"))


def _values() -> None:
    """Collections of each kind of value."""
    with v1.name_scope("part"):
        v1.get_variable("inner", [1], use_resource=True)
        node = tf.constant(1.0, name="node")
    packed = any_pb2.Any()
    packed.Pack(wrappers_pb2.StringValue(value="part/any"))
    collections: Mapping[str, Sequence[Any]] = {
        "ints": [3, -1],
        "floats": [3.5, 0.1],
        "strings": ["hello", "part/text", "part", "partly/text", "part/node"],
        "anys": [packed],
        "nodes": [node, node.op],
    }
    for name, values in collections.items():
        for value in values:
            v1.add_to_collection(name, value)


def _parts() -> None:
    """A partitioned variable, a colocated one, a local one."""
    with v1.variable_scope("part", partitioner=v1.fixed_size_partitioner(2)):
        v1.get_variable("w", [4, 3], use_resource=True)
        v1.get_variable("r", [5], use_resource=False)
    with v1.variable_scope("part"), v1.colocate_with(v1.global_variables()[0].op):
        v1.get_variable("local", [1], collections=["local_variables"], use_resource=False)
    v1.add_to_collection("savers", v1.train.Saver())


def _control_flow() -> None:
    """Nested TensorFlow 1 conditions and loops, with gradients."""
    with v1.name_scope("part"):
        x = v1.get_variable("x", [], use_resource=False)
        outer = tf.constant(2.0, name="outer")

        def body(i: Any, value: Any) -> Any:
            inner = v1.cond(value > 1.0, lambda: value * outer, lambda: value + x)
            return [i + 1, v1.while_loop(lambda j: j < 3.0, lambda j: j + inner, [value])]

        _, loop = v1.while_loop(lambda i, _: i < 3, body, [tf.constant(0), x * 1.0], maximum_iterations=5)
        branch = v1.cond(x > 0.0, lambda: v1.cond(outer > x, lambda: x * outer, lambda: outer), lambda: loop)
    tf.gradients(branch, [x])


def _queues() -> None:
    """Queue runners."""
    with v1.name_scope("part"):
        queue = v1.FIFOQueue(10, ["float32"], [()], name="queue")
        runner = v1.train.QueueRunner(queue, [queue.enqueue(1.0), queue.enqueue(2.0)])
        v1.train.add_queue_runner(runner)
        queue.dequeue(name="next")
    v1.train.batch([tf.constant(1.0)], 2)


def _functions() -> None:
    """Functions that call functions, attributes with default values in them and outside."""

    def inner(x: Any) -> Any:
        return tf.matmul(x, x, transpose_b=True)

    def outer(x: Any) -> Any:
        with tf.device("/cpu:0"):
            return tf.function(inner)(x) + tf.matmul(x, x)

    with v1.name_scope("part"), v1.device("/cpu:0"):
        tf.function(outer)(tf.ones([2, 2], name="ones"))
        tf.nn.conv2d(tf.ones([1, 4, 4, 1]), tf.ones([2, 2, 1, 1]), 1, "SAME", name="conv")


def _two_scopes() -> None:
    """A part with inputs and control dependencies from another, and a saver for each."""
    with v1.variable_scope("other"):
        given = v1.get_variable("given", [2], use_resource=True)
        order = tf.no_op(name="order")
        constant = tf.constant([1.0, 2.0], name="constant")
        pair = tf.split(constant, 2, name="pair")
    with v1.variable_scope("part"):
        w = v1.get_variable("w", [2], use_resource=True)
        with v1.control_dependencies([order]):
            tf.add_n([w, given, constant, constant], name="sum")
        tf.add(pair[1], w, name="second")
        with v1.colocate_with(given.op):
            tf.identity(w, name="beside")
    for name in ("part", "other"):
        with v1.name_scope(f"{name}/"):
            saver = v1.train.Saver(v1.global_variables(name), name="save")
        v1.add_to_collection("savers", saver)


GRAPHS: Mapping[str, Callable[[], None]] = {
    "plain": _plain,
    "values": _values,
    "parts": _parts,
    "control flow": _control_flow,
    "queues": _queues,
    "functions": _functions,
    "two scopes": _two_scopes,
}


def registered() -> dict[str, str]:
    """Name of each collection of messages -> name of the message."""
    names = ops._proto_function_registry.list()
    return {name: ops.get_collection_proto_type(name).DESCRIPTOR.name for name in names}


def names(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(prepend_name_scope, strip_name_scope) of each name and scope."""
    return [(ops.prepend_name_scope(*pair), ops.strip_name_scope(*pair)) for pair in pairs]


def op_def(name: str) -> bytes:
    """The declaration of an operation."""
    return bytes(op_def_registry.get(name).SerializeToString())


def exports(name: str, saver: int | None, options: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A graph exported without and with options. `saver` is the index of the exported saver."""
    control_flow_v2 = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        with v1.Graph().as_default():
            GRAPHS[name]()
            saver_def = v1.get_collection("savers")[saver].saver_def if saver is not None else None
            plain = v1.train.export_meta_graph(saver_def=saver_def)
            other = v1.train.export_meta_graph(saver_def=saver_def, **options)
            return plain.SerializeToString(deterministic=True), other.SerializeToString(deterministic=True)
    finally:
        if control_flow_v2:
            v1.enable_control_flow_v2()


def import_and_export(encoded: bytes, scope: str | None) -> bytes:
    """Import a meta graph into a scope, and export everything again, with its saver."""
    meta = meta_graph_pb2.MetaGraphDef.FromString(encoded)
    with v1.Graph().as_default():
        meta_graph.import_scoped_meta_graph(meta, import_scope=scope)
        saver = v1.train.Saver(saver_def=meta.saver_def, name=scope) if meta.HasField("saver_def") else None
        again = v1.train.export_meta_graph(saver_def=saver.saver_def if saver is not None else None)
        return bytes(again.SerializeToString(deterministic=True))


def import_error(encoded: bytes) -> str:
    """The message of the ValueError raised by importing a meta graph."""
    with v1.Graph().as_default():
        try:
            v1.train.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(encoded))
        except ValueError as error:
            return str(error)
    return ""
