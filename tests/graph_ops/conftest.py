"""Tables of operations: a test file has `ROWS`, which TensorFlow computes in one call."""

import pytest
from op_inputs import Results
from op_rows import compute
from tensorflow_process import TensorFlowProcess


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tensorflow: TensorFlowProcess) -> Results:
    """What TensorFlow computes for the module's ROWS, by operation."""
    return compute(tensorflow, request.module.ROWS)
