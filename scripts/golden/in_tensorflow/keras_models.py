"""Models of Keras 3, which TensorFlow 2.21 contains, and of Keras 2 from the package tf_keras."""

from contextlib import chdir
from typing import Any
from unittest import mock

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
import tf_keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
from keras.src.export import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    saved_model_export_archive,
)

from golden.in_tensorflow import digits

FIRST_SHARD_BYTES = 13000  # of the loss-scale checkpoint, so that there are two


def _trained(model: Any, epochs: int) -> Any:
    for images, labels in digits.batches(epochs):
        model.train_on_batch(images, labels)
    return model


def _compiled(keras: Any, model: Any, optimizer: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def _convolutions(keras: Any) -> Any:
    """Build a convolution with batch normalization and two dense layers, in either version of Keras."""
    layers = keras.layers
    inputs = keras.Input((8, 8), name="images")
    x = layers.Reshape((8, 8, 1))(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(24, activation="relu", name="hidden")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="digits")


def write_checkpoint(folder: str) -> dict[str, Any]:
    """Save twice by a manager during a custom training loop."""
    digits.start()
    keras = tf.keras
    model, optimizer = _convolutions(keras), keras.optimizers.Adam(0.01)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = tf.Variable(0, dtype=tf.int64, name="step")
    with chdir(folder):
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=step)
        manager = tf.train.CheckpointManager(checkpoint, ".", max_to_keep=1)
        for images, labels in digits.batches(12):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True))
            optimizer.apply_gradients(
                zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
            )
            step.assign_add(1)
            if int(step) % 144 == 0:
                manager.save()
        return digits.write_samples(".", lambda images: model(images, training=False))


def write_weights_of_keras_2(folder: str) -> dict[str, Any]:
    """Write save_weights of a model with the legacy Adam, whose slots are slots of the object graph."""
    digits.start()
    model = _compiled(tf_keras, _convolutions(tf_keras), tf_keras.optimizers.legacy.Adam(0.01))
    _trained(model, 12)
    with chdir(folder):
        model.save_weights("weights", save_format="tf")
        return digits.write_samples(".", model.predict_on_batch)


def write_loss_scale_of_keras_2(folder: str) -> dict[str, Any]:
    """Write dense layers that compute in float16 and have float32 variables."""
    digits.start()
    layers = tf_keras.layers
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    model = tf_keras.Sequential(
        [
            layers.Flatten(input_shape=(8, 8)),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, dtype="float32"),
        ]
    )
    momentum = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    _trained(_compiled(tf_keras, model, tf_keras.mixed_precision.LossScaleOptimizer(momentum)), 8)
    with chdir(folder):
        cut = tf.train.experimental.MaxShardSizePolicy(FIRST_SHARD_BYTES)
        options = tf.train.CheckpointOptions(experimental_sharding_callback=cut)
        model.save_weights("ckpt", save_format="tf", options=options)
        return digits.write_samples(".", model.predict_on_batch)


def write_saved_model_of_keras_2(folder: str) -> dict[str, Any]:
    """Write model.save with the optimizer and the metrics."""
    digits.start()
    model = _compiled(tf_keras, _convolutions(tf_keras), tf_keras.optimizers.legacy.Adam(0.01))
    _trained(model, 12)
    with chdir(folder):
        model.save(".", save_format="tf")
        served = tf.saved_model.load(".").signatures["serving_default"]
        return digits.write_samples(".", lambda images: served(images=tf.constant(images))["logits"])


def write_saved_model_of_keras_3(folder: str) -> dict[str, Any]:
    """Write model.export, which contains only the variables and a function to serve."""
    digits.start()
    model = _compiled(tf.keras, _convolutions(tf.keras), tf.keras.optimizers.Adam(0.01))
    _trained(model, 12)
    order = [f"{variable.path}:0" for variable in model.variables]

    def in_order(functions: Any) -> tuple[list[Any], ...]:
        return tuple(sorted(each, key=lambda variable: order.index(variable.name)) for each in found_by(functions))

    # Keras numbers the variables in the order of a set of addresses, which differs between processes.
    found_by = saved_model_export_archive._list_variables_used_by_fns
    sorting = mock.patch.object(saved_model_export_archive, "_list_variables_used_by_fns", in_order)
    with chdir(folder), sorting:
        model.export(".", verbose=False)
        served = tf.saved_model.load(".")
        return digits.write_samples(".", served.serve)
