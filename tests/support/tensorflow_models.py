"""Models of Keras and optimizers of TensorFlow, for tests/conformance/test_model_twins.py.

Runs in the TensorFlow process only. Files are written by TensorFlow's own savers, and outputs are computed by Keras.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

keras = tf.keras
IMAGE = (2, 6, 8, 3)  # batch, height, width, channels
WORDS = (2, 4)


class Twin(keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
    """The model that has a torch counterpart in the tests; all sizes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = keras.layers.Conv2D(5, (2, 3))
        self.bn = keras.layers.BatchNormalization()
        self.emb = keras.layers.Embedding(11, 4)
        self.fc = keras.layers.Dense(7)

    def call(self, inputs: Any) -> Any:
        image, words = inputs
        seen = tf.reduce_mean(tf.nn.relu(self.bn(self.conv(image), training=False)), [1, 2])
        read = tf.reduce_mean(self.emb(words), 1)
        return self.fc(tf.concat([seen, read], -1))


def _inputs(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(IMAGE).astype(np.float32), rng.integers(0, 11, WORDS)


def _built(seed: int) -> tuple[Any, list[Any]]:
    """A model with random weights, and its inputs."""
    model, inputs = Twin(), list(_inputs(seed))
    model(inputs)
    rng = np.random.default_rng(seed + 1)
    model.set_weights([rng.uniform(0.25, 1.0, weight.shape).astype(np.float32) for weight in model.get_weights()])
    return model, inputs


def _answer(model: Any, inputs: Sequence[Any]) -> dict[str, RawTensor]:
    return {
        "image": RawTensor.of(inputs[0]),
        "words": RawTensor.of(inputs[1]),
        "output": RawTensor.of(model(inputs).numpy()),
    }


def save_twin(prefix: str, seed: int, *, trained: bool) -> dict[str, RawTensor]:
    """tf.train.Checkpoint(model=..., step=...).write; `trained`: after a step of Keras's compiled Adam. Return inputs
    and output."""
    model, inputs = _built(seed)
    if trained:
        model.compile("adam", "mse")
        model.train_on_batch(inputs, np.zeros((2, 7), np.float32))
    tf.train.Checkpoint(model=model, step=tf.Variable(3, dtype=tf.int64)).write(prefix)
    return _answer(model, inputs)


def save_twin_by_name(prefix: str, seed: int, write_version: int) -> dict[str, RawTensor]:
    """The same model saved by tf.compat.v1.train.Saver, with the names of Keras 2 and TensorFlow 1."""
    model, inputs = _built(seed)
    values = {
        f"twin/{layer}/{weight.name}": weight.numpy()
        for layer in ("conv", "bn", "emb", "fc")
        for weight in getattr(model, layer).weights
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        named = {name: tf.compat.v1.Variable(value) for name, value in values.items()}
        named["global_step"] = tf.compat.v1.Variable(5, dtype=tf.int64)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(named, write_version=write_version).save(session, prefix, write_meta_graph=False)
    return _answer(model, inputs)


def restore_twin_by_name(prefix: str, seed: int) -> dict[str, RawTensor]:
    """Restore "conv/kernel" and so on by tf.train.load_checkpoint into the model; return inputs and output."""
    model, inputs = _built(seed)
    reader = tf.train.load_checkpoint(prefix)
    for layer in ("conv", "bn", "emb", "fc"):
        for weight in getattr(model, layer).weights:
            weight.assign(reader.get_tensor(f"{layer}/{weight.name}"))
    return _answer(model, inputs)


def save_sequential(prefix: str, seed: int) -> dict[str, RawTensor]:
    """A Sequential of two convolutions and a Dense, whose objects have numbers as names."""
    rng = np.random.default_rng(seed)
    model = keras.Sequential(
        [
            keras.Input(IMAGE[1:]),
            keras.layers.Conv2D(5, (2, 3), activation="relu"),
            keras.layers.Conv2D(4, (3, 2)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(7),
        ]
    )
    model.set_weights([rng.standard_normal(weight.shape).astype(np.float32) for weight in model.get_weights()])
    tf.train.Checkpoint(model).write(prefix)
    image = _inputs(seed)[0]
    return {"image": RawTensor.of(image), "output": RawTensor.of(model(image).numpy())}


# Training: the loss is the square of x @ kernel + bias.

Trained = dict[str, RawTensor]


def _optimizer(kind: str) -> Any:
    if kind == "adam":
        return tf.compat.v1.train.AdamOptimizer(0.125, epsilon=1e-3)
    if kind == "momentum":
        return tf.compat.v1.train.MomentumOptimizer(0.0625, 0.5)
    return tf.compat.v1.train.AdagradOptimizer(0.125)


def train_by_names(prefix: str, kind: str, steps: int, seed: int) -> Trained:
    """Train in a graph, and save everything by tf.compat.v1.train.Saver(): slots, powers, global_step, averages.

    Returns the input, and "fc/kernel", "fc/bias" and the moving average of the former as they were saved and, with the
    prefix "next/", after one more step.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, 3)).astype(np.float32)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("fc"):
            kernel = tf.compat.v1.get_variable("kernel", initializer=rng.standard_normal((3, 5)).astype(np.float32))
            bias = tf.compat.v1.get_variable("bias", initializer=np.zeros(5, np.float32))
        loss = tf.reduce_sum(tf.square(tf.matmul(tf.constant(x), kernel) + bias - 1))
        step = tf.compat.v1.train.get_or_create_global_step()
        update = _optimizer(kind).minimize(loss, global_step=step, var_list=[kernel, bias])
        average = tf.train.ExponentialMovingAverage(0.5)
        with tf.control_dependencies([update]):
            train = average.apply([kernel, bias])
        session.run(tf.compat.v1.global_variables_initializer())
        for _ in range(steps):
            session.run(train)
        tf.compat.v1.train.Saver().save(session, prefix, write_meta_graph=False)
        seen = {"fc/kernel": kernel, "fc/bias": bias, "average": average.average(kernel)}
        before = session.run(seen)
        session.run(train)
        after = session.run(seen)
    return _told(x, before, after)


def train_by_objects(prefix: str, kind: str, steps: int, seed: int) -> Trained:
    """The same with eager variables and tf.train.Checkpoint, in which slots are slot variables."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, 3)).astype(np.float32)
    fc = tf.Module()
    fc.kernel = tf.Variable(rng.standard_normal((3, 5)).astype(np.float32))
    fc.bias = tf.Variable(np.zeros(5, np.float32))
    optimizer = _optimizer(kind)
    step = tf.Variable(0, dtype=tf.int64)

    def train() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.matmul(x, fc.kernel) + fc.bias - 1))
        variables = [fc.kernel, fc.bias]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True), global_step=step)

    for _ in range(steps):
        train()
    net = tf.Module()
    net.fc = fc
    tf.train.Checkpoint(net=net, optimizer=optimizer, global_step=step).write(prefix)
    before = {"fc/kernel": fc.kernel.numpy(), "fc/bias": fc.bias.numpy()}
    train()
    return _told(x, before, {"fc/kernel": fc.kernel.numpy(), "fc/bias": fc.bias.numpy()})


def _told(x: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> Trained:
    told = {"x": x, **before, **{f"next/{name}": value for name, value in after.items()}}
    return {name: RawTensor.of(value) for name, value in told.items()}
