"""Functions for the tests of init_from_checkpoint. Runs in the TensorFlow process only."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor
from tensorflow_side import from_tensorflow

Described = Sequence[tuple[str, Sequence[int], str, int]]
"""(name, shape, dtype, number of parts) of each variable; 0 parts if it is not partitioned."""

OBJECT = "object:"  # prefix of a target: pass the variable, or the list of its parts, not its name


def init(path: str, variables: Described, assignment_map: Sequence[tuple[str, str]]) -> dict[str, RawTensor]:
    """tf.compat.v1.train.init_from_checkpoint in a graph whose variables are zero; return their values."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = {name: _variable(name, shape, dtype, parts) for name, shape, dtype, parts in variables}
        pairs = [(name, _target(made, target)) for name, target in assignment_map]
        tf.compat.v1.train.init_from_checkpoint(path, pairs)
        session.run(tf.compat.v1.global_variables_initializer())
        values = session.run({name: tf.convert_to_tensor(variable) for name, variable in made.items()})
    return {name: from_tensorflow(tf.constant(value)) for name, value in values.items()}


def _variable(name: str, shape: Sequence[int], dtype: str, parts: int) -> Any:
    partitioner = (lambda **_: [parts] + [1] * (len(shape) - 1)) if parts else None
    return tf.compat.v1.get_variable(
        name, shape, tf.as_dtype(dtype), tf.compat.v1.zeros_initializer(), partitioner=partitioner
    )


def _target(made: dict[str, Any], target: str) -> Any:
    if not target.startswith(OBJECT):
        return target
    variable = made[target.removeprefix(OBJECT)]
    return variable._get_variable_list() if hasattr(variable, "_get_variable_list") else variable
