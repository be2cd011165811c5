"""Keras models that restore what save_model(naming="keras") writes. Runs in the TensorFlow process only."""

from typing import Any

import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from keras import layers  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor


def outputs(model: str, prefix: str, given: np.ndarray, *, read: bool = False) -> RawTensor:
    """Restore a checkpoint into a new model, require that everything matches, and return its outputs."""
    made = _built(model, given)
    checkpoint = tf.train.Checkpoint(model=made)
    status = checkpoint.read(prefix) if read else checkpoint.restore(prefix)
    status.assert_consumed()
    return RawTensor.of(np.asarray(made(given, training=False)))


def write(model: str, prefix: str, given: np.ndarray, file: str = "") -> RawTensor:
    """Write a checkpoint, and a file of Keras, of a model with random weights; return its outputs."""
    made = _built(model, given)
    rng = np.random.default_rng(5)
    made.set_weights([rng.uniform(0.1, 0.9, weight.shape).astype("float32") for weight in made.get_weights()])
    tf.train.Checkpoint(model=made).write(prefix)
    if file.endswith(".weights.h5"):
        made.save_weights(file)
    elif file:
        made.save(file)
    return RawTensor.of(np.asarray(made(given, training=False)))


def _built(model: str, given: np.ndarray) -> Any:
    keras.utils.clear_session()
    made = MODELS[model]()
    made(given)
    return made


def mlp() -> Any:
    made = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, name="fc1"),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Dense(3, name="fc2"),
        ]
    )
    made.compile("adam", "mse")
    return made


def cnn() -> Any:
    x = given = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(epsilon=1e-3, name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="depth")(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="up")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(given, layers.Softmax()(layers.Dense(2, name="head")(x)))


class Recurrent(keras.Model):  # type: ignore[misc, unused-ignore]
    """Layers as attributes, one of them in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = layers.LSTM(4, return_sequences=True)
        self.both = layers.Bidirectional(layers.GRU(3, return_sequences=True))
        self.plain = layers.SimpleRNN(4, return_sequences=True)
        self.top = _Top()

    def call(self, x: Any) -> Any:
        return self.top(self.plain(self.both(self.memory(x))))


class _Top(layers.Layer):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(5, activation="tanh", use_bias=False)
        self.scale = self.add_weight(shape=(5,), name="scale")

    def call(self, x: Any) -> Any:
        return self.hidden(x) * self.scale


class Attention(keras.Model):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.tokens = layers.Embedding(11, 8)
        self.attend = layers.MultiHeadAttention(2, 4, dropout=0.1)
        self.norm = layers.LayerNormalization(epsilon=1e-5)
        self.rms = layers.RMSNormalization(epsilon=1e-6)
        self.head = layers.Dense(3)

    def call(self, x: Any) -> Any:
        x = self.tokens(x)
        x = self.norm(x + self.attend(x, x))
        return self.head(self.rms(x))


MODELS = {"mlp": mlp, "cnn": cnn, "recurrent": Recurrent, "attention": Attention}


def train(directory: str, steps: int) -> tuple[RawTensor, RawTensor, dict[str, RawTensor]]:
    """Train a model, save it (m.keras), and train on; return inputs, wanted outputs, and the weights at the end."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    given = keras.Input((6,))
    x = layers.Dropout(0.0)(layers.Dense(5, activation="tanh", name="fc1")(given))
    model = keras.Model(given, layers.Dense(3, name="fc2")(x))
    tf.train.Checkpoint(model=model).write(f"{directory}/start")
    rng = np.random.default_rng(0)
    inputs, wanted = (rng.standard_normal((16, size)).astype("float32") for size in (6, 3))
    model.compile(keras.optimizers.Adam(0.01, beta_1=0.8, beta_2=0.99), "mse")
    for _ in range(5):
        model.train_on_batch(inputs, wanted)
    model.save(f"{directory}/m.keras")
    for _ in range(steps):
        model.train_on_batch(inputs, wanted)
    weights = {weight.path: RawTensor.of(weight.numpy()) for weight in model.weights}
    return RawTensor.of(inputs), RawTensor.of(wanted), weights
