"""Hash functions give TensorFlow's buckets, for strings of all lengths around the bounds of each algorithm."""

import numpy as np
import pytest
from op_inputs import Results
from op_inputs import strings as s
from op_rows import check, operations, row

RANDOM = np.random.default_rng(5)
LENGTHS = [*range(0, 140), 191, 192, 193, 255, 256, 257, 1000, 4096]
TEXTS = np.array([RANDOM.integers(0, 256, size, dtype=np.uint8).tobytes() for size in LENGTHS], dtype=object)
LARGE = (1 << 63) - 1


ROWS = [
    *(
        row("StringToHashBucketFast", texts, num_buckets=count)
        for texts in (TEXTS, TEXTS[:12].reshape(3, 4), s(b"abc"), s([]))
        for count in (1, 10, 1 << 20, LARGE)
    ),
    *(
        row("StringToHashBucketStrong", TEXTS, num_buckets=count, key=key)
        for count in (1, 7, LARGE)
        for key in ([0, 0], [1, 2], [-1, LARGE])
    ),
    row("StringToHashBucketStrong", s([b"a"]), num_buckets=5, key=[1]),
    *(row("StringToHashBucket", TEXTS, num_buckets=count) for count in (1, 10, LARGE)),
    row("StringToHashBucket", s([[b"a", b"b"]]), num_buckets=100),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Equal to TensorFlow."""
    check(name, results)
