"""Objects with state_dict and load_state_dict, and plain containers, under one key."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saveables_files import restore, save

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.saveables.stateful import (
    ContainerState,
    ObjectState,
    is_stateful,
    placed_like,
    state_to_restore,
    state_to_save,
)


class Counting:
    """An object with state."""

    def __init__(self) -> None:
        self.state: Any = {"step": 0, "mean": torch.zeros(2)}
        self.loaded = 0

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state_dict: Any) -> None:
        self.state, self.loaded = state_dict, self.loaded + 1


def test_an_objects_state_is_json_and_its_tensors(tmp_path: Path) -> None:
    """Readable keys, JSON for everything else, and one saveable for each tensor."""
    counting = Counting()
    saveables = state_to_save("c", ObjectState(counting))
    assert [saveable.name for saveable in saveables] == ["c", "c/mean"]
    assert [len(saveable.specs) for saveable in saveables] == [1, 1]
    assert save({"c": counting}, tmp_path / "ckpt") == ["c", "c/mean"]
    text = tfckpt.load_variable(tmp_path / "ckpt", "c")
    assert isinstance(text, np.ndarray) and text.item() == b'{"step": 0, "mean": {"$tensor": "c/mean"}}'


def test_state_is_looked_up_at_each_save(tmp_path: Path) -> None:
    """State that was added after the VarList was created is saved, and restored into an object that has none yet."""
    counting, other = Counting(), Counting()
    counting.state = {"step": 9, "moments": [torch.ones(3), torch.full((2,), 2.0)]}
    save({"c": counting}, tmp_path / "ckpt")
    restore({"c": other}, tmp_path / "ckpt")
    assert other.state["step"] == 9 and [each.tolist() for each in other.state["moments"]] == [[1, 1, 1], [2, 2]]


def test_a_restore_saveable_has_the_json_first_and_then_the_tensors_in_order(tmp_path: Path) -> None:
    """All specs on one device, with the file's dtypes; placeholder values take no memory."""
    counting = Counting()
    counting.state = {"b": torch.ones(2, dtype=torch.bfloat16), "a": torch.ones(1)}
    save({"c": counting}, tmp_path / "ckpt")
    with tfckpt.load_checkpoint(tmp_path / "ckpt") as reader:
        saveable = state_to_restore("c", ObjectState(Counting()), reader)
        assert [spec.name for spec in saveable.specs] == ["c", "c/b", "c/a"]
        assert [spec.dtype for spec in saveable.specs] == [reader.dtype(spec.name) for spec in saveable.specs]
        assert {spec.device for spec in saveable.specs} == {"/device:CPU:0"}
        shapes = [spec.tensor.shape for spec in saveable.specs[1:] if isinstance(spec.tensor, torch.Tensor)]
        assert shapes == [(2,), (1,)]


def test_missing_json_or_a_missing_tensor_is_not_found(tmp_path: Path) -> None:
    """ "Key N not found in checkpoint", before anything is restored."""
    tfckpt.save_file({"c": '{"x": {"$tensor": "c/x"}}'}, tmp_path / "ckpt")
    with tfckpt.load_checkpoint(tmp_path / "ckpt") as reader:
        with pytest.raises(NotFoundError, match="Key c/x not found in checkpoint"):
            state_to_restore("c", ObjectState(Counting()), reader)
        with pytest.raises(NotFoundError, match="Key other not found in checkpoint"):
            state_to_restore("other", ObjectState(Counting()), reader)


@pytest.mark.parametrize("value", [torch.zeros(()), np.array([b"{}", b"{}"], dtype=object)])
def test_another_value_under_the_key_is_rejected(tmp_path: Path, value: torch.Tensor) -> None:
    """A number or a list of strings is not stored state."""
    tfckpt.save_file({"c": value}, tmp_path / "ckpt")
    with tfckpt.load_checkpoint(tmp_path / "ckpt") as reader:
        with pytest.raises(InvalidArgumentError, match=r'"c" is DT_.*not the JSON of stored state'):
            state_to_restore("c", ObjectState(Counting()), reader)


@pytest.mark.parametrize("text", ["{", '{"$tensor": "s"}', '[{"$tensor": "t"}, {"$tensor": "t"}]'])
def test_hostile_state_is_data_loss_with_its_place(tmp_path: Path, text: str) -> None:
    """Invalid JSON, strings instead of a tensor, one tensor twice."""
    tfckpt.save_file({"c": text, "s": "text", "t": torch.zeros(1)}, tmp_path / "ckpt")
    with tfckpt.load_checkpoint(tmp_path / "ckpt") as reader:
        with pytest.raises(DataLossError, match='ckpt: state "c": '):
            state_to_restore("c", ObjectState(Counting()), reader)


def test_broken_json_at_restore_leaves_the_object_untouched(tmp_path: Path) -> None:
    """The JSON may have changed since it was planned; the object is called only after all checks passed."""
    counting = Counting()
    save({"c": counting}, tmp_path / "ckpt")
    with tfckpt.load_checkpoint(tmp_path / "ckpt") as reader:
        saveable = state_to_restore("c", ObjectState(counting), reader)
    for text in (np.array(b'{"$pickle": 1}', dtype=object), torch.zeros(1)):
        with pytest.raises((DataLossError, InvalidArgumentError), match='state "c"'):
            saveable.restore([text, torch.zeros(2)], None)
    assert not counting.loaded
    saveable.restore([np.array(b"5", dtype=object), torch.zeros(2)], None)
    assert (counting.loaded, counting.state) == (1, 5)


def test_plain_containers_are_restored_in_place(tmp_path: Path) -> None:
    """References to the dict or list see the values; nothing older remains in it."""
    extra: dict[str, Any] = {"epoch": 3, "best": [0.5, {"loss": 1.0}], "mean": torch.ones(2)}
    history: list[Any] = [1, "two", None]
    assert save({"extra": extra, "history": history}, tmp_path / "ckpt") == ["extra", "extra/mean", "history"]
    held_extra, held_history = extra, history
    extra.clear()
    extra["younger"] = 1
    history[:] = [7] * 10
    restore({"extra": extra, "history": history}, tmp_path / "ckpt")
    assert held_history == [1, "two", None]
    assert held_extra.pop("mean").tolist() == [1, 1]
    assert held_extra == {"epoch": 3, "best": [0.5, {"loss": 1.0}]}
    with pytest.raises(
        InvalidArgumentError, match='state "extra": the checkpoint stores a dict, but the object to restore is a list'
    ):
        restore({"extra": []}, tmp_path / "ckpt")


def test_tensors_come_back_on_the_device_of_those_they_replace() -> None:
    """The meta device is used as the accelerator; tensors without a counterpart stay in host memory."""
    new = {"a": [torch.zeros(1), 5], "b": (torch.zeros(1),), "c": torch.zeros(1)}
    old = {"a": [torch.zeros(1, device="meta"), torch.zeros(1)], "b": (torch.zeros(1), 1), "c": 3}
    placed = placed_like(new, old)
    assert [placed["a"][0].device.type, placed["a"][1], placed["b"][0].device.type] == ["meta", 5, "cpu"]
    assert placed["c"].device.type == "cpu" and type(placed["b"]) is tuple
    assert placed_like([torch.zeros(1)], None)[0].device.type == "cpu"


def test_value_copies_a_container() -> None:
    """The copy does not change while it is saved."""
    items: list[Any] = [1]
    assert ContainerState(items).value() == [1] and ContainerState(items).value() is not items


def test_classes_are_not_stateful_themselves() -> None:
    """Only their instances are."""
    assert is_stateful(Counting()) and not is_stateful(Counting) and not is_stateful(torch.zeros(1))
