"""Models of TensorFlow for the tests of `compare_model`. Runs in the TensorFlow process only.

Each is built, given random weights and saved: a `.meta` file with a checkpoint, or a SavedModel.
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

v1 = tf.compat.v1


def save_all(directory: str) -> None:
    """Save every model of `GRAPHS` as directory/name.meta with its checkpoint, and the SavedModel directory/lstm."""
    for name, build in GRAPHS.items():
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            build()
            session.run(v1.global_variables_initializer())
            v1.train.Saver(v1.global_variables()).save(session, os.path.join(directory, name))
    tf.keras.utils.set_random_seed(3)
    model = tf.keras.Sequential(
        [tf.keras.layers.Input((5, 3), name="x"), tf.keras.layers.LSTM(4), tf.keras.layers.Dense(2)]
    )
    model.export(os.path.join(directory, "lstm"), verbose=False)


def _variable(name: str, *shape: int, low: float = -0.5, high: float = 0.5, trainable: bool = True) -> Any:
    values = np.random.default_rng(len(name) + sum(shape)).uniform(low, high, shape).astype(np.float32)
    return v1.get_variable(name, initializer=values, trainable=trainable, use_resource=False)


def _dense(x: Any, name: str, inputs: int, outputs: int) -> Any:
    with v1.variable_scope(name):
        return tf.nn.bias_add(tf.matmul(x, _variable("kernel", inputs, outputs)), _variable("bias", outputs))


def _convolution(x: Any, name: str, inputs: int, outputs: int, stride: int = 1) -> Any:
    with v1.variable_scope(name):
        y = tf.nn.conv2d(x, _variable("kernel", 3, 3, inputs, outputs), stride, "SAME")
        return tf.nn.bias_add(y, _variable("bias", outputs))


def _norm(x: Any, name: str, size: int) -> Any:
    with v1.variable_scope(name):
        gamma, beta = _variable("gamma", size, low=0.5, high=1.5), _variable("beta", size)
        mean = _variable("moving_mean", size, trainable=False)
        variance = _variable("moving_variance", size, low=0.5, high=1.5, trainable=False)
        return v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, 1e-3, is_training=False)[0]


def _images() -> None:
    x = v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
    y = tf.nn.relu(_norm(_convolution(x, "conv1", 3, 4, stride=2), "bn1", 4))
    shortcut = y
    y = tf.nn.relu(_norm(_convolution(y, "conv2", 4, 4), "bn2", 4))
    y = _norm(_convolution(y, "conv3", 4, 4), "bn3", 4) + shortcut
    tf.identity(y, name="features")
    tf.identity(_dense(tf.reduce_mean(tf.nn.relu6(y), [1, 2]), "logits", 4, 5), name="y")


def _flattened() -> None:
    x = v1.placeholder(tf.float32, [None, 6, 6, 2], name="x")
    y = tf.nn.max_pool2d(tf.nn.relu(_convolution(x, "conv1", 2, 3)), 2, 2, "SAME")
    tf.nn.softmax(_dense(tf.reshape(y, [-1, 27]), "logits", 27, 4), name="y")


def _layers() -> None:
    x = v1.placeholder(tf.float32, [None, 8], name="x")
    keep = v1.placeholder_with_default(0.5, [], name="keep_prob")
    y = tf.tanh(_dense(x, "fc1", 8, 8))
    y = tf.nn.gelu(_dense(y, "fc2", 8, 8))
    y = v1.nn.dropout(y, keep_prob=keep)
    tf.identity(_dense(y, "fc3", 8, 8), name="y")


def _embedded() -> None:
    ids = v1.placeholder(tf.int32, [None, 5], name="ids")
    y = tf.gather(_variable("embeddings", 11, 6), ids)
    mean, variance = tf.nn.moments(y, [-1], keepdims=True)
    y = tf.nn.batch_normalization(y, mean, variance, _variable("beta", 6), _variable("gamma", 6), 1e-3)
    y = _dense(tf.reshape(y, [-1, 6]), "fc", 6, 6)
    tf.nn.leaky_relu(tf.reshape(y, [-1, 5, 6]), 0.2, name="y")


GRAPHS = {"images": _images, "flattened": _flattened, "layers": _layers, "embedded": _embedded}
