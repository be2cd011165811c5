"""Dictionaries of tensors, as safetensors.torch has them: `load_file` and `save_file`."""

import logging
from collections.abc import Iterable, Mapping

import torch

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.checkpoint_reader import AnyPath, CheckpointReader
from torch_tfckpt.dtypes import is_holdable
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import quoted
from torch_tfckpt.values import LoadedValue, WritableValue

_log = logging.getLogger(__name__)


def load_file(
    path: AnyPath,
    *,
    device: str | torch.device = "cpu",
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    mmap: bool = False,
    verify: bool = True,
    storage: Storage | None = None,
) -> dict[str, LoadedValue]:
    """Load a checkpoint, or some of its tensors, into a dictionary.

    Args:
        path: Any spelling that CheckpointReader takes.
        device: Where the tensors are wanted.
        names: Which; None takes all that torch or numpy can hold. Those left out then (variants, resources) are named
            in a logged warning.
        dtype: Floating-point tensors are converted to it; integers, booleans and strings are not.
        mmap: Let tensors be views of the file's pages (copies where bytes are misaligned or foreign). Changes to them
            stay private to the process.
        verify: Hold every byte against its checksum. With `mmap` this reads the whole file once.
        storage: Where files are stored; None chooses by the path.

    Returns:
        Name -> tensor; strings as numpy arrays of `bytes`. In the order of `names`, or sorted by name.

    Raises:
        NotFoundError, InvalidArgumentError, DataLossError, UnimplementedError: as CheckpointReader.get_tensor.

    Cost: one read of the bytes; with `mmap=True, verify=False` none until a tensor is used.
    Source: safetensors.torch.load_file for the manners.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidArgumentError(f"dtype={dtype}: pass a floating-point torch dtype, such as torch.bfloat16, or none")
    if isinstance(names, str):
        raise InvalidArgumentError(f"names={quoted(names)} is one name; pass a list of them")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InvalidArgumentError(f"device={device}: {error}") from error
    with CheckpointReader(path, verify=verify, storage=storage) as reader:
        wanted = _holdable(reader) if names is None else list(names)
        values = reader.map_tensors(wanted) if mmap else reader.get_tensors(wanted)
    if target.type == "cpu" and dtype is None:
        return values
    return {name: _placed(value, target, dtype) for name, value in values.items()}


def save_file(tensors: Mapping[str, WritableValue], prefix: AnyPath, *, storage: Storage | None = None) -> str:
    """Write a dictionary as one version 2 checkpoint of one shard.

    Args:
        tensors: Name -> tensor of any device and strides, numeric array, or strings (str, bytes, arrays of them).
            Tensors that share memory are each written out.
        prefix: `prefix.index` and `prefix.data-00000-of-00001` are written. The directory is made if its parent exists.
        storage: Where files are stored; None chooses by the path.

    Returns:
        The prefix.

    Raises:
        InvalidArgumentError, UnimplementedError: a name or value that a checkpoint cannot hold; nothing was written.
        IncompleteSaveError: the system refused a write; nothing was published, an earlier checkpoint is intact.

    The bytes are those that tf.train.Saver would write: sorted by name, unaligned. They are durable when this returns.
    Cost: one write of the bytes; host memory of 64 MiB for tensors on devices, or of the largest one.
    """
    target = fspath(prefix)
    with BundleWriter(storage or storage_of(target), target) as writer:
        for name in sorted(tensors, key=key_of):
            writer.add(name, tensors[name])
    return target


def _holdable(reader: CheckpointReader) -> list[str]:
    """The names of all tensors but those that neither torch nor numpy can hold."""
    held: list[str] = []
    left_out: list[str] = []
    for name in reader:
        (held if is_holdable(reader.dtype(name)) else left_out).append(name)
    if left_out:
        listed = ", ".join(f"{quoted(name)} ({reader.dtype(name).name})" for name in left_out)
        _log.warning("%s: left out, since torch has no such dtype: %s", reader.path, listed)
    return held


def _placed(value: LoadedValue, device: torch.device, dtype: torch.dtype | None) -> LoadedValue:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if dtype is not None and value.is_floating_point() else value.to(device)
