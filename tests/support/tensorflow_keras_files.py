"""Models of Keras 3 in all file formats of Keras. Runs in the TensorFlow process only.

`write` writes one of MODELS in FORMS and returns the value of every variable by the path that Keras gives it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
from keras import layers  # type: ignore[import-untyped, import-not-found, unused-ignore]
from keras.src.legacy.saving import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    legacy_h5_format,
)
from tensorflow_keras_models import SHARED, train_a_step
from tensorflow_process import RawTensor

Model = Any
FORMS = ("m.keras", "directory", "m.weights.h5", "m.weights.json", "m.h5", "weights.h5")
"""weights.h5 is the older form of weights, which Keras 3 reads and writes only by an internal function."""


def write(
    model: str,
    directory: str,
    forms: Sequence[str] = FORMS,
    *,
    train: bool = True,
    optimizer: str = "Adam",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, RawTensor]:
    """Train a model for one step and write it in some forms. Returns path of the variable -> value.

    Args:
        settings: Of the optimizer; "schedule": its learning rate changes.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    made = MODELS[model]()
    if train:
        train_a_step(made, optimizer_of(optimizer, dict(settings or {})))
    for form in forms:
        save(made, os.path.join(directory, form))
    return {variable.path: value_of(variable) for variable in variables_of(made)}


def optimizer_of(name: str, settings: dict[str, Any]) -> Any:
    """Return an optimizer; the one that scales the loss contains Adam."""
    if settings.pop("schedule", False):
        settings["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    if name == "LossScaleOptimizer":
        settings["inner_optimizer"] = keras.optimizers.Adam()
    return getattr(keras.optimizers, name)(**settings)


def write_small(directory: str) -> None:
    """Write tests/keras_files/golden: files of one small layer, for fuzzing, and the CNN of docs/keras.md."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="fc")], name="m")
    model.save(os.path.join(directory, "m.keras"))
    model.save_weights(os.path.join(directory, "m.weights.h5"))
    model.save_weights(os.path.join(directory, "m.weights.json"), max_shard_size=2e-6)
    save(model, os.path.join(directory, "weights.h5"))
    given = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="stem")(given)
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, name="norm")(x))
    x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    keras.Model(given, x, name="digits").save(os.path.join(directory, "cnn.keras"))


def save(model: Model, path: str) -> None:
    """Save a model in the form that the name of the file asks for."""
    name = os.path.basename(path)
    if name == "weights.h5":
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    elif name == "directory":
        model.save(path, zipped=False)
    elif name.endswith(".weights.json"):
        model.save_weights(path, max_shard_size=2e-6)
    elif name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)


def variables_of(model: Model) -> list[Any]:
    """The variables that Keras saves: all but the states of random numbers."""
    of_model = [variable for variable in model.variables if "seed_generator" not in variable.path]
    trained_by = getattr(model, "optimizer", None)
    return [*of_model, *(trained_by.variables if trained_by is not None else [])]


def value_of(variable: Any) -> RawTensor:
    return RawTensor.of(np.asarray(keras.ops.convert_to_numpy(variable)))


def separable() -> Model:
    x = given = keras.Input((8, 8, 2))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="up")(x)
    return keras.Model(given, layers.PReLU(shared_axes=[1, 2], name="slope")(x))


def conv_1d_3d() -> Model:
    a, b = keras.Input((9, 2)), keras.Input((4, 4, 4, 1))
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(3, 3, name="line")(a))
    y = layers.GlobalAveragePooling3D()(layers.Conv3D(3, 2, name="volume")(b))
    z = layers.Flatten()(layers.SeparableConv1D(2, 3, use_bias=False)(a))
    return keras.Model([a, b], layers.Concatenate()([x, y, z]))


def attention() -> Model:
    tokens = keras.Input((6,))
    x = layers.Embedding(11, 8, name="tokens")(tokens)
    x = layers.LayerNormalization(name="norm")(layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attend")(x, x)]))
    x = layers.MultiHeadAttention(2, 4, use_bias=False)(x, x)
    x = layers.GroupQueryAttention(2, 4, 2)(x, x)
    x = layers.LayerNormalization(center=False, name="scaled")(x)
    x = layers.LayerNormalization(scale=False, name="shifted")(x)
    x = layers.RMSNormalization(name="rms")(x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d", name="mix")(x)
    x = layers.Attention(use_scale=True, score_mode="concat", name="dot")([x, x])
    return keras.Model(tokens, layers.AdditiveAttention(name="sum")([x, x]))


class Block(layers.Layer):  # type: ignore[misc, unused-ignore]
    """A layer of layers, and of a variable."""

    def __init__(self, units: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.first = layers.Dense(units, name="first_dense")
        self.others = [layers.Dense(units), layers.LayerNormalization(), layers.Dense(units)]
        self.units = units

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(self.units,), name="scale", initializer="ones")
        self.shift = self.add_weight(shape=(self.units,), name="shift")

    def call(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.others:
            x = layer(x)
        return x * self.scale + self.shift


class Subclassed(keras.Model):  # type: ignore[misc, unused-ignore]
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.stem = layers.Conv1D(4, 3, name="stem")
        self.norm = layers.BatchNormalization(scale=False)
        self.blocks = [Block(4), Block(4)]
        self.head = layers.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.norm(self.stem(x), training=training)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    input_shape = (None, 6, 3)


def subclassed() -> Model:
    model = Subclassed()
    model(np.zeros((1, 6, 3), "float32"))
    return model


def custom_layer() -> Model:
    given = keras.Input((4,))
    return keras.Model(given, layers.Dense(2)(Block(3, name="block")(given)))


def normalized() -> Model:
    x = given = keras.Input((4, 4, 6))
    x = layers.GroupNormalization(3, name="groups")(x)
    x = layers.UnitNormalization()(layers.GroupNormalization(2, scale=False)(x))
    norm = layers.Normalization(name="data")
    norm.adapt(np.random.default_rng(0).normal(size=(5, 4, 4, 6)))
    x = layers.BatchNormalization(renorm=True, name="renorm")(norm(x))
    x = layers.SpectralNormalization(layers.Conv2D(3, 3, name="inner_conv"), name="spectral")(x)
    return keras.Model(given, x)


def frozen() -> Model:
    """Layers that the optimizer does not train, and a model of such layers."""
    given = keras.Input((4,))
    base_input = keras.Input((4,))
    base = keras.Model(base_input, layers.Dense(3, name="fixed")(base_input), name="base")
    base.trainable = False
    x = layers.Dense(3, name="alone", trainable=False)(base(given))
    return keras.Model(given, layers.Dense(2, name="top")(x))


def quantized() -> Model:
    """Not trained: Keras does not train quantized layers."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="q"), layers.Dense(3, use_bias=False)])
    model.quantize("int8")
    return model


MODELS: dict[str, Callable[[], Model]] = {
    **{function.__name__: partial(function, keras) for function in SHARED},
    **{
        function.__name__: function
        for function in (separable, conv_1d_3d, attention, subclassed, custom_layer, normalized, frozen, quantized)
    },
}
