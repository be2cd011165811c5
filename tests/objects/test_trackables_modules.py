"""Modules as nodes, and objects that define their own children and values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stored_nodes import restore, stored_node
from torch import nn

from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.trackables.modules import CustomTrackable, ModuleTrackable, distinct, has_trackable_methods


class Everything(nn.Module):
    """One of each kind, added in another order than that of the children."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU()
        self.nothing: nn.Module | None = None
        self.register_module("none", None)
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("scratch", torch.ones(1), persistent=False)
        self.register_buffer("no_buffer", None)
        self.weight = nn.Parameter(torch.ones(1))
        self.register_parameter("bias", None)
        self.extra = 0

    def get_extra_state(self) -> int:
        return self.extra

    def set_extra_state(self, state: int) -> None:
        self.extra = state


def test_children_of_a_module() -> None:
    """Parameters, then persistent buffers, then modules, then extra state; None is left out."""
    named = dict(ModuleTrackable(Everything()).children())
    assert list(named) == ["weight", "kept", "inner", "_extra_state"]


def test_children_match_state_dict() -> None:
    """The tensors that are reached have the names in state_dict."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.GRU(3, 2), nn.Embedding(4, 2), nn.LayerNorm(2))
    found: list[str] = []
    waiting: list[tuple[str, nn.Module]] = [("", module)]
    for prefix, here in waiting:
        for name, child in ModuleTrackable(here).children():
            if isinstance(child, nn.Module):
                waiting.append((f"{prefix}{name}.", child))
            else:
                found.append(prefix + name)
    assert sorted(found) == sorted(module.state_dict())


def test_extra_state_is_a_separate_node(tmp_path: Path) -> None:
    """It is not the module's own node; the value of get_extra_state is passed to set_extra_state."""
    module, other = Everything(), Everything()
    module.extra = 5
    path = Checkpoint(m=module).write(tmp_path / "m")
    trackable: Any = dict(ModuleTrackable(other).children())["_extra_state"]
    assert trackable.identity != ModuleTrackable(other).identity
    with stored_node(path, "m", "_extra_state") as stored:
        restore(trackable, stored)
    assert other.extra == 5


class Serializing:
    """Object with values under its own attributes."""

    def __init__(self, value: float) -> None:
        self.values = {"a/b": torch.tensor(value), "": torch.tensor([value])}

    def _serialize_to_tensors(self) -> dict[str, torch.Tensor]:
        return self.values

    def _restore_from_tensors(self, restored: dict[str, torch.Tensor]) -> None:
        self.values = restored


def test_values_of_an_object_are_restored_together(tmp_path: Path) -> None:
    """All values are passed at once under their names, including names with a slash."""
    path = Checkpoint(s=Serializing(3.0)).write(tmp_path / "m")
    target = Serializing(0.0)
    with stored_node(path, "s") as stored:
        assert set(stored.keys) == {"a.Sb", ""}
        assert restore(CustomTrackable(target), stored).used == set(stored.keys)
    assert {name: value.tolist() for name, value in target.values.items()} == {"a/b": 3.0, "": [3.0]}


class Gathering:
    """Object with a tensor under each of some attributes."""

    def __init__(self, **values: torch.Tensor) -> None:
        self.values = values

    def _gather_saveables_for_checkpoint(self) -> dict[str, object]:
        return dict(self.values)


def test_attributes_on_one_side_only(tmp_path: Path) -> None:
    """Stored attributes that are missing here are unused; missing stored ones keep their value here."""
    path = Checkpoint(g=Gathering(a=torch.tensor(1.0), b=torch.tensor(2.0))).write(tmp_path / "m")
    target = Gathering(b=torch.tensor(0.0), c=torch.tensor(9.0))
    with stored_node(path, "g") as stored:
        assert restore(CustomTrackable(target), stored).used == {"b"}
    assert (target.values["b"].item(), target.values["c"].item()) == (2.0, 9.0)


def test_children_as_a_mapping_or_as_pairs() -> None:
    """An object may return either; one without the method has no children."""

    class Parent:
        def __init__(self, children: object) -> None:
            self.children = children

        def _trackable_children(self) -> object:
            return self.children

    child = nn.ReLU()
    assert list(CustomTrackable(Parent({"a": child})).children()) == [("a", child)]
    assert list(CustomTrackable(Parent([("a", child)])).children()) == [("a", child)]
    assert list(CustomTrackable(Gathering()).children()) == []
    assert not CustomTrackable(Parent({})).holds_values
    assert CustomTrackable(Gathering()).holds_values


def test_objects_with_these_methods() -> None:
    """Instances count, but not classes or tensors."""
    assert has_trackable_methods(Gathering())
    assert has_trackable_methods(Serializing(0.0))
    assert not has_trackable_methods(Gathering)
    assert not has_trackable_methods(torch.ones(1))
    assert not has_trackable_methods(object())


def test_names_must_be_unique() -> None:
    """A duplicate name is an error."""
    assert distinct([("a", 1), ("b", 1)]) == [("a", 1), ("b", 1)]
    with pytest.raises(ValueError, match='the name "a" is already declared'):
        distinct([("a", 1), ("a", 1)])
