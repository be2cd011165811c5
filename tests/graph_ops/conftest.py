"""Tables of operations: a test file has `ROWS`, which TensorFlow computes in one call."""

from collections.abc import Mapping, Sequence

import pytest
from op_rows import Computed, Row, compute
from tensorflow_process import TensorFlowProcess


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tensorflow: TensorFlowProcess
) -> Mapping[str, Sequence[tuple[Row, Computed]]]:
    """What TensorFlow computes for the module's ROWS, by operation."""
    return compute(tensorflow, request.module.ROWS)
