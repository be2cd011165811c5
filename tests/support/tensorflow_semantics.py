"""Layers of TensorFlow and Keras whose settings are not in their weights, for tests/conformance/test_semantics.py.

Each function writes a checkpoint of the layer's variables, and returns an input and TensorFlow's output. Runs in the
TensorFlow process only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.keras import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    backend as keras_2,
)
from tensorflow.python.keras.layers.legacy_rnn import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    rnn_cell_impl,
)
from tensorflow_process import RawTensor
from tensorflow_side import save_v2

layers = tf.keras.layers
IMAGE = (2, 6, 8, 4)  # batch, height, width, channels
VECTORS = (5, 4)

Answer = dict[str, RawTensor]


def _dense(after: Callable[[Any], Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    layer = layers.Dense(6)
    return {"x": layer}, lambda x: after(layer(x))


def _conv(after: Callable[[Any], Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    layer = layers.Conv2D(3, 1)
    return {"x": layer}, lambda x: after(layer(x))


def _single(layer: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    return {"x": layer}, layer


def _flattened() -> tuple[dict[str, Any], Callable[[Any], Any]]:
    conv, flatten, dense = layers.Conv2D(3, 3, activation="relu"), layers.Flatten(), layers.Dense(5)
    return {"conv": conv, "x": dense}, lambda x: dense(flatten(conv(x)))


def _resized(x: Any) -> Any:
    """Bilinear interpolation of TensorFlow 1, to twice the size."""
    return tf.compat.v1.image.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))


# Name -> shape of the input, scale of the input, layers and function.
_KINDS: Mapping[str, tuple[tuple[int, ...], float, Callable[[], tuple[dict[str, Any], Callable[[Any], Any]]]]] = {
    "batch_norm": (IMAGE, 0.01, lambda: _single(layers.BatchNormalization())),
    "layer_norm": (VECTORS, 0.01, lambda: _single(layers.LayerNormalization())),
    "group_norm": (IMAGE, 0.01, lambda: _single(layers.GroupNormalization(2))),
    "instance_norm": (IMAGE, 0.01, lambda: _single(layers.GroupNormalization(-1))),
    "rms_norm": (VECTORS, 0.001, lambda: _single(layers.RMSNormalization())),
    "conv_3_by_2": (IMAGE, 1.0, lambda: _single(layers.Conv2D(3, 3, 2, "same"))),
    "conv_7_by_2": (IMAGE, 1.0, lambda: _single(layers.Conv2D(3, 7, 2, "same"))),
    "conv_3_and_5": (IMAGE, 1.0, lambda: _single(layers.Conv2D(3, (3, 5), 2, "same"))),
    "conv_4_by_2": (IMAGE, 1.0, lambda: _single(layers.Conv2D(3, 4, 2, "same"))),
    "conv_transposed": (IMAGE, 1.0, lambda: _single(layers.Conv2DTranspose(3, 3, 2, "same"))),
    "max_pool": (IMAGE, 1.0, lambda: _conv(layers.MaxPooling2D(3, 2, "same"))),
    "average_pool": (IMAGE, 1.0, lambda: _conv(layers.AveragePooling2D(3, 1, "same"))),
    "average_pool_by_2": (IMAGE, 1.0, lambda: _conv(layers.AveragePooling2D(3, 2, "same"))),
    "resized": (IMAGE, 1.0, lambda: _conv(_resized)),
    "gelu": (VECTORS, 1.0, lambda: _dense(lambda x: tf.nn.gelu(x - 2, approximate=True))),
    "leaky_relu": (VECTORS, 1.0, lambda: _dense(lambda x: layers.LeakyReLU()(x - 2))),
    "leaky_relu_of_tensorflow": (VECTORS, 1.0, lambda: _dense(lambda x: tf.nn.leaky_relu(x - 2))),
    "hard_sigmoid": (VECTORS, 1.0, lambda: _dense(keras_2.hard_sigmoid)),
    "flattened": (IMAGE, 1.0, _flattened),
}


def run(prefix: str, kind: str) -> Answer:
    """Build the layers of a kind with random weights, save these as "x/kernel" and so on, and compute the output."""
    shape, scale, build = _KINDS[kind]
    rng = np.random.default_rng(11)
    named, function = build()
    values = (rng.standard_normal(shape) * scale).astype(np.float32)
    function(values)
    stored: dict[str, Any] = {}
    for name, layer in named.items():
        layer.set_weights([rng.uniform(0.25, 1.0, weight.shape).astype(np.float32) for weight in layer.get_weights()])
        if kind == "batch_norm":
            layer.moving_variance.assign(layer.moving_variance * 1e-4)
        stored |= {f"{name}/{weight.name}": weight.numpy() for weight in layer.weights}
    if kind == "conv_transposed":  # in torch's order, for a rule with the layout "same"
        stored["x/kernel"] = stored["x/kernel"].transpose(3, 2, 0, 1)
    save_v2(prefix, stored)
    return {"input": RawTensor.of(values), "output": RawTensor.of(np.asarray(function(values)))}


def train_batch_norm(prefix: str, *, fused: bool) -> Answer:
    """Save a BatchNormalization, and return the statistics after one batch of training.

    `fused`: the kernel of TensorFlow 1 and Keras 2 for images, instead of Keras 3's layer.
    """
    values = np.random.default_rng(3).standard_normal((2, 3, 2, 4)).astype(np.float32)
    layer = layers.BatchNormalization()
    layer(values)
    save_v2(prefix, {f"x/{weight.name}": weight.numpy() for weight in layer.weights})
    if fused:
        weights = [weight.value for weight in layer.weights]
        _, mean, variance = tf.compat.v1.nn.fused_batch_norm(values, *weights, exponential_avg_factor=0.01)
    else:
        layer(values, training=True)
        mean, variance = layer.moving_mean, layer.moving_variance
    told = {"input": values, "mean": mean.numpy(), "variance": variance.numpy()}
    return {name: RawTensor.of(value) for name, value in told.items()}


def run_lstm(prefix: str, size: int) -> Answer:
    """BasicLSTMCell over three steps. Its kernel and bias are saved in torch's layout, as a converter writes them."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((2, 3, 4)).astype(np.float32)
    cell = rnn_cell_impl.BasicLSTMCell(size)
    state = cell.zero_state(2, tf.float32)
    output, state = cell(values[:, 0], state)
    cell.set_weights([rng.uniform(-1, 1, weight.shape).astype(np.float32) for weight in cell.get_weights()])
    outputs, state = [], cell.zero_state(2, tf.float32)
    for step in range(values.shape[1]):
        output, state = cell(values[:, step], state)
        outputs.append(output)
    kernel, bias = cell.get_weights()
    i, j, f, o = (np.concatenate([kernel, bias[None]])[:, size * gate : size * (gate + 1)] for gate in range(4))
    gates = np.concatenate([i, f, j, o], 1).T
    save_v2(prefix, {"input/kernel": gates[:, :4], "state/kernel": gates[:, 4:-1], "input/bias": gates[:, -1]})
    return {"input": RawTensor.of(values), "output": RawTensor.of(np.stack(outputs, 1))}
