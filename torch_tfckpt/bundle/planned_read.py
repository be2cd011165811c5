"""Reads straight into existing tensors: first everything is verified, then the first tensor is changed.

    plan = PlannedRead(pieces, copies, verify=True)
    plan.verify()       # reads all bytes once, into a small buffer, and compares them with their checksums
    plan.read()         # reads them again, into the tensors, and verifies them again

Both reads are from the same open files, and the second one usually finds the bytes in the system's memory. So damage in
a file is found before anything changes, and no memory of the size of the tensors is needed. If the second read fails,
because a file was overwritten or truncated in the meantime or the disk failed, the error lists the tensors that may
have changed.
"""

from collections.abc import Sequence
from typing import Final

import torch

from torch_tfckpt.bundle.pieces import PieceCopy, Pieces
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.text import listed

PartRequest = tuple[str, TensorSlice | None, torch.Tensor]
"""Name of a stored tensor, the slice of it to read (None: all of it), and the tensor to fill."""

_LISTED: Final = 1000  # names of changed tensors in an error


class PlannedRead:
    """A read of several tensors, after all checks except checksums.

    Args:
        copies: The parts of stored pieces to copy.
        verify: Whether the bytes are compared with their checksums.
    """

    def __init__(self, pieces: Pieces, copies: Sequence[PieceCopy], *, verify: bool) -> None:
        self._pieces, self._copies, self._verify = pieces, copies, verify

    def verify(self) -> None:
        """Compare all bytes with their checksums, without keeping them; do nothing if the reader does not verify.

        Raises:
            DataLossError: a checksum or a size is wrong.

        Cost: one read; memory of one chunk per thread.
        """
        if self._verify:
            self._pieces.verify_first(self._copies)

    def read(self) -> None:
        """Fill the tensors. If this fails, a note on the error lists those that may have changed.

        Raises:
            DataLossError: a checksum or a size is wrong.

        Cost: one read; memory of up to 64 MiB, or one stored slice, for tensors with strides and for parts of slices.
        """
        changed: set[str] = set()
        try:
            self._pieces.copy(self._copies, changed)
        except BaseException as error:
            when = "after all of them had been verified" if self._verify else "without verifying them first"
            what = "nothing was changed"
            if changed:
                names = [copy.name for copy in self._copies if copy.name in changed]
                what = f"these may have changed: {listed(list(dict.fromkeys(names)), _LISTED)}"
            error.add_note(f"Raised while values were read straight into their tensors, {when}: {what}")
            raise
