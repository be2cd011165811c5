"""Saveables kept between saves: the same objects if nothing changed, else equal to those of a new VarList."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saveables.variables import Variable


def described(saveables: list[SaveableObject]) -> list[object]:
    """Everything that a save reads from them."""
    return [
        (each.name, each.device, each.op, [(spec.name, spec.slice_spec, spec.dtype, spec.shape) for spec in each.specs])
        for each in saveables
    ]


def values() -> dict[str, Any]:
    """Tensors, a Parameter and Variables, with different devices and dtypes, unsorted."""
    return {
        "c": torch.zeros(3),
        "a": torch.ones(2, 2),
        "parameter": nn.Parameter(torch.zeros(4)),
        "tagged": Variable(torch.zeros(2), "x", device="/gpu:1"),
        "quantized": Variable(torch.zeros(2, dtype=torch.int8), "y", dtype=DataType.DT_QINT8),
        "empty": torch.zeros(0),
    }


def test_saveables_are_reused_while_nothing_changes() -> None:
    """New values do not matter, and a caller that sorts or shortens the list does not change the next one."""
    given_values = values()
    var_list = VarList(given_values)
    first = var_list.to_save()
    given_values["c"].fill_(7)
    again = var_list.to_save()
    assert list(map(id, again)) == list(map(id, first))
    again.clear()
    assert list(map(id, var_list.to_save())) == list(map(id, first))


def _new_memory(v: dict[str, Any]) -> None:
    v["c"].data = torch.full((3,), 5.0)


def _new_shape(v: dict[str, Any]) -> None:
    v["a"].resize_(4)


def _new_strides(v: dict[str, Any]) -> None:
    v["a"].t_()


def _new_dtype(v: dict[str, Any]) -> None:
    v["parameter"].data = torch.zeros(4, dtype=torch.float64)


def _new_tensor(v: dict[str, Any]) -> None:
    v["tagged"].tensor = torch.ones(5)


def _new_stored_type(v: dict[str, Any]) -> None:
    v["quantized"].dtype = None


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "memory": _new_memory,
    "shape": _new_shape,
    "strides": _new_strides,
    "dtype": _new_dtype,
    "tensor of a Variable": _new_tensor,
    "stored type of a Variable": _new_stored_type,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_tensor_gets_a_new_saveable(what: str) -> None:
    """It equals the one of a new VarList; the other saveables are kept."""
    given_values = values()
    var_list = VarList(given_values)
    first = var_list.to_save()
    CHANGES[what](given_values)
    again = var_list.to_save()
    assert described(again) == described(VarList(given_values).to_save())
    assert sum(new is not old for new, old in zip(again, first, strict=True)) == 1
    assert list(map(id, var_list.to_save())) == list(map(id, again))


def test_variables_that_come_to_share_a_tensor_are_rejected() -> None:
    """As when a VarList is created with them."""
    given_values = values()
    var_list = VarList(given_values)
    var_list.to_save()
    given_values["c"].data = given_values["parameter"].data
    given_values["c"].data = given_values["parameter"].data.view(4)
    with pytest.raises(ValueError, match="restored with two names"):
        var_list.to_save()
    given_values["c"].data = torch.zeros(3)
    assert described(var_list.to_save()) == described(VarList(given_values).to_save())


def test_modules_and_state_are_looked_up_at_each_save() -> None:
    """A module gets a buffer and a dictionary gets an entry between two saves."""
    module, state = nn.Linear(1, 1), {"epoch": 1}
    var_list = VarList({"t": torch.zeros(1), "module": module, "state": state})
    names = [each.name for each in var_list.to_save()]
    module.register_buffer("extra", torch.zeros(2))
    state["x"] = torch.zeros(1)  # type: ignore[assignment]
    assert sorted({each.name for each in var_list.to_save()} - set(names)) == ["module/extra", "state/x"]


def test_a_module_without_tensors_is_looked_up_again() -> None:
    """A tensor in the same var_list is not mistaken for everything there is."""
    module = nn.Module()
    var_list = VarList({"t": torch.zeros(1), "module": module})
    assert [each.name for each in var_list.to_save()] == ["t"]
    module.register_buffer("b", torch.zeros(2))
    assert [each.name for each in var_list.to_save()] == ["module/b", "t"]


@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=6))
def test_any_changes(names: list[str]) -> None:
    """Whether kept or new, the saveables equal those of a new VarList."""
    given_values = values()
    var_list = VarList(given_values)
    for name in names:
        CHANGES[name](given_values)
        assert described(var_list.to_save()) == described(VarList(given_values).to_save())
