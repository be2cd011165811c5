"""Objects with a serialized state as nodes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stored_nodes import restore, stored_node

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.trackables.plain_values import (
    PlainContainer,
    PythonStateTrackable,
    StateTrackable,
    ValueTrackable,
    is_python_state,
)
from torch_tfckpt.saveables.stateful import FunctionState

TEXT = "s/.ATTRIBUTES/py_state"


class Counter:
    """State with a tensor whose name must be escaped."""

    def __init__(self, step: int = 0) -> None:
        self.state: dict[str, Any] = {"step": step, "a.b": torch.full((2,), float(step))}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class Text:
    """The protocol of tf.train.experimental.PythonState."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        self.text = string_value


def of(counter: Counter) -> StateTrackable:
    return StateTrackable(counter, FunctionState(counter.state_dict, counter.load_state_dict))


def test_the_string_and_its_tensors_are_attributes() -> None:
    """The string is py_state, and each tensor is an attribute with an escaped name after it."""
    saved = of(Counter()).to_save("s")
    names = [spec.name for saveable in saved.saveables for spec in saveable.specs]
    assert list(saved.attributes.values()) == names
    assert names[0] == TEXT
    assert next(iter(saved.attributes)) == "py_state"
    tensors = [name for name in saved.attributes if name != "py_state"]
    assert [name.startswith("py_state.S") for name in tensors] == [True]


def test_all_attributes_of_a_state_are_used(tmp_path: Path) -> None:
    """String and tensors are restored, and no attribute of the node is left over."""
    path = Checkpoint(s=Counter(7)).write(tmp_path / "m")
    counter = Counter()
    with stored_node(path, "s") as stored:
        assert restore(of(counter), stored).used == set(stored.keys)
    assert counter.state["step"] == 7
    assert counter.state["a.b"].tolist() == [7.0, 7.0]


def test_a_value_in_its_place() -> None:
    """Two places are two nodes, although they contain one object; one place is one node."""
    holder = {"a": 1, "b": 1}

    def at(name: str) -> ValueTrackable:
        return ValueTrackable(holder, name, lambda: holder[name], lambda new: holder.update({name: new}))

    assert at("a").identity == at("a").identity
    assert at("a").identity != at("b").identity


def test_a_value_is_replaced(tmp_path: Path) -> None:
    """`put` gets the value that `get` returned when it was saved."""
    path = Checkpoint(s=3).write(tmp_path / "m")
    got: list[object] = []
    with stored_node(path, "s") as stored:
        restore(ValueTrackable(got, "s", lambda: 0, got.append), stored)
    assert got == [3]


@pytest.mark.parametrize("full", [{"a": 1}, ["a"]], ids=["dict", "list"])
def test_empty_containers(tmp_path: Path, full: dict[str, Any] | list[Any]) -> None:
    """An empty container has no values; restoring it empties a non-empty one in place."""
    empty = type(full)()
    assert not PlainContainer(empty).holds_values
    assert PlainContainer(empty).to_save("s").attributes == {}
    path = Checkpoint(s=empty).write(tmp_path / "m")
    target = type(full)(full)
    with stored_node(path, "s") as stored:
        restore(PlainContainer(target), stored)
    assert target == empty


def test_a_container_ignores_a_node_of_another_kind(tmp_path: Path) -> None:
    """If a module was saved, the dict is not changed."""
    path = Checkpoint(s=torch.nn.Linear(1, 1)).write(tmp_path / "m")
    target = {"a": 1}
    with stored_node(path, "s") as stored:
        assert restore(PlainContainer(target), stored).used == frozenset()
    assert target == {"a": 1}


@pytest.mark.parametrize("text", ["", "plain", "ünï \U0001f600", "\x00", "{not json"])
def test_a_custom_string(tmp_path: Path, text: str) -> None:
    """It is stored unchanged in UTF-8, and restored."""
    path = Checkpoint(s=Text(text)).write(tmp_path / "m")
    assert tfckpt.load_variable(path, TEXT).item() == text.encode()
    other = Text("before")
    with stored_node(path, "s") as stored:
        assert restore(PythonStateTrackable(other), stored).used == {"py_state"}
    assert other.text == text


def test_the_string_must_be_a_scalar(tmp_path: Path) -> None:
    """A string tensor of another shape is rejected before anything is assigned."""
    source = Checkpoint(s=Text("a")).write(tmp_path / "m")
    values = tfckpt.load_file(source)
    path = tfckpt.save_file({**values, TEXT: values[TEXT].reshape(1)}, tmp_path / "n")
    target = Text("before")
    with stored_node(path, "s") as stored:
        with pytest.raises(InvalidArgumentError, match="one string is needed"):
            restore(PythonStateTrackable(target), stored)
    assert target.text == "before"


def test_objects_that_are_a_python_state() -> None:
    """Instances with both methods count; classes and instances with one method do not."""

    class Half:
        def serialize(self) -> str:
            return ""

    assert is_python_state(Text())
    assert not is_python_state(Text)
    assert not is_python_state(Half())
    assert not is_python_state(torch.ones(1))
