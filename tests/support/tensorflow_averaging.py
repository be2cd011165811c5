"""Checkpoints to average, and readers of the results and of the values that save_model(extra=) stores.

Runs in the TensorFlow process only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

v1 = tf.compat.v1


def restore_global_step(prefix: str, initial: dict[str, Any]) -> tuple[int, list[RawTensor]]:
    """Restore the global step, and variables of these initial values, with tf.train.Saver.

    Returns tf.train.global_step of the session, and the values.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.train.get_or_create_global_step()
        variables = [v1.Variable(value, name=name) for name, value in initial.items()]
        v1.train.Saver().restore(session, prefix)
        read = [session.run(variable) for variable in variables]
        values = [RawTensor.of(np.asarray(value, object if isinstance(value, bytes) else None)) for value in read]
        return int(v1.train.global_step(session, step)), values


class _Net(tf.Module):  # type: ignore[misc, unused-ignore]
    """Two layers in a list, a counter, a half-precision variable, and a table's worth of strings."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [tf.Variable(tf.zeros([3, 2]), name="kernel"), tf.Variable(tf.zeros([2]), name="kernel")]
        self.half = tf.Variable(tf.zeros([4], tf.bfloat16), name="half")
        self.step = tf.Variable(0, dtype=tf.int64)
        self.words = tf.Variable(["", ""])


def _checkpoint() -> tuple[_Net, Any, Any]:
    net = _Net()
    optimizer = tf.keras.optimizers.Adam(0.01)
    optimizer.build(net.layers)
    return net, optimizer, tf.train.Checkpoint(net=net, optimizer=optimizer)


def write_run(directory: str, seed: int, count: int, max_to_keep: int | None = None) -> list[str]:
    """Train a little and save `count` times with a CheckpointManager; return the paths, oldest first."""
    rng = np.random.default_rng(seed)
    net, optimizer, checkpoint = _checkpoint()
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=max_to_keep)
    for number in range(1, count + 1):
        optimizer.apply_gradients([(rng.standard_normal(each.shape).astype("float32"), each) for each in net.layers])
        net.half.assign(tf.cast(rng.standard_normal(4), tf.bfloat16))
        net.step.assign(number * 10)
        net.words.assign([f"a{number}", f"b{number}"])
        manager.save()
    return list(manager.checkpoints)


def read_run(path: str) -> tuple[list[RawTensor], int, list[bytes], list[RawTensor]]:
    """tf.train.Checkpoint.read into fresh objects, everything consumed.

    Returns the weights, the counter, the strings, and the variables of the optimizer.
    """
    net, optimizer, checkpoint = _checkpoint()
    assert int(checkpoint.save_counter) == 0  # reading it creates it; a manager has stored one
    checkpoint.read(path).assert_consumed()
    weights = [RawTensor.of(each.numpy()) for each in (*net.layers, net.half)]
    return weights, int(net.step), list(net.words.numpy()), [RawTensor.of(each.numpy()) for each in optimizer.variables]


def write_partitioned(prefixes: Sequence[str], seed: int, partitions: int) -> None:
    """Save a partitioned variable of random values in each of `prefixes`, with tf.train.Saver."""
    for number, prefix in enumerate(prefixes):
        with tf.Graph().as_default(), v1.Session() as session:
            parts = v1.get_variable(
                "emb",
                shape=(7, 3),
                initializer=v1.random_normal_initializer(seed=seed),
                partitioner=v1.fixed_size_partitioner(partitions),
            )
            step = v1.get_variable("global_step", initializer=np.int64(number), trainable=False)
            session.run(v1.global_variables_initializer())
            v1.train.Saver([*parts, step], sharded=True).save(session, prefix, write_meta_graph=False)


def restore_partitioned(prefix: str, partitions: int) -> tuple[RawTensor, int]:
    """Restore what `write_partitioned` saved: the whole variable and the global step."""
    with tf.Graph().as_default(), v1.Session() as session:
        parts = v1.get_variable(
            "emb", shape=(7, 3), dtype=tf.float32, partitioner=v1.fixed_size_partitioner(partitions)
        )
        step = v1.get_variable("global_step", shape=(), dtype=tf.int64, trainable=False)
        v1.train.Saver([*parts, step]).restore(session, prefix)
        return RawTensor.of(session.run(parts.as_tensor())), int(session.run(step))
