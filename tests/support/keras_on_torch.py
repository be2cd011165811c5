"""Program in which Keras has its torch backend: load_model fills models of tensorflow_keras_twins.py.

    python keras_on_torch.py DIRECTORY MODEL/FORM...

DIRECTORY/MODEL has the files, inputs.npy and outputs.npy.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
import torch
from tensorflow_keras_twins import MODELS

import torch_tfckpt as tfckpt


def load(path: Path) -> None:
    """Load a file into a new model, and require equal outputs."""
    given, wanted = (np.load(path.parent / f"{name}.npy") for name in ("inputs", "outputs"))
    keras.utils.clear_session()
    made = MODELS[path.parent.name]()
    made(given)
    assert isinstance(made, torch.nn.Module)
    report = tfckpt.load_model(made, path)
    assert (report.missing, report.unexpected, report.remarks) == ([], [], []), f"{path}: {report}"
    outputs = keras.ops.convert_to_numpy(made(given, training=False))
    np.testing.assert_allclose(outputs, wanted, atol=1e-5, err_msg=str(path))


if __name__ == "__main__":
    for each in sys.argv[2:]:
        load(Path(sys.argv[1]) / each)
