"""A Transformer that reads an image row by row: 82 variables, 246 with Adam's slots, and 4 more."""

from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

from golden.in_tensorflow import digits
from golden.in_tensorflow.graph_models import (
    dense,
    loss_of,
    placeholders,
    predictor,
    session,
    step_of,
    train,
    v1,
    variable,
)

LAYERS = 6
WIDTH = 24
HEADS = 4
INNER = 48
ROWS = 8


def write(folder: str) -> dict[str, Any]:
    """Write two shards, counters in the first and weights in the second, without a meta graph."""
    with session(folder, cpus=2) as opened:
        images, labels = placeholders()
        with v1.device("/cpu:1"), v1.variable_scope("transformer"):
            logits = _transformer(images)
        with v1.device("/cpu:0"):
            step = step_of(tf.int32)
            average = v1.get_variable("losses_avg/total_loss", [], initializer=v1.zeros_initializer(), trainable=False)
        with v1.device("/cpu:1"):
            loss = loss_of(logits, labels)
            with v1.variable_scope("training"):
                minimize = v1.train.AdamOptimizer(0.003).minimize(loss, step)
            operation = tf.group(minimize, v1.assign_add(average, 0.05 * (loss - average)))
        saver = v1.train.Saver(sharded=True)
        number = train(opened, operation, 12)
        saver.save(opened, "model.ckpt", number, write_meta_graph=False)
        return digits.write_samples(".", predictor(opened))


def _transformer(images: Any) -> Any:
    """Compute logits from images [n, 8, 8]."""
    with v1.variable_scope("embedding"):
        x = tf.reshape(dense(tf.reshape(images, [-1, ROWS]), "rows", ROWS, WIDTH), [-1, ROWS, WIDTH])
        summary = variable("summary", [1, 1, WIDTH], 0.5)
        x = tf.concat([tf.tile(summary, [tf.shape(x)[0], 1, 1]), x], 1)
        x += variable("positions", [ROWS + 1, WIDTH], 0.5)
    for number in range(LAYERS):
        with v1.variable_scope(f"body/layer_{number}"):
            x += _attention(_normalized(x, "attention_norm"))
            x += _feed_forward(_normalized(x, "ffn_norm"))
    with v1.variable_scope("head"):
        pooled = tf.tanh(dense(_normalized(x, "norm")[:, 0], "pooler", WIDTH, WIDTH))
        return dense(pooled, "logits", WIDTH, digits.CLASSES)


def _normalized(x: Any, name: str) -> Any:
    with v1.variable_scope(name):
        scale = v1.get_variable("scale", [WIDTH], tf.float32, v1.ones_initializer(), use_resource=False)
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-6) * scale + variable("bias", [WIDTH])


def _attention(x: Any) -> Any:
    with v1.variable_scope("self_attention"):
        heads = []
        for name in ("q", "k", "v"):
            projected = tf.matmul(x, variable(f"{name}/kernel", [WIDTH, WIDTH], WIDTH**-0.5))
            split = tf.reshape(projected, [-1, ROWS + 1, HEADS, WIDTH // HEADS])
            heads.append(tf.transpose(split, [0, 2, 1, 3]))
        q, k, v = heads
        weights = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * (WIDTH // HEADS) ** -0.5)
        joined = tf.reshape(tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3]), [-1, ROWS + 1, WIDTH])
        return tf.matmul(joined, variable("output/kernel", [WIDTH, WIDTH], WIDTH**-0.5))


def _feed_forward(x: Any) -> Any:
    with v1.variable_scope("ffn"):
        flat = tf.nn.relu(dense(tf.reshape(x, [-1, WIDTH]), "inner", WIDTH, INNER))
        return tf.reshape(dense(flat, "outer", INNER, WIDTH), [-1, ROWS + 1, WIDTH])
