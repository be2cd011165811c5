"""The models of graph_runs.py. `make` runs in the TensorFlow process only."""

from typing import Any, Final

INPUTS: Final = {"mobilenet_v2": (4, 224, 224, 3), "resnet50": (4, 224, 224, 3), "lstm": (16, 20, 32)}
CALLS: Final = {"mobilenet_v2": 3, "resnet50": 2, "lstm": 50}  # per round, so that a round is long enough to measure


def make(name: str) -> Any:
    """Return a Keras model with random weights."""
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    tf.keras.utils.set_random_seed(0)
    shape = INPUTS[name][1:]
    if name == "lstm":
        layers = tf.keras.layers
        recurrent = [layers.LSTM(64, return_sequences=True), layers.LSTM(64)]
        return tf.keras.Sequential([tf.keras.Input(shape), *recurrent, layers.Dense(10)])
    build = {"mobilenet_v2": tf.keras.applications.MobileNetV2, "resnet50": tf.keras.applications.ResNet50}[name]
    return build(weights=None, input_shape=shape, classifier_activation=None)
