"""TensorArray and TensorList equal TensorFlow's: values, dtypes, shapes, gradients, and what is refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs
from op_inputs import int32 as i
from op_programs import Program, Step, compute_programs, program, program_fault, step
from op_rows import Computed
from tensorflow_process import TensorFlowProcess

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import OPS

normal = Inputs(5).normal
FLOAT = torch.float32


def array(size: int, **attributes: Any) -> Step:
    return step("TensorArrayV3", i(size), dtype=FLOAT, to="array f0", **attributes)


def write(index: int, value: Any, before: str, after: str) -> Step:
    return step("TensorArrayWriteV3", "array", i(index), value, before, to=after)


def read(index: int, flow: str, to: str = "x") -> Step:
    return step("TensorArrayReadV3", "array", i(index), flow, dtype=FLOAT, to=to)


def reserve(shape: Any, count: int) -> Step:
    return step("TensorListReserve", i(shape), i(count), element_dtype=FLOAT, to="l0")


def empty(shape: Any = -1, most: int = -1) -> Step:
    return step("EmptyTensorList", i(shape), i(most), element_dtype=FLOAT, to="l0")


def put(index: int, value: Any, before: str, after: str, **attributes: Any) -> Step:
    return step("TensorListSetItem", before, i(index), value, to=after, **attributes)


def push(value: Any, before: str, after: str) -> Step:
    return step("TensorListPushBack", before, value, to=after)


def get(index: int, flow: str, shape: Any = -1, to: str = "x") -> Step:
    return step("TensorListGetItem", flow, i(index), i(shape), element_dtype=FLOAT, to=to)


def stack(flow: str, shape: Any = -1, **attributes: Any) -> Step:
    return step("TensorListStack", flow, i(shape), element_dtype=FLOAT, to="x", **attributes)


def from_tensor(value: Any, shape: Any = -1) -> Step:
    return step("TensorListFromTensor", value, i(shape), to="l0")


def concat(flow: str, shape: Any = -1, leading: Any = ()) -> Step:
    leading_dims = np.array(leading, np.int64)
    return step("TensorListConcatV2", flow, i(shape), leading_dims, element_dtype=FLOAT, to="x lengths")


def gather(flow: str, indices: Any, **attributes: Any) -> Step:
    return step("TensorArrayGatherV3", "array", i(indices), flow, dtype=FLOAT, to="x", **attributes)


def scatter(indices: Any, value: Any, before: str = "f0", after: str = "f1") -> Step:
    return step("TensorArrayScatterV3", "array", i(indices), value, before, to=after)


SIZE = step("TensorArraySizeV3", "array", "f1", to="size")
JOIN = step("TensorArrayConcatV3", "array", "f2", dtype=FLOAT, to="x lengths")

ARRAYS = [
    program(array(2), write(1, normal(3), "f0", "f1"), read(1, "f1"), results="x"),
    program(array(2), write(1, normal(), "f0", "f1"), read(1, "f1"), SIZE, results="x size"),
    program(array(2), write(1, normal(3), "f0", "f1"), read(0, "f1"), results="x"),
    program(array(2, element_shape=(3,)), write(1, normal(3), "f0", "f1"), read(0, "f1"), results="x"),
    program(array(2), write(2, normal(3), "f0", "f1"), read(1, "f1"), results="x"),
    program(array(2), write(-1, normal(3), "f0", "f1"), read(1, "f1"), results="x"),
    program(array(2), write(1, normal(3), "f0", "f1"), read(2, "f1"), results="x"),
    program(array(2), write(1, normal(3), "f0", "f1"), write(1, normal(3), "f1", "f2"), read(1, "f2"), results="x"),
    program(array(0, dynamic_size=True), write(2, normal(3), "f0", "f1"), SIZE, read(2, "f1"), results="x size"),
    program(array(2, element_shape=(4,)), write(1, normal(3), "f0", "f1"), read(1, "f1"), results="x"),
    program(array(3), scatter([0, 1, 2], normal(3, 2)), gather("f1", [2, 0]), results="x"),
    program(array(3), scatter([2, 0, 1], normal(3, 2)), gather("f1", [0, 1, 2]), results="x"),
    program(array(3), scatter([0, 2], normal(2, 2)), gather("f1", [0, 2]), SIZE, results="x size"),
    program(array(3), scatter([0, 3], normal(2, 2)), gather("f1", [0]), results="x"),
    program(array(0, dynamic_size=True), scatter([0, 3], normal(2, 2)), gather("f1", [3, 0]), SIZE, results="x size"),
    program(array(3), scatter([0, 1, 2], normal(2, 2)), gather("f1", [0]), results="x"),
    program(array(3), scatter([0, 1, 2], normal(3, 2)), gather("f1", [3]), results="x"),
    program(array(3, element_shape=(2,)), gather("f0", [], element_shape=(2,)), results="x"),
    program(array(3), gather("f0", []), results="x"),
    program(array(3), scatter([1], normal(1, 2)), gather("f1", [0, 1]), results="x"),
    *(
        program(
            array(2),
            write(0, normal(2, 3), "f0", "f1"),
            write(1, normal(1, columns), "f1", "f2"),
            JOIN,
            results="x lengths",
        )
        for columns in (3, 2)
    ),
    *(
        program(
            array(size, dynamic_size=dynamic),
            step("TensorArraySplitV3", "array", normal(5, 2), np.array(lengths, np.int64), "f0", to="f1"),
            read(1, "f1"),
            SIZE,
            results="x size",
        )
        for size, dynamic, lengths in ((2, False, [2, 3]), (2, False, [2, 2]), (3, False, [2, 3]), (0, True, [5, 0]))
    ),
]  # fmt: skip

LISTS = [
    program(reserve([2], 3), put(1, normal(2), "l0", "l1"), get(1, "l1"), results="x"),
    program(reserve([2], 3), put(1, normal(2), "l0", "l1"), get(0, "l1"), results="x"),
    program(reserve(-1, 3), put(1, normal(2), "l0", "l1"), get(0, "l1"), results="x"),
    program(reserve(-1, 3), get(0, "l0", [2]), results="x"),
    program(reserve(-1, 3), get(0, "l0"), results="x"),
    program(reserve([-1, 2], 3), get(0, "l0", [4, -1]), results="x"),
    program(reserve([2], 3), get(3, "l0"), results="x"),
    program(reserve([2], 3), put(3, normal(2), "l0", "l1"), get(1, "l1"), results="x"),
    program(reserve([2], 3), put(-1, normal(2), "l0", "l1"), get(1, "l1"), results="x"),
    program(
        reserve([2], 1),
        put(3, normal(2), "l0", "l1", resize_if_index_out_of_bounds=True),
        step("TensorListLength", "l1", to="length"),
        stack("l1", [2]),
        results="x length",
    ),
    program(reserve([2], 3), put(1, normal(2), "l0", "l1"), put(2, normal(2), "l1", "l2"), stack("l2"), results="x"),
    program(reserve(-1, 3), put(1, normal(2), "l0", "l1"), stack("l1"), results="x"),
    program(reserve(-1, 3), stack("l0"), results="x"),
    program(reserve(-1, 3), stack("l0", [2]), results="x"),
    program(reserve([2], 3), stack("l0", [3]), results="x"),
    program(reserve([2], 3), stack("l0", [2], num_elements=3), results="x"),
    program(reserve([2], 3), stack("l0", [2], num_elements=4), results="x"),
    program(reserve([2], 0), stack("l0", [2]), results="x"),
    program(reserve([2], -1), stack("l0", [2]), results="x"),
    program(empty(), stack("l0", [2]), results="x"),
    program(empty(), stack("l0"), results="x"),
    program(from_tensor(normal(3, 2)), stack("l0", [2]), results="x"),
    program(from_tensor(normal(3, 2), [2]), get(2, "l0"), results="x"),
    program(from_tensor(normal(3, 2), [3]), get(2, "l0"), results="x"),
    program(from_tensor(normal()), get(0, "l0"), results="x"),
    program(from_tensor(normal(0, 2), [2]), stack("l0", [2]), results="x"),
    program(from_tensor(normal(3, 2)), put(0, normal(2), "l0", "l1"), stack("l1"), stack("l0"), results="x"),
    program(empty(), push(normal(2), "l0", "l1"), push(normal(2), "l1", "l2"), stack("l2"), results="x"),
    program(empty(), push(normal(2), "l0", "l1"), push(normal(3), "l1", "l2"), stack("l2"), results="x"),
    program(
        empty(),
        push(normal(2), "l0", "l1"),
        push(normal(2), "l1", "l2"),
        step("TensorListPopBack", "l2", i(-1), element_dtype=FLOAT, to="l3 last"),
        stack("l3"),
        results="x last",
    ),
    program(empty(), step("TensorListPopBack", "l0", i(-1), element_dtype=FLOAT, to="l1 last"), results="last"),
    *(
        program(from_tensor(normal(3, 2)), step("TensorListResize", "l0", i(size), to="l1"), stack("l1"), results="x")
        for size in (2, 3, 5, 0, -1)
    ),
    program(
        from_tensor(normal(3, 2)), step("TensorListResize", "l0", i(0), to="l1"), stack("l1", [2]), results="x"
    ),
    program(empty(), push(normal(2, 3), "l0", "l1"), push(normal(1, 3), "l1", "l2"), concat("l2"), results="x lengths"),
    program(empty(), push(normal(2, 3), "l0", "l1"), push(normal(1, 2), "l1", "l2"), concat("l2"), results="x lengths"),
    program(reserve([-1, 3], 2), put(1, normal(2, 3), "l0", "l1"), concat("l1", [-1, 3], [4, 2]), results="x lengths"),
    program(reserve([-1, 3], 2), put(1, normal(2, 3), "l0", "l1"), concat("l1", [-1, 3]), results="x lengths"),
    program(empty(), concat("l0", [-1, 3]), results="x lengths"),
    *(
        program(
            from_tensor(normal(4, 2)),
            step("TensorListGather", "l0", i(indices), i(-1), element_dtype=FLOAT, to="x"),
            results="x",
        )
        for indices in ([3, 0], [1, 2, 0], [4], [-1])  # TensorFlow loses a gradient if one comes twice
    ),
    *(
        program(
            step("TensorListScatterV2", normal(2, 3), i(indices), i([3]), i(count), to="l0"),
            step("TensorListLength", "l0", to="length"),
            stack("l0", [3]),
            results="x length",
        )
        for indices, count in (([0, 1], 2), ([1, 0], -1), ([0, 3], -1), ([0, 3], 5), ([0, 3], 3), ([-1, 0], 3))
    ),
    program(
        step("TensorListScatter", normal(2, 3), i([2, 0]), i([3]), to="l0"), stack("l0", [3]), results="x"
    ),
    program(
        from_tensor(normal(4, 3)),
        step("TensorListScatterIntoExistingList", "l0", normal(2, 3), i([3, 0]), to="l1"),
        stack("l1", [3]),
        results="x",
    ),
    *(
        program(
            step("TensorListSplit", normal(5, 2), i([-1, 2]), np.array(lengths, np.int64), to="l0"),
            get(1, "l0"),
            results="x",
        )
        for lengths in ([2, 3], [0, 5], [2, 2])
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def computed(tensorflow: TensorFlowProcess) -> list[Computed]:
    return compute_programs(tensorflow, [*ARRAYS, *LISTS])


def report(programs: Sequence[Program], found: Sequence[Computed]) -> None:
    faults = [
        f"{one}: {fault}" for one, each in zip(programs, found, strict=True) if (fault := program_fault(one, each))
    ]
    assert not faults, "\n".join([f"{len(faults)} of {len(programs)} programs differ", *faults])


def test_arrays(computed: Sequence[Computed]) -> None:
    """Programs of TensorArray operations."""
    report(ARRAYS, computed[: len(ARRAYS)])


def test_lists(computed: Sequence[Computed]) -> None:
    """Programs of TensorList operations."""
    report(LISTS, computed[len(ARRAYS) :])


@pytest.mark.parametrize("name", ["TensorArrayV3", "TensorListReserve", "TensorListResize"])
def test_huge_list(name: str) -> None:
    """Numbers in a file do not decide how much memory is taken."""
    function = OPS[name].function
    with pytest.raises(InvalidArgumentError, match="0 to"):
        if name == "TensorArrayV3":
            function(1 << 40, dtype=FLOAT)
        elif name == "TensorListReserve":
            function((2,), 1 << 40, element_dtype=FLOAT)
        else:
            function([], 1 << 40)


def test_lists_of_lists() -> None:
    """Elements of a list may be lists; no operation changes its input."""
    push = OPS["TensorListPushBack"].function
    inner: list[Any] = push([], torch.ones(2))
    outer: list[Any] = push([], inner)
    again = push(outer, inner)
    assert len(outer) == 1
    assert OPS["TensorListGetItem"].function(again, 1, -1, element_dtype=FLOAT) is inner
