"""Keras models that load what save_model(like=) and convert(like=) write. Runs in the TensorFlow process only."""

import functools
import os
from collections.abc import Callable
from typing import Any

import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
import tensorflow_keras_files
import tensorflow_keras_objects
from keras import layers  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

Model = Any


def write(model: str, directory: str) -> None:
    """Write a model with random weights: m.keras, m.weights.h5, m.h5 of the older form, and the checkpoint ckpt."""
    made = _built(model)
    rng = np.random.default_rng(7)
    for variable in tensorflow_keras_files.variables_of(made):
        value = rng.uniform(1, 9, variable.shape) if "int" in variable.dtype else rng.uniform(0.1, 0.9, variable.shape)
        variable.assign(value.astype("int8") if "int" in variable.dtype else value)
    made.save(os.path.join(directory, "m.keras"))
    made.save_weights(os.path.join(directory, "m.weights.h5"))
    made.save(os.path.join(directory, "m.h5"))
    tf.train.Checkpoint(model=made).write(os.path.join(directory, "ckpt"))


def write_trained(model: str, directory: str, given: np.ndarray) -> RawTensor:
    """Write a trained model as m.keras, SavedModel and checkpoints, under several names; return its outputs."""
    made = _built(model)
    made.compile("adam", "mse")
    made.fit(given, np.zeros_like(np.asarray(made(given))), verbose=0)
    made.save(os.path.join(directory, "m.keras"))
    made.export(os.path.join(directory, "exported"), verbose=False)
    step = tf.Variable(3)
    tf.train.Checkpoint(model=made, optimizer=made.optimizer, step=step).save(os.path.join(directory, "model"))
    tf.train.Checkpoint(net=made, opt=made.optimizer).write(os.path.join(directory, "net"))
    holder = tf.Module()
    holder.inner = made
    tf.train.Checkpoint(trainer=holder).write(os.path.join(directory, "trainer"))
    return RawTensor.of(np.asarray(made(given, training=False)))


def loaded_values(model: str, path: str) -> dict[str, RawTensor]:
    """The values of a new model after load_weights, or after restoring a checkpoint, by their order and path."""
    return values_of(_loaded(model, path))


@functools.cache
def written_values(model: str, path: str) -> dict[str, RawTensor]:
    """`loaded_values` of a file that does not change."""
    return loaded_values(model, path)


def outputs(model: str, path: str, given: np.ndarray, again: str = "") -> RawTensor:
    """The outputs of a new model that loads a file of weights or a checkpoint; it is saved as `again` afterwards."""
    made = _loaded(model, path)
    if again.endswith(".weights.h5"):
        made.save_weights(again)
    elif again:
        made.save(again)
    return RawTensor.of(np.asarray(made(given, training=False)))


def values_of(made: Model) -> dict[str, RawTensor]:
    """The values of all variables by number and path; the numbers keep two variables of one path apart."""
    variables = tensorflow_keras_files.variables_of(made)
    return {f"{number} {each.path}": tensorflow_keras_files.value_of(each) for number, each in enumerate(variables)}


def _loaded(model: str, path: str) -> Model:
    made = _built(model)
    if path.endswith(".weights.h5"):
        made.load_weights(path)
    else:
        tf.train.Checkpoint(model=made).restore(path).assert_consumed()
    return made


def _built(model: str) -> Model:
    keras.utils.clear_session()
    made = MODELS[model]()
    if not made.built:
        made(np.zeros((1, *INPUTS[model]), "float32"))
    return made


def reordered() -> Model:
    """Three layers of one shape, used in another order than that of their names and of their creation."""
    third, first, second = (layers.Dense(4, name=name) for name in ("third", "first", "second"))
    given = keras.Input((4,))
    return keras.Model(given, third(layers.ReLU()(second(layers.Flatten()(first(given))))))


def nested() -> Model:
    """Models in a model: a functional and a Sequential one, and a layer that is used twice."""
    inner_input = keras.Input((5,))
    x = layers.Dense(5, activation="relu", name="first")(inner_input)
    body = keras.Model(inner_input, layers.Dense(5, name="second")(x), name="body")
    tower = keras.Sequential(
        [keras.Input((5,)), layers.Dense(5, name="first"), layers.ReLU(), layers.Dense(5, name="second")], name="tower"
    )
    given = keras.Input((5,))
    shared = layers.Dense(5, name="shared")
    return keras.Model(given, shared(body(shared(tower(given)))))


def recurrent() -> Model:
    x = given = keras.Input((7, 3))
    x = layers.LSTM(4, return_sequences=True, name="memory")(x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(4, name="inner"), name="times")(x)
    return keras.Model(given, layers.GRU(4, name="last")(x))


def attention() -> Model:
    tokens = keras.Input((6,))
    x = layers.Embedding(11, 8, name="tokens")(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attend")(x, x)])
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    return keras.Model(tokens, layers.Dense(3, name="head")(x))


def norms() -> Model:
    """A convolution without bias, and norms without some of their variables."""
    x = given = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(epsilon=1e-3, scale=False, name="shifted")(x)
    x = layers.BatchNormalization(epsilon=1e-3, center=False, name="scaled")(layers.ReLU()(x))
    x = layers.GroupNormalization(2, epsilon=1e-5, name="groups")(x)
    x = layers.Flatten()(x)
    return keras.Model(given, layers.Dense(2, name="head")(x))


def digits() -> Model:
    """The model of tests/golden/digits-keras2-weights, with other names."""
    x = given = keras.Input((8, 8))
    x = layers.Reshape((8, 8, 1), name="as_image")(x)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="one")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="two")(x))
    x = layers.Dense(24, activation="relu", name="three")(layers.Flatten()(x))
    return keras.Model(given, layers.Dense(10, name="four")(x))


INPUTS = {"subclassed": (6, 3), "recurrent_attributes": (7, 3), "attention_attributes": (6,)}
MODELS: dict[str, Callable[[], Model]] = {
    **tensorflow_keras_files.MODELS,
    "small_mlp": tensorflow_keras_objects.mlp,
    "small_cnn": tensorflow_keras_objects.cnn,
    "recurrent_attributes": tensorflow_keras_objects.Recurrent,
    "attention_attributes": tensorflow_keras_objects.Attention,
    **{f"{made.__name__}_like": made for made in (reordered, nested, recurrent, attention, norms, digits)},
}
