"""Variable, SaveSliceInfo, PartitionedVariable."""

import pytest
import torch
from tensorflow_process import TensorFlowProcess

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable


def test_a_slices_text_is_tensorflows(tensorflow: TensorFlowProcess) -> None:
    """SAVER 1: d0 d1 o0,s0:o1,s1."""
    info = SaveSliceInfo("v", [4, 5], [2, 0], [2, 5])
    assert info.spec == "4 5 2,2:0,5" == tensorflow.call("slice_spec", "v", [4, 5], [2, 0], [2, 5])


@pytest.mark.parametrize(
    ("full", "offset", "shape"),
    [([4], [2], [3]), ([4], [-1], [2]), ([4], [0], [0]), ([4, 5], [0], [4]), ([], [], [])],
)
def test_a_slice_outside_its_tensor_is_refused(full: list[int], offset: list[int], shape: list[int]) -> None:
    """Before anything is saved under it; the text names the tensor."""
    with pytest.raises(InvalidArgumentError, match='slice of "v"'):
        SaveSliceInfo("v", full, offset, shape)


def test_a_variable_knows_its_tensor_name_and_device() -> None:
    """The device is the tag it was given, else where the tensor is."""
    tensor = torch.zeros(2)
    plain, tagged = Variable(tensor, "v"), Variable(tensor, "v", device="/cpu:1", trainable=False)
    assert (plain.tensor is tensor, plain.name, plain.device, plain.trainable) == (True, "v", "/device:CPU:0", True)
    assert (tagged.device, tagged.trainable) == ("/device:CPU:1", False)
    assert repr(plain) == "Variable('v', torch.float32, [2])"


def test_a_variable_refuses_what_it_cannot_be() -> None:
    """No tensor; a slice of another shape."""
    with pytest.raises(InvalidArgumentError, match="no torch tensor"):
        Variable(5, "v")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"shape \[3\].*has \[2\]"):
        Variable(torch.zeros(3), "v", SaveSliceInfo("w", [4], [0], [2]))


def test_a_partitioned_variable_is_its_parts() -> None:
    """In the order given."""
    parts = [Variable(torch.zeros(2), f"p{n}", SaveSliceInfo("p", [4], [2 * n], [2])) for n in range(2)]
    whole = PartitionedVariable("p", iter(parts))
    assert (whole.name, list(whole), len(whole)) == ("p", parts, 2)


@pytest.mark.parametrize(
    ("slice_spec", "offset", "shape"),
    [("4 5 2,2:0,5", [2, 0], [2, 5]), ("4 5 2,2:-", [2, 0], [2, 5]), ("4 5 -:-", [0, 0], [4, 5]), ("7 3,1", [3], [1])],
)
def test_a_slice_from_its_text(slice_spec: str, offset: list[int], shape: list[int]) -> None:
    """SAVER 1: whole dimensions may be "-"; the text of it says them in numbers, and means the same."""
    info = SaveSliceInfo.of_spec("v", slice_spec)
    assert (info.full_name, info.full_shape) == ("v", tuple(map(int, slice_spec.split()[:-1])))
    assert (info.var_offset, info.var_shape) == (tuple(offset), tuple(shape))
    assert SaveSliceInfo.of_spec("v", info.spec).spec == info.spec


@pytest.mark.parametrize(
    "text", ["", "hello", "4 5", "4 5 0,2", "4 5 3,2:-", "4 5 0,0:-", "4 5 -1,2:-", "a 0,1", "-1 -"]
)
def test_a_text_of_no_slice(text: str) -> None:
    """InvalidArgumentError."""
    with pytest.raises(InvalidArgumentError):
        SaveSliceInfo.of_spec("v", text)


def test_a_variable_is_stored_under_its_type() -> None:
    """The tensor's, where no other is given."""
    tensor = torch.zeros(2, dtype=torch.int8)
    assert Variable(tensor, "v").dtype is None
    assert Variable(tensor, "v", dtype=DataType.DT_QINT8).dtype == DataType.DT_QINT8
