"""Element types: numbers and names against the proto enum, widths against the documented ones."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt._proto import types_pb2
from torch_tfckpt.dtypes import ELEMENTS, STORED_AS, data_type, torch_dtype
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.format.data_type import REFERENCE_OFFSET, DataType

# Bytes in the data file, by the names in TensorFlow's error messages; typed independently. 0: no fixed width.
WIDTHS = {
    "float": 4, "double": 8, "int32": 4, "uint8": 1, "int16": 2, "int8": 1, "string": 0, "complex64": 8, "int64": 8,
    "bool": 1, "qint8": 1, "quint8": 1, "qint32": 4, "bfloat16": 2, "qint16": 2, "quint16": 2, "uint16": 2,
    "complex128": 16, "half": 2, "uint32": 4, "uint64": 8, "float8_e5m2": 1, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1,
    "float8_e4m3b11fnuz": 1, "float8_e5m2fnuz": 1, "int4": 1, "uint4": 1, "int2": 1, "uint2": 1, "float4_e2m1fn": 1,
}  # fmt: skip
WITHOUT_BYTES = {DataType.DT_INVALID, DataType.DT_RESOURCE, DataType.DT_VARIANT}
# Numbers without a meaning, up to both limits of an int32 message field.
UNKNOWN = (34, 77, 99, 134, 200, -1, -(2**31), 2**31 - 1)


# Numbers and names.


def test_numbers_and_names_are_those_of_the_proto() -> None:
    """DataType equals TensorFlow's types.proto; reference types become members on demand."""
    spelled_out = dict(types_pb2.DataType.items())
    assert {member.name: int(member) for member in DataType} == {
        name: number for name, number in spelled_out.items() if number < REFERENCE_OFFSET
    }
    assert {DataType(number).name: number for number in spelled_out.values()} == spelled_out


@pytest.mark.parametrize("dtype", list(DataType))
def test_a_reference_is_named_after_its_type(dtype: DataType) -> None:
    """Number n + 100 is a reference to type n (types.proto: DT_FLOAT_REF = 101 and so on)."""
    reference = DataType(dtype + 100)
    assert REFERENCE_OFFSET == 100
    assert int(reference) == int(dtype) + 100
    assert reference.name == f"{dtype.name}_REF"
    assert reference.short_name == f"{dtype.short_name}_ref"
    assert reference not in ELEMENTS


@pytest.mark.parametrize("number", UNKNOWN)
def test_an_unknown_number_becomes_a_member(number: int) -> None:
    """One tensor of an unknown type does not prevent listing the others."""
    dtype = DataType(number)
    assert isinstance(dtype, DataType)
    assert dtype.name == f"DT_{number}"
    assert dtype == number
    assert hash(dtype) == hash(number)
    assert repr(dtype) == f"<DataType.DT_{number}: {number}>"
    assert dtype not in ELEMENTS


@given(st.integers(-(2**31), 2**31 - 1))
def test_every_number_survives_copy_and_pickle(number: int) -> None:
    """Equal numbers are equal types, including after pickling, copying or a second lookup."""
    dtype = DataType(number)
    assert int(dtype) == number
    pickled = pickle.loads(pickle.dumps(dtype))  # noqa: S301  made on this line
    for other in (DataType(number), copy.copy(dtype), copy.deepcopy(dtype), pickled):
        assert other == dtype
        assert (other.name, {other: 1}[dtype]) == (dtype.name, 1)


def test_unknown_numbers_do_not_change_the_list_of_types() -> None:
    """Reading a file does not change what `for dtype in DataType` yields."""
    before = list(DataType)
    DataType(77), DataType(103), DataType(-5)
    assert list(DataType) == before
    assert len(before) == 34


@pytest.mark.parametrize("value", ["DT_FLOAT", None, 1.5, torch.float32])
def test_a_value_that_is_not_an_integer_is_refused(value: object) -> None:
    """ValueError, as for any enum; no member is created."""
    with pytest.raises(ValueError, match="is not a valid DataType"):
        DataType(value)  # type: ignore[arg-type]


# The table.


def test_widths_are_the_documented_ones() -> None:
    """Every type with stored bytes is in the table, with TensorFlow's stored width."""
    assert {DataType(dtype).short_name: element.size for dtype, element in ELEMENTS.items()} == WIDTHS
    assert set(DataType) - set(ELEMENTS) == WITHOUT_BYTES


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_the_torch_dtype_has_the_stored_width(dtype: DataType) -> None:
    """Stored bytes become a tensor without conversion; a byte swap reverses whole numbers only."""
    element = ELEMENTS[dtype]
    if element.torch is not None:
        assert element.torch.itemsize == element.size
        assert element.swap == (element.size // 2 if element.torch.is_complex else element.size)
    else:
        assert element.swap == element.size


@pytest.mark.parametrize("dtype", [dtype for dtype, element in ELEMENTS.items() if element.torch is not None])
def test_every_torch_dtype_read_can_be_written(dtype: DataType) -> None:
    """Each torch dtype the reader returns is stored as a type that reads back as the same torch dtype."""
    held = torch_dtype(dtype)
    stored = data_type(held)
    assert torch_dtype(stored) == held
    assert ELEMENTS[stored].size == ELEMENTS[dtype].size


def test_stored_as_is_injective() -> None:
    """STORED_AS inverted is a subset of the table."""
    assert len(set(STORED_AS.values())) == len(STORED_AS)
    assert all(ELEMENTS[stored].torch == dtype for dtype, stored in STORED_AS.items())


def test_a_torch_dtype_is_stored_as_the_type_of_the_same_name() -> None:
    """int8 is not stored as qint8 or int4, although they share its torch dtype."""
    names = {"float32": "float", "float64": "double", "float16": "half"}
    for dtype, stored in STORED_AS.items():
        name = str(dtype).removeprefix("torch.")
        assert stored.short_name == names.get(name, name)


# Types without a counterpart.


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (DataType.DT_STRING, "element type DT_STRING (number 7) has no torch dtype"),
        (DataType.DT_VARIANT, "element type DT_VARIANT (number 21) has no torch dtype"),
        (DataType.DT_FLOAT4_E2M1FN, "element type DT_FLOAT4_E2M1FN (number 33) has no torch dtype"),
        (DataType(77), "element type DT_77 (number 77) has no torch dtype"),
        (DataType(103), "element type DT_INT32_REF (number 103) has no torch dtype"),
    ],
)
def test_a_type_that_torch_lacks_is_named_with_its_number(dtype: DataType, text: str) -> None:
    """UnimplementedError: the checkpoint is valid, but this tensor cannot be loaded."""
    with pytest.raises(UnimplementedError) as raised:
        torch_dtype(dtype)
    assert str(raised.value) == text


def test_a_dtype_that_tensorflow_lacks_is_refused_with_a_hint() -> None:
    """The message names the tensor, if a name is given, and the fix."""
    hint = "has no TensorFlow element type. Convert the tensor before saving it"
    with pytest.raises(UnimplementedError) as raised:
        data_type(torch.complex32, "fft\n")
    assert str(raised.value) == f'tensor "fft\\n": torch.complex32 {hint}'
    with pytest.raises(UnimplementedError) as raised:
        data_type(torch.complex32)
    assert str(raised.value) == f"torch.complex32 {hint}"
