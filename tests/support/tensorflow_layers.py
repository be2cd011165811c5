"""Layers of Keras and TensorFlow with their checkpoints, inputs and outputs, for tests/conformance/test_layers.py.

All sizes are odd; kernels have different lengths of axes, and some are square. Runs in the TensorFlow process only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.keras.layers.legacy_rnn import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    rnn_cell_impl,
)
from tensorflow.python.keras.saving import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    hdf5_format,
)
from tensorflow_process import RawTensor
from tensorflow_side import save_v2

layers = tf.keras.layers
VECTORS = (5, 3)
SEQUENCE = (2, 7, 3)  # batch, time, features
LONG_SEQUENCE = (2, 9, 3)
IMAGE = (2, 7, 9, 3)  # batch, height, width, channels
VOLUME = (2, 5, 7, 9, 3)

Answer = dict[str, RawTensor]


class _MapThenDense(tf.keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
    """A convolution, and a Dense that multiplies its flattened map."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.conv, self.flatten, self.fc = layers.Conv2D(5, 3), layers.Flatten(), layers.Dense(11)

    def call(self, inputs: Any) -> Any:
        return self.fc(self.flatten(self.conv(inputs)))


class _SelfAttention(tf.keras.layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
    """MultiHeadAttention of a sequence to itself, as attribute "mha"."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.mha = layers.MultiHeadAttention(3, 5, name="mha")

    def call(self, inputs: Any) -> Any:
        return self.mha(inputs, inputs)


class _CrossAttention(_SelfAttention):
    """MultiHeadAttention of vectors of 15 to vectors of other lengths, which are parts of the input."""

    def call(self, inputs: Any) -> Any:
        return self.mha(inputs[..., :15], inputs[..., :7], inputs[..., :9])


# Name -> shape of the input, and the layer.
_LAYERS: Mapping[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "dense": (VECTORS, lambda: layers.Dense(7, name="x")),
    "dense_square": (VECTORS, lambda: layers.Dense(3, name="x")),
    "dense_after_flatten": (IMAGE, _MapThenDense),
    "conv1d": (SEQUENCE, lambda: layers.Conv1D(5, 3, name="x")),
    "conv2d": (IMAGE, lambda: layers.Conv2D(5, (3, 1), name="x")),
    "conv2d_square": (IMAGE, lambda: layers.Conv2D(3, 3, name="x")),
    "conv3d": (VOLUME, lambda: layers.Conv3D(5, (3, 1, 7), name="x")),
    "conv2d_grouped": ((2, 7, 9, 15), lambda: layers.Conv2D(21, (3, 5), groups=3, name="x")),
    "conv1d_grouped": ((2, 7, 15), lambda: layers.Conv1D(21, 3, groups=3, name="x")),
    "conv2d_group_per_channel": (IMAGE, lambda: layers.Conv2D(9, (3, 5), groups=3, name="x")),
    "conv2d_one_channel": ((2, 7, 9, 1), lambda: layers.Conv2D(5, (3, 1), name="x")),
    "depthwise_conv2d": (IMAGE, lambda: layers.DepthwiseConv2D((3, 5), name="x")),
    "depthwise_conv2d_multiplied": (IMAGE, lambda: layers.DepthwiseConv2D((5, 1), depth_multiplier=3, name="x")),
    "depthwise_conv2d_one_channel": (
        (2, 7, 9, 1),
        lambda: layers.DepthwiseConv2D((5, 3), depth_multiplier=7, name="x"),
    ),
    "depthwise_conv1d_multiplied": (SEQUENCE, lambda: layers.DepthwiseConv1D(3, depth_multiplier=5, name="x")),
    "separable_conv2d": (IMAGE, lambda: layers.SeparableConv2D(7, (3, 5), depth_multiplier=3, name="x")),
    "separable_conv1d": (SEQUENCE, lambda: layers.SeparableConv1D(7, 3, depth_multiplier=5, name="x")),
    "conv1d_transpose": (SEQUENCE, lambda: layers.Conv1DTranspose(5, 3, name="x")),
    "conv2d_transpose": (IMAGE, lambda: layers.Conv2DTranspose(5, (3, 1), name="x")),
    "conv2d_transpose_by_2": (IMAGE, lambda: layers.Conv2DTranspose(5, (3, 5), 2, name="x")),
    "conv3d_transpose": (VOLUME, lambda: layers.Conv3DTranspose(5, (3, 1, 7), name="x")),
    "conv_1_to_linear": ((2, 1, 1, 3), lambda: layers.Conv2D(7, 1, name="x")),
    "conv1d_1_to_linear": (SEQUENCE, lambda: layers.Conv1D(5, 1, name="x")),
    "conv_to_dense": (IMAGE, lambda: layers.Conv2D(11, (7, 9), name="x")),
    "batch_norm": (IMAGE, lambda: layers.BatchNormalization(name="x")),
    "batch_norm_1d": (VECTORS, lambda: layers.BatchNormalization(name="x")),
    "batch_norm_without_scale": (IMAGE, lambda: layers.BatchNormalization(scale=False, name="x")),
    "batch_norm_without_center": (IMAGE, lambda: layers.BatchNormalization(center=False, name="x")),
    "batch_norm_without_both": (IMAGE, lambda: layers.BatchNormalization(scale=False, center=False, name="x")),
    "layer_norm": (SEQUENCE, lambda: layers.LayerNormalization(name="x")),
    "layer_norm_of_two_axes": (SEQUENCE, lambda: layers.LayerNormalization(axis=(1, 2), name="x")),
    "layer_norm_without_scale": (SEQUENCE, lambda: layers.LayerNormalization(scale=False, name="x")),
    "group_norm": ((2, 7, 5, 9), lambda: layers.GroupNormalization(3, name="x")),
    "instance_norm": (IMAGE, lambda: layers.GroupNormalization(-1, name="x")),
    "rms_norm": (SEQUENCE, lambda: layers.RMSNormalization(name="x")),
    "prelu": (IMAGE, lambda: layers.PReLU(shared_axes=[1, 2], name="x")),
    "prelu_of_one": (IMAGE, lambda: layers.PReLU(shared_axes=[1, 2, 3], name="x")),
    "prelu_1d": (VECTORS, lambda: layers.PReLU(name="x")),
    "embedding": ((3, 5), lambda: layers.Embedding(11, 7, name="x")),
    "lstm": (SEQUENCE, lambda: layers.LSTM(5, return_sequences=True, name="x")),
    "lstm_square": (SEQUENCE, lambda: layers.LSTM(3, return_sequences=True, name="x")),
    "gru_square": (SEQUENCE, lambda: layers.GRU(3, return_sequences=True, name="x")),
    "gru_of_cell": (SEQUENCE, lambda: layers.RNN(layers.GRUCell(5), return_sequences=True, name="x")),
    "rnn_of_cell": (SEQUENCE, lambda: layers.RNN(layers.SimpleRNNCell(5), return_sequences=True, name="x")),
    "lstm_without_bias": (SEQUENCE, lambda: layers.LSTM(5, use_bias=False, return_sequences=True, name="x")),
    "lstm_of_cell": (SEQUENCE, lambda: layers.RNN(layers.LSTMCell(5), return_sequences=True, name="x")),
    "gru": (SEQUENCE, lambda: layers.GRU(5, return_sequences=True, name="x")),
    "gru_reset_before": (SEQUENCE, lambda: layers.GRU(5, reset_after=False, return_sequences=True, name="x")),
    "rnn": (SEQUENCE, lambda: layers.SimpleRNN(5, return_sequences=True, name="x")),
    "bidirectional_lstm": (
        SEQUENCE,
        lambda: layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="x"),
    ),
    "bidirectional_gru": (SEQUENCE, lambda: layers.Bidirectional(layers.GRU(5, return_sequences=True), name="x")),
    "bidirectional_rnn": (
        SEQUENCE,
        lambda: layers.Bidirectional(layers.SimpleRNN(5, return_sequences=True), name="x"),
    ),
    "stacked_lstm": (
        SEQUENCE,
        lambda: layers.RNN([layers.LSTMCell(5), layers.LSTMCell(5)], return_sequences=True, name="x"),
    ),
    "stacked_gru": (
        SEQUENCE,
        lambda: layers.RNN([layers.GRUCell(5), layers.GRUCell(5), layers.GRUCell(5)], return_sequences=True, name="x"),
    ),
    "self_attention": ((2, 7, 15), _SelfAttention),
    "cross_attention": ((2, 7, 15), _CrossAttention),
    "separate_attention": (SEQUENCE, _SelfAttention),
    "einsum_dense": (
        SEQUENCE,
        lambda: layers.EinsumDense("abc,cde->abde", (None, 5, 7), bias_axes="de", name="x"),
    ),
    "time_distributed": (SEQUENCE, lambda: layers.TimeDistributed(layers.Dense(5), name="x")),
}


def save_layers(directory: str) -> dict[str, Answer]:
    """Save each kind of layer with random weights in `directory`: as `kind` by tf.train.Checkpoint with the layer as
    attribute "x", and as `kind-names` with the names of Keras.

    Returns for each kind the input, the output, and the variables by name.
    """
    rng = np.random.default_rng(7)
    answers = {}
    for kind, (shape, make) in _LAYERS.items():
        integer = kind == "embedding"
        given = rng.integers(0, 11, shape) if integer else rng.standard_normal(shape).astype(np.float32)
        layer = make()
        layer(given)
        # Positive, as variances must be.
        layer.set_weights([rng.uniform(0.1, 0.9, weight.shape).astype(np.float32) for weight in layer.get_weights()])
        tf.train.Checkpoint(x=layer).write(f"{directory}/{kind}")
        named = {_name(weight): weight.numpy() for weight in layer.weights}
        save_v2(f"{directory}/{kind}-names", named)
        output = np.asarray(layer(given))
        answers[kind] = {name: RawTensor.of(value) for name, value in {**named, "in": given, "out": output}.items()}
    return answers


def _name(weight: Any) -> str:
    """The name of a variable of a layer that is called "x": "x/lstm_cell/kernel"."""
    return "/".join(["x", *weight.path.split("/")[1:]])


def save_cells(directory: str) -> dict[str, Answer]:
    """The same for cells of TensorFlow 1, saved by name below "x/". Attribute "state": the outputs of one step."""
    rng = np.random.default_rng(9)
    values = rng.standard_normal(SEQUENCE).astype(np.float32)
    of_tf1: Mapping[str, Callable[[], Any]] = {
        "basic_lstm_cell": lambda: rnn_cell_impl.BasicLSTMCell(5),
        "basic_lstm_cell_without_forget_bias": lambda: rnn_cell_impl.BasicLSTMCell(5, forget_bias=0.0),
        "lstm_cell": lambda: rnn_cell_impl.LSTMCell(5, forget_bias=1.0),
        "lstm_cell_with_projection": lambda: rnn_cell_impl.LSTMCell(7, num_proj=5),
        "lstm_cell_with_peepholes": lambda: rnn_cell_impl.LSTMCell(5, use_peepholes=True),
        "basic_rnn_cell": lambda: rnn_cell_impl.BasicRNNCell(5),
        "gru_cell": lambda: rnn_cell_impl.GRUCell(5),
        "multi_rnn_cell": lambda: rnn_cell_impl.MultiRNNCell([rnn_cell_impl.BasicLSTMCell(5) for _ in range(3)]),
    }
    answers = {}
    for kind, make in of_tf1.items():
        cell = make()
        run_cell(cell, values)
        cell.set_weights([rng.uniform(-1, 1, weight.shape).astype(np.float32) for weight in cell.get_weights()])
        named = {f"x/{weight.name.removesuffix(':0')}": weight.numpy() for weight in cell.weights}
        save_v2(f"{directory}/{kind}", named)
        told = {**named, "in": values, "out": run_cell(cell, values)}
        answers[kind] = {name: RawTensor.of(value) for name, value in told.items()}
    return answers


def save_directions(directory: str) -> dict[str, Answer]:
    """LSTMs of TensorFlow 1 in two directions, as bidirectional_dynamic_rnn and stack_bidirectional_dynamic_rnn name
    their variables, and as CudnnLSTM does, whose cells add no forget_bias."""
    return {
        "one": _save_directions(f"{directory}/one", ["bidirectional_rnn/"], "basic_lstm_cell", 1.0),
        "two": _save_directions(
            f"{directory}/two",
            [f"stack_bidirectional_rnn/cell_{layer}/bidirectional_rnn/" for layer in range(2)],
            "cudnn_compatible_lstm_cell",
            0.0,
        ),
    }


def _save_directions(path: str, layer_paths: Sequence[str], cell_name: str, forget_bias: float) -> Answer:
    rng = np.random.default_rng(13)
    values = rng.standard_normal(SEQUENCE).astype(np.float32)
    told, outputs = {"in": values}, values
    for layer_path in layer_paths:
        both = []
        for direction, step in (("fw", 1), ("bw", -1)):
            cell = rnn_cell_impl.BasicLSTMCell(5, forget_bias=forget_bias)
            run_cell(cell, outputs)
            cell.set_weights([rng.uniform(-1, 1, weight.shape).astype(np.float32) for weight in cell.get_weights()])
            kernel, bias = cell.get_weights()
            start = f"x/{layer_path}{direction}/{cell_name}"
            told |= {f"{start}/kernel": kernel, f"{start}/bias": bias}
            both.append(run_cell(cell, outputs[:, ::step])[:, ::step])
        outputs = np.concatenate(both, -1)
    save_v2(path, {name: value for name, value in told.items() if name != "in"})
    return {name: RawTensor.of(value) for name, value in {**told, "out": outputs}.items()}


def save_cudnn(directory: str) -> dict[str, Answer]:
    """Keras 2's CuDNNLSTM and CuDNNGRU, which need a GPU: Keras converts their weights for its LSTM and GRU."""
    rng = np.random.default_rng(15)
    values = rng.standard_normal(SEQUENCE).astype(np.float32)
    answers = {}
    for kind, gates, make in (("lstm", 4, layers.LSTM), ("gru", 3, layers.GRU)):
        layer = make(5, return_sequences=True)
        layer(values)
        shapes = {"kernel": (3, 5 * gates), "recurrent_kernel": (5, 5 * gates), "bias": (2 * 5 * gates,)}
        named = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
        layer.set_weights(hdf5_format._convert_rnn_weights(layer, list(named.values())))
        stored = {f"x/{name}": value for name, value in named.items()}
        save_v2(f"{directory}/{kind}", stored)
        told = {**stored, "in": values, "out": layer(values).numpy()}
        answers[kind] = {name: RawTensor.of(value) for name, value in told.items()}
    return answers


def run_cell(cell: Any, values: Any) -> Any:
    """The outputs of a cell of TensorFlow 1 for all steps."""
    outputs, state = [], cell.zero_state(len(values), tf.float32)
    for step in range(values.shape[1]):
        output, state = cell(values[:, step], state)
        outputs.append(output)
    return np.stack(outputs, 1)


def save_weight_norm(prefix: str) -> Answer:
    """A 3x1 convolution whose kernel is g * v / |v|, with one length for each output."""
    rng = np.random.default_rng(11)
    values, v = (rng.standard_normal(shape).astype(np.float32) for shape in (IMAGE, (3, 1, 3, 5)))
    g, bias = (rng.standard_normal(5).astype(np.float32) for _ in range(2))
    save_v2(prefix, {"x/v": v, "x/g": g, "x/bias": bias})
    kernel = g * v / np.sqrt((v**2).sum((0, 1, 2)))
    output = tf.nn.conv2d(values, kernel, 1, "VALID").numpy() + bias
    told = {"x/v": v, "x/g": g, "x/bias": bias, "in": values, "out": output}
    return {name: RawTensor.of(value) for name, value in told.items()}
