"""Trains a model of Keras 3 or tf_keras with one of several optimizers. TensorFlow process only."""

from collections.abc import Callable
from typing import Any

import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
from tensorflow_keras_models import keras_2
from tensorflow_process import RawTensor


def train(path: str, kind: str, steps: int) -> tuple[RawTensor, RawTensor, list[RawTensor]]:
    """Train a model, save it, and train on; return inputs, wanted outputs, and the weights at the end.

    A file called old.* is written by tf_keras, which is Keras 2.
    """
    made = keras_2() if path.rpartition("/")[2].startswith("old.") else keras
    made.backend.clear_session()
    made.utils.set_random_seed(1)
    layers = made.layers
    given = made.Input((6,))
    tower = made.Sequential([made.Input((5,)), layers.Dense(4, activation="tanh", name="dense")], name="tower")
    x = tower(layers.Dense(5, activation="tanh", name="fc1")(given))
    model = made.Model(given, layers.Dense(3, name="fc2")(x))
    rng = np.random.default_rng(0)
    inputs, wanted = (rng.standard_normal((16, size)).astype("float32") for size in (6, 3))
    model.compile(_optimizers(made)[kind](), "mse")
    for _ in range(5):
        model.train_on_batch(inputs, wanted)
    model.save(path)
    for _ in range(steps):
        model.train_on_batch(inputs, wanted)
    return RawTensor.of(inputs), RawTensor.of(wanted), [RawTensor.of(weight) for weight in model.get_weights()]


def _optimizers(made: Any) -> dict[str, Callable[[], Any]]:
    all_of = made.optimizers
    found: dict[str, Callable[[], Any]] = {
        "adam": lambda: all_of.Adam(0.01, beta_1=0.8, beta_2=0.99),
        "adamw": lambda: all_of.AdamW(0.01, weight_decay=0.02),
        "momentum": lambda: all_of.SGD(0.05, momentum=0.9),
        "nesterov": lambda: all_of.SGD(0.05, momentum=0.9, nesterov=True),
        "adagrad": lambda: all_of.Adagrad(0.05),
    }
    if made is not keras:
        found["legacy_adam"] = lambda: all_of.legacy.Adam(0.01, beta_1=0.8, beta_2=0.99)
        found["legacy_momentum"] = lambda: all_of.legacy.SGD(0.05, momentum=0.9)
    return found
