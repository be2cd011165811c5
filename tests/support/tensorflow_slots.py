"""What TensorFlow stores next to the weights, saved by tf.compat.v1.train.Saver. Runs in the TensorFlow process only.

Every function returns the names of all variables except the weights, as TensorFlow's collections have them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

v1 = tf.compat.v1

OPTIMIZERS: dict[str, Callable[[str], Any]] = {
    "adam": lambda name: v1.train.AdamOptimizer(0.1, name=name),
    "momentum": lambda name: v1.train.MomentumOptimizer(0.1, 0.9, name=name),
    "rmsprop": lambda name: v1.train.RMSPropOptimizer(0.1, momentum=0.9, centered=True, name=name),
    "adagrad": lambda name: v1.train.AdagradOptimizer(0.1, name=name),
    "adadelta": lambda name: v1.train.AdadeltaOptimizer(0.1, name=name),
    "ftrl": lambda name: v1.train.FtrlOptimizer(0.1, name=name),
}


def _variable(name: str, *shape: int, trainable: bool = True) -> Any:
    return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(), trainable=trainable)


def _net() -> Any:
    """fc/kernel, fc/bias, bn/gamma, bn/beta, bn/moving_mean, bn/moving_variance, and a loss."""
    with v1.variable_scope("fc"):
        kernel, bias = _variable("kernel", 4, 3), _variable("bias", 3)
    with v1.variable_scope("bn"):
        gamma, beta = _variable("gamma", 3), _variable("beta", 3)
        _variable("moving_mean", 3, trainable=False)
        _variable("moving_variance", 3, trainable=False)
    return tf.reduce_sum((gamma * (tf.ones((1, 4)) @ kernel + bias) + beta - 1.0) ** 2)


def train(prefix: str, kind: str, name: str, scope: str = "", steps: int = 3) -> tuple[dict[str, RawTensor], list[str]]:
    """Train a small net. Returns its slots, as variable/slot -> value, and the names of all that the optimizer adds."""
    with tf.Graph().as_default(), v1.Session() as session:
        loss = _net()
        weights = {variable.op.name for variable in v1.global_variables()}
        with v1.variable_scope(scope) if scope else v1.name_scope(""):
            optimizer = OPTIMIZERS[kind](name)
            step = optimizer.minimize(loss)
        session.run(v1.global_variables_initializer())
        for _ in range(steps):
            session.run(step)
        v1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)
        slots = {
            f"{variable.op.name}/{slot}": RawTensor.of(session.run(optimizer.get_slot(variable, slot)))
            for variable in v1.trainable_variables()
            for slot in optimizer.get_slot_names()
        }
        return slots, [each.op.name for each in v1.global_variables() if each.op.name not in weights]


def average(prefix: str, name: str | None = None, scope: str = "", zero_debias: bool = False) -> dict[str, RawTensor]:
    """Average all variables once. Returns variable -> average."""
    with tf.Graph().as_default(), v1.Session() as session:
        _net()
        variables = v1.global_variables()
        options = {} if name is None else {"name": name}
        averages = v1.train.ExponentialMovingAverage(0.5, zero_debias=zero_debias, **options)
        with v1.variable_scope(scope) if scope else v1.name_scope(""):
            update = averages.apply(variables)
        v1.train.create_global_step()
        session.run(v1.global_variables_initializer())
        for variable in variables:
            session.run(variable.assign_add(tf.ones_like(variable)))
        session.run(update)
        v1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)
        return {each.op.name: RawTensor.of(session.run(averages.average(each))) for each in variables}


def debias(prefix: str) -> list[str]:
    """Update moving_mean as slim does with zero_debias_moving_mean. Returns the names of the added variables."""
    with tf.Graph().as_default(), v1.Session() as session:
        _net()
        before = {each.op.name for each in v1.global_variables()}
        with v1.variable_scope("bn", reuse=True):
            mean = v1.get_variable("moving_mean", trainable=False)
        with v1.variable_scope("bn", reuse=v1.AUTO_REUSE):
            from tensorflow.python.training import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
                moving_averages,
            )

            moving_averages.assign_moving_average(mean, tf.ones(3), 0.5, zero_debias=True)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)
        return sorted({each.op.name for each in v1.global_variables()} - before)


def keras_averages(prefix: str, *, scaled: bool = False) -> dict[str, RawTensor]:
    """Train a Keras model with use_ema. Returns path of a variable without the model's name -> its average."""
    keras = tf.keras
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(3, name="fc"), keras.layers.BatchNormalization(name="bn")], name="net")
    optimizer = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, "mse")
    rng = np.random.default_rng(0)
    for _ in range(3):
        model.train_on_batch(rng.random((8, 4)), rng.random((8, 3)))
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(prefix)
    averages = {path.path: average for path, average in zip(
        model.trainable_variables, optimizer._model_variables_moving_average, strict=True
    )}  # fmt: skip
    return {path.removeprefix("net/"): RawTensor.of(average.numpy()) for path, average in averages.items()}
