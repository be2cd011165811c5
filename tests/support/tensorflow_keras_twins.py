"""Keras 3 models that have twins in torch (keras_twins.py), in every form of file.

For the TensorFlow process, and for processes in which Keras has its torch backend.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
from keras import layers  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_keras_files import save
from tensorflow_process import RawTensor

FORMS = ("m.keras", "m.weights.h5", "m.h5")


def write(model: str, directory: str, given: Sequence[np.ndarray]) -> RawTensor:
    """Write a model with random weights in FORMS and as a checkpoint, `ckpt`; return its outputs."""
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    keras.utils.clear_session()
    made = MODELS[model]()
    inputs = list(given) if len(given) > 1 else given[0]
    made(inputs)
    rng = np.random.default_rng(5)
    made.set_weights([rng.uniform(0.1, 0.9, weight.shape) - 0.3 * (weight.ndim > 1) for weight in made.get_weights()])
    for form in FORMS:
        save(made, f"{directory}/{form}")
    tf.train.Checkpoint(model=made).write(f"{directory}/ckpt")
    return RawTensor.of(np.asarray(made(inputs, training=False)))


def mlp() -> Any:
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, activation="gelu", name="fc1"), layers.Dense(3, name="fc2")], name="net"
    )


def norms() -> Any:
    """BatchNormalization with every combination of its flags."""
    x = given = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for number, (center, scale) in enumerate([(True, True), (False, True), (True, False), (False, False)]):
        x = layers.BatchNormalization(center=center, scale=scale, epsilon=2e-3, name=f"bn{number}")(x)
        x = layers.ReLU()(x)
    return keras.Model(given, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))


def separable() -> Any:
    x = given = keras.Input((8, 8, 2))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    return keras.Model(given, layers.Conv2DTranspose(3, 2, strides=2, name="up")(x))


def conv_1d_3d() -> Any:
    a, b = keras.Input((9, 2)), keras.Input((4, 4, 4, 1))
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(3, 3, name="line")(a))
    y = layers.GlobalMaxPooling3D()(layers.Conv3D(3, 2, name="volume")(b))
    return keras.Model([a, b], layers.Dense(2, name="head")(layers.Concatenate()([x, y])))


def recurrent() -> Any:
    x = given = keras.Input((7, 3))
    x = layers.LSTM(4, return_sequences=True, name="memory")(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
    x = layers.Bidirectional(layers.GRU(2, return_sequences=True), name="gates")(x)
    x = layers.GRU(4, return_sequences=True, name="gru")(x)
    return keras.Model(given, layers.SimpleRNN(5, name="plain")(x))


def attention() -> Any:
    tokens = keras.Input((6,))
    x = layers.Embedding(11, 8, name="tokens")(tokens)
    attended = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attend")(x, x)
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(layers.Add()([x, attended]))
    return keras.Model(tokens, layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d", name="mix")(x))


def nested() -> Any:
    """A functional model and Sequential models in a model; two layers have the same name."""
    inner_input = keras.Input((5,))
    body = keras.Model(inner_input, layers.Dense(4, activation="tanh", name="dense")(inner_input), name="body")
    tower = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, activation="relu", name="dense"), layers.Dense(3, name="again")],
        name="tower",
    )
    given = keras.Input((5,))
    return keras.Model(given, tower(body(given)))


class Block(layers.Layer):  # type: ignore[misc, unused-ignore]
    def __init__(self, units: int) -> None:
        super().__init__()
        self.grow = layers.Dense(units, activation="silu")
        self.norm = layers.LayerNormalization()

    def call(self, x: Any) -> Any:
        return self.norm(self.grow(x))


class Subclassed(keras.Model):  # type: ignore[misc, unused-ignore]
    """Layers have automatic names, such as "dense_1", if their attributes come before "layers" in the alphabet.

    A file of Keras has no other attributes of a model.
    """

    def __init__(self) -> None:
        super().__init__(name="whole")
        self.stem = layers.Conv1D(4, 3, name="stem")
        self.bn = layers.BatchNormalization()
        self.block1, self.block2 = Block(5), Block(3)
        self.head = layers.Dense(2, name="top")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.block2(self.block1(self.bn(self.stem(x), training=training))))


class Listed(keras.Model):  # type: ignore[misc, unused-ignore]
    """Layers in a list, which tf.train.Checkpoint does not store."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(5), Block(3)]

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class NamedNorm(keras.Model):  # type: ignore[misc, unused-ignore]
    """Without a configuration of its layers, the variables of a norm with a name of its own are not known."""

    def __init__(self) -> None:
        super().__init__(name="whole")
        self.fc = layers.Dense(4, name="fc")
        self.bn = layers.BatchNormalization(name="bn")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.bn(self.fc(x), training=training)


def distributed() -> Any:
    given = keras.Input((3, 5, 2))
    x = layers.TimeDistributed(layers.Conv1D(3, 2, name="inner"), name="times")(given)
    return keras.Model(given, layers.TimeDistributed(layers.LayerNormalization(), name="norms")(x))


def groups() -> Any:
    x = given = keras.Input((4, 4, 6))
    x = layers.GroupNormalization(3, name="norm")(x)
    x = layers.LeakyReLU(negative_slope=0.3)(x)
    x = layers.Conv2D(4, 1, name="mix")(x)
    return keras.Model(given, layers.GroupNormalization(2, epsilon=1e-5, scale=False, name="shift")(x))


def slopes() -> Any:
    x = given = keras.Input((4, 5, 3))
    x = layers.PReLU(shared_axes=[1, 2], name="slope")(layers.Conv2D(4, 2, name="conv")(x))
    return keras.Model(given, layers.PReLU(name="last")(layers.Dense(6, name="head")(layers.GlobalMaxPooling2D()(x))))


def flattened() -> Any:
    """The map is not square: 5 x 3 x 4."""
    x = given = keras.Input((11, 7, 2))
    x = layers.Conv2D(4, 2, activation="relu", name="conv")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(6, activation="elu", name="hidden")(layers.Dropout(0.5)(layers.Flatten()(x)))
    return keras.Model(given, layers.Dense(2, name="head")(x))


MODELS: dict[str, Callable[[], Any]] = {
    function.__name__: function
    for function in (
        *(mlp, norms, separable, conv_1d_3d, recurrent, attention, nested, distributed, groups, slopes, flattened),
    )
} | {"subclassed": Subclassed, "listed": Listed, "named_norm": NamedNorm}
