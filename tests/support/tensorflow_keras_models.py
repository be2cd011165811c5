"""Models that Keras 3 and Keras 2 build alike, and a step of training. Runs in the process of either.

Each function takes the package, `keras` or `tf_keras`.
"""

from typing import Any

import numpy as np

Package = Any
Model = Any


def keras_2() -> Package:
    """Return Keras 2, which not every program needs."""
    import tf_keras  # type: ignore[import-untyped, import-not-found, unused-ignore]

    return tf_keras


def train_a_step(model: Model, optimizer: Any) -> None:
    """Train a model for one step, on whole numbers, which embeddings take."""
    shapes = model.input_shape if isinstance(model.input_shape, list) else [model.input_shape]
    inputs = [np.random.default_rng(1).integers(0, 5, (4, *shape[1:])).astype("float32") for shape in shapes]
    given = inputs if len(inputs) > 1 else inputs[0]
    model.compile(optimizer, "mse", run_eagerly=True)  # no graphs: a third of the time
    model.fit(given, np.zeros_like(np.asarray(model(given))), verbose=0)


def mlp(keras: Package) -> Model:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, activation="relu", name="hidden"), layers.Dense(3, use_bias=False)]
    )


def cnn(keras: Package) -> Model:
    """Layers named after other classes, and BatchNormalization with every combination of its flags."""
    layers = keras.layers
    x = given = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv2d")(x)
    for number, (center, scale) in enumerate([(True, True), (False, True), (True, False), (False, False)]):
        x = layers.BatchNormalization(center=center, scale=scale, epsilon=1e-5, name=f"bn{number}")(x)
    x = layers.Flatten()(x)
    return keras.Model(given, layers.Dense(2, name="head")(x))


def recurrent(keras: Package) -> Model:
    layers = keras.layers
    x = given = keras.Input((7, 3))
    x = layers.LSTM(4, return_sequences=True, name="memory")(x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.GRU(4, return_sequences=True, reset_after=False, name="old_gru")(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    x = layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_sequences=True, name="stack")(x)
    x = layers.SimpleRNN(2, use_bias=False, return_sequences=True)(x)
    x = layers.RNN(layers.SimpleRNNCell(6, name="own_cell"), return_sequences=True, name="wrapped")(x)
    x = layers.ConvLSTM1D(2, 2, return_sequences=True, name="conv")(layers.Reshape((7, 3, 2))(x))
    return keras.Model(given, layers.Bidirectional(layers.ConvLSTM1D(2, 1), name="both_conv")(x))


def nested(keras: Package) -> Model:
    layers = keras.layers
    inner_input = keras.Input((5,))
    inner = keras.Model(inner_input, layers.Dense(4, name="inner_dense")(inner_input), name="body")
    tower = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="dense"), layers.Dense(3, name="again")], name="tower"
    )
    deferred = keras.Sequential([layers.Dense(2, name="late"), layers.BatchNormalization(name="bn")], name="deferred")
    given = keras.Input((5,))
    return keras.Model(given, deferred(tower(inner(given))))


def distributed(keras: Package) -> Model:
    layers = keras.layers
    given = keras.Input((3, 5, 2))
    x = layers.TimeDistributed(layers.Conv1D(3, 2, name="inner"), name="times")(given)
    x = layers.TimeDistributed(layers.LayerNormalization())(x)
    tower = keras.Sequential([keras.Input((4, 3)), layers.Conv1D(2, 2, name="deep")], name="tower")
    x = layers.TimeDistributed(tower, name="towers")(x)
    return keras.Model(given, layers.TimeDistributed(layers.Bidirectional(layers.GRU(2, name="rows")))(x))


def mixed(keras: Package) -> Model:
    """Variables of bfloat16 and of float16 among those of float32."""
    layers = keras.layers
    given = keras.Input((4,))
    x = layers.Dense(3, dtype="bfloat16", name="brain")(given)
    x = layers.Dense(3, dtype="float16", name="half")(x)
    return keras.Model(given, layers.Dense(2, dtype="mixed_bfloat16")(x))


SHARED = (mlp, cnn, recurrent, nested, distributed, mixed)
