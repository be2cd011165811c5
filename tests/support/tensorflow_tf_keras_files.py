"""Write models of Keras 2 (the package tf_keras) in all file formats that it has. Runs in a process of its own.

`write` writes one of MODELS in FORMS and returns the value of every variable by its name, without ":0".
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tf_keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_keras_models import SHARED, train_a_step
from tensorflow_process import RawTensor
from tf_keras import layers  # type: ignore[import-untyped, import-not-found, unused-ignore]

Model = Any
FORMS = ("m.keras", "m.weights.h5", "m.h5", "weights.h5")
Named = list[tuple[str, RawTensor]]
"""Names without ":0", and values. Keras 2 may give one name to several variables."""


def write(
    model: str, directory: str, forms: Sequence[str] = FORMS, *, optimizer: str = "Adam", **settings: Any
) -> tuple[Named, Named]:
    """Train a model for one step and write it in some forms. Returns the variables of the model and the optimizer."""
    made = trained(model, optimizer, settings)
    for form in forms:
        (made.save if form in ("m.keras", "m.h5") else made.save_weights)(os.path.join(directory, form))
    trained_by = made.optimizer.variables
    return _named(made.weights), _named(trained_by() if callable(trained_by) else trained_by)


def load_weights(model: str, path: str) -> Named:
    """Load weights into a model after a step of training, when it has metrics. Returns its variables."""
    made = trained(model, "Adam", {})
    for variable in made.weights:
        variable.assign(np.zeros(variable.shape))
    made.load_weights(path)
    return _named(made.weights)


def trained(model: str, optimizer: str, settings: dict[str, Any]) -> Model:
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(3)
    made = MODELS[model]()
    train_a_step(made, optimizer_of(optimizer, settings))
    return made


def optimizer_of(name: str, settings: dict[str, Any]) -> Any:
    """Return an optimizer: "Adam", of the older generation "legacy.Adam", with loss scaling "scaled.Adam"."""
    kind, _, name = name.rpartition(".")
    made = getattr(tf_keras.optimizers.legacy if kind == "legacy" else tf_keras.optimizers, name)(**settings)
    return tf_keras.mixed_precision.LossScaleOptimizer(made) if kind == "scaled" else made


def _named(variables: Sequence[Any]) -> Named:
    return [(variable.name.removesuffix(":0"), RawTensor.of(np.asarray(variable))) for variable in variables]


def separable() -> Model:
    x = given = tf_keras.Input((8, 8, 2))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="up")(x)
    x = layers.DepthwiseConv2D(2, use_bias=False)(x)
    return tf_keras.Model(given, layers.PReLU(shared_axes=[1, 2], name="slope")(x))


def conv_1d_3d() -> Model:
    a, b = tf_keras.Input((9, 2)), tf_keras.Input((4, 4, 4, 1))
    x = layers.Conv1DTranspose(2, 3, name="line_up")(layers.Conv1D(3, 3, name="line")(a))
    y = layers.Conv3DTranspose(2, 2, use_bias=False)(layers.Conv3D(3, 2, name="volume")(b))
    z = layers.DepthwiseConv1D(3, name="depth")(layers.SeparableConv1D(2, 3, use_bias=False)(a))
    return tf_keras.Model([a, b], layers.Concatenate()([layers.Flatten()(each) for each in (x, y, z)]))


def attention() -> Model:
    tokens = tf_keras.Input((6,))
    x = layers.Embedding(11, 8, name="tokens")(tokens)
    x = layers.LayerNormalization(name="norm")(layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attend")(x, x)]))
    x = layers.MultiHeadAttention(2, 4, use_bias=False)(x, x)
    x = layers.LayerNormalization(center=False, name="scaled")(x)
    x = layers.LayerNormalization(scale=False, name="shifted")(x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d", name="mix")(x)
    x = layers.Attention(use_scale=True, name="dot")([x, x])
    return tf_keras.Model(tokens, layers.AdditiveAttention(name="sum")([x, x]))


def twice() -> Model:
    """Two models inside of the model, whose layers have the same names."""
    given = tf_keras.Input((4,))
    towers = [
        tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3, name="dense")], name=name)(given)
        for name in ("left", "right")
    ]
    return tf_keras.Model(given, layers.Dense(2, name="top")(layers.Concatenate()(towers)))


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
        super().build(shape)

    def call(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.others:
            x = layer(x)
        return x * self.scale + self.shift

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class Subclassed(tf_keras.Model):  # type: ignore[misc, unused-ignore]
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

    def get_config(self) -> dict[str, Any]:
        return {}

    input_shape = (None, 6, 3)


def subclassed() -> Model:
    model = Subclassed()
    model(np.zeros((1, 6, 3), "float32"))
    return model


def custom_layer() -> Model:
    given = tf_keras.Input((4,))
    return tf_keras.Model(given, layers.Dense(2)(Block(3, name="block")(given)))


def normalized() -> Model:
    x = given = tf_keras.Input((4, 4, 6))
    x = layers.GroupNormalization(3, name="groups")(x)
    x = layers.UnitNormalization()(layers.GroupNormalization(2, scale=False)(x))
    norm = layers.Normalization(name="data")
    norm.adapt(np.random.default_rng(0).normal(size=(5, 4, 4, 6)))
    x = layers.BatchNormalization(renorm=True, name="renorm")(norm(x))
    return tf_keras.Model(given, layers.LocallyConnected2D(2, 3, name="local")(x))


def frozen() -> Model:
    """Layers that the optimizer does not train, and a model of such layers."""
    given = tf_keras.Input((4,))
    inner = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3, name="fixed")], name="base")
    inner.trainable = False
    x = layers.Dense(3, name="alone", trainable=False)(inner(given))
    return tf_keras.Model(given, layers.Dense(2, name="top")(x))


def long_names() -> Model:
    """The names of all layers take more than 64 KB, so that Keras splits the attribute layer_names."""
    names = [f"{number:03}{'x' * 800}" for number in range(90)]
    return tf_keras.Sequential([tf_keras.Input((2,)), *(layers.Dense(2, use_bias=False, name=name) for name in names)])


MODELS: dict[str, Callable[[], Model]] = {
    **{function.__name__: partial(function, tf_keras) for function in SHARED},
    **{
        function.__name__: function
        for function in (
            separable,
            conv_1d_3d,
            attention,
            twice,
            subclassed,
            custom_layer,
            normalized,
            frozen,
            long_names,
        )
    },
}
