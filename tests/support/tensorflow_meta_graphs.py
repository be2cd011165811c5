"""Functions for the tests of meta graphs: import ours, and build graphs. Runs in the TensorFlow process only.

A graph of TensorFlow's is one of `GRAPHS`, which each function builds again by its name. So `restores` returns what a
session of the same program would restore.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from google.protobuf import text_format
from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph_pb2,
    saver_pb2,
)
from tensorflow.python.ops import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    control_flow_util,
)
from tensorflow.python.training.saving import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    saveable_object,
)
from tensorflow_process import RawTensor
from tensorflow_side import to_tensorflow

v1 = tf.compat.v1
Values = dict[str, RawTensor]


@contextmanager
def _session() -> Iterator[Any]:
    """A session with its own graph and three CPU devices."""
    config = v1.ConfigProto(device_count={"CPU": 3})
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        yield session


def _run(session: Any, tensors: Mapping[str, Any]) -> Values:
    """Values of tensors and variables."""
    values = session.run({name: tf.identity(tensor) for name, tensor in tensors.items()})
    return {name: _raw(value, tensors[name].dtype.base_dtype) for name, value in values.items()}


def _raw(value: Any, dtype: Any) -> RawTensor:
    if dtype == tf.string:
        return RawTensor.of(np.array(value, dtype=object))
    return RawTensor(dtype.name, tuple(value.shape), value.tobytes())


# Meta graphs from elsewhere.


class Trained(NamedTuple):
    """The results of training with a meta graph and its checkpoint."""

    initial: Values  # by variable name, after the initializer
    restored: Values
    trained: Values  # after a step, and a change of untrainable variables
    path: str  # path of the imported saver's checkpoint


def train(meta: str, path: str, new_path: str, import_scope: str | None = None, **options: Any) -> Trained:
    """Import a meta graph, initialize, restore and train its variables, and save them by the same saver."""
    with _session() as session:
        saver = v1.train.import_meta_graph(meta, import_scope=import_scope, **options)
        variables = {variable.op.name: variable for variable in v1.global_variables()}
        session.run(v1.global_variables_initializer())
        initial = _run(session, variables)
        saver.restore(session, path)
        restored = _run(session, variables)
        trained = [each for each in v1.trainable_variables() if each.dtype.base_dtype.is_floating]
        if trained:
            loss = tf.add_n([tf.reduce_sum(tf.cast(each, tf.float64) ** 2) for each in trained])
            session.run(v1.train.GradientDescentOptimizer(0.125).minimize(loss, var_list=trained))
        others = set(variables) - {each.op.name for each in trained}
        session.run([variables[name].assign(_constant(_changed(restored[name]))) for name in sorted(others)])
        changed = _run(session, variables)
        saved: str = saver.save(session, new_path)
        return Trained(initial, restored, changed, saved)


def _changed(value: RawTensor) -> RawTensor:
    """A different value: the lowest bit of each element is flipped; strings do not change."""
    if value.dtype == "string":
        return value
    data = np.frombuffer(value.data, np.uint8).copy()
    size = tf.as_dtype(value.dtype).size
    data[::size] ^= 1
    return RawTensor(value.dtype, value.shape, data.tobytes())


def _constant(value: RawTensor) -> Any:
    tensor = to_tensorflow(value)
    tensor.set_shape(value.shape)
    return tensor


def assign(meta: str, values: Mapping[str, Any], new_path: str) -> str:
    """Import a meta graph, assign these values to its variables, and save by its saver."""
    with _session() as session:
        saver = v1.train.import_meta_graph(meta)
        session.run(v1.global_variables_initializer())
        variables = {variable.op.name: variable for variable in v1.global_variables()}
        session.run([variables[name].assign(_constant(RawTensor.of(value))) for name, value in values.items()])
        saved: str = saver.save(session, new_path)
        return saved


def imported(meta: str, import_scope: str | None = None) -> dict[str, Any]:
    """The result of importing a meta graph: saver, collections as strings, devices, and its export."""
    with tf.Graph().as_default() as graph:
        saver = v1.train.import_meta_graph(meta, import_scope=import_scope)
        again = v1.train.export_meta_graph(graph=graph)
        return {
            "saver": None if saver is None else str(saver.as_saver_def()),
            "collections": {key: [_text(value) for value in graph.get_collection(key)] for key in graph.collections},
            "devices": sorted({node.device for node in again.graph_def.node}),
            "exported": again.SerializeToString(deterministic=True),
        }


def _text(value: Any) -> str:
    return str(getattr(value, "name", value)) if not isinstance(value, bytes | str) else repr(value)


def restore_each(meta: str, path: str) -> list[dict[str, str]]:
    """For each saver in the collection "savers" of a meta graph: the variables after only it restored."""
    found = []
    with _session() as session:
        v1.train.import_meta_graph(meta)
        for saver in v1.get_collection("savers"):
            session.run(v1.global_variables_initializer())
            saver.restore(session, path)
            values = session.run({variable.op.name: variable for variable in v1.global_variables()})
            found.append({name: str(value.tolist()) for name, value in values.items()})
    return found


def as_text(meta: bytes) -> str:
    """The text form of a MetaGraphDef."""
    text: str = text_format.MessageToString(meta_graph_pb2.MetaGraphDef.FromString(meta))
    return text


# TensorFlow's graphs.


class Made(NamedTuple):
    """A graph, and the tensors that its saver saves."""

    saved: Mapping[str, Any]  # variable name -> tensor
    saver: Any
    unsaved: Mapping[str, Any] = {}


def _variable(name: str, value: Any, **options: Any) -> Any:
    return v1.get_variable(name, initializer=tf.constant(value), **options)


def _floats(values: Sequence[Any]) -> Any:
    return np.array(values, np.float32)


def _named(variables: Sequence[Any]) -> dict[str, Any]:
    return {variable.op.name: variable for variable in variables}


def _some(use_resource: bool) -> list[Any]:
    """Variables of several types, shapes and devices."""
    with tf.device("/cpu:1"):
        one = _variable("scope/one", np.arange(6, dtype=np.float32).reshape(2, 3), use_resource=use_resource)
    with tf.device("/cpu:2"):
        two = _variable("two", np.int64(7), use_resource=use_resource, trainable=False)
    with tf.device("/cpu:0"):
        three = _variable("scope/three", np.zeros((0, 2)), use_resource=use_resource)
    four = _variable("four", np.array([True, False]), use_resource=use_resource, trainable=False)
    five = _variable("five", np.array([1 + 2j, 3j], np.complex64), use_resource=use_resource)
    return [one, two, three, four, five]


def _plain(use_resource: bool, **options: Any) -> Made:
    variables = _some(use_resource)
    return Made(_named(variables), v1.train.Saver(**options))


def _renamed(use_resource: bool) -> Made:
    one, two, *others = _some(use_resource)
    saver = v1.train.Saver({"other/name": one, "scope/one": two})
    return Made(_named([one, two]), saver, _named(others))


def _subset() -> Made:
    one, two, *others = _some(True)
    v1.train.Saver()  # another saver, which is not exported
    return Made(_named([one]), v1.train.Saver([one]), _named([two, *others]))


def _reshaping() -> Made:
    variables = _some(True)
    return Made(_named(variables), v1.train.Saver(reshape=True))


def _partitioned(use_resource: bool, partitioner: Any, **options: Any) -> Made:
    value = np.arange(70, dtype=np.float32).reshape(7, 10)
    with v1.variable_scope("outer", use_resource=use_resource):
        cut = _variable("cut", value, partitioner=partitioner)
        whole = _variable("whole", value + 100)
    return Made({"outer/cut": cut.as_tensor(), "outer/whole": whole}, v1.train.Saver(**options))


def _on_devices(use_resource: bool, **options: Any) -> Made:
    """A partitioned variable with parts on several devices."""
    value = np.arange(70, dtype=np.float32).reshape(7, 10)
    devices = iter(["/cpu:0", "/cpu:1", "/cpu:2"] * 5)
    with v1.device(lambda op: next(devices) if op.type in ("VariableV2", "VarHandleOp") else op.device):
        cut = _variable("cut", value, partitioner=v1.fixed_size_partitioner(3), use_resource=use_resource)
    return Made({"cut": cut.as_tensor()}, v1.train.Saver(sharded=True, **options))


def _averages() -> Made:
    variable = _variable("w", _floats([1, 2]))
    other = _variable("v", _floats([3, 4]), trainable=False)
    averages = tf.train.ExponentialMovingAverage(0.5)
    averages.apply([variable])
    saver = v1.train.Saver(averages.variables_to_restore())
    return Made(_named([variable, other]), saver, _named([averages.average(variable)]))


def _optimized() -> Made:
    """Slots of optimizers, the step, and the inputs of a loss."""
    variable = _variable("w", _floats([[1, 2], [3, 4]]), use_resource=True)
    step = v1.train.get_or_create_global_step()
    loss = tf.reduce_sum(tf.matmul(variable, variable))
    v1.train.AdamOptimizer(0.5).minimize(loss, global_step=step)
    return Made(_named(v1.global_variables()), v1.train.Saver())


def _table() -> Made:
    """Tables: one is constant, and the values of the other are saved."""
    variable = _variable("w", _floats([1, 2]))
    keys = tf.constant(["x", "y"])
    tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, tf.constant([1, 2])), -1)
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, default_value=-1, name="table")
    filled = table.insert(keys[:1], tf.constant([7], tf.int64))
    v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, filled)
    v1.add_to_collection(v1.GraphKeys.SAVEABLE_OBJECTS, _TableSaveable(table, "table"))
    found = table.lookup(keys)
    return Made({"w": variable, ":table": found}, v1.train.Saver())


class _TableSaveable(saveable_object.SaveableObject):  # type: ignore[misc, unused-ignore]
    """The keys and values of a table."""

    def __init__(self, table: Any, name: str) -> None:
        keys, values = table.export()
        specs = [
            saveable_object.SaveSpec(keys, "", f"{name}-keys"),
            saveable_object.SaveSpec(values, "", f"{name}-values"),
        ]
        super().__init__(table, specs, name)
        self._table = table

    def restore(self, restored_tensors: Any, restored_shapes: Any) -> Any:
        keys, values = restored_tensors
        return tf.raw_ops.LookupTableImportV2(table_handle=self._table.resource_handle, keys=keys, values=values)


def _texts() -> Made:
    words = _variable("words", np.array([[b"", b"\0\xff"], [b"x" * 300, b"y"]]), use_resource=True)
    word = _variable("word", np.array(b"one"), use_resource=True)
    return Made(_named([words, word]), v1.train.Saver())


def _texts_in_parts() -> Made:
    words = np.array([[b"a", b""], [b"\0\xff", b"b"], [b"c", b"d"]])
    cut = _variable("words", words, partitioner=v1.fixed_size_partitioner(2), use_resource=True)
    return Made({"words": cut.as_tensor()}, v1.train.Saver())


def _mirrored() -> Made:
    """Two variables that get one value, like copies of a variable on several devices."""
    one = _variable("v", _floats([1, 2]), use_resource=True)
    other = _variable("v/replica_1", _floats([1, 2]), use_resource=True)
    return Made(_named([one, other]), v1.train.Saver([_MirroredSaveable(one, other)]))


class _MirroredSaveable(saveable_object.SaveableObject):  # type: ignore[misc, unused-ignore]
    """The first of several variables, restored into all of them."""

    def __init__(self, *variables: Any) -> None:
        first = variables[0]
        super().__init__(first, [saveable_object.SaveSpec(first.read_value(), "", first.op.name)], first.op.name)
        self._variables = variables

    def restore(self, restored_tensors: Any, restored_shapes: Any) -> Any:
        return tf.group(*[variable.assign(restored_tensors[0]) for variable in self._variables])


def _unshaped(use_resource: bool) -> Made:
    """Variables whose shape is not in the graph."""
    first = v1.placeholder_with_default(_floats([[1, 2, 3]]), None)
    variable = v1.get_variable("unshaped", initializer=first, validate_shape=False, use_resource=use_resource)
    partly = v1.Variable(
        v1.placeholder_with_default(np.array([[1, 2, 3]], np.int32), [None, 3]),
        validate_shape=False,
        shape=tf.TensorShape([None, 3]) if use_resource else None,
        name="partly",
        use_resource=use_resource,
    )
    return Made(_named([variable, partly]), v1.train.Saver())


def _quantized() -> Made:
    values = [
        tf.bitcast(tf.constant([1, -2, 3], tf.int8), tf.qint8),
        tf.bitcast(tf.constant([4, 5], tf.int32), tf.qint32),
    ]
    variables = [v1.Variable(value, name=f"q{n}", use_resource=True) for n, value in enumerate(values)]
    return Made(_named(variables), v1.train.Saver())


def _half() -> Made:
    variables = [
        v1.get_variable(dtype.name, initializer=tf.cast([0.5, -1.5, 3.0], dtype), use_resource=True)
        for dtype in (tf.bfloat16, tf.float16, tf.float64, tf.int8, tf.uint8, tf.int16, tf.uint16, tf.uint32, tf.uint64)
    ]
    return Made(_named(variables), v1.train.Saver())


def _local() -> Made:
    """Local and metric variables are in no checkpoint."""
    variable = _variable("w", _floats([1, 2]))
    local = v1.get_local_variable("local", initializer=tf.constant([3.0]))
    v1.metrics.mean(variable)
    return Made(_named([variable]), v1.train.Saver(), _named([local]))


def _control_flow() -> Made:
    """Loops, branches, queues and their runners, as in TensorFlow 1."""
    with mock.patch.object(control_flow_util, "ENABLE_CONTROL_FLOW_V2", False):
        variable = _variable("w", np.float32(1), use_resource=False)
        v1.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * variable), [tf.constant(0), variable])
        v1.cond(variable > 0, lambda: variable + 1, lambda: v1.while_loop(lambda x: x < 3, lambda x: x + 1, [variable]))
        with v1.name_scope("input"):
            queue = tf.queue.FIFOQueue(10, [tf.float32])
            v1.train.add_queue_runner(v1.train.QueueRunner(queue, [queue.enqueue([variable])] * 2))
        return Made(_named([variable]), v1.train.Saver())


def _functions() -> Made:
    """Functions that call each other, and loops and branches as functions."""
    variable = _variable("w", _floats([1, 2]), use_resource=True)
    inner = tf.function(lambda x: tf.reduce_sum(x) * variable)
    outer = tf.function(lambda x: tf.cond(x[0] > 0, lambda: inner(x), lambda: inner(x + 1)))
    tf.while_loop(lambda x: x[0] < 3, lambda x: [outer(x) + 1], [outer(tf.constant([1.0, 2.0]))])
    return Made(_named([variable]), v1.train.Saver())


def _many() -> Made:
    variables = [_variable(f"layer_{n}/kernel", _floats([n, n + 1]), use_resource=bool(n % 2)) for n in range(20)]
    return Made(_named(variables), v1.train.Saver(max_to_keep=3, keep_checkpoint_every_n_hours=2.5, name="outer/mine"))


V1 = saver_pb2.SaverDef.V1
GRAPHS: Mapping[str, Callable[[], Made]] = {
    "ref": lambda: _plain(False),
    "resource": lambda: _plain(True),
    "ref, sharded": lambda: _plain(False, sharded=True),
    "resource, sharded": lambda: _plain(True, sharded=True),
    "ref, V1": lambda: _plain(False, write_version=V1),
    "resource, V1": lambda: _plain(True, write_version=V1),
    "ref, V1, sharded": lambda: _plain(False, write_version=V1, sharded=True),
    "resource, V1, sharded": lambda: _plain(True, write_version=V1, sharded=True),
    "sequential": lambda: _plain(True, restore_sequentially=True),
    "reshape": _reshaping,
    "renamed": lambda: _renamed(True),
    "ref, renamed": lambda: _renamed(False),
    "subset": _subset,
    "ref, parts": lambda: _partitioned(False, v1.fixed_size_partitioner(3)),
    "resource, parts": lambda: _partitioned(True, v1.fixed_size_partitioner(3)),
    "parts along 1": lambda: _partitioned(True, v1.fixed_size_partitioner(4, axis=1)),
    "parts of at least": lambda: _partitioned(True, v1.min_max_variable_partitioner(4, 0, 32)),
    "parts, V1": lambda: _partitioned(False, v1.fixed_size_partitioner(2), write_version=V1),
    "parts, reshape": lambda: _partitioned(True, v1.fixed_size_partitioner(2), reshape=True),
    "ref, parts on devices": lambda: _on_devices(False),
    "parts on devices": lambda: _on_devices(True),
    "parts on devices, V1": lambda: _on_devices(True, write_version=V1),
    "averages": _averages,
    "optimized": _optimized,
    "table": _table,
    "strings": _texts,
    "strings in parts": _texts_in_parts,
    "mirrored": _mirrored,
    "ref, unshaped": lambda: _unshaped(False),
    "resource, unshaped": lambda: _unshaped(True),
    "quantized": _quantized,
    "half and others": _half,
    "local": _local,
    "control flow": _control_flow,
    "functions": _functions,
    "many": _many,
}


def saves(graph: str, path: str) -> tuple[Values, Values, str]:
    """Save one of `GRAPHS`; return the saved values, the others, and the path to restore."""
    with _session() as session:
        made = GRAPHS[graph]()
        _initialize(session)
        saved: str = made.saver.save(session, path)
        return _run(session, made.saved), _run(session, made.unsaved), saved


def restores(graph: str, path: str) -> Values:
    """The values of one of `GRAPHS` after its own saver restored from `path`."""
    with _session() as session:
        made = GRAPHS[graph]()
        _initialize(session)
        made.saver.restore(session, path)
        return _run(session, made.saved)


def _initialize(session: Any) -> None:
    session.run(v1.global_variables_initializer())
    session.run(v1.local_variables_initializer())
    session.run(v1.tables_initializer())


# SavedModels.


def _nested() -> Any:
    """A module that contains modules, a list and a dict; variables with equal names; some are not trainable."""
    module = tf.Module(name="model")
    module.kernel = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="kernel")
    module.layers = [tf.Module(), tf.Module()]
    for number, layer in enumerate(module.layers):
        layer.kernel = tf.Variable([10.0 * number, 5.0], name="kernel")
        layer.steps = tf.Variable(100 + number, name="steps", trainable=False)
    module.by_name = {"a/b.c": tf.Variable(tf.constant([1, 2, 3], tf.int64), name="escaped")}
    module.word = tf.Variable(b"text", name="word")
    module.half = tf.Variable(tf.constant([0.5, 0.25], tf.bfloat16))
    module.call = tf.function(lambda x: x @ module.kernel, input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    return module


def _keras() -> Any:
    inputs = tf.keras.Input((3,))
    hidden = tf.keras.layers.BatchNormalization()(tf.keras.layers.Dense(4)(inputs))
    return tf.keras.Model(inputs, tf.keras.layers.Dense(2)(hidden))


SAVED_MODELS: Mapping[str, Callable[[], Any]] = {"nested": _nested, "keras": _keras}


def write_saved_model(kind: str, directory: str) -> Values:
    """tf.saved_model.save of one of `SAVED_MODELS`; return its variables by path."""
    model = SAVED_MODELS[kind]()
    if kind == "keras":
        model.export(directory, verbose=False)
    else:
        tf.saved_model.save(model, directory, signatures=model.call)
    return load_saved_model(directory)


def load_saved_model(directory: str) -> Values:
    """tf.saved_model.load; return the variables by their index."""
    loaded = tf.saved_model.load(directory)
    variables = [each for each in tf.train.TrackableView(loaded).descendants() if isinstance(each, tf.Variable)]
    return {str(place): _raw(each.numpy(), each.dtype) for place, each in enumerate(variables)}


def write_tagged(directory: str) -> Values:
    """A TensorFlow 1 SavedModel with two meta graphs, {"train"} and {"serve", "gpu"}, over the same variables."""
    builder = v1.saved_model.Builder(directory)
    with _session() as session:
        variables = _some(True)
        session.run(v1.global_variables_initializer())
        builder.add_meta_graph_and_variables(session, ["train"])
        values = _run(session, _named(variables))
    with _session() as session:
        x = v1.placeholder(tf.float32, [None, 2], name="x")
        one, *_ = _some(True)
        y = tf.matmul(x, one, name="y")
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph(["serve", "gpu"], signature_def_map={"serving_default": signature}, clear_devices=True)
    builder.save()
    return values


def load_tagged(directory: str, tags: Sequence[str]) -> Values:
    """The variables of one meta graph of a TensorFlow 1 SavedModel."""
    with _session() as session:
        v1.saved_model.load(session, list(tags), directory)
        return _run(session, _named(v1.global_variables()))
