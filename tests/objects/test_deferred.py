"""Deferred restores: calls when a child is added, and torch's hooks meanwhile."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.deferred import anything_waits, child_added, defer

TABLES = (
    hooks._global_parameter_registration_hooks,
    hooks._global_buffer_registration_hooks,
    hooks._global_module_registration_hooks,
)


def installed() -> list[int]:
    return [len(table) for table in TABLES]


@pytest.fixture(autouse=True)
def no_hooks_are_left() -> Iterator[None]:
    """Before and after each test, check that a registration removes the hooks if nothing waits."""
    gc.collect()
    nn.Linear(1, 1)
    before = installed()
    yield
    gc.collect()
    nn.Linear(1, 1)
    assert installed() == before


class Log:
    """Records the children that were restored."""

    def __init__(self) -> None:
        self.children: list[object] = []

    def __call__(self, child: object) -> None:
        self.children.append(child)


class Parent:
    """Parent that is not a module."""


def test_each_kind_of_child_is_restored() -> None:
    """Parameters, buffers and modules, by attribute and by method, under their names, before they are set."""
    module: Any = nn.Module()
    log = Log()
    names = ["parameter", "registered", "buffer", "module", "added"]
    for name in names:
        defer(module, name, log)
    module.other = nn.Parameter(torch.zeros(1))
    assert log.children == []
    given: list[Any] = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), torch.zeros(1)]
    given += [nn.ReLU(), nn.ReLU()]
    module.parameter = given[0]
    module.register_parameter("registered", given[1])
    module.register_buffer("buffer", given[2])
    module.module = given[3]
    module.add_module("added", given[4])
    module.parameter, module.module = nn.Parameter(torch.zeros(1)), nn.ReLU()  # nothing waits for these any more
    assert all(one is other for one, other in zip(log.children, given, strict=True))


def test_hooks_are_installed_only_while_a_module_waits() -> None:
    """Parents that are not modules need no hooks."""
    before = installed()
    other, module, log = Parent(), nn.Module(), Log()
    defer(other, "x", log)
    assert installed() == before
    defer(module, "x", Log())
    defer(module, "y", Log())
    assert installed() == [count + 1 for count in before]
    module.x = nn.ReLU()
    assert installed() == [count + 1 for count in before]
    module.y = nn.ReLU()
    assert installed() == before
    child_added(other, "x", 1)
    assert log.children == [1]


def test_a_deleted_module_does_not_wait() -> None:
    """No reference keeps it alive; the next registration of any module removes the hooks."""
    before = installed()
    module = nn.Module()
    gone = weakref.ref(module)
    defer(module, "x", Log())
    del module
    assert gone() is None
    nn.Module().x = nn.ReLU()
    assert installed() == before


@pytest.mark.parametrize("dies", [False, True], ids=["its child comes", "it dies"])
def test_other_hooks(dies: bool) -> None:
    """Hooks registered by others before and after ours are called for every child.

    Ours are removed when the last restore is complete, without affecting torch's iteration over them.
    """
    before = installed()
    seen: list[str] = []

    def note(module: nn.Module, name: str, child: object) -> None:
        seen.append(name)

    first = hooks.register_module_parameter_registration_hook(note)
    module: Any = nn.Module()
    log = Log()
    defer(module, "x", log)
    behind = hooks.register_module_parameter_registration_hook(note)
    try:
        if dies:
            module = nn.Module()
        for name in ("x", "y"):
            module.register_parameter(name, nn.Parameter(torch.zeros(1)))
        assert seen == ["x", "x", "y", "y"]
        assert len(log.children) == (0 if dies else 1)
        other: Any = nn.Module()
        defer(other, "z", log)
        other.z = nn.Parameter(torch.zeros(1))
        assert log.children[-1] is other.z
    finally:
        behind.remove()
        first.remove()
    nn.Linear(1, 1)
    assert installed() == before


def test_a_failed_restore_is_raised_once() -> None:
    """The assignment raises, the child is not set, and the next child is not restored."""
    module: Any = nn.Module()
    log = Log()

    def restore(child: object) -> None:
        if isinstance(child, nn.Sigmoid):
            raise ValueError("does not fit")
        log(child)

    defer(module, "x", restore)
    with pytest.raises(ValueError, match="does not fit"):
        module.x = nn.Sigmoid()
    assert not hasattr(module, "x")
    module.x = nn.ReLU()
    assert log.children == []


def test_the_newest_wins() -> None:
    """A later restore that waits for the same child replaces the earlier one."""
    older, newer, parent = Log(), Log(), Parent()
    defer(parent, "x", older)
    defer(parent, "x", newer)
    child_added(parent, "x", 1)
    child_added(parent, "x", 2)
    assert (older.children, newer.children) == ([], [1])


def test_none_and_other_children_are_not_restored() -> None:
    """None and children under other names or parents do not count."""
    parent, log = Parent(), Log()
    defer(parent, "x", log)
    child_added(parent, "x", None)
    child_added(parent, "y", 1)
    child_added(Parent(), "x", 1)
    assert log.children == []
    child_added(parent, "x", 1)
    assert log.children == [1]


def test_no_reference_cycles(tmp_path: Path) -> None:
    """After a save and a waiting restore, all objects are freed with their last reference.

    The garbage collector would free gigabytes of parameters late.
    """
    torch.optim.SGD([torch.zeros(1)], 0.1)  # the first one of a process is referenced by frames of torch's late imports
    gc.collect()
    gc.disable()
    try:
        source: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        path = Checkpoint(model=source, more=torch.ones(1), epoch=1).save(tmp_path / "m")
        model: Any = nn.Sequential(nn.Linear(2, 2))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
        table: dict[str, object] = {"x": torch.ones(1), "lr": 0.5}
        checkpoint = Checkpoint(model=model, optimizer=optimizer, epoch=0, table=table)
        status = checkpoint.restore(path)
        status.expect_partial()
        checkpoint.save_async(tmp_path / "n").result()
        assert anything_waits()
        gone = [weakref.ref(each) for each in (checkpoint, optimizer, model, model[0].weight, table["x"])]
        del status, checkpoint
        assert gone[0]() is None
        del optimizer, model, table
        assert [ref() for ref in gone] == [None] * len(gone)
    finally:
        gc.enable()
