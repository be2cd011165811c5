"""Models of TensorFlow 1: graphs, sessions, and tf.compat.v1.train.Saver."""

from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    saver_pb2,
)

from golden.in_tensorflow import digits

v1 = tf.compat.v1
LOGITS = "logits:0"


@contextmanager
def session(folder: str, cpus: int = 1) -> Iterator[Any]:
    """Yield a single-threaded session over a new graph, with the given number of CPU devices.

    Runs in `folder`, so that no file contains a path of this machine.
    """
    digits.start()
    config = v1.ConfigProto(device_count={"CPU": cpus}, inter_op_parallelism_threads=1, intra_op_parallelism_threads=1)
    with chdir(folder), tf.Graph().as_default(), v1.Session(config=config) as opened:
        v1.set_random_seed(digits.SEED)
        yield opened


def variable(name: str, shape: list[int], scale: float | None = None, **options: Any) -> Any:
    """Return a variable as in TensorFlow 1: a reference, not a resource. `scale`: None for zeros."""
    if scale is None:
        initializer = v1.zeros_initializer()
    else:
        initializer = v1.truncated_normal_initializer(stddev=scale, seed=digits.SEED)
    return v1.get_variable(name, shape, tf.float32, initializer, use_resource=False, **options)


def dense(x: Any, name: str, inputs: int, outputs: int, kernel: str = "kernel", bias: str = "bias") -> Any:
    """Return x W + b, with the variables `name`/kernel and `name`/bias."""
    with v1.variable_scope(name):
        weights = variable(kernel, [inputs, outputs], (1 / inputs) ** 0.5)
        return tf.nn.bias_add(tf.matmul(x, weights), variable(bias, [outputs]))


def convolution(x: Any, name: str, inputs: int, outputs: int) -> Any:
    """Return a 3 x 3 convolution with a rectifier, and pooling that halves the image."""
    with v1.variable_scope(name):
        kernel = variable("kernel", [3, 3, inputs, outputs], (2 / (9 * inputs)) ** 0.5)
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), variable("bias", [outputs])))
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


def placeholders() -> tuple[Any, Any]:
    """Return images:0 and labels:0."""
    return v1.placeholder(tf.float32, [None, 8, 8], "images"), v1.placeholder(tf.int64, [None], "labels")


def loss_of(logits: Any, labels: Any) -> Any:
    """Return the mean cross-entropy, which is added to the collection of losses."""
    tf.identity(logits, LOGITS.removesuffix(":0"))
    return v1.losses.sparse_softmax_cross_entropy(labels, logits)


def step_of(dtype: Any = tf.int64) -> Any:
    """Return the variable that counts the training steps."""
    collections = [v1.GraphKeys.GLOBAL_STEP, v1.GraphKeys.GLOBAL_VARIABLES]
    return v1.get_variable(
        "global_step", [], dtype, v1.zeros_initializer(), trainable=False, use_resource=False, collections=collections
    )


def train(opened: Any, operation: Any, epochs: int, after: Callable[[int], object] = lambda step: None) -> int:
    """Train for some epochs and return the last step; `after` is called with the number of each step."""
    opened.run(v1.global_variables_initializer())
    step = 0
    for step, (images, labels) in enumerate(digits.batches(epochs), 1):
        opened.run(operation, {"images:0": images, "labels:0": labels})
        after(step)
    return step


def predictor(opened: Any) -> Callable[[Any], Any]:
    """Return a function from images to logits."""
    return lambda images: opened.run(LOGITS, {"images:0": images})


def write_cnn(folder: str) -> dict[str, Any]:
    """Two convolutions and two dense layers; numbered checkpoints, the first of which is deleted."""
    with session(folder) as opened:
        images, labels = placeholders()
        x = tf.reshape(images, [-1, 8, 8, 1])
        x = convolution(convolution(x, "conv2d", 1, 8), "conv2d_1", 8, 16)
        x = tf.nn.relu(dense(tf.reshape(x, [-1, 2 * 2 * 16]), "dense", 64, 32))
        rate = v1.placeholder_with_default(0.0, [], "dropout_rate")
        loss = loss_of(dense(tf.nn.dropout(x, rate=rate, seed=digits.SEED), "dense_1", 32, 10), labels)
        v1.summary.scalar("loss", loss)
        step = step_of()
        operation = v1.train.AdamOptimizer(0.01).minimize(loss, step)
        saver = v1.train.Saver(max_to_keep=2)

        def save(number: int) -> None:
            if number % 72 == 0:
                saver.save(opened, "model.ckpt", number)

        train(opened, operation, 9, save)
        return digits.write_samples(".", predictor(opened))


def write_version_1(folder: str) -> dict[str, Any]:
    """Two dense layers with momentum, in one version 1 file whose name starts with the state file's."""
    with session(folder) as opened:
        images, labels = placeholders()
        x = tf.nn.tanh(dense(tf.reshape(images, [-1, 64]), "layer1", 64, 24, "weight", "bias"))
        loss = loss_of(dense(x, "layer2", 24, 10, "weight", "bias"), labels)
        step = step_of(tf.int32)
        operation = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, step)
        saver = v1.train.Saver(write_version=saver_pb2.SaverDef.V1)
        number = train(opened, operation, 12)
        saver.save(opened, "checkpoint", number)
        return digits.write_samples(".", predictor(opened))


def write_sharded_version_1(folder: str) -> dict[str, Any]:
    """Two dense layers on two devices with one version 1 file each; the step is not saved."""
    with session(folder, cpus=2) as opened:
        images, labels = placeholders()
        with tf.device("/cpu:0"):
            x = tf.nn.relu(dense(tf.reshape(images, [-1, 64]), "hidden", 64, 32))
        with tf.device("/cpu:1"):
            logits = dense(x, "output", 32, 10)
        loss, step = loss_of(logits, labels), step_of()
        operation = v1.train.GradientDescentOptimizer(0.3).minimize(loss, step)
        saved = v1.trainable_variables()
        saver = v1.train.Saver(saved, sharded=True, write_version=saver_pb2.SaverDef.V1, max_to_keep=0)
        train(opened, operation, 15)
        saver.save(opened, "export")
        return digits.write_samples(".", predictor(opened))


def write_partitioned(folder: str) -> dict[str, Any]:
    """Wide layers partitioned by rows or columns, as are Adagrad's slots, on two devices."""

    def device(operation: Any) -> str:
        return "/cpu:1" if "part_1" in operation.name else "/cpu:0"

    with session(folder, cpus=2) as opened, v1.device(device):
        images, labels = placeholders()
        x = tf.reshape(images, [-1, 64])
        for name, inputs, outputs, parts, axis in (("hidden", 64, 30, 3, 0), ("output", 30, 10, 2, 1)):
            cut = v1.fixed_size_partitioner(parts, axis)
            with v1.variable_scope(name):
                weights = variable("weights", [inputs, outputs], (1 / inputs) ** 0.5, partitioner=cut)
                x = tf.nn.bias_add(tf.matmul(x, weights), variable("biases", [outputs]))
            x = tf.nn.relu(x) if name == "hidden" else x
        loss, step = loss_of(x, labels), step_of()
        operation = v1.train.AdagradOptimizer(0.2).minimize(loss, step)
        saver = v1.train.Saver(sharded=True)
        number = train(opened, operation, 12)
        saver.save(opened, "model.ckpt", number)
        return digits.write_samples(".", predictor(opened))


def write_saved_model(folder: str) -> dict[str, Any]:
    """A SavedModel of a session: an asset with the digits' names, a table of them, signatures."""
    with session(folder) as opened:
        vocabulary = Path("digits.txt")
        vocabulary.write_text("\n".join(digits.NAMES) + "\n", encoding="utf-8")
        images, labels = placeholders()
        x = tf.nn.relu(dense(tf.reshape(images, [-1, 64]), "hidden", 64, 32))
        loss = loss_of(dense(x, "output", 32, 10), labels)
        operation = v1.train.GradientDescentOptimizer(0.3).minimize(loss, step_of())
        asset = tf.constant(str(vocabulary), name="vocabulary")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        table = v1.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                asset, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
            ),
            "?",
        )
        logits = opened.graph.get_tensor_by_name(LOGITS)
        names = table.lookup(tf.argmax(logits, -1))
        train(opened, operation, 15)
        opened.run(v1.tables_initializer())
        info = v1.saved_model.build_tensor_info
        signatures = {
            "serving_default": v1.saved_model.build_signature_def(
                {"images": info(images)},
                {"logits": info(logits), "names": info(names)},
                v1.saved_model.signature_constants.PREDICT_METHOD_NAME,
            )
        }
        builder = v1.saved_model.Builder("written")  # must not exist yet
        builder.add_meta_graph_and_variables(
            opened,
            ["serve"],
            signatures,
            v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
        vocabulary.unlink()
        for path in Path("written").iterdir():
            path.rename(path.name)
        Path("written").rmdir()
        return digits.write_samples(".", predictor(opened))
