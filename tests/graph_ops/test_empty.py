"""Tensors with several axes of size 0, and operations along an axis of size 0, give what TensorFlow gives."""

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results, int64, strings
from op_inputs import int32 as i
from op_rows import check, operations, row, undefined

normal = Inputs(11).normal


def none(*shape: int) -> Array:
    """Return indices: as many zeros as the shape has."""
    return np.zeros(shape, np.int32)


# Both axes are empty, the one that the operation works along, the other one, and neither of two.
SHAPES = [(0, 0), (0, 3), (3, 0), (0, 0, 2), (2, 0, 0), (0, 2, 0)]
REDUCTIONS = ["Sum", "Prod", "Mean", "Max", "Min", "EuclideanNorm"]
SEGMENTS = ["SegmentSum", "SegmentMean", "SegmentProd", "SegmentMax", "SegmentMin"]
UNSORTED = ["UnsortedSegmentSum", "UnsortedSegmentProd", "UnsortedSegmentMax", "UnsortedSegmentMin"]
SPARSE = ["SparseSegmentSum", "SparseSegmentMean", "SparseSegmentSqrtN"]
IMAGES = [(0, 4, 4, 2), (1, 4, 4, 0), (0, 4, 4, 0), (1, 0, 4, 2), (0, 0, 4, 2), (1, 0, 0, 0)]

ROWS = [
    # Gathers: an index into an axis of size 0 is an error, unless there is nothing to read.
    *(
        row("GatherV2", normal(*shape), indices, i(axis), gradients=False)
        for shape in SHAPES
        for axis in (0, 1)
        for indices in (none(0), none(2), none(0, 2), i(0), i([7]), i([-1]))
    ),
    *(row("Gather", normal(*shape), indices, gradients=False) for shape in SHAPES for indices in (none(0), none(2))),
    *(
        row("GatherV2", normal(*shape), none(*indices), i(axis), batch_dims=same, gradients=False)
        for shape, indices, axis, same in (
            ((2, 0, 0), (2, 3), 1, 1),
            ((2, 0, 3), (2, 3), 1, 1),
            ((0, 0, 3), (0, 3), 1, 1),
            ((0, 4, 3), (0, 3), 1, 1),
            ((2, 4, 0), (2, 3), 1, 1),
            ((2, 4, 0), (2, 0), 1, 1),
            ((2, 0, 4), (2, 3), 2, 1),
            ((2, 0, 0), (2, 3), 2, 1),
            ((0, 2, 0), (0, 2, 3), 2, 2),
        )
    ),
    *(
        row("ResourceGather", normal(*shape), indices, dtype=torch.float32, gradients=False)
        for shape in SHAPES
        for indices in (none(0), none(2), i([7]), i([-1]))
    ),
    *(
        row("GatherNd", normal(*shape), indices, gradients=False)
        for shape in SHAPES
        for indices in (none(0, 1), none(2, 1), none(0, 2), none(2, 2), none(2, 0), none(0, 0), none(0))
    ),
    *(
        row("GatherNd", normal(*shape), none(2, 1), bad_indices_policy="IGNORE", gradients=False)
        for shape in ((0, 0), (0, 3), (3, 0))
    ),
    # Positions along an axis.
    *(
        row("ReverseSequence", normal(*shape), none(shape[batch]), seq_dim=along, batch_dim=batch)
        for shape in SHAPES
        for along, batch in ((0, 1), (1, 0))
    ),
    *(row("ReverseV2", normal(*shape), i(axes)) for shape in SHAPES for axes in ([0], [1], [0, 1], [])),
    *(row("TopKV2", normal(*shape), i(k), gradients=False) for shape in SHAPES for k in (0, 1)),
    *(row("InTopKV2", normal(*shape), none(shape[0]), i(1), gradients=False) for shape in SHAPES[:3]),
    *(
        row(op, normal(*shape), i(axis), gradients=False)
        for op in ("ArgMax", "ArgMin")
        for shape in SHAPES
        for axis in (0, 1)
    ),
    *(
        row("OneHot", none(*shape), i(depth), np.float32(1), np.float32(0), axis=axis)
        for shape in ((0,), (0, 0), (2, 0), (2,))
        for depth in (0, 3)
        for axis in (-1, 0)
    ),
    # Padding.
    *(row("Pad", normal(*shape), i([[1, 2]] * len(shape))) for shape in SHAPES),
    *(row("Pad", normal(*shape), i([[0, 0]] * len(shape))) for shape in SHAPES),
    *(row("PadV2", normal(*shape), i([[0, 1]] * len(shape)), np.float32(7)) for shape in SHAPES),
    *(
        row("MirrorPad", normal(*shape), i([[size, size]] * len(shape)), mode=mode, gradients=False)
        for shape in ((0, 0), (0, 3), (3, 0))
        for size in (0, 1)
        for mode in ("REFLECT", "SYMMETRIC")
    ),
    *(
        row("MirrorPad", normal(0, 3), i([[0, 0], [1, 1]]), mode=mode, gradients=False)
        for mode in ("REFLECT", "SYMMETRIC")
    ),
    # Writing.
    *(
        row("ScatterNd", none(*indices), normal(*updates), i(shape))
        for indices, updates, shape in (
            ((0, 1), (0,), [0]),
            ((0, 1), (0, 3), [0, 3]),
            ((0, 1), (0, 0), [0, 0]),
            ((2, 1), (2, 0), [0, 0]),
            ((2, 1), (2, 0), [4, 0]),
            ((2, 1), (2, 3), [0, 3]),
            ((2, 2), (2,), [0, 0]),
            ((0, 2), (0,), [4, 0]),
        )
    ),
    *(
        row(op, normal(*shape), none(*indices), normal(*updates))
        for op in ("TensorScatterUpdate", "TensorScatterAdd", "TensorScatterMax", "TensorScatterMin")
        for shape, indices, updates in (
            ((0, 0), (0, 1), (0, 0)),
            ((0, 3), (0, 1), (0, 3)),
            ((3, 0), (2, 1), (2, 0)),
            ((0, 0), (2, 1), (2, 0)),
            ((0, 3), (2, 1), (2, 3)),
        )
    ),
    # Segments.
    *(row(op, normal(*shape), none(shape[0])) for op in SEGMENTS for shape in SHAPES),
    *(
        row(op, normal(*shape), none(shape[0]), i(count))
        for op in UNSORTED
        for shape in SHAPES
        for count in (0, 2)
        if shape[0] == 0 or count
    ),
    *(
        row(op, normal(*shape), none(count), none(count), gradients=False)
        for op in SPARSE
        for shape in SHAPES
        for count in (0, 2)
    ),
    *(
        row(f"{op}WithNumSegments", normal(*shape), none(0), none(0), i(2), gradients=False)
        for op in SPARSE
        for shape in SHAPES
    ),
    row("Bincount", none(0), i(0), normal(0), gradients=False),
    row("DenseBincount", none(0), i(0), normal(0), gradients=False),
    row("DenseBincount", none(0, 0), i(3), normal(0), gradients=False),
    row("DenseBincount", none(2, 0), i(0), normal(0), gradients=False),
    # Sums.
    *(
        row(op, normal(*shape), i(axis), exclusive=exclusive, reverse=exclusive)
        for op in ("Cumsum", "Cumprod")
        for shape in SHAPES
        for axis in (0, -1)
        for exclusive in (False, True)
    ),
    *(row("CumulativeLogsumexp", normal(*shape), i(axis)) for shape in SHAPES for axis in (0, -1)),
    *(
        row(op, normal(*shape), i(axes), keep_dims=keep)
        for op in REDUCTIONS
        for shape in SHAPES
        for axes in ([0], [1], [0, 1], [])
        for keep in (False, True)
    ),
    *(
        row(op, np.zeros(shape, bool), i(axes))
        for op in ("All", "Any")
        for shape in SHAPES
        for axes in ([0], [1], [0, 1])
    ),
    *(row(op, normal(*shape)) for op in ("Softmax", "LogSoftmax", "L2Loss") for shape in SHAPES),
    # Products.
    *(
        row("MatMul", normal(*first), normal(*second))
        for first, second in (((0, 0), (0, 0)), ((0, 3), (3, 0)), ((3, 0), (0, 2)), ((0, 0), (0, 2)), ((2, 0), (0, 0)))
    ),
    *(
        row("BatchMatMulV2", normal(*first), normal(*second))
        for first, second in (
            ((0, 2, 0), (0, 0, 3)),
            ((2, 0, 0), (2, 0, 3)),
            ((0, 2, 3), (1, 3, 0)),
            ((2, 2, 0), (1, 0, 3)),
        )
    ),
    *(row("MatrixDiagV3", normal(*shape), i(0), i(-1), i(-1), np.float32(0)) for shape in ((0,), (0, 0), (2, 0))),
    *(row("MatrixDiagPartV3", normal(*shape), i(0), np.float32(0)) for shape in SHAPES),
    *(row("MatrixBandPart", normal(*shape), i(0), i(0)) for shape in SHAPES),
    *(row("Diag", normal(*shape)) for shape in ((0,), (0, 0), (2, 0))),
    # Windows.
    *(
        row(
            "Conv2D",
            normal(*shape),
            normal(2, 2, shape[3], out),
            strides=[1, 1, 1, 1],
            padding=padding,
            gradients=shape[1] > 0,  # otherwise TensorFlow's gradient of the filter is uninitialised
        )
        for shape in [*IMAGES, (1, 4, 4, 2)]
        for out in (0, 3)
        for padding in ("SAME", "VALID")
    ),
    *(
        row(
            "DepthwiseConv2dNative",
            normal(*shape),
            normal(2, 2, shape[3], out),
            strides=[1, 1, 1, 1],
            padding=padding,
            gradients=False,  # TensorFlow's gradient of the filter is uninitialised
        )
        for shape in [*IMAGES, (1, 4, 4, 2)]
        for out in (0, 2)
        for padding in ("SAME", "VALID")
    ),
    *(
        row(
            "Conv2DBackpropInput",
            i(shape),
            normal(2, 2, shape[3], 3),
            normal(*shape[:3], 3),
            strides=[1, 1, 1, 1],
            padding="SAME",
            gradients=False,
        )
        for shape in IMAGES
    ),
    *(
        row(
            "Conv3D",
            normal(*shape),
            normal(2, 2, 2, shape[4], 3),
            strides=[1] * 5,
            padding=padding,
        )
        for shape in ((0, 3, 3, 3, 2), (1, 3, 3, 3, 0), (0, 3, 3, 3, 0), (1, 0, 3, 3, 2))
        for padding in ("SAME", "VALID")
    ),
    *(
        row(op, normal(*shape), ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding=padding)
        for op, shapes in (("MaxPool", IMAGES), ("AvgPool", IMAGES))
        for shape in shapes
        for padding in ("SAME", "VALID")
    ),
    *(
        row(op, normal(*shape), ksize=[1, 2, 2, 2, 1], strides=[1, 2, 2, 2, 1], padding="VALID")
        for op in ("MaxPool3D", "AvgPool3D")
        for shape in ((0, 3, 3, 3, 2), (1, 3, 3, 3, 0), (0, 3, 3, 3, 0))
    ),
    *(
        row(op, normal(*shape), i([5, 6]))
        for op in ("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic")
        for shape in IMAGES
    ),
    *(row("SpaceToDepth", normal(*shape), block_size=2) for shape in IMAGES),
    *(row("DepthToSpace", normal(*shape), block_size=2) for shape in ((0, 2, 2, 4), (1, 2, 2, 0), (0, 2, 2, 0))),
    *(row("SpaceToBatchND", normal(*shape), i([2, 2]), none(2, 2)) for shape in IMAGES),
    *(
        row(
            "ExtractImagePatches",
            normal(*shape),
            ksizes=[1, 2, 2, 1],
            strides=[1, 1, 1, 1],
            rates=[1, 1, 1, 1],
            padding="VALID",
            gradients=False,
        )
        for shape in IMAGES[:3]
    ),
    *(row("BiasAdd", normal(*shape), normal(shape[-1])) for shape in SHAPES),
    *(row("LRN", normal(*shape)) for shape in IMAGES[:3]),
    *(
        undefined(
            row(
                "FusedBatchNormV3",
                normal(*shape),
                normal(shape[3]),
                normal(shape[3]),
                normal(shape[3]),
                np.abs(normal(shape[3])),
                is_training=is_training,
                gradients=False,
            ),
            3,
            4,
        )
        for shape in IMAGES
        for is_training in (False, True)
    ),
    # Shapes.
    *(row("Reshape", normal(*shape), i(to)) for shape in SHAPES[:3] for to in ([-1], [0, -1], [0], [0, 5], [2, -1])),
    *(row("Tile", normal(*shape), i([2] * len(shape))) for shape in SHAPES),
    *(row("Tile", normal(2, 3), i(count)) for count in ([0, 0], [0, 2], [2, 0])),
    *(row("BroadcastTo", normal(*shape), i([0, 0, 0])) for shape in ((0, 0), (1, 0), (1, 1), (0, 1, 0))),
    *(row("Transpose", normal(*shape), i(range(len(shape))[::-1])) for shape in SHAPES),
    *(row("Pack", [normal(*shape)] * 2, axis=1) for shape in SHAPES),
    *(row("ConcatV2", [normal(*shape)] * 2, i(axis)) for shape in SHAPES for axis in (0, 1)),
    *(row("Split", i(axis), normal(*shape), num_split=2) for shape in SHAPES for axis in (0, 1)),
    *(row("Unpack", normal(*shape), num=shape[0], axis=0) for shape in SHAPES if shape[0]),
    *(row("Where", np.zeros(shape, bool)) for shape in SHAPES),
    *(row("Unique", none(0)) for _ in "1"),
    *(row("SelectV2", np.zeros(shape, bool), normal(*shape), normal(1)) for shape in SHAPES),
    *(row("Select", np.zeros(shape[0], bool), normal(*shape), normal(*shape)) for shape in SHAPES),
    *(
        row("StridedSlice", normal(*shape), i([0, 0]), i([5, 5]), i([step, step]))
        for shape in SHAPES
        for step in (1, -1)
    ),
    *(row("Roll", normal(*shape), i([1, 1]), i([0, 1])) for shape in SHAPES),
    *(row("SparseSoftmaxCrossEntropyWithLogits", normal(*shape), none(shape[0])) for shape in SHAPES[:3]),
    *(row("SoftmaxCrossEntropyWithLogits", normal(*shape), normal(*shape)) for shape in SHAPES[:3]),
    *(
        row("NonMaxSuppressionV3", normal(0, 4), normal(0), i(size), np.float32(0.5), np.float32(0), gradients=False)
        for size in (0, 2)
    ),
    *(
        row("CropAndResize", normal(*image), normal(count, 4), none(count), i([2, 2]), gradients=False)
        for image, count in (((1, 4, 4, 2), 0), ((1, 4, 4, 0), 2), ((0, 4, 4, 2), 0), ((0, 4, 4, 2), 2))
    ),
    *(row("Einsum", [normal(*a), normal(*b)], equation="ij,jk->ik") for a, b in (((0, 0), (0, 0)), ((2, 0), (0, 3)))),
    # Other operations along axes. Gradients of some are not defined without elements.
    *(
        row(op, normal(*shape), gradients=False)
        for op in ("Cholesky", "MatrixInverse", "MatrixDeterminant", "LogMatrixDeterminant", "Qr", "Svd")
        for shape in ((0, 0), (2, 0, 0), (0, 3, 3), (0, 0, 0))
    ),
    *(row("SelfAdjointEigV2", normal(*shape), gradients=False) for shape in ((0, 0), (2, 0, 0), (0, 3, 3))),
    *(
        row(op, normal(*first), normal(*second), gradients=False)
        for op in ("MatrixSolve", "MatrixTriangularSolve")
        for first, second in (((0, 0), (0, 2)), ((0, 3, 3), (0, 3, 1)), ((2, 0, 0), (2, 0, 0)))
    ),
    *(row("MatrixSetDiagV3", normal(*shape), normal(*shape[:-2], 0), i(0), gradients=False) for shape in SHAPES),
    *(row("MatrixDiag", normal(*shape)) for shape in ((0,), (0, 0), (2, 0), (0, 2))),
    *(row("Cross", normal(*shape), normal(*shape)) for shape in ((0, 3), (0, 0, 3), (2, 0, 3))),
    *(
        row(op, torch.zeros(shape, dtype=torch.complex64), gradients=False)
        for op in ("FFT", "IFFT")
        for shape in ((0,), (0, 0), (0, 4), (3, 0))
    ),
    # Without elements but with a result, TensorFlow's is uninitialised.
    *(
        row("RFFT", normal(*shape), i([length]), gradients=False)
        for shape, length in (((0, 0), 4), ((0, 4), 4), ((0,), 0), ((3, 0), 0))
    ),
    *(
        row("IRFFT", torch.zeros(shape, dtype=torch.complex64), i([length]), gradients=False)
        for shape, length in (((0, 0), 4), ((0, 4), 4), ((0,), 0), ((3, 0), 0))
    ),
    *(
        row("RFFT2D", normal(*shape), i(lengths), gradients=False)
        for shape, lengths in (((0, 4, 4), [4, 4]), ((2, 0, 4), [0, 4]), ((0, 2, 0), [4, 4]))
    ),
    *(
        row("BatchToSpaceND", normal(*shape), i([2, 2]), none(2, 2))
        for shape in ((0, 2, 2, 3), (4, 0, 2, 3), (4, 2, 2, 0), (0, 0, 2, 0))
    ),
    *(row("BatchToSpaceND", normal(4, 1, 1, 2), i([2, 2]), i([[1, 1], [0, 2]])) for _ in "1"),
    *(
        row(
            "MaxPoolWithArgmax",
            normal(*shape),
            ksize=[1, 2, 2, 1],
            strides=[1, 2, 2, 1],
            padding=padding,
            gradients=False,
        )
        for shape in IMAGES
        for padding in ("SAME", "VALID")
    ),
    *(
        row(
            "Dilation2D",
            normal(*shape),
            normal(2, 2, shape[3]),
            strides=[1, 1, 1, 1],
            rates=[1, 1, 1, 1],
            padding="VALID",
            gradients=False,
        )
        for shape in IMAGES[:3]
    ),
    *(row("DynamicPartition", normal(*shape), none(shape[0]), num_partitions=2, gradients=False) for shape in SHAPES),
    *(
        row("DynamicStitch", [none(*indices)], [normal(*indices, *rest)], gradients=False)
        for indices, rest in (((0,), ()), ((0,), (0,)), ((0,), (3,)), ((2,), (0,)), ((0, 2), (0,)))
    ),
    *(
        row("SparseToDense", none(0, len(shape)), i(shape), normal(0), np.float32(3), gradients=False)
        for shape in ((0,), (0, 0), (0, 3), (2, 2))
    ),
    *(
        row(
            "SparseTensorDenseMatMul",
            np.zeros((0, 2), np.int64),
            normal(0),
            int64(shape),
            normal(shape[1], width),
            gradients=False,
        )
        for shape in ((0, 0), (0, 3), (3, 0), (2, 2))
        for width in (0, 2)
    ),
    *(row("SparseReshape", np.zeros((0, 2), np.int64), int64([0, 0]), int64(to)) for to in ([0], [-1], [0, 5])),
    *(
        row(
            "SparseFillEmptyRows",
            np.zeros((0, 2), np.int64),
            normal(0),
            int64(shape),
            np.float32(1),
            gradients=False,
        )
        for shape in ((0, 0), (0, 3), (3, 0))
    ),
    *(row("SplitV", normal(*shape), i([0, 0]), i(0), num_split=2) for shape in ((0, 0), (0, 3))),
    *(row("Slice", normal(*shape), none(len(shape)), i([0] * len(shape))) for shape in SHAPES),
    *(row("Squeeze", normal(*shape), axis=[]) for shape in ((0, 1), (1, 0), (0, 0), (1, 1, 0))),
    *(row("UniqueV2", normal(*shape), i([axis]), gradients=False) for shape in ((0, 0), (0, 3)) for axis in (0,)),
    row("UniqueV2", normal(0), none(0), gradients=False),
    row("UniqueWithCounts", none(0)),
    row("ListDiff", none(0), none(0)),
    row("InvertPermutation", none(0)),
    row("LinSpace", np.float32(1), np.float32(2), i(0), gradients=False),
    row("Range", i(3), i(3), i(1)),
    row("Range", i(3), i(1), i(1)),
    row("BroadcastGradientArgs", none(0), none(0)),
    *(row("Fill", i(shape), np.float32(1), gradients=False) for shape in ([0], [0, 0], [0, 5], [])),
    *(
        row(op, normal(*shape), normal(*other), gradients=False)
        for op in ("LowerBound", "UpperBound")
        for shape, other in (((0, 0), (0, 0)), ((0, 3), (0, 0)), ((2, 0), (2, 3)), ((2, 3), (2, 0)))
    ),
    *(row("Bucketize", normal(*shape), boundaries=[], gradients=False) for shape in ((0, 0), (2,))),
    *(
        row(op, normal(*first), normal(*second))
        for op in ("AddV2", "Maximum", "Pow", "SquaredDifference")
        for first, second in (((0, 0), (1, 0)), ((0, 1), (1, 0)), ((1, 1), (0, 0)), ((0, 3), (3,)), ((0,), (0, 0)))
    ),
    *(row("AddN", [normal(*shape)] * 2) for shape in SHAPES[:3]),
    *(
        row("FakeQuantWithMinMaxVarsPerChannel", normal(*shape), normal(shape[-1]), normal(shape[-1]), gradients=False)
        for shape in ((0, 0), (0, 2))
    ),
    # Strings.
    *(
        row("ReduceJoin", np.zeros(shape, dtype=object), i(axes), keep_dims=keep, separator="-")
        for shape in SHAPES[:4]
        for axes in ([0], [1], [0, 1], [])
        for keep in (False, True)
    ),
    *(
        row("UnsortedSegmentJoin", np.zeros(shape, dtype=object), none(shape[0]), i(count), separator="-")
        for shape in SHAPES[:3]
        for count in (0, 2)
    ),
    *(row("StringSplitV2", strings([]), strings(separator), maxsplit=-1) for separator in (b"", b",")),
    row("StringSplit", strings([]), strings(b","), skip_empty=True),
    row("StringJoin", [np.zeros((0, 0), dtype=object)] * 2, separator="-"),
    row("StringLength", np.zeros((0, 0), dtype=object)),
    row("Substr", np.zeros((0, 0), dtype=object), none(0, 0), none(0, 0)),
    *(
        row("GatherV2", np.zeros(shape, dtype=object), indices, i(axis))
        for shape in SHAPES[:3]
        for indices in (none(0), none(2))
        for axis in (0, 1)
    ),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
