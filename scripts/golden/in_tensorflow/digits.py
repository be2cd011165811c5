"""scikit-learn's digits, and the samples stored with a model that was trained on them.

1,797 images of 8 x 8 pixels, each 0 to 16, of the digits 0 to 9. The last 200 of a fixed order are held out; a model's
folder has them in samples.npz, with the outputs that TensorFlow computed:

    images   uint8 [200, 8, 8]     divided by 16 they are the models' inputs
    labels   int64 [200]
    outputs  float32 [200, 10]     logits
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from sklearn.datasets import load_digits  # type: ignore[import-untyped, import-not-found, unused-ignore]

SAMPLES = "samples.npz"
HELD_OUT = 200
BATCH = 64
CLASSES = 10
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SEED = 20260101


def start() -> None:
    """Make training repeatable on one machine; call it before anything else of TensorFlow."""
    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()


def split() -> tuple[Any, Any, Any, Any]:
    """Return training images (uint8 [n, 8, 8]) and labels (int64 [n]), then those held out."""
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    images, labels = data.images[order].astype(np.uint8), data.target[order].astype(np.int64)
    return images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:]


def as_input(images: Any) -> Any:
    """Return images as inputs of the models: float32 from 0 to 1."""
    return images.astype(np.float32) / 16


def batches(epochs: int) -> Iterator[tuple[Any, Any]]:
    """Yield inputs [64, 8, 8] and labels in a fixed order, without the last incomplete batch."""
    images, labels, _, _ = split()
    rng = np.random.default_rng(SEED + 1)
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[at : at + BATCH]
            yield as_input(images[chosen]), labels[chosen]


def held_out() -> Any:
    """Return inputs [200, 8, 8] of the images that are held out."""
    return as_input(split()[2])


def write_samples(folder: str | Path, predict: Callable[[Any], Any]) -> dict[str, Any]:
    """Write samples.npz with the logits of `predict`; return the model's entry of expected.json."""
    _, _, images, labels = split()
    outputs = np.asarray(predict(as_input(images)), np.float32)
    if outputs.shape != (HELD_OUT, CLASSES):
        raise ValueError(f"{folder}: outputs have the shape {outputs.shape}")
    np.savez_compressed(Path(folder) / SAMPLES, images=images, labels=labels, outputs=outputs)
    correct = int((outputs.argmax(-1) == labels).sum())
    return {"model": {"samples": SAMPLES, "correct": correct, "accuracy": correct / HELD_OUT}}
