"""HDF5 files for tests, written by h5py: in the layout of Keras, with changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

Change = Callable[[Any], None]
"""Changes the open h5py.File of `keras_weights`."""


def h5py() -> Any:
    """The module h5py, which the package itself does not use; skips without."""
    return pytest.importorskip("h5py", reason="h5py is not installed; TensorFlow brings it")


def keras_weights(path: Path, change: Change = lambda file: None, **options: Any) -> Path:
    """Write the weights of a Sequential model with one Dense layer `fc`, [2, 3], after a change."""
    with h5py().File(path, "w", **options) as file:
        file.create_group("vars").attrs["name"] = "m"
        weights = file.create_group("layers/dense/vars")
        weights.attrs["name"] = "fc"
        weights["0"] = KERNEL
        weights["1"] = np.ones(3, "f4")
        change(file)
    return path


KERNEL: Final = np.arange(6, dtype="f4").reshape(2, 3)
