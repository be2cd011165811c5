"""The same Keras 3 model in every kind of checkpoint, for tests/conformance/test_sources.py.

Runs in the TensorFlow process only.
"""

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor


def save(directory: str) -> dict[str, RawTensor]:
    """Save a trained model of two square Dense layers, "a" and "b"; return its variables by full name."""
    layers = [tf.keras.layers.Input((3,)), tf.keras.layers.Dense(3, name="a"), tf.keras.layers.Dense(3, name="b")]
    model = tf.keras.Sequential(layers, name="net")
    model.compile("adam", "mse")
    model.fit(np.eye(4, 3, dtype=np.float32), np.ones((4, 3), np.float32), epochs=2, verbose=0)
    model.export(f"{directory}/export", verbose=False)
    tf.saved_model.save(model, f"{directory}/saved_model")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(f"{directory}/model_first")
    tf.train.Checkpoint(optimizer=model.optimizer, net=model).write(f"{directory}/optimizer_first")
    tf.train.Checkpoint(model).write(f"{directory}/root")
    return {weight.path: RawTensor.of(weight.numpy()) for weight in model.weights}
