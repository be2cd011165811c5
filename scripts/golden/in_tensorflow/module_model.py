"""A tf.Module with signatures, an asset, a table, strings and counters besides its weights."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

from golden.in_tensorflow import digits

ASSET = "digits.txt"


class Classifier(tf.Module):  # type: ignore[misc, unused-ignore]
    """Two dense layers, and the names of the classes."""

    def __init__(self) -> None:
        super().__init__(name="classifier")
        rng = np.random.default_rng(digits.SEED)
        self.hidden = _dense(rng, 64, 32, "hidden")
        self.output = _dense(rng, 32, 10, "output")
        self.seen = tf.Variable(tf.zeros([10], tf.int64), trainable=False, name="seen")
        self.version = tf.Variable(3, dtype=tf.int32, trainable=False, name="version")
        self.authors = tf.Variable(["Ada", "", "Jos\u00e9"], trainable=False, name="authors")
        whole, line = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        reader = tf.lookup.TextFileInitializer(ASSET, tf.int64, line, tf.string, whole)
        self.names = tf.lookup.StaticHashTable(reader, "?")

    def logits(self, images: Any) -> Any:
        hidden = tf.nn.relu(tf.reshape(images, [-1, 64]) @ self.hidden.kernel + self.hidden.bias)
        return hidden @ self.output.kernel + self.output.bias


def _dense(rng: Any, inputs: int, outputs: int, name: str) -> Any:
    layer = tf.Module()
    initial = rng.standard_normal((inputs, outputs)) / inputs**0.5
    layer.kernel = tf.Variable(initial.astype(np.float32), name=f"{name}/kernel")
    layer.bias = tf.Variable(tf.zeros([outputs]), name=f"{name}/bias")
    return layer


def write(folder: str) -> dict[str, Any]:
    """Train, count the images, and save."""
    digits.start()
    with chdir(folder):
        Path(ASSET).write_text("\n".join(digits.NAMES) + "\n", encoding="utf-8")
        model = Classifier()
        optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
        for images, labels in digits.batches(12):
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model.logits(images))
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            model.seen.assign_add(tf.math.bincount(labels, minlength=10, dtype=tf.int64))

        one = tf.constant(1.0)

        def classify(images: Any, temperature: Any = one) -> dict[str, Any]:
            logits = model.logits(images) / temperature
            return {"logits": logits, "name": model.names.lookup(tf.argmax(logits, -1))}

        specs = [tf.TensorSpec([None, 8, 8], name="images"), tf.TensorSpec([], name="temperature")]
        model.classify = tf.function(classify, input_signature=specs)
        model.about = tf.function(
            lambda: {"authors": model.authors.read_value(), "version": model.version.read_value()}, input_signature=[]
        )
        signatures = {"serving_default": model.classify, "about": model.about}
        tf.saved_model.save(model, ".", signatures=signatures)
        Path(ASSET).unlink()
        served = tf.saved_model.load(".").signatures["serving_default"]
        return digits.write_samples(".", lambda images: served(images=tf.constant(images), temperature=one)["logits"])
