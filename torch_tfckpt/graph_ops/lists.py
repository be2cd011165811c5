"""Lists of tensors that loops read and write: TensorArray and TensorList.

A list is a Python list that is never changed: each operation that changes it returns another one. An element that is
not written yet is an `Unwritten`. The lists of TensorArray travel in the `flow` inputs and outputs; the handle is an
`ArrayHandle`, which only describes the array.

An unwritten element of a TensorList is read as zeros, if its shape is known from the operation, the list
or another element.

Source: tensorflow/core/kernels/tensor_array.h, tensorflow/core/kernels/list_kernels.h.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.joining import concat_v2, pack
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import AnyTensor, Axes, ElementType, Ints

MAX_LENGTH: Final = 1 << 22
Shape = Axes | None  # -1 is an unknown size; -1 instead of a tuple, or None, an unknown rank


class Unwritten(NamedTuple):
    """An unwritten element of a list.

    Attributes:
        shape: What is known about its shape.
    """

    shape: Shape = None


class ArrayHandle(NamedTuple):
    """What a TensorArray was created with.

    Attributes:
        dtype: Type of all elements.
        element_shape: What is known about the shape of all elements.
        dynamic_size: Whether writing after the end makes the array longer.
    """

    dtype: ElementType
    element_shape: Shape = None
    dynamic_size: bool = False


ListValue = list[Any]  # of AnyTensor and Unwritten; of lists if the list contains lists


@op("TensorArrayV3", outputs=("handle", "flow"))
def tensor_array(
    size: int,
    *,
    dtype: ElementType,
    element_shape: Ints | None = None,
    dynamic_size: bool = False,
    clear_after_read: bool = True,
    identical_element_shapes: bool = False,
    tensor_array_name: str = "",
) -> tuple[ArrayHandle, ListValue]:
    return ArrayHandle(dtype, element_shape, dynamic_size), _unwritten(size, element_shape)


@op("TensorArrayReadV3")
def tensor_array_read(handle: ArrayHandle, index: int, flow_in: ListValue, *, dtype: ElementType) -> AnyTensor:
    _check_index(index, flow_in)
    found: AnyTensor = _read_array(handle, flow_in, index)
    return found


@op("TensorArrayWriteV3")
def tensor_array_write(handle: ArrayHandle, index: int, value: AnyTensor, flow_in: ListValue) -> ListValue:
    return _written(handle, flow_in, [index], [value])


@op("TensorArrayScatterV3")
def tensor_array_scatter(handle: ArrayHandle, indices: Ints, value: AnyTensor, flow_in: ListValue) -> ListValue:
    return _written(handle, flow_in, indices, _rows(value))


@op("TensorArrayGatherV3")
def tensor_array_gather(
    handle: ArrayHandle, indices: Ints, flow_in: ListValue, *, dtype: ElementType, element_shape: Ints | None = None
) -> AnyTensor:
    for index in indices:
        _check_index(index, flow_in)
    shape = _merged(handle.element_shape, element_shape)
    return _stacked([_read_array(handle, flow_in, index) for index in indices], shape, dtype)


@op("TensorArraySizeV3")
def tensor_array_size(handle: ArrayHandle, flow_in: ListValue) -> int:
    return len(flow_in)


@op("TensorArrayConcatV3", outputs=("value", "lengths"))
def tensor_array_concat(
    handle: ArrayHandle, flow_in: ListValue, *, dtype: ElementType, element_shape_except0: Ints | None = None
) -> tuple[AnyTensor, torch.Tensor]:
    rest = element_shape_except0 if element_shape_except0 is None else (0, *element_shape_except0)
    return _concatenated([_read_array(handle, flow_in, index) for index in range(len(flow_in))], rest, dtype)


@op("TensorArraySplitV3")
def tensor_array_split(handle: ArrayHandle, value: AnyTensor, lengths: Ints, flow_in: ListValue) -> ListValue:
    if len(flow_in) != len(lengths) and not (handle.dynamic_size and len(flow_in) < len(lengths)):
        raise InvalidArgumentError(f"{len(lengths)} parts for an array of {len(flow_in)} elements")
    return _written(handle, flow_in, range(len(lengths)), _pieces(value, lengths))


@op("TensorListReserve")
def tensor_list_reserve(element_shape: Axes, num_elements: int, *, element_dtype: ElementType) -> ListValue:
    return _unwritten(num_elements, element_shape)


@op("EmptyTensorList")
def empty_tensor_list(element_shape: Axes, max_num_elements: int, *, element_dtype: ElementType) -> ListValue:
    return []


@op("TensorListFromTensor")
def tensor_list_from_tensor(tensor: AnyTensor, element_shape: Axes) -> ListValue:
    return _checked(_rows(tensor), element_shape)


@op("TensorListGetItem")
def tensor_list_get_item(
    input_handle: ListValue, index: int, element_shape: Axes, *, element_dtype: ElementType
) -> AnyTensor:
    _check_index(index, input_handle)
    found: AnyTensor = _read(input_handle, index, element_shape, element_dtype)
    return found


@op("TensorListSetItem")
def tensor_list_set_item(
    input_handle: ListValue, index: int, item: AnyTensor, *, resize_if_index_out_of_bounds: bool = False
) -> ListValue:
    if not resize_if_index_out_of_bounds:
        _check_index(index, input_handle)
    return _replaced(input_handle, [index], [item])


@op("TensorListStack")
def tensor_list_stack(
    input_handle: ListValue, element_shape: Axes, *, element_dtype: ElementType, num_elements: int = -1
) -> AnyTensor:
    if num_elements not in (-1, len(input_handle)):
        raise InvalidArgumentError(f"the list has {len(input_handle)} elements, expected {num_elements}")
    elements = [_read(input_handle, at, element_shape, element_dtype) for at in range(len(input_handle))]
    return _stacked(elements, element_shape, element_dtype)


@op("TensorListGather")
def tensor_list_gather(
    input_handle: ListValue, indices: Ints, element_shape: Axes, *, element_dtype: ElementType
) -> AnyTensor:
    for index in indices:
        _check_index(index, input_handle)
    elements = [_read(input_handle, at, element_shape, element_dtype) for at in indices]
    return _stacked(elements, element_shape, element_dtype)


@op("TensorListLength")
def tensor_list_length(input_handle: ListValue) -> int:
    return len(input_handle)


@op("TensorListPushBack")
def tensor_list_push_back(input_handle: ListValue, tensor: AnyTensor) -> ListValue:
    return [*input_handle, tensor]


@op("TensorListPopBack", outputs=("output_handle", "tensor"))
def tensor_list_pop_back(
    input_handle: ListValue, element_shape: Axes, *, element_dtype: ElementType
) -> tuple[ListValue, AnyTensor]:
    if not input_handle:
        raise InvalidArgumentError("cannot take the last element of an empty list")
    return input_handle[:-1], _read(input_handle, len(input_handle) - 1, element_shape, element_dtype)


@op("TensorListResize")
def tensor_list_resize(input_handle: ListValue, size: int) -> ListValue:
    _check_length(size)
    known = next((each.shape for each in input_handle if isinstance(each, Unwritten)), None)
    return [*input_handle[:size], *[Unwritten(known)] * (size - len(input_handle))]


@op("TensorListConcatLists")
def tensor_list_concat_lists(input_a: ListValue, input_b: ListValue, *, element_dtype: ElementType) -> ListValue:
    return [*input_a, *input_b]


@op("TensorListConcatV2", outputs=("tensor", "lengths"))
def tensor_list_concat_v2(
    input_handle: ListValue, element_shape: Axes, leading_dims: Ints, *, element_dtype: ElementType
) -> tuple[AnyTensor, torch.Tensor]:
    elements = []
    for at, element in enumerate(input_handle):
        if isinstance(element, Unwritten) and not leading_dims:
            element = _read(input_handle, at, element_shape, element_dtype)
        elif isinstance(element, Unwritten):  # `leading_dims` has its first size
            if at >= len(leading_dims):
                raise InvalidArgumentError(f"element {at} is not written, and leading_dims has no size for it")
            rest = _merged(element.shape, element_shape)
            known = (leading_dims[at], *rest[1:]) if isinstance(rest, tuple) else None
            element = _zeros(known, element_dtype, input_handle)
        elements.append(element)
    return _concatenated(elements, element_shape, element_dtype)


@op("TensorListConcat", outputs=("tensor", "lengths"))
def tensor_list_concat(
    input_handle: ListValue, *, element_dtype: ElementType, element_shape: Ints | None = None
) -> tuple[AnyTensor, torch.Tensor]:
    return tensor_list_concat_v2(
        input_handle, -1 if element_shape is None else element_shape, (), element_dtype=element_dtype
    )


@op("TensorListScatterV2")
def tensor_list_scatter_v2(tensor: AnyTensor, indices: Ints, element_shape: Axes, num_elements: int) -> ListValue:
    length = max(num_elements, max(indices, default=-1) + 1)
    if num_elements >= 0 and length > num_elements:
        raise InvalidArgumentError(f"index {length - 1} is out of range for a list of {num_elements} elements")
    return _replaced(_unwritten(length, element_shape), indices, _checked(_rows(tensor), element_shape))


@op("TensorListScatter")
def tensor_list_scatter(tensor: AnyTensor, indices: Ints, element_shape: Axes) -> ListValue:
    return tensor_list_scatter_v2(tensor, indices, element_shape, -1)


@op("TensorListScatterIntoExistingList")
def tensor_list_scatter_into_existing_list(input_handle: ListValue, tensor: AnyTensor, indices: Ints) -> ListValue:
    return _replaced(input_handle, indices, _rows(tensor))


@op("TensorListSplit")
def tensor_list_split(tensor: AnyTensor, element_shape: Axes, lengths: Ints) -> ListValue:
    return _checked(_pieces(tensor, lengths), element_shape)


def _check_index(index: int, values: ListValue) -> None:
    if not 0 <= index < len(values):
        raise InvalidArgumentError(f"index {index} is out of range for a list of {len(values)} elements")


def _check_length(length: int) -> None:
    if not 0 <= length <= MAX_LENGTH:
        raise InvalidArgumentError(f"a list must have 0 to {MAX_LENGTH} elements, found {length}")


def _unwritten(length: int, shape: Shape) -> ListValue:
    _check_length(length)
    return [Unwritten(shape)] * length


def _replaced(values: ListValue, indices: Sequence[int], elements: Sequence[Any]) -> ListValue:
    """Return a list with other elements at the indices; it is longer if an index is beyond the end."""
    if len(indices) != len(elements):
        raise InvalidArgumentError(f"{len(elements)} elements for {len(indices)} indices")
    length = max([len(values), *(index + 1 for index in indices)])
    _check_length(length)
    found = [*values, *[Unwritten()] * (length - len(values))]
    for index, element in zip(indices, elements, strict=True):
        if index < 0:
            raise InvalidArgumentError(f"index {index} is negative")
        found[index] = element
    return found


def _written(handle: ArrayHandle, values: ListValue, indices: Sequence[int], elements: Sequence[Any]) -> ListValue:
    for index in indices:
        if not handle.dynamic_size:
            _check_index(index, values)
        if 0 <= index < len(values) and not isinstance(values[index], Unwritten):
            raise InvalidArgumentError(f"element {index} of a TensorArray is written twice")
    if len(set(indices)) < len(indices):
        raise InvalidArgumentError(f"an element of a TensorArray is written twice: {list(indices)[:20]}")
    return _replaced(values, indices, _checked(elements, handle.element_shape))


def _rows(value: AnyTensor) -> list[Any]:
    if not len(value.shape):
        raise InvalidArgumentError("expected a tensor of rank 1 or more, found a scalar")
    if isinstance(value, np.ndarray):
        return [np.asarray(each, dtype=object) for each in value]
    return list(value.unbind(0))


def _pieces(value: AnyTensor, lengths: Ints) -> list[Any]:
    if not len(value.shape) or min(lengths, default=0) < 0 or sum(lengths) != value.shape[0]:
        raise InvalidArgumentError(f"cannot split the shape {list(value.shape)} into parts of {list(lengths)[:20]}")
    ends = itertools.accumulate(lengths, initial=0)
    return [value[begin:end] for begin, end in itertools.pairwise(ends)]


def _merged(shape: Shape, other: Shape) -> Shape:
    """Return what two descriptions of a shape say together."""
    if not isinstance(shape, tuple):
        return other
    if not isinstance(other, tuple):
        return shape
    if len(shape) != len(other) or any(a != b and a >= 0 and b >= 0 for a, b in zip(shape, other, strict=True)):
        raise InvalidArgumentError(f"an element has the shape {list(other)}, expected {list(shape)}")
    return tuple(b if a < 0 else a for a, b in zip(shape, other, strict=True))


def _checked(elements: Sequence[Any], shape: Shape) -> list[Any]:
    """Return elements that have a shape."""
    if isinstance(shape, tuple):
        for element in elements:
            if not isinstance(element, list):
                _merged(shape, tuple(element.shape))
    return list(elements)


def _read(values: ListValue, index: int, shape: Shape, dtype: ElementType) -> Any:
    element = values[index]
    if not isinstance(element, Unwritten):
        return _checked([element], shape)[0]
    known = _merged(element.shape, shape)
    if not _is_full(known):
        for other in values:
            if isinstance(other, (torch.Tensor, np.ndarray)):
                known = _merged(known, tuple(other.shape))
    return _zeros(known, dtype, values)


def _read_array(handle: ArrayHandle, values: ListValue, index: int) -> Any:
    if isinstance(values[index], Unwritten):
        return _zeros(handle.element_shape, handle.dtype, values)
    return values[index]


def _is_full(shape: Shape) -> bool:
    return isinstance(shape, tuple) and all(size >= 0 for size in shape)


def _zeros(shape: Shape, dtype: ElementType, values: Sequence[Any]) -> AnyTensor:
    """Return zeros on the device of the elements of a list."""
    if not isinstance(shape, tuple) or not _is_full(shape):
        raise InvalidArgumentError("an element that is not written is read, and its shape is not known")
    check_size(shape)
    if dtype == DataType.DT_STRING:
        return np.full(shape, b"", dtype=object)
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgumentError(f"an element of type {dtype.name} that is not written is read")
    device = next((each.device for each in values if isinstance(each, torch.Tensor)), None)
    return torch.zeros(shape, dtype=dtype, device=device)


def _stacked(elements: Sequence[Any], shape: Shape, dtype: ElementType) -> AnyTensor:
    if elements:
        return pack(elements)
    return _zeros((0, *shape) if isinstance(shape, tuple) else None, dtype, ())


def _concatenated(elements: Sequence[Any], shape: Shape, dtype: ElementType) -> tuple[AnyTensor, torch.Tensor]:
    if elements and any(not len(each.shape) for each in elements):
        raise InvalidArgumentError("cannot concatenate scalars")
    lengths = torch.tensor([each.shape[0] for each in elements], dtype=torch.int64)
    if elements:
        return concat_v2(_checked(elements, (-1, *shape[1:]) if isinstance(shape, tuple) else shape), 0), lengths
    return _zeros((0, *shape[1:]) if isinstance(shape, tuple) else None, dtype, ()), lengths
