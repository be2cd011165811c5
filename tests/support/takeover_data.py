"""The sizes and batches of `tensorflow_takeover`, for both processes."""

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH, INPUTS = 5, 6, 3
SIZE, UNITS, OUTPUTS = 4, 7, 2
_BATCH = 9

Floats = npt.NDArray[np.float32]


def batch(number: int) -> tuple[Floats, Floats]:
    """Return the images [batch, height, width, channels] and the wanted outputs of a step."""
    rng = np.random.default_rng(number)
    images = rng.standard_normal((_BATCH, HEIGHT, WIDTH, INPUTS)).astype(np.float32)
    wanted = np.stack([images.mean((1, 2, 3)), images[:, 1:3].max((1, 2, 3))], 1)
    return images, wanted.astype(np.float32)
