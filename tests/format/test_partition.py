"""Partitioned tensors: which part of which stored slice fills a requested box, compared with plain indexing."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.partition import Part, Partition
from torch_tfckpt.format.tensor_slice import WHOLE, Extent, Shape, TensorSlice

Box = tuple[tuple[int, int], ...]  # start and end in each dimension


def box(text: str) -> TensorSlice:
    return TensorSlice.parse(text)


def partition(shape: Shape, *stored: str) -> Partition:
    return Partition("t", shape, [box(text) for text in stored])


def assembled(parts: Partition, want: TensorSlice) -> npt.NDArray[np.int64]:
    """Return the requested box filled by the copies; -1 marks elements that were not written."""
    whole = np.arange(int(np.prod(parts.shape, dtype=np.int64))).reshape(parts.shape)
    held = [whole[part.resolve(parts.shape).to_index()] for part in parts.stored]
    target = np.full(want.shape_of(parts.shape), -1, dtype=np.int64)
    for part in parts.parts_of(want):
        place = target[part.target.to_index()]
        assert (place == -1).all(), "two copies to the same place"
        assert place.shape == held[part.number][part.source.to_index()].shape, "a copy that would be broadcast"
        target[part.target.to_index()] = held[part.number][part.source.to_index()]
    return target


def wanted(parts: Partition, want: TensorSlice) -> npt.NDArray[np.int64]:
    """Return the requested box of the whole tensor, by plain indexing."""
    whole = np.arange(int(np.prod(parts.shape, dtype=np.int64))).reshape(parts.shape)
    return whole[want.resolve(parts.shape).to_index()]


# Cases of TensorFlow's tests.


@pytest.mark.parametrize(
    ("want", "numbers"), [("-:-", [0, 1]), ("-:0,2", [0, 1]), ("-:2,2", [1]), ("0,5:0,10", [0, 1]), ("1,1:0,1", [0])]
)
def test_columns_in_two_slices(want: str, numbers: list[int]) -> None:
    """The whole tensor, a box across the boundary, and boxes on one side, each from the slices that contain it."""
    # CASES 120, from tensor_bundle_test.cc PartitionedVariables
    columns = partition((5, 10), "-:0,1", "-:1,9")
    assert [part.number for part in columns.parts_of(box(want))] == numbers
    np.testing.assert_array_equal(assembled(columns, box(want)), wanted(columns, box(want)))


def test_a_box_across_a_boundary_takes_two_copies() -> None:
    """From the end of one slice and the beginning of the other, next to each other."""
    # CASES 120
    assert partition((5, 10), "-:0,1", "-:1,9").parts_of(box("-:0,2")) == [
        Part(0, box("0,5:0,1"), box("0,5:0,1")),
        Part(1, box("0,5:0,1"), box("0,5:1,1")),
    ]


@pytest.mark.parametrize("stored", ["-:-", "0,5:0,10"])
@pytest.mark.parametrize("want", ["-:-", "0,5:0,10", "-:0,10", "0,5:-"])
def test_both_spellings_of_the_whole_are_equal(stored: str, want: str) -> None:
    """A dash and the explicit extent cover the same elements."""
    # CASES 121, from tensor_bundle_test.cc EquivalentSliceTest
    whole = partition((5, 10), stored)
    (part,) = whole.parts_of(box(want))
    assert part.number == 0
    np.testing.assert_array_equal(assembled(whole, box(want)), wanted(whole, box(want)))


def test_a_slice_spelled_exactly_as_stored_is_used_alone() -> None:
    """It is copied completely: restoring into the saved partition takes one copy per slice."""
    assert partition((4, 5), "0,2:-", "2,2:-").parts_of(box("2,2:-")) == [Part(1, box("-:-"), box("-:-"))]


HOLED = ("0,2:-", "2,2:0,3", "3,1:3,2")  # a hole at row 2, columns 3 and 4


@pytest.mark.parametrize(
    ("want", "numbers"),
    [
        ("0,2:-", [0]),  # spelled exactly as stored
        ("2,2:0,3", [1]),
        ("3,1:3,2", [2]),
        ("1,1:-", [0]),  # inside one
        ("3,1:1,2", [1]),
        ("1,2:0,3", [0, 1]),  # across two
        ("3,1:-", [1, 2]),
    ],
)
def test_boxes_of_a_matrix_with_a_hole(want: str, numbers: list[int]) -> None:
    """A hole outside the box does not matter."""
    # CASES 136, 184, 185, from tensor_slice_reader_test.cc and tensor_slice_set_test.cc QueryTwoD, QueryMetaTwoD
    matrix = partition((4, 5), *HOLED)
    assert [part.number for part in matrix.parts_of(box(want))] == numbers
    np.testing.assert_array_equal(assembled(matrix, box(want)), wanted(matrix, box(want)))


@pytest.mark.parametrize(("want", "covered", "total"), [("1,2:2,3", 4, 6), ("-:-", 18, 20), ("2,1:3,2", 0, 2)])
def test_a_box_with_missing_elements_is_refused(want: str, covered: int, total: int) -> None:
    """The error contains TensorFlow's words and the number of available elements; the rest is not made up."""
    # CASES 136, 184, 185
    with pytest.raises(InvalidArgumentError) as raised:
        partition((4, 5), *HOLED).parts_of(box(want))
    assert str(raised.value).startswith(
        'tensor "t": Does not have sufficient slices for partitioned tensor t to restore in slice_spec: '
        f"{want}: the stored slices (3) contain {covered} of {total} elements. "
    )


# Invalid partitions.


def test_overlapping_slices_are_refused() -> None:
    """Even if the requested box needs only one of them."""
    with pytest.raises(DataLossError) as raised:
        Partition("a\n", (4, 5), [box("0,2:-"), box("2,2:-"), box("1,2:0,1")])
    assert str(raised.value) in (
        'tensor "a\\n": Overlapping slices: existing slice = 0,2:-, new slice = 1,2:0,1',
        'tensor "a\\n": Overlapping slices: existing slice = 2,2:-, new slice = 1,2:0,1',
    )


def test_a_slice_stored_twice_overlaps_itself() -> None:
    """Which of the two is right would be ambiguous."""
    with pytest.raises(DataLossError, match="Overlapping slices: existing slice = -, new slice = 0,4"):
        partition((4,), "-", "0,4")


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (["0,2:-", "3,2:-"], "Extent in dimension 0 out of bounds: shape = [4,5], slice = 3,2:-"),
        (["0,2"], "Mismatching ranks: shape = [4,5], slice = 0,2"),
    ],
)
def test_slices_outside_the_tensor_are_refused(stored: list[str], text: str) -> None:
    """DataLossError, because the slices come from a file."""
    with pytest.raises(DataLossError) as raised:
        partition((4, 5), *stored)
    assert str(raised.value) == f'tensor "t": {text}'


def test_a_box_outside_the_tensor_is_refused() -> None:
    """InvalidArgumentError, because the box comes from the caller."""
    with pytest.raises(InvalidArgumentError, match="out of bounds"):
        partition((4, 5), "-:-").parts_of(box("3,2:-"))
    with pytest.raises(InvalidArgumentError, match="Mismatching ranks"):
        partition((4, 5), "-:-").parts_of(box("-"))


# Arbitrary partitions.


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0, 3)])
def test_a_tensor_of_one_or_no_element_is_whole(shape: Shape) -> None:
    """A scalar has no dimension to split; an empty tensor has no element that could be missing."""
    whole = Partition("t", shape, [TensorSlice.full(len(shape))])
    np.testing.assert_array_equal(
        assembled(whole, TensorSlice.full(len(shape))), wanted(whole, TensorSlice.full(len(shape)))
    )


def test_slices_that_no_straight_cut_separates() -> None:
    """Four boxes around a fifth, like the sails of a windmill."""
    mill = partition((3, 3), "0,1:0,2", "0,2:2,1", "2,1:1,2", "1,2:0,1", "1,1:1,1")
    np.testing.assert_array_equal(assembled(mill, TensorSlice.full(2)), wanted(mill, TensorSlice.full(2)))
    assert [part.number for part in mill.parts_of(box("1,1:-"))] == [1, 3, 4]


def test_lookup_among_many_slices() -> None:
    """A box in the middle of ten thousand slices takes one copy, and all of them take ten thousand."""
    rows = Partition("t", (10_000, 2), [TensorSlice((Extent(n, 1), Extent(0, WHOLE))) for n in range(10_000)])
    assert rows.parts_of(box("5000,1:1,1")) == [Part(5000, box("0,1:1,1"), box("0,1:0,1"))]
    np.testing.assert_array_equal(assembled(rows, TensorSlice.full(2)), wanted(rows, TensorSlice.full(2)))


def _spelt(draw: st.DrawFn, edges: Box, shape: Shape) -> TensorSlice:
    """Return one of the spellings of a box."""
    return TensorSlice(
        tuple(
            Extent(0, WHOLE) if (begin, end) == (0, size) and draw(st.booleans()) else Extent(begin, end - begin)
            for (begin, end), size in zip(edges, shape, strict=True)
        )
    )


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Shape, list[TensorSlice], TensorSlice]:
    """A randomly partitioned shape, some boxes missing, the rest in any order; and a requested box."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    boxes: list[Box] = [tuple((0, size) for size in shape)]
    for _ in range(draw(st.integers(0, 8))):
        edges = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        begin, end = edges[axis]
        at = draw(st.integers(begin, end))
        for one, other in pairwise((begin, at, end)):
            if one < other:
                boxes.append((*edges[:axis], (one, other), *edges[axis + 1 :]))
    kept = draw(st.permutations(boxes))[: draw(st.sampled_from([len(boxes), len(boxes), max(1, len(boxes) - 1)]))]
    edges = tuple(
        (begin, draw(st.integers(begin + 1, size))) for size in shape for begin in [draw(st.integers(0, size - 1))]
    )
    return shape, [_spelt(draw, each, shape) for each in kept], _spelt(draw, edges, shape)


@settings(deadline=None)
@given(partitions())
def test_any_box_of_any_partition_equals_plain_indexing(case: tuple[Shape, list[TensorSlice], TensorSlice]) -> None:
    """Every element comes from its place in the whole tensor, or the box is refused because one is missing."""
    shape, stored, want = case
    parts = Partition("t", shape, stored)
    there = np.zeros(shape, dtype=bool)
    for part in stored:
        there[part.resolve(shape).to_index()] = True
    if there[want.resolve(shape).to_index()].all():
        np.testing.assert_array_equal(assembled(parts, want), wanted(parts, want))
    else:
        with pytest.raises(InvalidArgumentError, match="Does not have sufficient slices"):
            parts.parts_of(want)
