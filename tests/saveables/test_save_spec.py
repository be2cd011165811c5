"""SaveSpec and SaveableObject."""

import numpy as np
import pytest
import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, SpecValue


@pytest.mark.parametrize(
    ("value", "dtype", "device"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), DataType.DT_BFLOAT16, "/device:CPU:0"),
        (torch.zeros(2, device="meta"), DataType.DT_FLOAT, "/device:META:0"),
        (np.zeros(2, ">i4"), DataType.DT_INT32, "/device:CPU:0"),
        (np.array([b"a"], dtype=object), DataType.DT_STRING, "/device:CPU:0"),
        ("text", DataType.DT_STRING, "/device:CPU:0"),
        (b"bytes", DataType.DT_STRING, "/device:CPU:0"),
        (None, None, ""),
    ],
)
def test_dtype_and_device_default_to_the_values(value: SpecValue, dtype: DataType | None, device: str) -> None:
    """The value's own are used if none are passed."""
    spec = SaveSpec(value, "", "x")
    assert (spec.tensor is value, spec.dtype, spec.device) == (True, dtype, device)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (torch.zeros(2, 3), (2, 3)),
        (torch.zeros(2, device="meta"), (2,)),
        (np.zeros((0, 4)), (0, 4)),
        (np.array(b"a", dtype=object), ()),
        ("text", ()),
        (b"bytes", ()),
        (None, None),
    ],
)
def test_the_shape_is_the_values(value: SpecValue, shape: tuple[int, ...] | None) -> None:
    """It is the value's current shape."""
    assert SaveSpec(value, "", "x").shape == shape


def test_the_shape_of_a_tensor_that_is_resized() -> None:
    """It is looked up each time."""
    tensor = torch.zeros(2)
    spec = SaveSpec(tensor, "", "x")
    tensor.resize_(3)
    assert spec.shape == (3,)


def test_a_callable_is_not_called_for_its_shape() -> None:
    """The shape is unknown until the value is saved."""

    def value() -> torch.Tensor:
        raise AssertionError("called")

    assert SaveSpec(value, "", "x", torch.int64, "cpu").shape is None


def test_dtype_and_device_may_be_given() -> None:
    """In torch's or TensorFlow's spelling; the device is returned in TensorFlow's."""
    value = torch.zeros(2, dtype=torch.int8)
    assert SaveSpec(value, "", "x", DataType.DT_QINT8, "/cpu:1").dtype == DataType.DT_QINT8
    assert SaveSpec(lambda: value, "", "x", torch.int8, "cuda:1").dtype == DataType.DT_INT8
    assert SaveSpec(value, "", "x", device="/gpu:1").device == "/device:GPU:1"
    assert SaveSpec(value, "", "x", device="").device == ""


def test_a_callable_is_called_each_time_the_tensor_is_read_and_not_before() -> None:
    """CASES 82."""
    calls = []

    def value() -> torch.Tensor:
        calls.append(1)
        return torch.tensor(len(calls))

    spec = SaveSpec(value, "", "x", torch.int64, "cpu")
    assert not calls
    assert (spec.tensor, spec.tensor) == (torch.tensor(1), torch.tensor(2))


@pytest.mark.parametrize("given", [{}, {"dtype": torch.float32}, {"device": "cpu"}])
def test_a_callable_without_dtype_and_device_is_rejected(given: dict[str, str]) -> None:
    """AssertionError if either is missing."""
    with pytest.raises(AssertionError, match="dtype and a device"):
        SaveSpec(lambda: torch.zeros(1), "", "x", **given)  # type: ignore[arg-type]


def test_values_that_a_checkpoint_cannot_store_are_rejected() -> None:
    """With the name of the tensor."""
    with pytest.raises(InvalidArgumentError, match='"x": int is neither'):
        SaveSpec(5, "", "x")  # type: ignore[arg-type]
    with pytest.raises(UnimplementedError, match=r'"x": torch\.complex32'):
        SaveSpec(lambda: None, "", "x", torch.complex32, "cpu")
    with pytest.raises(UnimplementedError, match='"x": numpy dtype float128'):
        SaveSpec(np.zeros(1, np.longdouble), "", "x")
    with pytest.raises(InvalidArgumentError, match='"x" is not initialised yet'):
        SaveSpec(torch.nn.UninitializedParameter(), "", "x")


def test_a_saveable_has_its_first_specs_device_and_an_abstract_restore() -> None:
    """ValueError "Calling an abstract method."."""
    specs = [SaveSpec("a", "", "a", device="/cpu:2"), SaveSpec("b", "", "b")]
    saveable = SaveableObject(None, specs, "s")
    assert (saveable.op, saveable.specs, saveable.name, saveable.device) == (None, specs, "s", "/device:CPU:2")
    saveable.check([(), ()])
    with pytest.raises(ValueError, match=r"^Calling an abstract method\.$"):
        saveable.restore([], None)
