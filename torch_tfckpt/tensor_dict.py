"""Read and write a dictionary of tensors in one call, like safetensors.torch: `load_file` and `save_file`."""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

import torch

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.calls import calls_of, taking_part
from torch_tfckpt.distributed.comparison import Entry
from torch_tfckpt.distributed.rank_save import RankSave
from torch_tfckpt.distributed.ranks import Ranks
from torch_tfckpt.distributed.reading import is_split, part_of, read_part
from torch_tfckpt.distributed.shards import check_storable, is_dtensor, like_dtensor
from torch_tfckpt.dtypes import cast_counted, check_convertible, is_holdable
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.file_kind import refuse_other_ending
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, listed, quoted
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.transfer.uploads import assign
from torch_tfckpt.values import LoadedValue, WritableValue, outside_modes, value_dtype

_log = logging.getLogger(__name__)
_NAMED: Final = 8  # number of tensors named in a warning


@outside_modes
def load_file(
    path: AnyPath,
    *,
    device: str | torch.device = "cpu",
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    mmap: bool = False,
    verify: bool = True,
    like: Mapping[str, torch.Tensor] | None = None,
    storage: Storage | None = None,
) -> dict[str, LoadedValue]:
    """Load a checkpoint, or some of its tensors, into a dictionary.

    Args:
        path: Any path that CheckpointReader accepts: a prefix, a file of the checkpoint, or its directory.
        device: Device of the returned tensors.
        names: Names of the tensors to load. None loads all that torch or numpy can represent; a logged
            warning names the others (variants, resources).
        dtype: Floating-point dtype to convert floating-point tensors to; other tensors are not converted. A logged
            warning names tensors with values beyond its range. None keeps the stored dtypes.
        mmap: Return tensors that are views of the mapped file, without copying. Changes to them are not written to the
            file. Tensors whose bytes are misaligned or big-endian are copied.
        verify: Compare all bytes read with their checksums. With `mmap` this reads the whole file once.
        like: Name -> a tensor of the stored shape and dtype, such as model.state_dict(). Only these are loaded, as new
            tensors on the same devices (in host memory for the meta device). A DTensor gives a DTensor that is
            spread over the ranks in the same way; each rank reads its own part, and nothing is communicated. None of
            `device`, `names`, `dtype` and `mmap` may be given.
        storage: Where files are stored; None chooses by the path.

    Returns:
        Name -> tensor, in the order of `names`, or sorted by name. Strings are numpy arrays of `bytes` objects.

    Raises:
        NotFoundError: there is no such checkpoint or tensor, or a data file is missing.
        InvalidArgumentError: `dtype`, `names`, `device` or `like` is not valid, a tensor of `like` has another shape or
            dtype than the stored one, or a directory holds several checkpoints and no `checkpoint` file.
        DataLossError: the checkpoint is damaged, or the file is of a different kind, which the message names.
        UnimplementedError: one of `names` has a dtype that torch does not have.

    Cost: one read of the bytes; with `mmap=True, verify=False`, nothing is read until a tensor is used. A rank that
    needs a part of a tensor reads only these bytes with `verify=False`, and otherwise all stored pieces that it is in.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> tfckpt.save_file({"w": torch.ones(2), "step": torch.tensor(7)}, "model.ckpt-7")
        'model.ckpt-7'
        >>> tfckpt.load_file("model.ckpt-7")
        {'step': tensor(7), 'w': tensor([1., 1.])}
        >>> tfckpt.load_file("model.ckpt-7", names=["w"], dtype=torch.bfloat16)
        {'w': tensor([1., 1.], dtype=torch.bfloat16)}
        >>> tfckpt.load_file("model.ckpt-7", like={"step": torch.tensor(0)})
        {'step': tensor(7)}
    """
    if like is not None:
        if device != "cpu" or names is not None or dtype is not None or mmap:
            raise InvalidArgumentError(
                "load_file: `like` determines the names, devices and dtypes. Omit device, names, dtype and mmap"
            )
        _check_templates(like)
        with CheckpointReader(path, verify=verify, storage=storage) as reader:
            return _read_like(reader, like)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidArgumentError(f"dtype={dtype}: pass a floating-point torch dtype, such as torch.bfloat16, or None")
    if dtype is not None:
        check_convertible(dtype)
    if isinstance(names, str):
        raise InvalidArgumentError(f"names={quoted(names)} is a single string; pass a list of names")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        finding = str(error) if isinstance(device, str) else f"is a {type(device).__name__}, not a device"
        raise InvalidArgumentError(f"device={device}: {finding}. Pass a torch.device or its name") from error
    _check_usable(device, target)
    with CheckpointReader(path, verify=verify, storage=storage) as reader:
        wanted = _holdable(reader) if names is None else list(names)
        values = reader.map_tensors(wanted) if mmap else reader.get_tensors(wanted)
    if dtype is not None:
        values = _cast(values, dtype, reader.path)
    return values if target.type == "cpu" else {name: _placed(value, target) for name, value in values.items()}


@outside_modes
def save_file(
    tensors: Mapping[str, WritableValue],
    prefix: AnyPath,
    *,
    ranks: Ranks | None = None,
    storage: Storage | None = None,
) -> str:
    """Write a dictionary of tensors as one TensorFlow checkpoint of version 2 with one data file.

    Args:
        tensors: Name -> tensor on any device and with any strides, numeric array, or strings (str, bytes, arrays of
            them). Tensors that share memory are each written in full.
        prefix: Path of the checkpoint: the files are `prefix.index` and `prefix.data-00000-of-00001`. Missing
            directories are created. A name with the extension of another format (.safetensors, .pt, .pth, .bin,
            .npz, .npy, .h5, .hdf5, .keras, .tflite, .onnx, .pkl, .pickle, .zip) is refused.
        ranks: The ranks of a program that write the checkpoint together, each its part: of DTensors what it holds, of
            all other values some. The dictionaries must have the same names on all ranks. There is one data file for
            each rank that has something to write. None: this process writes everything.
        storage: Where files are stored; None chooses by the path.

    Returns:
        The prefix.

    Raises:
        InvalidArgumentError: `prefix` has the extension of another format, or a name or value cannot be stored.
        UnimplementedError: TensorFlow has no such dtype.
        IncompleteSaveError: a write failed.

    On any error, an earlier checkpoint under the prefix is intact and nothing of the new one remains. The bytes are
    those that tf.train.Saver would write: sorted by name, unaligned. They are on disk when this returns.

    Cost: one write of the bytes; host copies of tensors on devices: 64 MiB at a time, or the largest tensor.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> tfckpt.save_file({"w": torch.ones(2), "vocabulary": ["a", "b"]}, "model.ckpt-1")
        'model.ckpt-1'
        >>> tfckpt.list_variables("model.ckpt-1")
        [('vocabulary', [2]), ('w', [2])]
    """
    calls = calls_of(ranks)
    with taking_part(calls, "save"):
        target = fspath(prefix)
        refuse_other_ending(target, "save_file")
    if calls is not None:
        with calls.taking_part("save"):
            entries = [Entry(name, tensors[name]) for name in sorted(tensors, key=key_of)]
        commit, place = calls.begin("save", target), storage or storage_of(target)
        note = {"state_file": None, "timeout": calls.timeout}
        return RankSave(calls, commit, place, target, entries, Staging(), snapshot=False, note=note).finish()
    with BundleWriter(storage or storage_of(target), target) as writer:
        writer.add_all((name, tensors[name]) for name in sorted(tensors, key=key_of))
    return target


def _check_templates(like: object) -> None:
    if not isinstance(like, Mapping):
        raise InvalidArgumentError(f"like: {type(like).__name__} is not a dict of tensors. Pass model.state_dict()")
    for name, template in like.items():
        if not isinstance(template, torch.Tensor):
            raise InvalidArgumentError(
                f"like: the value of {quoted(str(name))} is a {type(template).__name__}, not a tensor. Omit it, or "
                f"restore the object with a Saver"
            )


def _read_like(reader: CheckpointReader, like: Mapping[str, torch.Tensor]) -> dict[str, LoadedValue]:
    """Return the tensors that are named in `like`, each spread like the one there."""
    for name, template in like.items():
        stored, shape = reader.dtype(name), reader.shape(name)
        check_storable(name, template, meta=True)
        if not is_holdable(stored) or stored == DataType.DT_STRING or value_dtype(name, stored) != template.dtype:
            raise InvalidArgumentError(
                f"{reader.path}: tensor {quoted(name)} is stored as {stored.name}, but `like` has {template.dtype}. "
                f"Pass a tensor of the stored dtype, and convert the result"
            )
        if shape != tuple(template.shape):
            raise InvalidArgumentError(
                f"{reader.path}: tensor {quoted(name)} is stored with shape {shape_text(shape)}, but `like` has "
                f"{shape_text(template.shape)}. Pass a tensor of the stored shape"
            )
    wholes = reader.get_tensors([name for name, template in like.items() if not is_split(reader, name, template)])
    found: dict[str, LoadedValue] = {}
    for name, template in like.items():
        if is_dtensor(template):
            value: LoadedValue = wholes[name] if name in wholes else read_part(reader, name, template)
            found[name] = like_dtensor(template, part_of(name, value, template))
        else:
            here = template.device.type in ("cpu", "meta")
            found[name] = wholes[name] if here else _placed(wholes[name], template.device)
    return found


def _holdable(reader: CheckpointReader) -> list[str]:
    """Return the names of all tensors that torch or numpy can represent; log a warning about the others."""
    held: list[str] = []
    left_out: list[str] = []
    for name in reader:
        (held if is_holdable(reader.dtype(name)) else left_out).append(name)
    if left_out:
        listed = ", ".join(f"{quoted(name)} ({reader.dtype(name).name})" for name in left_out)
        _log.warning("%s: tensors omitted, because torch does not have their dtypes: %s", reader.path, listed)
    return held


def _cast(values: dict[str, LoadedValue], dtype: torch.dtype, place: str) -> dict[str, LoadedValue]:
    """Return the values, floating-point tensors as `dtype`; log a warning about values beyond its range."""
    cast: dict[str, LoadedValue] = {}
    lost: list[str] = []
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype:
            value, loss = cast_counted(value, dtype)
            if loss.beyond:
                lost.append(f"{quoted(name)} ({counted(loss.beyond, 'value')}, largest {loss.largest:.9g})")
        cast[name] = value
    if lost:
        limit = torch.finfo(dtype).max
        _log.warning(
            "%s: values beyond the range of %s, whose largest number is %.9g, were not kept: %s",
            place, dtype, limit, listed(lost, _NAMED, str),
        )  # fmt: skip
    return cast


def _check_usable(given: torch.device | str, device: torch.device) -> None:
    """Raise InvalidArgumentError, before anything is read, unless tensors can be on the device."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError(f"device={given}: CUDA is not available in this process. Pass device='cpu'")
    try:
        torch.empty(0, device=device)
    except Exception as error:  # each device has its own kind of error
        finding = str(error).partition("\n")[0]
        raise InvalidArgumentError(
            f"device={given}: not available in this process: {type(error).__name__}: {finding:.200}. Pass device='cpu'"
        ) from error


def _placed(value: LoadedValue, device: torch.device) -> LoadedValue:
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_like(value, device=device)
    assign(made, value)
    return made
