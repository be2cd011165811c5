"""overlap_of_boxes: the same answer as find_overlap, for any boxes."""

from itertools import product
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from torch_tfckpt.format.boxes import Box, overlap_of_boxes
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice, find_overlap


def as_slice(box: Box) -> TensorSlice:
    return TensorSlice(tuple(Extent(start, end - start) for start, end in zip(box[::2], box[1::2], strict=True)))


@st.composite
def boxes(draw: Any) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and boxes that often touch or overlap."""
    rank = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(1, 12)) for _ in range(rank))
    found = []
    for _ in range(draw(st.integers(0, 24))):
        bounds: list[int] = []
        for size in shape:
            start = draw(st.integers(0, size - 1))
            bounds += (start, draw(st.integers(start, min(size, start + 3))))
        found.append(tuple(bounds))
    return shape, found


@given(boxes())
@settings(max_examples=300, deadline=None)
def test_the_general_check_agrees(drawn: tuple[tuple[int, ...], list[Box]]) -> None:
    """If find_overlap finds a pair, so does this, and the pair that it names shares an element."""
    shape, found = drawn
    with_elements = [as_slice(box) for box in found if all(a < b for a, b in zip(box[::2], box[1::2], strict=True))]
    expected = find_overlap(shape, with_elements)
    pair = overlap_of_boxes(shape, found)
    assert (pair is None) == (expected is None)
    if pair is not None:
        one, other = (as_slice(found[number]) for number in pair)
        common = one.intersect(other)
        assert pair[0] != pair[1] and common is not None and all(extent.length for extent in common.extents)


@pytest.mark.parametrize("cuts", [(64, 1, 1), (1, 64, 1), (8, 8, 1), (4, 4, 4)], ids=str)
def test_a_grid_has_no_overlap(cuts: tuple[int, int, int]) -> None:
    """Neither in order nor reversed; one box twice, or one that reaches into the next, is found."""
    shape = tuple(3 * count for count in cuts)
    grid: list[Box] = [(3 * i, 3 * i + 3, 3 * j, 3 * j + 3, 3 * k, 3 * k + 3) for i, j, k in product(*map(range, cuts))]
    assert overlap_of_boxes(shape, grid) is None and overlap_of_boxes(shape, grid[::-1]) is None
    assert overlap_of_boxes(shape, [*grid, grid[17]]) == (17, 64)
    centre = tuple(bound for count in cuts for bound in ((0, 3) if count == 1 else (2, 4)))
    pair = overlap_of_boxes(shape, [*grid, centre])
    assert pair is not None and pair[1] == 64


def test_the_largest_possible_tensor() -> None:
    """Coordinates up to 2**63 - 1 do not overflow."""
    top = 2**63 - 1
    rows: list[Box] = [(top - 10 * n - 10, top - 10 * n) for n in range(20)]
    assert overlap_of_boxes((top,), rows) is None
    assert overlap_of_boxes((top,), [*rows, (top - 1, top)]) == (0, 20)


def test_a_pinwheel_is_compared_pairwise() -> None:
    """No straight line separates these boxes, and they do not overlap."""
    pinwheel: list[Box] = [(0, 1, 0, 2), (0, 2, 2, 3), (2, 3, 1, 3), (1, 3, 0, 1), (1, 2, 1, 2)]
    many = [(a + 3 * n, b + 3 * n, c, d) for n in range(20) for a, b, c, d in pinwheel]
    assert overlap_of_boxes((60, 3), many) is None
    assert overlap_of_boxes((60, 3), [*many, (4, 5, 1, 2)]) is not None
