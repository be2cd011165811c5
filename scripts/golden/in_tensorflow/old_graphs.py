"""Graphs and SavedModels as TensorFlow 0.x and 1.x wrote them, checked by importing and running them.

A current graph is built from operations that existed then, and its messages are changed: versions, the names of
operations that were replaced since, fields that did not exist. All values are dyadic, so that every machine writes the
same bytes.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from google.protobuf.any_pb2 import Any as AnyMessage
from tensorflow.core.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    variable_pb2,
)
from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph_pb2,
    saved_model_pb2,
    saver_pb2,
)
from tensorflow.python.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph,
)

tf.get_logger().setLevel(logging.ERROR)  # deprecated since then, which is intended here
v1 = tf.compat.v1
JUDGED = "judged"


def write_version_9(folder: str) -> dict[str, Any]:
    """Write two layers and a step, saved by SaveSlices and restored by one RestoreSlice each."""
    here = Path(folder)
    values = {
        "layer1/weight": [[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]],
        "layer1/bias": [0.0, 1.0, -1.0],
        "layer2/weight": [[1.0], [-2.0], [0.5]],
        "layer2/bias": [0.125],
        "global_step": 5,
    }
    graph = tf.Graph()
    with graph.as_default(), v1.Session() as session:
        initial = {name: tf.constant(value, name=f"{name}/initial_value") for name, value in values.items()}
        # Not VariableV2. The shape of a scalar was not distinguished from an unknown one.
        variables = {
            name: tf.raw_ops.Variable(shape=each.shape, dtype=each.dtype, name=name) for name, each in initial.items()
        }
        assigned = [
            tf.raw_ops.Assign(ref=variables[name], value=each, name=f"{name}/Assign") for name, each in initial.items()
        ]
        for name, each in variables.items():
            tf.raw_ops.Identity(input=each, name=f"{name}/read")
        x = tf.raw_ops.Placeholder(dtype=tf.float32, name="x")
        hidden = tf.raw_ops.MatMul(a=x, b=variables["layer1/weight"], name="hidden/MatMul")
        hidden = tf.raw_ops.Relu(features=tf.raw_ops.Add(x=hidden, y=variables["layer1/bias"], name="hidden/add"))
        out = tf.raw_ops.MatMul(a=hidden, b=variables["layer2/weight"], name="out/MatMul")
        tf.raw_ops.Add(x=out, y=variables["layer2/bias"], name="y")
        with v1.name_scope("save"):
            path = tf.constant("model", name="Const")
            names = list(variables)
            slices = [""] * len(names)
            data = [variables[name] for name in names]
            save = tf.raw_ops.SaveSlices(
                filename=path, tensor_names=names, shapes_and_slices=slices, data=data, name="save"
            )
            with tf.control_dependencies([save]):
                tf.identity(path, name="control_dependency")
            restores = []
            for name in names:
                read = tf.raw_ops.RestoreSlice(
                    file_pattern=path,
                    tensor_name=name,
                    shape_and_slice="",
                    dt=initial[name].dtype,
                    name="restore_slice",
                )
                restores.append(tf.raw_ops.Assign(ref=variables[name], value=read, name="Assign"))
            tf.group(*restores, name="restore_all")
        session.run(assigned)
        session.run("save/control_dependency:0", {"save/Const:0": str(here / "checkpoint-5")})
    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph.as_graph_def())
    meta.meta_info_def.stripped_op_list.CopyFrom(meta_graph.stripped_op_list_for_graph(meta.graph_def))
    meta.graph_def.versions.producer = 9
    meta.graph_def.versions.ClearField("min_consumer")
    meta.saver_def.CopyFrom(
        saver_pb2.SaverDef(
            filename_tensor_name="save/Const:0",
            save_tensor_name="save/control_dependency:0",
            restore_op_name="save/restore_all",
            max_to_keep=1,
            keep_checkpoint_every_n_hours=10000,
        )
    )
    for name in values:
        encoded = _variable_def(name)
        for collection in ("variables", "trainable_variables") if name != "global_step" else ("variables",):
            meta.collection_def[collection].bytes_list.value.append(encoded)
    _write(here / "checkpoint-5.meta", meta)
    _write_state(here, "checkpoint-5")
    return _judged(here, meta, "checkpoint-5", "y:0", {"x:0": [[1.0, 2.0], [-1.0, 0.5]]})


def write_version_19(folder: str) -> dict[str, Any]:
    """Write y = 3 x - 1, exported for serving as in 0.12: collections of messages, an unsaved step."""
    here = Path(folder)
    with tf.Graph().as_default(), v1.Session() as session:
        slope, offset = _line(3.0, -1.0)
        v1.get_variable("global_step", initializer=7, trainable=False, use_resource=False)
        # The server's own initialization reads this and writes the path of the asset to it.
        asset = tf.constant("/tmp/original/export/assets/names.txt", name="asset_path")
        v1.add_to_collection("asset_filepaths", asset)
        saver = v1.train.Saver([slope, offset], sharded=True, write_version=saver_pb2.SaverDef.V1, max_to_keep=0)
        session.run(v1.global_variables_initializer())
        saver.save(session, str(here / "export"), write_meta_graph=False, write_state=False)
        meta = _exported(saver, version="0.12.1", git_version="unknown", producer=19)
    _before_version_1(meta)
    graph_message = AnyMessage()
    graph_message.Pack(meta.graph_def, deterministic=True)
    meta.collection_def["serving_graph"].any_list.value.append(graph_message)
    # Message types of a project unknown to TensorFlow: only their names and bytes are available.
    for key, kind, value in (
        ("serving_assets", "AssetFile", b"\x0a\x0e\x0a\x0casset_path:0\x12\x09names.txt"),
        ("serving_signatures", "Signatures", b"\x0a\x0c\x12\x0a\x0a\x03\x0a\x01x\x12\x03\x0a\x01y"),
    ):
        item = AnyMessage(type_url=f"type.googleapis.com/tensorflow.serving.{kind}", value=value)
        meta.collection_def[key].any_list.value.append(item)
    _write(here / "export.meta", meta)
    return _judged(here, meta, "export-?????-of-00001", "y:0", {"x:0": [[1.0], [2.0]]})


def write_saved_model_of_version_15(folder: str) -> dict[str, Any]:
    """Write y = 0.5 x + 2 as a SavedModel of 0.11: a version 1 shard, a signature of names without dtypes."""
    here = Path(folder)
    (here / "variables").mkdir()
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.Saver(_line(0.5, 2.0), sharded=True, write_version=saver_pb2.SaverDef.V1)
        session.run(v1.global_variables_initializer())
        prefix = str(here / "variables" / "variables")
        saver.save(session, prefix, write_meta_graph=False, write_state=False)
        meta = _exported(saver, version="", git_version="", producer=15)
    _before_version_1(meta)
    meta.meta_info_def.Clear()
    signature = meta.signature_def["regression"]
    signature.inputs["input"].name, signature.outputs["output"].name = "x:0", "y:0"
    signature.method_name = "regression"
    written = "/tmp/original/variables/variables-?????-of-00001"
    _write_state(here / "variables", written)
    _write_saved_model(here, meta)
    return _judged_saved_model(here, meta, "variables/variables-?????-of-00001", "y:0", {"x:0": [[1.0], [2.0]]})


def write_version_27(folder: str) -> dict[str, Any]:
    """Write y = W x + b after four steps of gradient descent towards 3 x + 1."""
    here = Path(folder)
    with tf.Graph().as_default(), v1.Session() as session:
        x, y = v1.placeholder(tf.float32, name="X"), v1.placeholder(tf.float32, name="Y")
        slope = v1.get_variable("W", initializer=0.0, use_resource=False)
        offset = v1.get_variable("b", initializer=0.0, use_resource=False)
        predicted = tf.raw_ops.Add(x=tf.raw_ops.Mul(x=x, y=slope), y=offset, name="prediction")
        error = tf.raw_ops.Sub(x=predicted, y=y, name="error")
        tf.reduce_mean(tf.raw_ops.Square(x=error), name="loss")
        # Not tf.gradients, which uses current operations.
        twice = tf.raw_ops.Mul(x=error, y=2.0, name="gradients/twice")
        gradients = [(offset, tf.reduce_mean(twice)), (slope, tf.reduce_mean(tf.raw_ops.Mul(x=twice, y=x)))]
        updates = [
            tf.raw_ops.ApplyGradientDescent(
                var=variable._ref(), alpha=0.25, delta=gradient, name=f"GradientDescent/update_{variable.op.name}"
            )
            for variable, gradient in gradients
        ]
        train = tf.group(*updates, name="GradientDescent")
        v1.add_to_collection("train_op", train)
        saver = v1.train.Saver()
        session.run(v1.global_variables_initializer())
        for _ in range(4):
            session.run(train, {x: [-1.0, 1.0], y: [-2.0, 4.0]})
        saver.save(session, str(here / "model"), write_meta_graph=False, write_state=False)
        meta = _exported(saver, version="1.11.0", git_version="v1.11.0-0-gc19e29306c", producer=27)
    _write(here / "model.meta", meta)
    _write_state(here, "model")
    return _judged(here, meta, "model", "prediction:0", {"X:0": [1.0, 2.0]})


def write_saved_model_of_version_26(folder: str) -> dict[str, Any]:
    """Write a counter with signatures that read it, add to it, reset it, and return the variable itself."""
    here = Path(folder)
    (here / "variables").mkdir()
    with tf.Graph().as_default(), v1.Session() as session:
        votes = v1.get_variable("votes", initializer=0.0, use_resource=False)
        more = v1.placeholder(tf.float32, [], name="more")
        outputs = {
            "read": votes._ref(),
            "add": v1.assign_add(votes, more, name="add"),
            "clear": v1.assign(votes, 0.0, name="clear"),
        }
        saver = v1.train.Saver(sharded=True)
        session.run(v1.global_variables_initializer())
        session.run(outputs["add"], {more: 42.0})
        prefix = str(here / "variables" / "variables")
        saver.save(session, prefix, write_meta_graph=False, write_state=False)
        meta = _exported(saver, version="1.5.0", git_version="unknown", producer=26)
        for name, output in outputs.items():
            signature = meta.signature_def[name]
            signature.outputs["votes"].CopyFrom(v1.saved_model.utils.build_tensor_info(output))
            if name == "add":
                signature.inputs["more"].CopyFrom(v1.saved_model.utils.build_tensor_info(more))
            signature.method_name = "tensorflow/serving/predict"
    _write_saved_model(here, meta)
    return _judged_saved_model(here, meta, "variables/variables", "add:0", {"more:0": 8.0})


def _before_version_1(meta: Any) -> None:
    """Replace VariableV2 by Variable, as before 1.0, and shorten the variables' definitions."""
    for node in meta.graph_def.node:
        if node.op == "VariableV2":
            node.op = "Variable"
    for collection in ("variables", "trainable_variables"):
        values = meta.collection_def[collection].bytes_list.value
        names = [variable_pb2.VariableDef.FromString(encoded).variable_name for encoded in values]
        values[:] = [_variable_def(name.removesuffix(":0")) for name in names]
    meta.meta_info_def.stripped_op_list.CopyFrom(meta_graph.stripped_op_list_for_graph(meta.graph_def))


def _line(slope: float, offset: float) -> list[Any]:
    """Return variables `slope` and `offset`, and y:0 computed from x:0."""
    x = v1.placeholder(tf.float32, name="x")
    variables = [
        v1.get_variable(name, initializer=value, use_resource=False)
        for name, value in (("slope", slope), ("offset", offset))
    ]
    tf.raw_ops.Add(x=tf.raw_ops.Mul(x=variables[0], y=x), y=variables[1], name="y")
    return variables


def _variable_def(name: str) -> bytes:
    """Return a variable's definition as before 1.0, without initial value and trainable flag."""
    definition = variable_pb2.VariableDef(
        variable_name=f"{name}:0", initializer_name=f"{name}/Assign", snapshot_name=f"{name}/read:0"
    )
    encoded: bytes = definition.SerializeToString(deterministic=True)
    return encoded


def _exported(saver: Any, *, version: str, git_version: str, producer: int) -> Any:
    """Return the default graph's meta graph with other versions and without later fields."""
    meta = saver.export_meta_graph(clear_devices=True)
    # The name of the file to save or restore was a constant that is fed; it is now a placeholder with a default.
    nodes = {node.name: node for node in meta.graph_def.node}
    constant = nodes["save/filename/input"]
    constant.name = "save/Const"
    for name in ("save/Const", "save/filename"):
        meta.graph_def.node.remove(nodes[name])
    for name in [name for name, node in nodes.items() if node.op == "Select"]:
        # Current savers use another temporary name for s3:// than the last input of this choice.
        match, for_s3, temporary = nodes[name].input
        (join,) = [node for node in nodes.values() if name in node.input]
        join.input[:] = [temporary if source == name else source for source in join.input]
        constant_tensor = nodes[temporary].attr["value"].tensor
        constant_tensor.string_val[:] = [b"_temp_0123456789abcdef0123456789abcdef/part"]  # the digits are random
        for removed in (name, match, for_s3):
            meta.graph_def.node.remove(nodes[removed])
    meta.meta_info_def.stripped_op_list.CopyFrom(meta_graph.stripped_op_list_for_graph(meta.graph_def))
    meta.graph_def.versions.producer = producer
    meta.graph_def.versions.ClearField("min_consumer")
    info = meta.meta_info_def
    info.tensorflow_version, info.tensorflow_git_version = version, git_version
    info.ClearField("stripped_default_attrs")
    return meta


def _write_state(folder: Path, name: str) -> None:
    """Write the state file `checkpoint` with the latest checkpoint."""
    text = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    (folder / "checkpoint").write_text(text, encoding="utf-8")


def _write(path: Path, message: Any) -> None:
    path.write_bytes(message.SerializeToString(deterministic=True))


def _write_saved_model(folder: Path, meta: Any) -> None:
    meta.meta_info_def.tags.append("serve")
    _write(folder / "saved_model.pb", saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta]))


def _judged(folder: Path, meta: Any, checkpoint: str, fetch: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return TensorFlow's outputs after it imported a meta graph and restored its checkpoint."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(meta).restore(session, str(folder / checkpoint))
        return {JUDGED: {"feeds": dict(feeds), fetch: session.run(fetch, feeds).tolist()}}


def _judged_saved_model(
    folder: Path, meta: Any, checkpoint: str, fetch: str, feeds: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the outputs of a SavedModel and its loader's error, which expects variables/variables alone."""
    found = _judged(folder, meta, checkpoint, fetch, feeds)
    with tf.Graph().as_default(), v1.Session() as session:
        try:
            v1.saved_model.load(session, ["serve"], str(folder))
        except ValueError as error:
            found[JUDGED]["load_error"] = f"ValueError: {error}".replace(f"{folder.parent}/", "")
        else:
            assert session.run(fetch, feeds).tolist() == found[JUDGED][fetch]
    return found
