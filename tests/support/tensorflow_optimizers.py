"""Optimizers of three generations, trained and saved by TensorFlow. Runs in the TensorFlow process only.

    v1       tf.compat.v1.train
    keras2   a substitute for OptimizerV2, which TensorFlow 2.21 no longer has: it calls the same kernels, and its slots
             and hyperparameters are stored by tf.train.Checkpoint in the same way
    keras3   keras.optimizers

Two variables `weight` [5,3] and `bias` [5] of net.fc are trained on the loss 0.5 * w**2 - target * w.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

keras = tf.keras
RATE, MOMENTUM, BETAS, EPSILON, WEIGHT_DECAY = 0.125, 0.5, (0.75, 0.875), 1e-3, 0.25


class Keras2(tf.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """An optimizer with slot variables and hyperparameters, which tf.train.Checkpoint finds by these methods."""

    def __init__(self, kind: str, decay: float) -> None:
        super().__init__()
        names = {
            "sgd": ["momentum"], "nesterov": ["momentum"], "adagrad": ["accumulator"], "adam": ["m", "v"],
            "amsgrad": ["m", "v", "vhat"],
        }[kind]  # fmt: skip
        self._kind, self._names = kind, tuple(names)
        self._slots: Any = {}
        numbers = {"learning_rate": RATE, "decay": decay}
        if kind in ("sgd", "nesterov"):
            numbers["momentum"] = MOMENTUM
        elif kind != "adagrad":
            numbers |= dict(zip(("beta_1", "beta_2"), BETAS, strict=True))
        self.iter = tf.Variable(0, dtype=tf.int64)
        for name, value in numbers.items():
            setattr(self, name, tf.Variable(value))

    def _trackable_children(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        children = super()._trackable_children(*arguments, **options)
        return {name: child for name, child in children.items() if not name.startswith("_")}

    def _create_or_restore_slot_variable(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def get_slot_names(self) -> list[str]:
        return list(self._names)

    def get_slot(self, variable: Any, name: str) -> Any:
        return self._slots.get((variable.ref(), name))

    def apply_gradients(self, pairs: Any) -> None:
        """Do what _resource_apply_dense of Keras 2 does."""
        steps = tf.cast(self.iter, tf.float32)
        rate = self.learning_rate / (1.0 + self.decay * steps)
        for gradient, variable in pairs:
            for name in self._names:
                if (variable.ref(), name) not in self._slots:
                    start = 0.1 if name == "accumulator" else 0.0
                    self._slots[variable.ref(), name] = tf.Variable(tf.fill(variable.shape, start))
            slots = [self._slots[variable.ref(), name].handle for name in self._names]
            given = {"var": variable.handle, "lr": rate, "grad": gradient}
            if self._kind in ("sgd", "nesterov"):
                nesterov = self._kind == "nesterov"
                tf.raw_ops.ResourceApplyKerasMomentum(
                    accum=slots[0], momentum=self.momentum, use_nesterov=nesterov, **given
                )
            elif self._kind == "adagrad":
                tf.raw_ops.ResourceApplyAdagradV2(accum=slots[0], epsilon=EPSILON, **given)
            else:
                given |= {"beta1": self.beta_1, "beta2": self.beta_2, "epsilon": EPSILON, "m": slots[0], "v": slots[1]}
                given |= {f"beta{n}_power": given[f"beta{n}"] ** (steps + 1.0) for n in (1, 2)}
                if self._kind == "adam":
                    tf.raw_ops.ResourceApplyAdam(**given)
                else:
                    tf.raw_ops.ResourceApplyAdamWithAmsgrad(vhat=slots[2], **given)
        self.iter.assign_add(1)


def _keras3(kind: str, rate: Any) -> Any:
    betas = dict(zip(("beta_1", "beta_2"), BETAS, strict=True))
    optimizers = keras.optimizers
    made: dict[str, Callable[[], Any]] = {
        "sgd": lambda: optimizers.SGD(rate, MOMENTUM),
        "plain sgd": lambda: optimizers.SGD(rate),
        "nesterov": lambda: optimizers.SGD(rate, MOMENTUM, nesterov=True),
        "adagrad": lambda: optimizers.Adagrad(rate, epsilon=0.0),
        "adam": lambda: optimizers.Adam(rate, epsilon=EPSILON, **betas),
        "amsgrad": lambda: optimizers.Adam(rate, epsilon=EPSILON, amsgrad=True, **betas),
        "adamw": lambda: optimizers.AdamW(rate, WEIGHT_DECAY, epsilon=EPSILON, **betas),
        "rmsprop": lambda: optimizers.RMSprop(rate, momentum=MOMENTUM, epsilon=1e-12),
        "adadelta": lambda: optimizers.Adadelta(rate, epsilon=EPSILON),
        "adamax": lambda: optimizers.Adamax(rate, epsilon=0.0, **betas),
        "nadam": lambda: optimizers.Nadam(rate, epsilon=EPSILON, **betas),
        "ftrl": lambda: optimizers.Ftrl(rate),
    }
    return made[kind]()


def _v1(kind: str) -> Any:
    v1 = tf.compat.v1.train
    if kind == "adam":
        return v1.AdamOptimizer(RATE, *BETAS, epsilon=EPSILON)
    if kind == "rmsprop":
        return v1.RMSPropOptimizer(RATE, momentum=MOMENTUM)
    if kind == "adadelta":
        return v1.AdadeltaOptimizer(RATE, epsilon=EPSILON)
    if kind == "adagrad":
        return v1.AdagradOptimizer(RATE)
    return v1.MomentumOptimizer(RATE, MOMENTUM, use_nesterov=kind == "nesterov")


def train(
    prefix: str,
    family: str,
    kind: str,
    steps: int,
    *,
    decay: float = 0.0,
    scheduled: bool = False,
    counted: bool = False,
    weight: str = "weight",
) -> dict[str, RawTensor]:
    """Train, write tf.train.Checkpoint(net=..., optimizer=...), and train one more step.

    Args:
        decay: Decay of the learning rate of keras2.
        scheduled: Whether the learning rate of keras3 comes from a schedule, which is not stored.
        counted: Whether the program has a global_step.
        weight: Name of the first variable; a "kernel" is transposed.

    Returns the variables before the last step and, as "next/...", after it, and the targets.
    """
    rng = np.random.default_rng(steps)
    shapes = {weight: (3, 5) if weight == "kernel" else (5, 3), "bias": (5,)}
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    targets = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    net = tf.Module()
    if family == "keras3":
        net.fc = keras.layers.Layer()
        for name, value in start.items():
            setattr(net.fc, name, net.fc.add_weight(shape=value.shape, name=name))
            getattr(net.fc, name).assign(value)
        constant = keras.optimizers.schedules.PiecewiseConstantDecay([1000], [RATE, RATE])
        optimizer = _keras3(kind, constant if scheduled else RATE)
    else:
        net.fc = tf.Module()
        for name, value in start.items():
            setattr(net.fc, name, tf.Variable(value))
        optimizer = Keras2(kind, decay) if family == "keras2" else _v1(kind)
    # The bias first: an optimizer may train variables in another order than the model's.
    names = sorted(shapes)
    variables = [getattr(net.fc, name) for name in names]
    global_step = tf.Variable(0, dtype=tf.int64)

    def step() -> None:
        gradients = [tf.convert_to_tensor(getattr(net.fc, name)) - targets[name] for name in names]
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
        global_step.assign_add(1)

    for _ in range(steps):
        step()
    more = {"global_step": global_step} if counted else {}
    tf.train.Checkpoint(net=net, optimizer=optimizer, **more).write(prefix)
    told = {name: getattr(net.fc, name).numpy() for name in shapes}
    step()
    told |= {f"next/{name}": getattr(net.fc, name).numpy() for name in shapes}
    told |= {f"target/{name}": value for name, value in targets.items()}
    return {name: RawTensor.of(value) for name, value in told.items()}
