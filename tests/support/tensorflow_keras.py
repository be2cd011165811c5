"""Object-based checkpoints of TensorFlow, and its Savers for them. Runs in the TensorFlow process only."""

from collections.abc import Mapping, Sequence

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.training.saver import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    saver_from_object_based_checkpoint,
)
from tensorflow_process import RawTensor
from tensorflow_side import from_tensorflow, to_tensorflow

Kinds = Mapping[str, tuple[str, Sequence[int]]]
"""Name -> dtype and shape of a variable."""


def write_keras_model(prefix: str) -> tuple[str, dict[str, RawTensor]]:
    """tf.train.Checkpoint.save of a Keras model and its optimizer, after a training step.

    Returns the path, and the values of all variables of both by name.
    """
    model = tf.keras.Sequential(
        [
            tf.keras.Input((5, 4, 3)),
            tf.keras.layers.Conv2D(2, (3, 1), name="look"),
            tf.keras.layers.BatchNormalization(name="norm"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(7, name="think"),
        ],
        name="net",
    )
    model.compile(tf.keras.optimizers.Adam(name="adam"), "mse")  # without a name, the second one in a process is adam_1
    tf.keras.utils.set_random_seed(1)
    model.fit(tf.random.normal((6, 5, 4, 3)), tf.random.normal((6, 7)), verbose=0)
    path: str = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(prefix)
    variables = [each.value for each in (*model.variables, *model.optimizer.variables)]
    return path, {variable.name.removesuffix(":0"): from_tensorflow(variable) for variable in variables}


def write_variables(prefix: str, tensors: Mapping[str, RawTensor]) -> str:
    """tf.train.Checkpoint.write of variables of these names, in a list of lists and in a list."""
    variables = [tf.Variable(to_tensorflow(value), name=name) for name, value in tensors.items()]
    path: str = tf.train.Checkpoint(deep=[variables[::2]], flat=variables[1::2]).write(prefix)
    return path


def write_first_generation_adam(prefix: str) -> tuple[str, dict[str, RawTensor]]:
    """A variable "w", its slot variables and the optimizer's powers, after two steps; returned by name."""
    variable = tf.Variable([1.0, -2.0, 3.0], name="w")
    optimizer = tf.compat.v1.train.AdamOptimizer(0.5)
    for gradient in ([0.25, 0.5, -0.5], [1.0, 0.0, 0.125]):
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
    path: str = tf.train.Checkpoint(v=variable, optimizer=optimizer).write(prefix)
    return path, {each.name.removesuffix(":0"): from_tensorflow(each) for each in (variable, *optimizer.variables())}


def saver_restores(path: str, kinds: Kinds) -> dict[str, RawTensor]:
    """The values that tf.compat.v1.train.Saver restores into variables that were zero."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = _zeros(kinds)
        tf.compat.v1.train.Saver(list(variables.values())).restore(session, path)
        values = session.run(variables)
    return {name: from_tensorflow(tf.constant(value)) for name, value in values.items()}


def saver_of_checkpoint_restores(
    path: str, kinds: Kinds, names_to_keys: Mapping[str, str] | None = None
) -> dict[str, RawTensor]:
    """The same by saver_from_object_based_checkpoint."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = _zeros(kinds)
        saver = saver_from_object_based_checkpoint(path, list(variables.values()), names_to_keys=names_to_keys)
        saver.restore(session, path)
        values = session.run(variables)
    return {name: from_tensorflow(tf.constant(value)) for name, value in values.items()}


def _zeros(kinds: Kinds) -> dict[str, tf.Variable]:
    return {
        name: tf.compat.v1.get_variable(name, shape, tf.as_dtype(dtype), tf.compat.v1.zeros_initializer())
        for name, (dtype, shape) in kinds.items()
    }
