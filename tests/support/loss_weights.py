"""The weights of a loss that tests compute in torch and in TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def weights(shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Different numbers for neighbouring elements, so that wrong places in a gradient are seen."""
    count = int(np.prod(shape))
    return (np.arange(count, dtype=np.float64) % 7 - 2.5).reshape(shape)
