"""Keras 3 models for tests of settings: one layer after another. TensorFlow process only."""

from collections.abc import Sequence
from typing import Any

import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
from keras import layers  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_keras_models import keras_2


def custom(x: Any) -> Any:
    return keras.activations.relu(x) + 1


def write(
    path: str, shape: Sequence[int], described: Sequence[tuple[str, dict[str, Any]]], *, old: bool = False
) -> None:
    """Save a functional model of these layers, given by class and arguments.

    Args:
        old: Write with tf_keras, which is Keras 2.
    """
    made = keras_2() if old else keras
    made.backend.clear_session()
    x = given = made.Input(tuple(shape))
    for kind, arguments in described:
        own = {key: custom if value == "custom" else value for key, value in arguments.items()}
        x = getattr(made.layers, kind)(**own)(x)
    made.Model(given, x).save(path)


def write_branches(path: str) -> None:
    """A layer whose output two others take, one of them an activation."""
    keras.utils.clear_session()
    given = keras.Input((6,))
    x = layers.Dense(5, name="fc1")(given)
    keras.Model(given, layers.Dense(3, name="fc2")(layers.Add()([x, layers.ReLU()(x)]))).save(path)
