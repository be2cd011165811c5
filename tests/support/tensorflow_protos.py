"""Messages and their text in TensorFlow. Runs in the TensorFlow process only, called as "tensorflow_protos.text_of"."""

from pathlib import Path

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from google.protobuf import any_pb2, text_format, wrappers_pb2
from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    control_flow_pb2,
    meta_graph_pb2,
    queue_runner_pb2,
    saved_model_pb2,
    saver_pb2,
    tensor_bundle_pb2,
    trackable_object_graph_pb2,
)
from tensorflow.core.util import saved_tensor_slice_pb2  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.framework import meta_graph  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.training import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    checkpoint_state_pb2,
)

v1 = tf.compat.v1


def file_descriptors() -> list[bytes]:
    """The FileDescriptorProto of every .proto file of TensorFlow that is used in checkpoints and meta graphs."""
    waiting = [
        module.DESCRIPTOR
        for module in (
            checkpoint_state_pb2, control_flow_pb2, meta_graph_pb2, queue_runner_pb2, saved_model_pb2,
            saved_tensor_slice_pb2, tensor_bundle_pb2, trackable_object_graph_pb2,
        )
    ]  # fmt: skip
    found: dict[str, bytes] = {}
    while waiting:
        file = waiting.pop()
        if file.name not in found:
            found[file.name] = file.serialized_pb
            waiting += file.dependencies
    return list(found.values())


def write_meta_graphs(directory: str) -> list[str]:
    """Export graphs of many kinds, each as NAME.meta and, as text, as NAME.txt. Return their names."""
    kinds = {"plain": _plain, "collections": _collections, "control": _control_flow, "functions": _functions}
    for name, build in kinds.items():
        with v1.Graph().as_default():
            build()
            saver = v1.train.Saver(sharded=name == "functions", name=f"saver_{name}")
            for as_text, suffix in ((False, "meta"), (True, "txt")):
                path = str(Path(directory, f"{name}.{suffix}"))
                saver.export_meta_graph(path, as_text=as_text, strip_default_attrs=name == "plain")
    with v1.Graph().as_default():
        for as_text, suffix in ((False, "meta"), (True, "txt")):
            v1.train.export_meta_graph(str(Path(directory, f"nothing.{suffix}")), as_text=as_text)
    return [*kinds, "nothing"]


def _variable(name: str, **options: object) -> object:
    return v1.get_variable(name, shape=[4, 3], initializer=v1.zeros_initializer(), **options)


def _plain() -> None:
    _variable("a", use_resource=True)
    _variable("b", use_resource=False)
    with v1.variable_scope("p", partitioner=v1.fixed_size_partitioner(2)):
        _variable("parts", use_resource=True)
    tf.constant([0.1, 1e-7, -0.0, float("nan"), float("inf"), 16777216.0])
    tf.constant([b"\x00\xff\n\"'\\", "größer".encode(), b""])


def _collections() -> None:
    _variable("x", use_resource=True)
    v1.add_to_collection("ints", -5)
    v1.add_to_collection("floats", 0.1)
    v1.add_to_collection("strings", "größer\n\t\"'\\")
    v1.add_to_collection("bytes", b"\x80\x00")
    v1.add_to_collection("schlüssel", 1)
    messages = (
        saver_pb2.SaverDef(filename_tensor_name="x", max_to_keep=5),
        wrappers_pb2.Int64Value(value=2**40),
        meta_graph_pb2.CollectionDef(int64_list=meta_graph_pb2.CollectionDef.Int64List(value=[1, 2])),
    )
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        v1.add_to_collection("packed", packed)
    v1.add_to_collection("packed", any_pb2.Any(type_url="type.googleapis.com/nobody.Knows", value=b"\x01\xff"))
    v1.add_to_collection("packed", any_pb2.Any(value=b"no type"))


def _control_flow() -> None:
    total = _variable("total", use_resource=True)
    v1.disable_control_flow_v2()
    try:
        v1.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x + 1.0), [tf.constant(0), tf.identity(total)])
        v1.cond(tf.constant(True), lambda: tf.constant(1), lambda: tf.constant(2))
    finally:
        v1.enable_control_flow_v2()
    queue = v1.FIFOQueue(4, [tf.float32], shapes=[[]])
    v1.train.add_queue_runner(v1.train.QueueRunner(queue, [queue.enqueue([1.0])]))


def _functions() -> None:
    for device in ("/cpu:0", "/cpu:1"):
        with tf.device(device):
            _variable(f"v{device[-1]}", use_resource=True)

    tf.function(lambda x: tf.add(x, x))(tf.constant(1.0))


def texts_of(encoded: list[bytes]) -> list[str]:
    """The text that TensorFlow writes with as_text=True for these MetaGraphDefs."""
    return [text_format.MessageToString(meta_graph_pb2.MetaGraphDef.FromString(each)) for each in encoded]


def read_meta_graphs(paths: list[str]) -> list[bytes | str]:
    """Each file as TensorFlow reads it, serialised; or the name of the exception that it raises."""
    return list(map(_read, paths))


def _read(path: str) -> bytes | str:
    try:
        encoded: bytes = meta_graph.read_meta_graph_file(path).SerializeToString(deterministic=True)
        return encoded
    except Exception as error:
        return type(error).__name__


def write_saved_model_text(directory: str) -> list[tuple[str, ...]]:
    """A SavedModel with two meta graphs, as text. Returns their tags."""
    with v1.Graph().as_default(), v1.Session() as session:
        _variable("x", use_resource=True)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(directory)
        builder.add_meta_graph_and_variables(session, ["train"])
        builder.add_meta_graph(["serve"])
        builder.save(as_text=True)
    return [("train",), ("serve",)]
