"""Tensors as plain bytes: every dtype that torch has and TensorFlow stores, without unnecessary copies."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.dtypes import ELEMENTS, STORED_AS
from torch_tfckpt.transfer.host_bytes import byte_view, copy_bytes, copy_slice, host_copy, swap_bytes

DTYPES = list(STORED_AS)
WIDTHS = sorted({element.swap for element in ELEMENTS.values() if element.swap})


def filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return a tensor whose elements have different bit patterns, as far as possible; bools are 0 and 1."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == torch.bool:
        return (torch.arange(count) % 2 == 1).reshape(shape)
    data = bytearray((7 * number + 1) % 256 for number in range(count * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def raw(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements in row-major order, computed differently from the tested code."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


# byte_view


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1, 1, 4)])
def test_the_view_shares_the_tensors_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """One flat buffer of unsigned bytes in row-major order; writes to it change the tensor."""
    tensor = filled(dtype, *shape)
    view = byte_view(tensor)
    assert (view.format, view.ndim, view.nbytes, view.readonly) == ("B", 1, tensor.nbytes, False)
    assert bytes(view) == raw(tensor)
    view[:] = bytes(len(view))
    assert raw(tensor) == bytes(tensor.nbytes)


def test_bytes_are_in_the_files_order() -> None:
    """Little-endian elements, rows one after another, as in TensorFlow's files: 1.0 is 00 00 80 3f."""
    assert bytes(byte_view(torch.tensor([[1.0, 2.0]]))) == bytes.fromhex("00 00 80 3f 00 00 00 40")
    assert bytes(byte_view(torch.tensor(258, dtype=torch.int64))) == bytes.fromhex("02 01 00 00 00 00 00 00")


@pytest.mark.parametrize("shape", [(0,), (0, 3), (7, 0, 2)])
def test_an_empty_tensor_has_an_empty_view(shape: tuple[int, ...]) -> None:
    """For every dtype, without a special case for the caller."""
    for dtype in DTYPES:
        assert len(byte_view(torch.empty(shape, dtype=dtype))) == 0


def test_a_parameter_is_viewed_like_any_tensor() -> None:
    """No autograd history is recorded, and the parameter itself changes."""
    parameter = torch.nn.Parameter(torch.ones(2))
    byte_view(parameter)[:] = bytes(8)
    assert parameter.tolist() == [0, 0]
    assert parameter.grad_fn is None


def test_a_part_of_a_storage_is_viewed_by_itself() -> None:
    """Contiguous rows in the middle of a larger tensor."""
    whole = torch.arange(12, dtype=torch.int16).reshape(4, 3)
    assert bytes(byte_view(whole[1:3])) == raw(whole)[6:18]


def test_the_view_keeps_the_bytes_alive() -> None:
    """Pending reads may outlive all other references to the tensor."""
    view = byte_view(torch.full((1000,), 7, dtype=torch.uint8))
    gc.collect()
    assert bytes(view) == b"\x07" * 1000


# swap_bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_swapped_bytes_equal_numpys(dtype: torch.dtype) -> None:
    """Every group is reversed in place; for complex numbers the real and the imaginary part separately."""
    # CASES 118
    width = next(element.swap for element in ELEMENTS.values() if element.torch == dtype)
    tensor = filled(dtype, 3, 2)
    expected = np.frombuffer(raw(tensor), dtype=f"V{width}")
    swapped = b"".join(bytes(group.tobytes()[::-1]) for group in expected)
    swap_bytes(tensor, width)
    assert raw(tensor) == swapped
    swap_bytes(tensor, width)
    assert raw(tensor) == raw(filled(dtype, 3, 2))


@pytest.mark.parametrize(
    ("width", "before", "after"),
    [
        # CASES 118, from tensor_bundle_test.cc SwapBytes
        (2, "e51d 17d0 eaf1 a1c0", "1de5 d017 f1ea c0a1"),
        (4, "0ddba115 f01dab1e", "15a1db0d 1eab1df0"),
        (8, "f005ba11caba1000 5ca1ab1ecab005e5", "0010baca11ba05f0 e505b0ca1eaba15c"),
        (1, "01 02 03", "01 02 03"),
    ],
)
def test_known_swaps(width: int, before: str, after: str) -> None:
    """TensorFlow's own vectors."""
    tensor = torch.tensor(list(bytes.fromhex(before)), dtype=torch.uint8)
    swap_bytes(tensor, width)
    assert bytes(tensor.tolist()) == bytes.fromhex(after)


@given(count=st.integers(0, 9), width=st.sampled_from(WIDTHS))
def test_swapping_twice_changes_nothing(count: int, width: int) -> None:
    """For zero, one and several elements."""
    tensor = torch.arange(count * width, dtype=torch.uint8)
    swap_bytes(tensor, width)
    assert tensor.tolist() == [
        group + width - 1 - byte for group in range(0, count * width, width) for byte in range(width)
    ]
    swap_bytes(tensor, width)
    assert tensor.tolist() == list(range(count * width))


def test_an_empty_tensor_can_be_swapped() -> None:
    """A shape that contains a zero."""
    swap_bytes(torch.empty(0, 3), 4)


# copy_slice


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_box_is_copied_bit_for_bit(dtype: torch.dtype) -> None:
    """Including NaNs and invalid values; outside the box nothing changes, whether or not the target has strides."""
    source = filled(dtype, 2, 3)
    for target in (torch.zeros(4, 5).to(dtype), torch.zeros(5, 4).to(dtype).t()):
        copy_slice(target, (slice(1, 3), slice(2, 5)), source)
        assert raw(target[1:3, 2:5]) == raw(source)
        around = raw(target[0]) + raw(target[3]) + raw(target[:, :2])
        assert around == bytes(len(around))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scalar_is_copied_without_slices(dtype: torch.dtype) -> None:
    """A tensor without dimensions is a single box."""
    target, source = torch.zeros((), dtype=torch.uint8).to(dtype), filled(dtype)
    copy_slice(target, (), source)
    assert raw(target) == raw(source)


# host_copy


@pytest.mark.parametrize("dtype", DTYPES)
def test_contiguous_host_memory_is_not_copied(dtype: torch.dtype) -> None:
    """Saving a model on the CPU does not double the memory."""
    tensor = filled(dtype, 2, 3)
    assert host_copy(tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_tensors_are_laid_out_row_by_row(dtype: torch.dtype) -> None:
    """Transposed, strided, expanded: the elements as the user sees them."""
    base = filled(dtype, 4, 6)
    for view in (base.t(), base[::2, 1::2], base[:1].expand(3, 6), base[:, 3]):
        copied = host_copy(view)
        assert copied.is_contiguous()
        assert copied.shape == view.shape
        assert bytes(byte_view(copied)) == raw(view)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_conjugate_is_stored_as_its_values(dtype: torch.dtype) -> None:
    """conj() and its imaginary part only set a flag; the memory has different values."""
    tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=dtype)
    marked = tensor.conj()
    assert marked.is_conj()
    assert bytes(byte_view(host_copy(marked))) == np.conj(tensor.numpy()).tobytes()
    negated = marked.imag
    assert negated.is_neg()
    assert bytes(byte_view(host_copy(negated))) == np.ascontiguousarray(-tensor.numpy().imag).tobytes()
    # A single element is already contiguous, so no copy resolves the flag as a side effect.
    assert bytes(byte_view(host_copy(negated[0]))) == (-tensor.numpy().imag[0]).tobytes()
    assert tensor.tolist() == [1 + 2j, 3 - 4j]


def test_a_parameter_becomes_a_plain_tensor() -> None:
    """A tensor without gradient that shares its memory."""
    parameter = torch.nn.Parameter(torch.ones(3))
    copied = host_copy(parameter)
    assert not copied.requires_grad
    assert type(copied) is torch.Tensor
    assert copied.data_ptr() == parameter.data_ptr()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_device_tensor_is_copied_bit_for_bit(dtype: torch.dtype) -> None:
    """Strided or not, and back into a box on the device."""
    tensor = filled(dtype, 4, 6)
    there = tensor.to("cuda")
    assert bytes(byte_view(host_copy(there.t()))) == raw(tensor.t())
    target = torch.zeros(4, 6, dtype=torch.uint8).to(dtype).to("cuda")
    copy_slice(target, (slice(1, 3), slice(0, 6)), there[1:3])
    assert raw(target.cpu()[1:3]) == raw(tensor[1:3])


def test_pieces_are_copied_back_to_back() -> None:
    """Empty pieces, read-only ones and those of tensors; bytes after the last one are unchanged."""
    target = torch.full((8,), 9, dtype=torch.uint8)
    copy_bytes([b"ab", memoryview(b""), byte_view(torch.tensor([1, 2], dtype=torch.uint8)), b"c"], target)
    assert target.tolist() == [97, 98, 1, 2, 99, 9, 9, 9]
