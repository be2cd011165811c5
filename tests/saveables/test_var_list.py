"""VarList: the values to save and their names, looked up at each save."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saveables_files import restore, save
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable


class Table(SaveableObject):
    """Two values under one name: the "table" of tests/CASES.md."""

    def __init__(self, contents: dict[bytes, float], name: str) -> None:
        self.contents = contents
        keys = SaveSpec(self._keys, "", f"{name}-keys", DataType.DT_STRING, "cpu")
        values = SaveSpec(self._values, "", f"{name}-values", torch.float32, "cpu")
        super().__init__(contents, [keys, values], name)

    def _keys(self) -> Any:
        return np.array(list(self.contents), dtype=object)

    def _values(self) -> torch.Tensor:
        return torch.tensor(list(self.contents.values()), dtype=torch.float32)

    def restore(self, restored_tensors: Any, restored_shapes: Any) -> None:
        keys, values = restored_tensors
        self.contents.clear()
        self.contents.update(zip(keys.tolist(), values.tolist(), strict=True))


def names(var_list: object) -> list[str]:
    return [saveable.name for saveable in VarList(var_list).to_save()]


def test_variables_and_a_table_are_saved_and_restored(tmp_path: Path) -> None:
    """CASES 1-3: everything is replaced, and old keys of the table are gone."""
    v0, v1, table = torch.tensor(10.0), torch.tensor(20.0), Table({b"k1": 30.0}, "v2")
    assert save({"v0": v0, "v1": v1, "v2": table}, tmp_path / "ckpt") == ["v0", "v1", "v2-keys", "v2-values"]
    other = {"v0": torch.tensor(1000.0), "v1": torch.tensor(2000.0), "v2": Table({b"k1000": 3000.0}, "v2")}
    restore(other, tmp_path / "ckpt")
    assert (other["v0"], other["v1"]) == (10.0, 20.0)
    assert isinstance(other["v2"], Table) and other["v2"].contents == {b"k1": 30.0}
    restore([Variable(v0, "v0"), Variable(v1, "v1"), table], tmp_path / "ckpt")


def test_saveables_come_in_ascending_order_of_names() -> None:
    """One saveable for each tensor, so that they can be grouped by device."""
    scale = torch.zeros(1)
    var_list = {"m/z": torch.zeros(1), "a": {"step": 1, "mean": torch.zeros(1)}, "m": nn.Linear(1, 1), "B": scale}
    assert names(var_list) == ["B", "a", "a/mean", "m/bias", "m/weight", "m/z"]
    assert names(nn.Linear(1, 1)) == names(nn.Linear(1, 1).named_parameters()) == ["bias", "weight"]


def test_one_tensor_under_two_names_is_rejected() -> None:
    """CASES 17: the error has the second key, even for saveables with the same op. Different tensors are accepted."""
    v0, table = torch.zeros(2), Table({}, "v2")
    text = "^The same saveable will be restored with two names: "
    for value in (v0, Variable(v0, "x")):
        with pytest.raises(ValueError, match=f"{text}v0too"):
            VarList({"v0": value, "v0too": v0.detach()})
    with pytest.raises(ValueError, match=f"{text}v2"):
        VarList({"v2": table, "v2too": table})
    with pytest.raises(ValueError, match=f"{text}b"):
        VarList([("a", v0), ("b", v0)])
    assert names({"v0": v0, "v0too": v0.clone(), "part": v0[1:]}) == ["part", "v0", "v0too"]


def test_one_module_or_object_under_two_names_is_rejected() -> None:
    """A module, an optimizer, any object; and, at the save, a module's tensor that also has its own key."""
    model = nn.Linear(1, 1)
    extra = {"step": 1}
    for value in (model, torch.optim.SGD(model.named_parameters()), extra):
        with pytest.raises(ValueError, match="The same saveable will be restored with two names: b"):
            VarList({"a": value, "b": value})
    both = VarList({"model": model, "bias": model.bias})
    with pytest.raises(ValueError, match="restored with two names: model/bias"):
        both.to_save()


def test_saveables_without_an_op_are_all_different() -> None:
    """None is different from every other op."""
    made = [SaveableObject(None, [SaveSpec("a", "", name)], name) for name in "ab"]
    assert names(made) == ["a", "b"]


def test_two_values_under_one_stored_name_are_rejected() -> None:
    """A key that looks like a name inside a module or a state would overwrite it."""
    with pytest.raises(ValueError, match="At least two variables have the same name: m/bias"):
        names({"m": nn.Linear(1, 1), "m/bias": torch.zeros(1)})
    part = Variable(torch.zeros(1), "p", SaveSliceInfo("w", [4], [0], [1]))
    whole = SaveableObject(None, [SaveSpec(torch.zeros(4), "", "w")], "other")
    with pytest.raises(ValueError, match="same name: w"):
        names({"w": [part], "x": whole})


def test_slices_are_stored_under_the_key_with_their_position() -> None:
    """CASES 15, 42: in a dict as a list or a PartitionedVariable, in a list by their full name."""
    parts = [Variable(torch.zeros(2, 3), f"p{n}", SaveSliceInfo("v1", [4, 3], [2 * n, 0], [2, 3])) for n in range(2)]
    expected = [("4 3 0,2:0,3"), ("4 3 2,2:0,3")]
    for var_list, name in (
        ({"other": parts}, "other"),
        ({"other": PartitionedVariable("v1", parts)}, "other"),
        ([PartitionedVariable("v1", parts)], "v1"),
        (parts[::-1], "v1"),
    ):
        specs = [each.specs[0] for each in VarList(var_list).to_save()]
        assert [(spec.name, spec.slice_spec) for spec in specs] == [(name, spec) for spec in expected]
    # A single part under a key is a whole tensor.
    assert [each.specs[0].slice_spec for each in VarList({"other": parts[0]}).to_save()] == [""]


class Mirrored:
    """Two tensors restored by one saveable: CASES 81."""

    name = "mirrored"

    def __init__(self) -> None:
        self.one, self.other = torch.zeros(()), torch.zeros(())

    def _gather_saveables_for_checkpoint(self) -> dict[str, Any]:
        mirrored = self

        class Both(VariableSaveable):
            def restore(self, restored_tensors: Any, restored_shapes: Any) -> None:
                mirrored.one.copy_(restored_tensors[0])
                mirrored.other.copy_(restored_tensors[0])

        return {"VARIABLE_VALUE": lambda name="mirrored": Both(self.one, "", name)}


@pytest.mark.parametrize("form", [lambda o: {"mirrored": o}, lambda o: [o]], ids=["dict", "list"])
def test_an_object_that_lists_its_saveables_is_saved_through_them(tmp_path: Path, form: Any) -> None:
    """CASES 80, 81."""
    owner = Mirrored()
    owner.one.fill_(42)
    assert save(form(owner), tmp_path / "ckpt") == ["mirrored"]
    owner.one.fill_(43)
    restore(form(owner), tmp_path / "ckpt")
    assert (owner.one.item(), owner.other.item()) == (42, 42)


def test_a_callable_is_called_once_at_a_save_and_never_at_a_restore(tmp_path: Path) -> None:
    """CASES 82: and never by the constructor."""
    calls = []

    def value() -> torch.Tensor:
        calls.append(1)
        return torch.tensor(1.0)

    class Called(SaveableObject):
        def restore(self, restored_tensors: Any, restored_shapes: Any) -> None:
            pass

    var_list = {"x": Called(None, [SaveSpec(value, "", "x", torch.float32, "cpu")], "x")}
    VarList(var_list)
    assert not calls
    save(var_list, tmp_path / "ckpt")
    assert len(calls) == 1
    restore(var_list, tmp_path / "ckpt")
    assert len(calls) == 1


@pytest.mark.parametrize("value", [5, 0.5, "text", True, (1, 2), b"x", torch.float32])
def test_values_that_cannot_change_are_rejected(value: object) -> None:
    """TypeError; the message says what to pass instead."""
    with pytest.raises(TypeError, match=r'Not a variable: .*under "x"\. A Python .*torch\.tensor\(\.\.\.\), or a dict'):
        VarList({"x": value})


def test_other_values_are_rejected() -> None:
    """An array can share its memory with a tensor; an object needs the two methods."""
    with pytest.raises(TypeError, match=r"Not a variable: .*torch\.from_numpy\(array\)"):
        VarList({"x": np.zeros(1)})
    with pytest.raises(TypeError, match=r"Not a variable: .*state_dict and load_state_dict"):
        VarList({"x": object()})
    with pytest.raises(TypeError, match='"x/a" is a builtins.object'):  # noqa: RUF043
        VarList({"x": {"a": object()}})


def test_lists_of_variables_are_slices_and_other_lists_are_state() -> None:
    """A list that contains a Variable and something that is not a slice is an error; a list of tensors is state."""
    with pytest.raises(ValueError, match="Slices must all be Variables"):
        VarList({"x": [Variable(torch.zeros(1), "x", SaveSliceInfo("x", [2], [0], [1])), torch.zeros(1)]})
    assert names({"x": [torch.zeros(1)]}) == ["x", "x/0"]
    assert names({"x": [1, {"mean": torch.zeros(1)}], "y": []}) == ["x", "x/1/mean", "y"]


def test_an_empty_var_list_is_recognised() -> None:
    """CASES 20: the Saver decides whether that is an error."""
    assert VarList({}).is_empty and VarList([]).is_empty and VarList(nn.ReLU()).is_empty
    assert not VarList({"x": {}}).is_empty and not VarList(nn.Linear(1, 1)).is_empty
    assert not VarList({"x": torch.zeros(0)}).is_empty and not VarList(nn.LazyLinear(1)).is_empty


def test_names_that_cannot_be_keys_are_rejected() -> None:
    """Half of a surrogate pair cannot be encoded."""
    with pytest.raises(InvalidArgumentError, match="is not a valid tensor name"):
        VarList({"\ud800": torch.zeros(1)})


def test_a_lazy_parameter_under_a_key_may_get_its_shape_later() -> None:
    """The constructor does not need it, a save does."""
    layer = nn.LazyLinear(1)
    var_list = VarList({"w": layer.weight})
    with pytest.raises(InvalidArgumentError, match="not initialised yet"):
        var_list.to_save()
    layer(torch.zeros(1, 2))
    assert [each.name for each in var_list.to_save()] == ["w"]


def test_state_that_does_not_fit_is_rejected_before_anything_is_restored(tmp_path: Path) -> None:
    """All saveables are created before the first of them is restored."""
    tfckpt.save_file({"a": torch.ones(1), "z": "[]"}, tmp_path / "ckpt")
    tensor = torch.zeros(1)
    with pytest.raises(InvalidArgumentError, match='state "z"'):
        restore({"a": tensor, "z": {"epoch": 1}}, tmp_path / "ckpt")
    with pytest.raises(NotFoundError, match="Key y not found in checkpoint"):
        restore({"a": tensor, "y": {"epoch": 1}}, tmp_path / "ckpt")
    assert not tensor.any()
