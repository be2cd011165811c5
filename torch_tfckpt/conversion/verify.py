"""Verify the checksums of a stored checkpoint, as `tfckpt verify` does."""

from collections.abc import Callable

from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.foreign_files.formats import format_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable
from torch_tfckpt.values import outside_modes


@outside_modes
def verify(
    path: AnyPath, *, progress: Callable[[int, int], object] | None = None, storage: Storage | None = None
) -> Verification:
    """Read every byte of a TensorFlow checkpoint and verify all checksums.

    Damage is reported in the result and not raised as an error, so that the result can also list undamaged tensors.

    Args:
        path: A TensorFlow checkpoint by any of its names.
        progress: Called with (bytes checked, total bytes).
        storage: Where the files are stored; by default chosen by `path`.

    Raises:
        NotFoundError: there is no checkpoint.
        DataLossError: the index is too damaged to read the names, or it is not an index.
        InvalidArgumentError: the file has a different format, which has no checksums.

    Cost: one read of all files; memory for one chunk per thread, or for one string tensor.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> tfckpt.verify(prefix).ok
        True
    """
    where = fspath(path)
    if storage is None and format_of(where) != "tf":
        raise InvalidArgumentError(
            f"{printable(where)} is not a TensorFlow checkpoint, and other formats have no checksums to verify. "
            f"`tfckpt diff` compares it with the file it was made from"
        )
    with CheckpointReader(where, storage=storage) as reader:
        total = _size(reader) if progress is not None else 0
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress is not None:
                # Not more than `total`: version 1 blocks are read a second time, to check their structure.
                progress(min(done, total), total)

        return reader.check(advance)._replace(path=reader.path)


def _size(reader: CheckpointReader) -> int:
    """Return the total size of the tensors whose entries can be read; the check reports the others."""
    total = 0
    for name in reader.undamaged_keys()[0]:
        try:
            total += reader.nbytes(name)
        except CheckpointError:
            continue
    return total
