"""Non-maximum suppression selects the boxes that TensorFlow selects."""

from itertools import product

import numpy as np
import pytest
from op_inputs import Array, Inputs, Results, float32, int32
from op_rows import Row, check, operations, row

INPUTS = Inputs(7)
FIRST = [float32(0.4), float32(0.1)]  # iou_threshold, score_threshold


def boxes(count: int) -> tuple[Array, Array]:
    """Boxes that overlap, some with exchanged corners or without area, and scores with ties."""
    centers, sizes = INPUTS.uniform(count, 2, high=3), INPUTS.uniform(count, 2, low=0.3, high=1)
    found = np.concatenate([centers - sizes, centers + sizes], 1)
    found[::5] = found[::5][:, [2, 3, 0, 1]]
    found[3::7, 2:] = found[3::7, :2]
    return found, np.round(INPUTS.uniform(count), 1).astype(np.float32)


def all_rows() -> list[Row]:
    rows = []
    for count, size in product([1, 12, 40], [0, 3, 50]):
        for threshold in [0.0, 0.3, 0.7, 1.0]:
            rows.append(row("NonMaxSuppressionV2", *boxes(count), int32(size), float32(threshold)))
        rows.append(row("NonMaxSuppression", *boxes(count), int32(size), iou_threshold=0.3))
        rows.append(row("NonMaxSuppressionV3", *boxes(count), int32(size), float32(0.5), float32(0.4)))
        for pad in [False, True]:
            rows.append(row("NonMaxSuppressionV4", *boxes(count), int32(size), *FIRST, pad_to_max_output_size=pad))
            for sigma in [0.0, 0.2, 1.0]:
                rows.append(
                    row(
                        "NonMaxSuppressionV5",
                        *boxes(count),
                        int32(size),
                        *FIRST,
                        float32(sigma),
                        pad_to_max_output_size=pad,
                    )
                )
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    some, scores = boxes(5)
    rows += [
        row("NonMaxSuppressionV3", *empty, int32(3), *FIRST),
        row("NonMaxSuppressionV5", *empty, int32(3), *FIRST, float32(0)),
        row("NonMaxSuppressionV3", some, scores, int32(3), float32(0.5), float32(-np.inf)),
        row("NonMaxSuppressionV3", some, scores, int32(3), float32(0.5), float32(2)),
        row("NonMaxSuppressionV3", some, scores, int32(3), *FIRST, view=True),
        row("NonMaxSuppressionV3", some, scores, int32(3), float32(1.5), float32(0)),
        row("NonMaxSuppressionV3", some, scores[:4], int32(3), *FIRST),
        row("NonMaxSuppressionV3", some[:, :3], scores, int32(3), *FIRST),
        row("NonMaxSuppressionV5", some, scores, int32(3), *FIRST, float32(-1)),
    ]
    return [each._replace(gradients=False) for each in rows]


ROWS = all_rows()


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)
