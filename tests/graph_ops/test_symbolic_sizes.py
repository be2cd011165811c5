"""Operations on arrays keep a batch size symbolic in torch.export, and are traced as a whole by torch.compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch_tfckpt.graph_ops.integers import INTEGER_OPS, as_tensor
from torch_tfckpt.graph_ops.registry import OPS

Tensor = torch.Tensor
NONE = torch.zeros((), dtype=torch.float32)
FLOAT = torch.float32


def run(name: str, *inputs: Any, **attributes: Any) -> Any:
    return OPS[name].function(*inputs, **attributes)


def sizes(name: str, *inputs: Any, **attributes: Any) -> Any:
    return INTEGER_OPS[name].function(*inputs, **attributes)


def loop_of_lists(x: Tensor) -> Tensor:
    """Read and write lists as an unrolled loop over time does."""
    steps = run("TensorListFromTensor", run("Transpose", x, (1, 0, 2)), (-1, 4))
    outputs = run("TensorListReserve", (-1, 4), 3, element_dtype=FLOAT)
    state = run("ZerosLike", x[:, 0])
    for at in range(3):
        state = state * 0.5 + run("TensorListGetItem", steps, at, (-1, 4), element_dtype=FLOAT)
        outputs = run("TensorListSetItem", outputs, at, state)
    found: Tensor = run("TensorListStack", outputs, (-1, 4), element_dtype=FLOAT, num_elements=3)
    return found


def loop_of_arrays(x: Tensor) -> Tensor:
    """The same with a TensorArray."""
    array, flow = run("TensorArrayV3", 3, dtype=FLOAT, element_shape=(-1, 4))
    flow = run("TensorArrayScatterV3", array, (0, 1, 2), run("Transpose", x, (1, 0, 2)), flow)
    found: Tensor = run("TensorArrayGatherV3", array, (2, 1, 0), flow, dtype=FLOAT)
    return found


def flattened(x: Tensor) -> Tensor:
    """Reshape to a shape that the graph computes."""
    shape = run("Shape", x)
    first = sizes("StridedSlice", shape, (0,), (1,), (1,), shrink_axis_mask=1)
    rest = sizes("Prod", sizes("StridedSlice", shape, (1,), (0,), (1,), end_mask=1), 0, T=torch.int32)
    found: Tensor = run("Reshape", x, sizes("Pack", [first, rest]))
    return found


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "flattened": flattened,
    "lists": loop_of_lists,
    "arrays": loop_of_arrays,
    "Reshape": lambda x: run("Reshape", x, (-1, 4)),
    "ExpandDims": lambda x: run("Squeeze", run("ExpandDims", x, 1), squeeze_dims=(1,)),
    "Tile": lambda x: run("Tile", x, (1, 2, 1)),
    "Fill": lambda x: run("Fill", (x.shape[0], 2), torch.ones(())),
    "BroadcastTo": lambda x: run("BroadcastTo", x[:1], run("BroadcastArgs", tuple(x.shape), (1, 1))),
    "Range": lambda x: run("Range", 0, x.shape[0], 1, Tidx=torch.int32),
    "size as tensor": lambda x: as_tensor(tuple(x.shape), torch.int32),
    "StridedSlice": lambda x: run("StridedSlice", x, (0, -1, 0), (0, 0, 4), (1, -1, 2), begin_mask=1, end_mask=3),
    "StridedSliceGrad": lambda x: run(
        "StridedSliceGrad", tuple(x.shape), (0, 1), (0, 2), (1, 1), x[:, 1:2], begin_mask=1, end_mask=1
    ),
    "Slice": lambda x: run("Slice", x, (0, 1, 0), (-1, 1, -1)),
    "Split": lambda x: run("Split", 2, x, num_split=2)[1],
    "SplitV": lambda x: run("SplitV", x, (1, -1), 1, num_split=2)[1],
    "Unpack": lambda x: run("Pack", run("Unpack", x, num=3, axis=1), axis=2),
    "ConcatV2": lambda x: run("ConcatV2", [x, x], 0),
    "Pad": lambda x: run("Pad", x, ((0, 0), (1, 2), (0, 0))),
    "PadV2": lambda x: run("PadV2", x, ((0, 0), (1, 2), (0, 0)), NONE),
    "MirrorPad": lambda x: run("MirrorPad", x, ((0, 0), (1, 2), (0, 0)), mode="REFLECT"),
    "ReverseV2": lambda x: run("ReverseV2", x, (0, 1)),
    "GatherV2": lambda x: run("GatherV2", x, torch.tensor([[2, 0]]), 1),
    "rows of a batch": lambda x: run("GatherV2", x, x[:, :2, 0].abs().int() % 3, 1, batch_dims=1),
    "GatherNd": lambda x: run("GatherNd", x[0], x[:, :2, :2].abs().int() % 3),
    "OneHot": lambda x: run("OneHot", x.abs().int() % 3, 3, torch.ones(()), NONE),
    "TopKV2": lambda x: run("TopKV2", x, 2)[0],
    "ScatterNd": lambda x: run("ScatterNd", torch.tensor([[1], [0]]), x[0, :2], (3, 4)),
    "UnsortedSegmentSum": lambda x: run("UnsortedSegmentSum", x, x[:, 0, 0].abs().int() % 3, 3),
}


class Case(torch.nn.Module):
    """One function as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = CASES[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def batch(size: int) -> Tensor:
    return torch.randn(size, 3, 4, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("name", CASES)
def test_export(name: str) -> None:
    """A module exported with two examples runs with five."""
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Case(name), (batch(2),), dynamic_shapes=dynamic).module()
    assert torch.equal(exported(batch(5)), CASES[name](batch(5)))


@pytest.mark.parametrize("name", CASES)
def test_compile(name: str) -> None:
    """There is one graph for all batch sizes."""
    torch.compiler.reset()
    compiled = torch.compile(Case(name), fullgraph=True, dynamic=True, backend="eager")
    assert torch.equal(compiled(batch(2)), CASES[name](batch(2)))
    assert torch.equal(compiled(batch(5)), CASES[name](batch(5)))
