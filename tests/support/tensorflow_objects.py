"""Object trees for tf.train.Checkpoint. Runs in the TensorFlow process only; called as "tensorflow_objects.write".

A tree is plain data, so that our side can build the same one: a list of nodes (kind, payload), in which children are
given by their index in the list.

    ("variable", (name, value))         a tf.Variable; value as accepted by `RawTensor.of`
    ("module", [(name, index), ...])    a tf.Module with these attributes, set in this order
    ("dict", [(key, index), ...])
    ("list", [index, ...]), ("tuple", [index, ...])
    ("adam", [index, ...]), ("momentum", [index, ...]), ("adagrad", [index, ...])
                                        a TensorFlow 1 optimizer, after one step on these variables

A list, dict or tuple comes before its items, except for modules, which may be anywhere, so that cycles can be built.
The checkpoint has the objects `kwargs`, (name, index) each, and, if `root` is given, the root with that index.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor
from tensorflow_side import from_tensorflow, to_tensorflow

Nodes = Sequence[tuple[str, Any]]
Kwargs = Sequence[tuple[str, int]]

LEARNING_RATE, MOMENTUM, BETAS = 0.5, 0.5, (0.5, 0.75)  # dyadic, so that both sides compute the same bits


class Built:
    """The objects of a tree, and a checkpoint of them."""

    def __init__(self, nodes: Nodes, kwargs: Kwargs, root: int | None, *, blank: bool = False) -> None:
        """`blank`: variables are zeros or empty strings, instead of the described values."""
        tf.compat.v1.reset_default_graph()  # which counts the names given by optimizers
        self._nodes = nodes
        self._blank = blank
        self.objects: list[Any] = [None] * len(nodes)
        for place in reversed(range(len(nodes))):
            if nodes[place][0] in ("module", "variable"):
                self._make(place)
        for place in reversed(range(len(nodes))):
            if nodes[place][0] in ("list", "dict", "tuple"):
                self._make(place)
        for place, (kind, payload) in enumerate(nodes):
            if kind in ("adam", "momentum", "adagrad"):
                self.objects[place] = optimizer_of(kind)
                step(self.objects[place], [self.objects[each] for each in payload])
        for place, (kind, payload) in enumerate(nodes):
            if kind == "module":
                for name, child in payload:
                    setattr(self.objects[place], name, self.objects[child])
        named = {name: self.objects[place] for name, place in kwargs}
        self.checkpoint = tf.train.Checkpoint(None if root is None else self.objects[root], **named)

    def _make(self, place: int) -> None:
        kind, payload = self._nodes[place]
        if kind == "module":
            self.objects[place] = tf.Module()
        elif kind == "variable":
            value = to_tensorflow(payload[1])
            self.objects[place] = tf.Variable(tf.zeros_like(value) if self._blank else value, name=payload[0])
        elif kind == "dict":
            self.objects[place] = {key: self.objects[child] for key, child in payload}
        else:
            items = [self.objects[child] for child in payload]
            self.objects[place] = items if kind == "list" else tuple(items)

    def values(self) -> dict[int, RawTensor]:
        """Index of each variable -> its value."""
        return {
            place: from_tensorflow(self.objects[place].read_value())
            for place, (kind, _) in enumerate(self._nodes)
            if kind == "variable"
        }

    def slots(self) -> list[tuple[int, int, str, RawTensor]]:
        """Optimizer, variable, slot name and value of each slot variable."""
        found = []
        for place, (kind, payload) in enumerate(self._nodes):
            if kind in ("adam", "momentum", "adagrad"):
                optimizer = self.objects[place]
                for slot in optimizer.get_slot_names():
                    for child in payload:
                        value = optimizer.get_slot(self.objects[child], slot)
                        found.append((place, child, slot, from_tensorflow(value.read_value())))
        return found


def optimizer_of(kind: str) -> Any:
    """A new TensorFlow 1 optimizer."""
    v1 = tf.compat.v1.train
    if kind == "adam":
        return v1.AdamOptimizer(LEARNING_RATE, *BETAS)
    return v1.MomentumOptimizer(LEARNING_RATE, MOMENTUM) if kind == "momentum" else v1.AdagradOptimizer(LEARNING_RATE)


def step(optimizer: Any, variables: Sequence[Any]) -> None:
    """Make one step with gradients of 1, times a different factor for each variable."""
    optimizer.apply_gradients(
        [(tf.ones_like(variable) * 2.0 ** -(i % 3), variable) for i, variable in enumerate(variables)]
    )


def write(
    prefix: str, nodes: Nodes, kwargs: Kwargs, root: int | None = None, saves: int = 0
) -> tuple[str, dict[int, RawTensor], list[tuple[int, int, str, RawTensor]]]:
    """Checkpoint.write, or `saves` times Checkpoint.save. Return the last path, the values, the slot variables."""
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    built = Built(nodes, kwargs, root)
    path = prefix
    for _ in range(saves):
        path = built.checkpoint.save(prefix)
    if not saves:
        path = built.checkpoint.write(prefix)
    return path, built.values(), built.slots()


def restore(
    path: str, nodes: Nodes, kwargs: Kwargs, root: int | None = None, *, counted: bool = True
) -> tuple[dict[int, RawTensor], list[tuple[int, int, str, RawTensor]], int]:
    """Checkpoint.restore (or read, without a save_counter) into the same tree of zeros, and assert_consumed.

    Returns the values, the slot variables, the save counter.
    """
    built = Built(nodes, kwargs, root, blank=True)
    status = built.checkpoint.restore(path) if counted else built.checkpoint.read(path)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    counter = int(built.checkpoint.save_counter.numpy()) if counted else -1
    return built.values(), built.slots(), counter


def train(
    prefix: str, nodes: Nodes, kwargs: Kwargs, optimizer: int, steps: int
) -> tuple[dict[int, RawTensor], list[tuple[int, int, str, RawTensor]], dict[int, RawTensor]]:
    """Write a checkpoint after some more steps of an optimizer; return its values and slot variables, and the values
    one step later."""
    built = Built(nodes, kwargs, None)
    trained = [built.objects[place] for place in nodes[optimizer][1]]
    for _ in range(steps):
        step(built.objects[optimizer], trained)
    built.checkpoint.write(prefix)
    values, slots = built.values(), built.slots()
    step(built.objects[optimizer], trained)
    return values, slots, built.values()


def restore_and_step(
    path: str, nodes: Nodes, kwargs: Kwargs, optimizer: int
) -> tuple[dict[int, RawTensor], list[tuple[int, int, str, RawTensor]], dict[int, RawTensor]]:
    """Read with assert_consumed; return values and slot variables, and the values after an optimizer step."""
    built = Built(nodes, kwargs, None, blank=True)
    built.checkpoint.read(path).assert_consumed()
    values, slots = built.values(), built.slots()
    step(built.objects[optimizer], [built.objects[place] for place in nodes[optimizer][1]])
    return values, slots, built.values()


def manage(
    directory: str, nodes: Nodes, kwargs: Kwargs, saves: int, max_to_keep: int
) -> tuple[str | None, dict[int, RawTensor], list[str]]:
    """A CheckpointManager that continues after the last one: restore, then save.

    Returns the restored path and values, and the checkpoints that it lists at the end.
    """
    built = Built(nodes, kwargs, None, blank=True)
    manager = tf.train.CheckpointManager(built.checkpoint, directory, max_to_keep)
    restored = manager.restore_or_initialize()
    values = built.values()
    for _ in range(saves):
        manager.save()
    return restored, values, list(manager.checkpoints)


def python_state(path: str, text: str) -> str:
    """Write a checkpoint with a PythonState of this string, child "state"; return what TensorFlow reads back."""
    state = _Text(text)
    tf.train.Checkpoint(state=state).write(path)
    other = _Text("")
    tf.train.Checkpoint(state=other).read(path).assert_consumed()
    return other.text


def read_python_state(path: str) -> str:
    """The string of the PythonState "state" of a checkpoint, with assert_consumed."""
    state = _Text("")
    tf.train.Checkpoint(state=state).read(path).assert_consumed()
    return state.text


class _Text(tf.train.experimental.PythonState):  # type: ignore[misc, unused-ignore]
    def __init__(self, text: str) -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: bytes | str) -> None:
        self.text = string_value.decode() if isinstance(string_value, bytes) else string_value


def write_keras_and_others(prefix: str) -> str:
    """A lookup table, an iterator after two steps, and a Keras model with its optimizer, as children of the root."""
    table, iterator, model, optimizer = _keras_and_others()
    table.insert(["a", "b"], [1, 2])
    next(iterator), next(iterator)
    for number, variable in enumerate([*model.weights, *optimizer.variables]):
        variable.assign(tf.cast(tf.fill(variable.shape, number + 1), variable.dtype))
    checkpoint = tf.train.Checkpoint(lookup=table, data=iterator, model=model, optimizer=optimizer)
    path: str = checkpoint.save(prefix)
    return path


def restore_keras_and_others(path: str, names: Sequence[str]) -> tuple[list[int], int, list[float]]:
    """Restores them as children of these names, with assert_consumed; "" leaves one out.

    The values of the table, the next element of the iterator, and an element of each variable that was restored.
    """
    table, iterator, model, optimizer = _keras_and_others()
    objects = {name: each for name, each in zip(names, (table, iterator, model, optimizer), strict=True) if name}
    status = tf.train.Checkpoint(**objects).restore(path)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    variables = [*model.weights, *(optimizer.variables if names[3] else ())]
    elements = [float(tf.reshape(tf.convert_to_tensor(variable), [-1])[0]) for variable in variables]
    return [int(value) for value in table.lookup(["a", "b", "c"])], int(next(iterator)), elements


def _keras_and_others() -> tuple[Any, Any, Any, Any]:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    iterator = iter(tf.data.Dataset.range(10))
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Dense(3), layers.Dropout(0.1), layers.LSTM(2), layers.Dense(1)])
    model.build((None, 4, 3))
    optimizer = tf.keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return table, iterator, model, optimizer
