"""SavedModels of TensorFlow 2 and Keras, for the tests of their variables. Runs in the TensorFlow process only.

A model is one of `MODELS`. Before it is saved, each of its variables gets values of its own, so that equal values mean
the same variable.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor
from tensorflow_side import from_tensorflow

layers = tf.keras.layers
SaveOptions = tf.saved_model.SaveOptions
Values = dict[str, RawTensor]


class Captured(NamedTuple):
    """What a function of a loaded SavedModel captures, in order.

    Attributes:
        values: The values of variables; None for anything else.
        trainable: The names of the trainable ones among them.
    """

    values: list[RawTensor | None]
    trainable: list[str]


class Saved(NamedTuple):
    """A SavedModel as TensorFlow loads it.

    Attributes:
        signatures: Name of a signature -> what it captures.
        variables: Values of all variables of all objects, in the order in which they are found.
    """

    signatures: dict[str, Captured]
    variables: list[RawTensor]


def write(kind: str, directory: str) -> Saved:
    """Save a model, and return what TensorFlow loads."""
    MODELS[kind](directory)
    return load(directory)


def load(directory: str) -> Saved:
    """Load a SavedModel."""
    loaded = tf.saved_model.load(directory)
    signatures = {name: _captured(function) for name, function in loaded.signatures.items()}
    return Saved(signatures, [from_tensorflow(each.read_value()) for each in _variables_of(loaded)])


def _captured(function: Any) -> Captured:
    handles = {id(variable.handle): variable for variable in function.graph.variables}
    values: list[RawTensor | None] = []
    for captured in function.captured_inputs:
        variable = handles.get(id(captured))
        if variable is None and captured.dtype == tf.resource:
            variable = next((each for each in handles.values() if each.handle is captured), None)
        values.append(None if variable is None else from_tensorflow(variable.read_value()))
    trainable = [each.name.removesuffix(":0") for each in function.graph.variables if each.trainable]
    return Captured(values, trainable)


def restored_by_checkpoint(kind: str, prefix: str) -> list[RawTensor]:
    """tf.train.Checkpoint(root).read of a checkpoint into a new model: the values of its variables, in order."""
    root = ROOTS[kind]()
    tf.train.Checkpoint(root).read(prefix).assert_existing_objects_matched()
    return [from_tensorflow(each.read_value()) for each in _variables_of(root)]


def _variables_of(root: Any) -> list[Any]:
    """Return the variables of all objects, and the slot variables of optimizers."""
    objects = tf.train.TrackableView(root).descendants()
    found = {id(each): each for each in objects if isinstance(each, tf.Variable)}
    found |= {id(each): each for optimizer in objects if hasattr(optimizer, "add_slot") for each in optimizer.weights}
    return list(found.values())


def _filled(root: Any) -> Any:
    """Give each variable values of its own."""
    for number, variable in enumerate(_variables_of(root)):
        if variable.dtype == tf.string:
            variable.assign(tf.fill(tf.shape(variable), f"text {number}"))
        else:
            shape = tuple(2 if size is None else size for size in variable.shape.as_list())
            values = np.arange(np.prod(shape, dtype=int)).reshape(shape) / 8 + number + 1
            variable.assign(tf.cast(tf.constant(values), variable.dtype))
    return root


def _fill_keras(model: Any) -> Any:
    variables = list(model.variables)
    if getattr(model, "optimizer", None) is not None:
        of_optimizer = model.optimizer.variables
        variables += of_optimizer() if callable(of_optimizer) else of_optimizer
    for number, variable in enumerate(variables):
        values = np.arange(np.prod(variable.shape, dtype=int)).reshape(variable.shape) / 8 + number + 1
        variable.assign(tf.cast(tf.constant(values), variable.dtype))
    return model


# Models of Keras 3.


def _net(keras: Any = tf.keras) -> Any:
    """A shared layer, two LayerNorms of one name in two parts, a Dropout, a BatchNormalization, a frozen layer."""
    part = keras.layers
    first = keras.Sequential([keras.Input((4,)), part.LayerNormalization(name="norm"), part.Dense(4)], name="first")
    second = keras.Sequential([keras.Input((4,)), part.LayerNormalization(name="norm"), part.Dense(4)], name="second")
    x = inputs = keras.Input((4,), name="x")
    shared = part.Dense(4, name="shared")
    x = second(first(shared(shared(x))))
    x = part.Dropout(0.5)(x)
    x = part.BatchNormalization(name="batch")(x)
    frozen = part.Dense(3, name="frozen")
    frozen.trainable = False
    model = keras.Model(inputs, frozen(x), name="net")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return _fill_keras(model)


def _recurrent(directory: str) -> None:
    part = layers
    model = tf.keras.Sequential(
        [tf.keras.Input((5,)), part.Embedding(7, 4), part.Bidirectional(part.LSTM(3)), part.Dense(1)], name="words"
    )
    _fill_keras(model).export(directory, verbose=False)


class _Wrapped(tf.Module):  # type: ignore[misc, unused-ignore]
    """A Keras model in a module with a signature of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__(name="wrapped")
        self.model = model
        self.scale = tf.Variable(0.5, name="scale")

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])  # type: ignore[untyped-decorator, unused-ignore]
    def predict(self, x: Any) -> Any:
        return {"y": self.model(x, training=False) * self.scale}


def _export(directory: str) -> None:
    _net().export(directory, verbose=False)


def _export_endpoints(directory: str) -> None:
    """Two functions, of which one reads only a part of the variables."""
    model = _net()
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    spec = [tf.TensorSpec([None, 4], tf.float32)]
    archive.add_endpoint("whole", lambda x: model(x, training=False), spec)
    archive.add_endpoint("part", lambda x: model.get_layer("shared")(x), spec)
    archive.write_out(directory, verbose=False)


def _wrapped(directory: str) -> None:
    module = _Wrapped(_net())
    tf.saved_model.save(module, directory, signatures={"predict": module.predict})


def _saved(directory: str) -> None:
    tf.saved_model.save(_net(), directory)


def _keras_2(directory: str) -> None:
    import tf_keras  # type: ignore[import-untyped, import-not-found, unused-ignore]

    _net(tf_keras).save(directory, save_format="tf")


# Modules without Keras.


class _Module(tf.Module):  # type: ignore[misc, unused-ignore]
    """Variables of one name, frozen, of strings, of unknown shape and unused; captured constants and a table."""

    def __init__(self) -> None:
        super().__init__(name="module")
        self.one = tf.Variable(tf.zeros([4, 3]), name="w")
        self.two = tf.Variable(tf.zeros([3, 3]), name="w")
        self.w = tf.Variable(tf.zeros([3]), name="bias", trainable=False)
        self.unshaped = tf.Variable(tf.zeros([2, 3]), shape=[None, 3], name="unshaped")
        self.text = tf.Variable("", name="text")
        self.parts = [tf.Variable(0.0), {"a/b": tf.Variable(0, dtype=tf.int64)}]
        self.unused = tf.Variable(tf.zeros([2]), name="unused", dtype=tf.float32)
        self.constant = tf.constant(np.ones((3,), np.float32))
        pairs = tf.lookup.KeyValueTensorInitializer(["a"], [1.0])
        self.table = tf.lookup.StaticHashTable(pairs, 0.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])  # type: ignore[untyped-decorator, unused-ignore]
    def serve(self, x: Any) -> Any:
        y = tf.matmul(tf.matmul(x, self.one) + self.w + self.constant, self.two) + tf.reduce_sum(self.unshaped)
        number = self.parts[0] + tf.cast(self.parts[1]["a/b"], tf.float32) + self.table.lookup(self.text)
        return {"y": y + number}

    @tf.function(input_signature=[])  # type: ignore[untyped-decorator, unused-ignore]
    def bias(self) -> Any:
        return {"bias": self.w + 0.0}


def _module(directory: str) -> None:
    module = _filled(_Module())
    tf.saved_model.save(module, directory, signatures={"serve": module.serve, "bias": module.bias})


class _OfOptimizer(tf.Module):  # type: ignore[misc, unused-ignore]
    """A variable with slot variables, which have no path in the object graph."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([0.0, 0.0], name="w")
        import tf_keras

        # The only optimizers with slot variables that TensorFlow can load.
        self.optimizer = tf_keras.optimizers.legacy.SGD(0.125, momentum=0.5)

    @tf.function(input_signature=[])  # type: ignore[untyped-decorator, unused-ignore]
    def serve(self) -> Any:
        return {"w": self.w + 0.0}


def _of_optimizer() -> Any:
    module = _OfOptimizer()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module.w)
    module.optimizer.apply_gradients([(tape.gradient(loss, module.w), module.w)])
    module.w.assign([1.0, 2.0])
    return module


def _slots(directory: str) -> None:
    module = _of_optimizer()
    tf.saved_model.save(module, directory, signatures={"serve": module.serve})


def _mirrored(directory: str, **options: Any) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        module = _filled(_Module())
    tf.saved_model.save(module, directory, signatures={"serve": module.serve}, options=SaveOptions(**options))


def _expanded(directory: str) -> None:
    policy = tf.saved_model.experimental.VariablePolicy.EXPAND_DISTRIBUTED_VARIABLES
    _mirrored(directory, experimental_variable_policy=policy)


MODELS: dict[str, Callable[[str], None]] = {
    "keras export": _export,
    "keras endpoints": _export_endpoints,
    "keras in a module": _wrapped,
    "keras saved": _saved,
    "keras recurrent": _recurrent,
    "keras 2": _keras_2,
    "module": _module,
    "slots": _slots,
    "mirrored": _mirrored,
    "expanded": _expanded,
}
ROOTS: dict[str, Callable[[], Any]] = {"module": _Module, "slots": _of_optimizer}


def write_graphs(directory: str) -> dict[str, dict[str, int]]:
    """tf.io.write_graph of a graph with a variable, and of the same graph frozen; as binary and as text.

    Returns name of the file -> operation -> number of nodes.
    """
    v1, counts = tf.compat.v1, {}
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        tf.nn.relu(tf.matmul(x, v1.get_variable("w", [3, 2])), name="y")
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
    for stem, graph_def in (("graph", graph.as_graph_def()), ("frozen", frozen)):
        ops = [node.op for node in graph_def.node]
        for name, as_text in ((f"{stem}.pb", False), (f"{stem}.pbtxt", True)):
            tf.io.write_graph(graph_def, directory, name, as_text=as_text)
            counts[name] = {op: ops.count(op) for op in ops}
    return counts
