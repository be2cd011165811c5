"""VariableSaveable: a tensor restored in place; and the saveables of slices and of trackable objects."""

import numpy as np
import pytest
import torch

from torch_tfckpt.dtypes import STORED_AS
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable, saveables_of
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.transfer.host_bytes import byte_view


def part(full_name: str, offset: int, name: str = "part") -> Variable:
    """Two rows of a [6, 2] tensor."""
    return Variable(torch.zeros(2, 2), name, SaveSliceInfo(full_name, [6, 2], [offset, 0], [2, 2]))


@pytest.mark.parametrize("dtype", STORED_AS, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4)], ids=str)
def test_every_dtype_is_restored_in_place(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bit for bit, 0-d, empty and non-contiguous, without new memory."""
    size = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    raw = torch.arange(size, dtype=torch.int64).remainder(2 if dtype == torch.bool else 251).to(torch.uint8)
    source = raw.view(dtype).reshape(shape)
    for target in (
        torch.zeros(shape, dtype=dtype),
        torch.zeros(shape[::-1], dtype=dtype).permute(tuple(range(len(shape)))[::-1]),
    ):
        before = target.data_ptr()
        VariableSaveable(target, "", "v").restore([source], None)
        assert bytes(byte_view(target.contiguous())) == bytes(byte_view(source))
        assert target.data_ptr() == before


def test_a_parameter_keeps_its_identity_and_records_no_gradient() -> None:
    """CASES 6: every reference to the Parameter, e.g. the optimizer's, sees the value."""
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    VariableSaveable(parameter, "", "v").restore([torch.ones(2, 2)], None)
    assert parameter.is_leaf and parameter.requires_grad and parameter.grad_fn is None
    assert torch.equal(parameter, torch.ones(2, 2))


def test_a_view_and_a_tensor_of_inference_mode_are_restored() -> None:
    """Only the elements of the view change; a tensor of inference mode can only be written in that mode."""
    whole = torch.zeros(3, 3)
    VariableSaveable(whole[:, 1], "", "v").restore([torch.ones(3)], None)
    assert whole.sum() == 3 and torch.equal(whole[:, 1], torch.ones(3))
    with torch.inference_mode():
        frozen = torch.zeros(2)
    VariableSaveable(frozen, "", "v").restore([torch.ones(2)], None)
    assert frozen.sum() == 2


def test_another_shape_is_rejected_with_tensorflows_words() -> None:
    """CASES 27, 84: a ValueError, which check() also raises; the tensor is untouched."""
    target = torch.zeros(2, 2)
    saveable = VariableSaveable(target, "", "v")
    expected = (
        r"^Received incompatible tensor with shape \(4,\) when attempting to restore variable with shape \(2, 2\) and "
        r"name v\.$"
    )
    with pytest.raises(InvalidArgumentError, match=expected):
        saveable.restore([torch.ones(4)], None)
    with pytest.raises(ValueError, match=expected):
        saveable.check([(4,)])
    assert not target.any()


def test_reshape_accepts_another_shape_with_as_many_elements() -> None:
    """CASES 28; another number of elements is InvalidArgumentError."""
    target = torch.zeros(3, 2)
    saveable = VariableSaveable(target, "", "v")
    saveable.check([(2, 3)], [(3, 2)])
    saveable.restore([torch.tensor([[1.0, 2, 3], [4, 5, 6]])], [(3, 2)])
    assert target.tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(InvalidArgumentError, match=r"Input to reshape is a tensor with 4 values, but .* has 6"):
        saveable.restore([torch.zeros(4)], [(3, 2)])


def test_another_dtype_is_rejected() -> None:
    """CASES 33: nothing is cast silently; strings are not a tensor."""
    saveable = VariableSaveable(torch.zeros(1), "", "v")
    with pytest.raises(InvalidArgumentError, match=r"original dtype is torch\.int32"):
        saveable.restore([torch.zeros(1, dtype=torch.int32)], None)
    with pytest.raises(InvalidArgumentError, match="original dtype is string"):
        saveable.restore([np.array([b"a"], dtype=object)], None)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros(3, device="meta"), "meta device"),
        (torch.zeros(1).expand(3), "is expanded"),
        (torch.zeros(3).to_sparse(), "torch.sparse_coo tensor"),
    ],
)
def test_tensors_that_cannot_be_filled_are_rejected_before_anything_is_assigned(
    tensor: torch.Tensor, text: str
) -> None:
    """check() needs no value for that."""
    with pytest.raises(InvalidArgumentError, match=text):
        VariableSaveable(tensor, "", "v").check([(3,)])


def test_an_expanded_dimension_of_size_one_is_accepted() -> None:
    """Its stride has no effect."""
    tensor = torch.zeros(3).as_strided((1, 3), (0, 1))
    VariableSaveable(tensor, "", "v").restore([torch.ones(1, 3)], None)
    assert tensor.sum() == 3


def test_slices_record_their_position_in_the_whole() -> None:
    """Named by the dict key, not by the parts' own names; saveables in the list are passed through."""
    other = SaveableObject(None, [SaveSpec("a", "", "s")], "s")
    parts = [part("p", 0), part("p", 2)]
    lists: list[list[Variable | SaveableObject] | tuple[Variable | SaveableObject, ...]]
    lists = [[*parts, other], (*parts, other)]
    for value in lists:
        found = saveables_of("key", value)
        assert [saveable.name for saveable in found] == ["key", "key", "s"]
        specs = [(saveable.specs[0].name, saveable.specs[0].slice_spec) for saveable in found]
        assert specs == [("key", "6 2 0,2:0,2"), ("key", "6 2 2,2:0,2"), ("s", "")]
    assert len(saveables_of("key", PartitionedVariable("p", [part("p", 0), part("p", 2)]))) == 2
    found[1].restore([torch.ones(2, 2)], None)
    assert parts[1].tensor.sum() == 4


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([part("p", 0), torch.zeros(2, 2)], "Slices must all be Variables"),
        ([part("p", 0), Variable(torch.zeros(2, 2), "q")], "Slices must all be slices"),
        ([part("p", 0), part("q", 2)], "Slices must all be from the same tensor: p != q"),
    ],
)
def test_lists_that_are_not_slices_of_one_tensor_are_rejected(parts: list[Variable], text: str) -> None:
    """With TensorFlow's messages."""
    with pytest.raises(ValueError, match=text):
        saveables_of("key", parts)


class Owner:
    """An object that lists its saveables, as TensorFlow's trackable objects do."""

    def __init__(self, gathered: dict[str, object]) -> None:
        self._gathered = gathered

    def _gather_saveables_for_checkpoint(self) -> dict[str, object]:
        return self._gathered


def test_the_saveables_of_a_trackable_object_are_named_after_its_key() -> None:
    """CASES 80, 81: VARIABLE_VALUE gets the key itself, other attributes are appended; factories receive the name."""
    tensor = torch.zeros(1)
    made = SaveableObject(None, [SaveSpec("a", "", "own")], "own")
    owner = Owner(
        {"VARIABLE_VALUE": tensor, "other": lambda name: VariableSaveable(torch.zeros(2), "", name), "made": made}
    )
    found = saveables_of("key", owner)
    assert [saveable.name for saveable in found] == ["key", "key_other", "own"]
    assert found[0].op is tensor


def test_a_trackable_object_that_lists_something_else_is_rejected() -> None:
    """The message has the name and the type."""
    with pytest.raises(TypeError, match=r'"key_x".*returned a value of type int'):
        saveables_of("key", Owner({"x": 5}))
