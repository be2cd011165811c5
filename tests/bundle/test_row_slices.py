"""row_slices: every element once, in slices within the limit."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.row_slices import row_slices
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice
from torch_tfckpt.storage.local import LOCAL


@st.composite
def shards(draw: Any) -> tuple[tuple[int, ...], TensorSlice]:
    """A shape, and a slice of it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    extents = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        length = draw(st.integers(1, size - start))
        whole = draw(st.booleans()) and (start, length) == (0, size)
        extents.append(Extent(0, -1) if whole else Extent(start, length))
    return shape, TensorSlice(tuple(extents))


@given(shards(), st.integers(1, 300), st.sampled_from([torch.float32, torch.int8]))
@settings(max_examples=200, deadline=None)
def test_each_element_is_in_one_slice(
    drawn: tuple[tuple[int, ...], TensorSlice], limit: int, dtype: torch.dtype
) -> None:
    """The slices are in row-major order, and none is larger than the limit, unless it is one element."""
    shape, part = drawn
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    counts = torch.zeros(shape, dtype=torch.int64)
    found = row_slices(shape, part, whole[part.to_index()], limit)
    for piece, tensor in found:
        assert piece is not None and torch.equal(whole[piece.to_index()], tensor)
        assert tensor.nbytes <= limit or tensor.numel() == 1
        counts[piece.to_index()] += 1
    assert int(counts.max()) == 1
    assert int(counts.sum()) == whole[part.to_index()].numel()
    assert torch.equal(torch.cat([tensor.reshape(-1) for _, tensor in found]), whole[part.to_index()].reshape(-1))


def test_what_fits_is_not_cut() -> None:
    """The slice stays as it is, also without a limit; a limit must be positive."""
    tensor, part = torch.ones(4, 2), TensorSlice.parse("-:0,2")
    for limit in (None, 32, 10**12):
        [(piece, same)] = row_slices((4, 3), part, tensor, limit)
        assert piece is part and same is tensor
        assert row_slices((4, 2), None, tensor, limit) == [(None, tensor)]
    assert row_slices((0, 3), None, torch.ones(0, 3), 1)[0][0] is None
    with pytest.raises(InvalidArgumentError, match="max_piece_bytes is 0"):
        row_slices((4, 2), None, tensor, 0)


def test_slices_are_stored_and_read_as_one_tensor(tmp_path: Path) -> None:
    tensor = torch.arange(1000.0).reshape(50, 20)
    with BundleWriter(LOCAL, str(tmp_path / "m")) as writer:
        for piece, rows in row_slices((50, 20), None, tensor, 400):
            assert piece is not None
            writer.add_slice("w", (50, 20), piece, rows)
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        assert len(reader.slices("w")) == 10 and torch.equal(reader.get_tensor("w"), tensor)
