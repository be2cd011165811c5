"""Build and save the models of `architectures` with Keras. Runs in the TensorFlow process only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from architectures import Architecture, Node, architecture
from tensorflow_process import RawTensor
from tensorflow_side import save_v2

layers = tf.keras.layers
BATCH, TIME, HEIGHT, WIDTH = 2, 5, 4, 3


def save_architecture(prefix: str, seed: int) -> dict[str, RawTensor]:
    """Save the architecture of a seed with random weights; return an input and the output."""
    return save_model(prefix, architecture(seed), seed)


def save_model(prefix: str, model: Architecture, seed: int) -> dict[str, RawTensor]:
    """Save an architecture with random weights; return an input and the output."""
    tf.keras.backend.clear_session()
    rng = np.random.default_rng(seed)
    made: dict[int, Any] = {}
    given = _input(model, rng)
    if model.as_graph:
        symbol = tf.keras.Input(given.shape[1:], dtype=given.dtype)
        whole = tf.keras.Model(symbol, _run(model, symbol, made))
    else:
        _run(model, tf.constant(given), made)
    for node in model.root.layers():
        layer = made[id(node)]
        layer.set_weights([_values(rng, weight.shape) for weight in layer.get_weights()])
    output = np.asarray(_run(model, tf.constant(given), made))
    if model.as_graph:
        tf.train.Checkpoint(model=whole).write(prefix)
    elif model.by_objects:
        root = tf.Module()
        for node in model.root.layers():
            _attach(root, node.stored, made[id(node)])
        tf.train.Checkpoint(model=root, step=tf.Variable(3, dtype=tf.int64)).write(prefix)
    else:
        save_v2(prefix, _named(model, made))
    return {"in": RawTensor.of(given), "out": RawTensor.of(output)}


def output_of_saved(prefix: str, model: Architecture, given: Any) -> RawTensor:
    """Return the output of an architecture with the weights of a checkpoint by names."""
    tf.keras.backend.clear_session()
    made: dict[int, Any] = {}
    inputs = tf.constant(given)
    _run(model, inputs, made)
    reader = tf.train.load_checkpoint(prefix)
    for node in model.root.layers():
        layer = made[id(node)]
        layer.set_weights([reader.get_tensor(_stored_name(node, weight)) for weight in layer.weights])
    return RawTensor.of(np.asarray(_run(model, inputs, made)))


def _stored_name(node: Node, weight: Any) -> str:
    """Return the name of a weight: "kernel" or "lstm_cell/kernel" below the path of its layer."""
    return "/".join([*node.stored, *weight.path.split("/")[1:]])


def _input(model: Architecture, rng: Any) -> Any:
    if model.domain == "sequence":
        return rng.integers(0, 11, (BATCH, TIME)).astype(np.int32)
    shape = (BATCH, model.width) if model.domain == "vector" else (BATCH, HEIGHT, WIDTH, model.width)
    return rng.standard_normal(shape).astype(np.float32)


def _values(rng: Any, shape: tuple[int, ...]) -> Any:
    # Positive, as variances must be.
    return rng.uniform(0.1, 0.9, shape).astype(np.float32)


def _named(model: Architecture, made: Mapping[int, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for node in model.root.layers():
        for weight in made[id(node)].weights:
            named[_stored_name(node, weight)] = weight.numpy()
    if model.slots:
        named |= {f"{name}/Adam{more}": np.zeros_like(value) for name, value in named.items() for more in ("", "_1")}
        named["global_step"] = np.int64(3)
    return named


def _attach(root: Any, path: tuple[str, ...], layer: Any) -> None:
    """Make a layer the attribute of an attribute of ... `root`."""
    for part in path[:-1]:
        below = getattr(root, part, None)
        if below is None:
            below = tf.Module()
            setattr(root, part, below)
        root = below
    setattr(root, path[-1], layer)


def _run(model: Architecture, x: Any, made: dict[int, Any]) -> Any:
    *body, head = model.root.items
    for item in body:
        x = _call(item, x, made)
    if model.domain == "image":
        x = layers.GlobalAveragePooling2D()(x)
    elif model.domain == "sequence":
        x = layers.GlobalAveragePooling1D()(x)
    return _call(head, x, made)


def _call(node: Node, x: Any, made: dict[int, Any]) -> Any:
    if node.kind == "parallel":
        one, two = (_call(item, x, made) for item in node.items)
        return layers.Add()([one, layers.Rescaling(0.5)(two)])
    if node.kind == "residual":
        rest = node.items[1:] if node.has_shortcut else node.items
        added = _call(node.items[0], x, made) if node.has_shortcut else x
        for item in rest:
            x = _call(item, x, made)
        return layers.Add()([x, added])
    if node.items:
        for item in node.items:
            x = _call(item, x, made)
        return x
    layer = made.get(id(node))
    if layer is None:
        layer = made[id(node)] = _layer(node)
    if node.kind == "attention":
        return layer(x, x)
    x = layer(x, training=False) if node.kind == "batchnorm" else layer(x)
    return layers.Activation("tanh")(x) if node.kind in ("dense", "conv", "depthwise") else x


def _layer(node: Node) -> Any:
    sizes = node.sizes
    return {
        "dense": lambda: layers.Dense(sizes[1]),
        "conv": lambda: layers.Conv2D(sizes[1], sizes[2], padding="same"),
        "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same"),
        "batchnorm": lambda: layers.BatchNormalization(),
        "layernorm": lambda: layers.LayerNormalization(),
        "embedding": lambda: layers.Embedding(sizes[0], sizes[1]),
        "lstm": lambda: layers.LSTM(sizes[1], return_sequences=True),
        "bilstm": lambda: layers.Bidirectional(layers.LSTM(sizes[1], return_sequences=True)),
        "gru": lambda: layers.GRU(sizes[1], return_sequences=True),
        "attention": lambda: layers.MultiHeadAttention(sizes[1], sizes[0] // sizes[1]),
    }[node.kind]()
