"""Layers of Keras and TensorFlow with given settings and random weights, for tests/conformance/test_random_layers.py.

Runs in the TensorFlow process only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.keras.layers.legacy_rnn import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    rnn_cell_impl,
)
from tensorflow_layers import run_cell
from tensorflow_process import RawTensor
from tensorflow_side import save_v2

layers = tf.keras.layers

Spec = Mapping[str, Any]
Answer = dict[str, RawTensor]
Named = dict[str, Any]

_RECURRENT = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}
_CELLS = {"lstm": layers.LSTMCell, "gru": layers.GRUCell, "rnn": layers.SimpleRNNCell}


def save(directory: str, specs: list[Spec]) -> list[Answer]:
    """Save the layer of each spec by Keras's names as `0`, `1`, ... in `directory`, and by objects as `0-objects` if it
    is one Keras layer. Return for each the variables by name, the input "in" and the output "out".

    A spec has the kind of the layer, a seed, the shape of the input, and the arguments of the layer as "of".
    """
    return [_save(f"{directory}/{number}", spec) for number, spec in enumerate(specs)]


def _save(path: str, spec: Spec) -> Answer:
    rng = np.random.default_rng(spec["seed"])
    given: Any = _normal(rng, spec["input"])
    if spec["kind"] == "Embedding":
        given = rng.integers(0, spec["of"]["input_dim"], spec["input"])
    computed = _COMPUTED.get(spec["kind"])
    if computed is not None:
        named, output = computed(rng, given, **spec["of"])
    else:
        layer = _layer(spec["kind"], spec["of"])
        layer(given)
        layer.set_weights(
            [np.asarray(rng.uniform(0.1, 0.9, weight.shape), np.float32) for weight in layer.get_weights()]
        )
        if spec["kind"] != "stacked_bidirectional":
            tf.train.Checkpoint(x=layer).write(f"{path}-objects")
        named = {"/".join(["x", *weight.path.split("/")[1:]]): weight.numpy() for weight in layer.weights}
        output = np.asarray(layer(given))
    save_v2(path, named)
    return {name: RawTensor.of(value) for name, value in {**named, "in": given, "out": output}.items()}


def _layer(kind: str, of: Spec) -> Any:
    if kind in _RECURRENT:
        return _RECURRENT[kind](return_sequences=True, name="x", **of)
    if kind.startswith("bidirectional_"):
        return layers.Bidirectional(_RECURRENT[kind.partition("_")[2]](return_sequences=True, **of), name="x")
    if kind.startswith("stacked_") and kind != "stacked_bidirectional":
        count, cell = of["count"], _CELLS[kind.partition("_")[2]]
        cells = [cell(**{name: value for name, value in of.items() if name != "count"}) for _ in range(count)]
        return layers.RNN(cells, return_sequences=True, name="x")
    if kind == "stacked_bidirectional":
        return _Stack(**of)
    if kind == "attention":
        return _Attention(**of)
    return getattr(layers, kind)(name="x", **of)


class _Stack(tf.keras.layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
    """Bidirectional layers, the first called "first" and the second "second"."""

    def __init__(self, of: str, units: int, use_bias: bool) -> None:
        super().__init__(name="x")
        self.parts = [
            layers.Bidirectional(_RECURRENT[of](units, use_bias=use_bias, return_sequences=True, name=of), name=name)
            for name in ("first", "second")
        ]

    def build(self, shape: Any) -> None:
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, inputs: Any) -> Any:
        return self.parts[1](self.parts[0](inputs))


class _Attention(tf.keras.layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
    """Attention of parts of the input to others; the sizes are of query, key and value."""

    def __init__(self, sizes: list[int], **of: Any) -> None:
        super().__init__(name="x")
        self.sizes = sizes
        self.mha = layers.MultiHeadAttention(name="mha", **of)

    def call(self, inputs: Any) -> Any:
        query, key, value = self.sizes
        return self.mha(inputs[..., :query], inputs[..., :value], inputs[..., :key])


def _weight_norm(rng: Any, given: Any, kernel: list[int]) -> tuple[Named, Any]:
    v, g = _normal(rng, kernel), _normal(rng, kernel[-1:])
    bias = _normal(rng, kernel[-1:])
    weight = g * v / np.sqrt((v**2).sum(tuple(range(v.ndim - 1))))
    output = given @ weight if v.ndim == 2 else tf.nn.convolution(given, weight, padding="VALID").numpy()
    return {"x/v": v, "x/g": g, "x/bias": bias}, output + bias


def _sonnet_batch_norm(rng: Any, given: Any, scale: bool) -> tuple[Named, Any]:
    shape = [1] * (given.ndim - 1) + [given.shape[-1]]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    gamma, beta, mean, variance = (_uniform(rng, shape) for _ in names)
    named = dict(zip(names, (gamma, beta, mean, variance), strict=True))
    if not scale:
        del named["gamma"]
    output = tf.nn.batch_normalization(given, mean, variance, beta, gamma if scale else None, 1e-3).numpy()
    return {f"x/{name}": value for name, value in named.items()}, output


def _instance_norm(rng: Any, given: Any) -> tuple[Named, Any]:
    """tf_slim's and tensorflow_addons' layer: statistics of each map."""
    gamma, beta = (_uniform(rng, given.shape[-1:]) for _ in range(2))
    axes = list(range(1, given.ndim - 1))
    mean, variance = tf.nn.moments(given, axes, keepdims=True)
    output = tf.nn.batch_normalization(given, mean, variance, beta, gamma, 1e-3).numpy()
    return {"x/gamma": gamma, "x/beta": beta}, output


def _flat_dense(rng: Any, given: Any, units: int) -> tuple[Named, Any]:
    flat = given.reshape(len(given), -1)
    kernel, bias = _normal(rng, [flat.shape[1], units]) / 9, _normal(rng, [units])
    return {"x/kernel": kernel, "x/bias": bias}, flat @ kernel + bias


def _whole_map(rng: Any, given: Any, units: int) -> tuple[Named, Any]:
    kernel, bias = _normal(rng, [*given.shape[1:], units]) / 9, _normal(rng, [units])
    return {"x/weights": kernel, "x/biases": bias}, tf.nn.convolution(given, kernel, padding="VALID").numpy() + bias


def _gpt2(rng: Any, given: Any, units: int) -> tuple[Named, Any]:
    kernel, bias = _normal(rng, [1, given.shape[-1], units]), _normal(rng, [units])
    return {"x/w": kernel, "x/b": bias}, tf.nn.convolution(given, kernel, padding="VALID").numpy() + bias


def _parts(rng: Any, given: Any, sizes: list[int]) -> tuple[Named, Any]:
    """The rows of one embedding as separate variables."""
    parts = [_normal(rng, [size, 7]) for size in sizes]
    indices = np.abs(given * 5).astype(np.int64) % sum(sizes)
    output = tf.nn.embedding_lookup(np.concatenate(parts), indices).numpy()
    return {f"x/part_{number}": part for number, part in enumerate(parts)} | {"indices": indices}, output


def _lstm_cell(rng: Any, given: Any, units: int, forget_bias: float, num_proj: int | None) -> tuple[Named, Any]:
    cell = rnn_cell_impl.LSTMCell(units, forget_bias=forget_bias, num_proj=num_proj)
    run_cell(cell, given)
    cell.set_weights([rng.uniform(-1, 1, weight.shape).astype(np.float32) for weight in cell.get_weights()])
    return {f"x/{weight.name.removesuffix(':0')}": weight.numpy() for weight in cell.weights}, run_cell(cell, given)


def _cudnn_gru(rng: Any, given: Any, units: int, count: int, both: bool) -> tuple[Named, Any]:
    """CudnnGRU needs a GPU; Keras's GRU computes the same. Its variables, in the form that CudnnGRU saves."""
    named: Named = {}
    outputs = given
    for number in range(count):
        results = []
        for direction in ("fw", "bw") if both else ("",):
            layer = layers.GRU(units, return_sequences=True, go_backwards=direction == "bw")
            layer(outputs)
            kernel, state, (one, two) = (
                rng.uniform(-1, 1, weight.shape).astype(np.float32) for weight in layer.get_weights()
            )
            layer.set_weights([kernel, state, np.stack([one, two])])
            # Keras has the gates z, r, h; CudnnGRU r, z and apart from them h.
            z, r, h = (slice(gate * units, (gate + 1) * units) for gate in range(3))
            start = f"x/rnn/multi_rnn_cell/cell_{number}/cudnn_compatible_gru_cell/"
            if both:
                start = (
                    f"x/stack_bidirectional_rnn/cell_{number}/bidirectional_rnn/{direction}/cudnn_compatible_gru_cell/"
                )
            both_kernels = np.concatenate([kernel, state])
            named |= {
                f"{start}gates/kernel": np.concatenate([both_kernels[:, r], both_kernels[:, z]], 1),
                f"{start}gates/bias": np.concatenate([(one + two)[r], (one + two)[z]]),
                f"{start}candidate/input_projection/kernel": kernel[:, h],
                f"{start}candidate/hidden_projection/kernel": state[:, h],
                f"{start}candidate/input_projection/bias": one[h],
                f"{start}candidate/hidden_projection/bias": two[h],
            }
            output = layer(outputs).numpy()
            results.append(output[:, ::-1] if direction == "bw" else output)
        outputs = np.concatenate(results, -1)
    return named, outputs


def _uniform(rng: Any, shape: Any) -> Any:
    """Positive values, as variances must be."""
    return np.asarray(rng.uniform(0.1, 0.9, shape), np.float32)


def _normal(rng: Any, shape: list[int]) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


_COMPUTED: Mapping[str, Callable[..., tuple[Named, Any]]] = {
    "weight_norm": _weight_norm,
    "sonnet_batch_norm": _sonnet_batch_norm,
    "instance_norm": _instance_norm,
    "flat_dense": _flat_dense,
    "whole_map": _whole_map,
    "gpt2": _gpt2,
    "parts": _parts,
    "lstm_cell": _lstm_cell,
    "cudnn_gru": _cudnn_gru,
}
