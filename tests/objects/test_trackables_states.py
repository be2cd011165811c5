"""Objects whose state is text, as nodes."""

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
    """State with a tensor whose name needs an escape."""

    def __init__(self, step: int = 0) -> None:
        self.state: dict[str, Any] = {"step": step, "a.b": torch.full((2,), float(step))}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class Text:
    """What tf.train.experimental.PythonState is to be."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        self.text = string_value


def of(counter: Counter) -> StateTrackable:
    return StateTrackable(counter, FunctionState(counter.state_dict, counter.load_state_dict))


def test_the_text_and_its_tensors_are_attributes() -> None:
    """The text is py_state, a tensor an attribute of its own behind it, escaped; keys are what the graph says."""
    saved = of(Counter()).to_save("s")
    names = [spec.name for saveable in saved.saveables for spec in saveable.specs]
    assert list(saved.attributes.values()) == names
    assert names[0] == TEXT
    assert next(iter(saved.attributes)) == "py_state"
    tensors = [name for name in saved.attributes if name != "py_state"]
    assert [name.startswith("py_state.S") for name in tensors] == [True]


def test_all_attributes_of_a_state_are_used(tmp_path: Path) -> None:
    """Text and tensors come back; nothing of the node is left over."""
    path = Checkpoint(s=Counter(7)).write(tmp_path / "m")
    counter = Counter()
    with stored_node(path, "s") as stored:
        assert restore(of(counter), stored).used == set(stored.keys)
    assert counter.state["step"] == 7
    assert counter.state["a.b"].tolist() == [7.0, 7.0]


def test_a_value_in_its_place() -> None:
    """Two places are two nodes, although they hold one object; one place is one node."""
    holder = {"a": 1, "b": 1}

    def at(name: str) -> ValueTrackable:
        return ValueTrackable(holder, name, lambda: holder[name], lambda new: holder.update({name: new}))

    assert at("a").identity == at("a").identity
    assert at("a").identity != at("b").identity


def test_a_value_gives_way(tmp_path: Path) -> None:
    """`put` gets what `get` gave when it was saved."""
    path = Checkpoint(s=3).write(tmp_path / "m")
    got: list[object] = []
    with stored_node(path, "s") as stored:
        restore(ValueTrackable(got, "s", lambda: 0, got.append), stored)
    assert got == [3]


@pytest.mark.parametrize("full", [{"a": 1}, ["a"]], ids=["dict", "list"])
def test_empty_containers(tmp_path: Path, full: dict[str, Any] | list[Any]) -> None:
    """An empty one has no values; where one was saved, one that is full is emptied, and stays the same object."""
    empty = type(full)()
    assert not PlainContainer(empty).holds_values
    assert PlainContainer(empty).to_save("s").attributes == {}
    path = Checkpoint(s=empty).write(tmp_path / "m")
    target = type(full)(full)
    with stored_node(path, "s") as stored:
        restore(PlainContainer(target), stored)
    assert target == empty


def test_a_container_keeps_what_a_node_of_another_kind_has(tmp_path: Path) -> None:
    """A module was saved: the dict is left alone."""
    path = Checkpoint(s=torch.nn.Linear(1, 1)).write(tmp_path / "m")
    target = {"a": 1}
    with stored_node(path, "s") as stored:
        assert restore(PlainContainer(target), stored).used == frozenset()
    assert target == {"a": 1}


@pytest.mark.parametrize("text", ["", "plain", "ünï \U0001f600", "\x00", "{not json"])
def test_a_text_of_its_own_making(tmp_path: Path, text: str) -> None:
    """It is stored as it is, in UTF-8, and comes back."""
    path = Checkpoint(s=Text(text)).write(tmp_path / "m")
    assert tfckpt.load_variable(path, TEXT).item() == text.encode()
    other = Text("before")
    with stored_node(path, "s") as stored:
        assert restore(PythonStateTrackable(other), stored).used == {"py_state"}
    assert other.text == text


def test_a_text_must_be_one(tmp_path: Path) -> None:
    """A string tensor of another shape is refused before anything is assigned."""
    source = Checkpoint(s=Text("a")).write(tmp_path / "m")
    values = tfckpt.load_file(source)
    path = tfckpt.save_file({**values, TEXT: values[TEXT].reshape(1)}, tmp_path / "n")
    target = Text("before")
    with stored_node(path, "s") as stored:
        with pytest.raises(InvalidArgumentError, match="one string is needed"):
            restore(PythonStateTrackable(target), stored)
    assert target.text == "before"


def test_what_is_a_python_state() -> None:
    """Objects with both methods; not their classes, and nothing with one of the two."""

    class Half:
        def serialize(self) -> str:
            return ""

    assert is_python_state(Text())
    assert not is_python_state(Text)
    assert not is_python_state(Half())
    assert not is_python_state(torch.ones(1))
