"""A small model that TensorFlow trains, saves, and continues to train. Runs in the TensorFlow process only.

    v1       a graph with tf.compat.v1.train optimizers and Saver; the LSTM is a cell of TensorFlow 1, or like Keras's
    keras3   layers and optimizers of Keras 3, and tf.train.Checkpoint

A convolution, the mean over the height, an LSTM, attention with one head, the mean over time, and a Dense layer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from takeover_data import HEIGHT, INPUTS, OUTPUTS, SIZE, UNITS, WIDTH, batch

v1, keras = tf.compat.v1, tf.keras

V1: dict[str, Callable[..., Any]] = {
    "Adam": v1.train.AdamOptimizer,
    "Momentum": v1.train.MomentumOptimizer,
    "RMSProp": v1.train.RMSPropOptimizer,
    "Adagrad": v1.train.AdagradOptimizer,
    "Adadelta": v1.train.AdadeltaOptimizer,
}


class _Variables:
    """Creates the variables of the model, with random values."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def __call__(self, name: str, *shape: int) -> Any:
        value = (self._rng.standard_normal(shape) * 0.4).astype(np.float32)
        return v1.get_variable(name, initializer=value)


def _outputs(images: Any, cell: str) -> Any:
    variable = _Variables()
    maps = tf.nn.conv2d(images, variable("conv/kernel", 3, 2, INPUTS, SIZE), 1, "VALID") + variable("conv/bias", SIZE)
    steps = tf.reduce_mean(tf.nn.relu(maps), 1)
    states = tf.stack(_lstm(tf.unstack(steps, axis=1), variable, cell), 1)
    query, key, value = (
        tf.einsum("btd,de->bte", states, variable(f"attn/{part}/kernel", UNITS, UNITS))
        + variable(f"attn/{part}/bias", UNITS)
        for part in ("query", "key", "value")
    )
    weights = tf.nn.softmax(tf.einsum("bqd,bkd->bqk", query, key) / UNITS**0.5)
    mixed = tf.einsum("bqk,bkd->bqd", weights, value)
    mixed = tf.einsum("btd,de->bte", mixed, variable("attn/attention_output/kernel", UNITS, UNITS))
    mixed += variable("attn/attention_output/bias", UNITS)
    return tf.reduce_mean(mixed, 1) @ variable("fc/kernel", UNITS, OUTPUTS) + variable("fc/bias", OUTPUTS)


def _lstm(steps: list[Any], variable: _Variables, cell: str) -> list[Any]:
    if cell == "keras":
        kernel, recurrent = (
            variable("lstm/kernel", SIZE, 4 * UNITS),
            variable("lstm/recurrent_kernel", UNITS, 4 * UNITS),
        )
        kernel, forget_bias = tf.concat([kernel, recurrent], 0), 0.0
    else:
        kernel, forget_bias = variable("lstm/lstm_cell/kernel", SIZE + UNITS, 4 * UNITS), 1.0
    bias = variable("lstm/bias" if cell == "keras" else "lstm/lstm_cell/bias", 4 * UNITS)
    hidden = state = tf.zeros((tf.shape(steps[0])[0], UNITS))
    states = []
    for step in steps:
        gates = tf.split(tf.concat([step, hidden], 1) @ kernel + bias, 4, 1)
        enter, new, forget, leave = gates if cell != "keras" else (gates[0], gates[2], gates[1], gates[3])
        state = state * tf.sigmoid(forget + forget_bias) + tf.sigmoid(enter) * tf.tanh(new)
        hidden = tf.tanh(state) * tf.sigmoid(leave)
        states.append(hidden)
    return states


def train_v1(
    prefix: str,
    kind: str,
    options: dict[str, Any],
    steps: int,
    more: int,
    *,
    cell: str = "tf1",
    restore: str | None = None,
    counted: bool = True,
) -> list[float]:
    """Train for `steps` steps, save, and train for `more` steps. Returns the losses of the last ones.

    Args:
        restore: A checkpoint from which training continues at this step, instead of the first `steps`.
        counted: Whether there is a global_step.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, (None, HEIGHT, WIDTH, INPUTS))
        wanted = v1.placeholder(tf.float32, (None, OUTPUTS))
        loss = tf.reduce_mean((_outputs(images, cell) - wanted) ** 2)
        counter = v1.train.get_or_create_global_step() if counted else None
        step = V1[kind](**options).minimize(loss, global_step=counter)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver()
        losses = []
        for number in range(steps + more):
            if number == steps and restore is not None:
                saver.restore(session, restore)
            elif number == steps:
                saver.save(session, prefix, write_meta_graph=False, write_state=False)
            if number < steps and restore is not None:
                continue
            feed = dict(zip((images, wanted), batch(number), strict=True))
            losses.append(float(session.run([loss, step], feed)[0]))
        return losses[-more:]


class TakeoverNet(keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.conv = keras.layers.Conv2D(SIZE, (3, 2), activation="relu")
        self.lstm = keras.layers.LSTM(UNITS, return_sequences=True)
        self.attn = keras.layers.MultiHeadAttention(1, UNITS)
        self.fc = keras.layers.Dense(OUTPUTS)

    def call(self, images: Any) -> Any:
        states = self.lstm(tf.reduce_mean(self.conv(images), 1))
        return self.fc(tf.reduce_mean(self.attn(states, states), 1))


def train_keras(
    prefix: str, kind: str, options: dict[str, Any], steps: int, more: int, *, scaled: bool = False
) -> list[float]:
    """Train with an optimizer of Keras 3, save after `steps` steps, and return the losses of `more` further steps.

    Args:
        scaled: Whether a LossScaleOptimizer is around the optimizer.
    """
    keras.utils.set_random_seed(5)
    net, optimizer = TakeoverNet(), getattr(keras.optimizers, kind)(**options)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    net(batch(0)[0])
    optimizer.build(net.trainable_variables)

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]
    def step(images: Any, wanted: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(images) - wanted) ** 2)
            scaled_loss = optimizer.scale_loss(loss) if scaled else loss
        variables = net.trainable_variables
        optimizer.apply(tape.gradient(scaled_loss, variables), variables)
        return loss

    losses = []
    for number in range(steps + more):
        if number == steps:
            tf.train.Checkpoint(net=net, optimizer=optimizer).write(prefix)
        losses.append(float(step(*map(tf.constant, batch(number)))))
    return losses[-more:]
