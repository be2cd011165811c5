"""Values of an open checkpoint -> saveables: everything is looked at before the first is assigned.

Source: _AddRestoreOps in tensorflow/python/training/saver.py, RestoreOperation in
tensorflow/core/kernels/save_restore_tensor.cc; spec: SAVER 2, FORMATS 2.5 "RestoreV2 order of checks".
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import numpy as np
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.save_restore.builder import BaseSaverBuilder
from torch_tfckpt.save_restore.object_names import names_of_several, with_keys
from torch_tfckpt.saveables.name_prefixes import prefix_hint
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, group_by_devices, slice_of, specs_of
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, did_you_mean, escaped, listed, printable, quoted

_LISTED: Final = 10  # names that a text enumerates

_log = logging.getLogger(__name__)


def restore_path(
    builder: BaseSaverBuilder,
    path: str,
    variables: VarList,
    *,
    storage: Storage | None,
    reshape: bool,
    sharded: bool,
    restore_sequentially: bool,
) -> str | None:
    """Restores what `variables` has now from the checkpoint at `path`; errors in TensorFlow's words for each cause.

    An object-based checkpoint that lacks the names as keys is read by the names that variables had, with a warning.

    Returns:
        The checkpoint's prefix, or version 1 path; None if it was such an object-based one, which no Saver wrote.

    Raises:
        InvalidArgumentError: there is no such checkpoint; or dtypes or shapes do not fit.
        NotFoundError: a name is not in the checkpoint, or a data file is missing.
        DataLossError: a value is damaged.
    """
    try:
        reader = CheckpointReader(path, storage=storage)
    except NotFoundError as error:
        text = f"The passed save_path is not a valid checkpoint: {printable(path)}. {error}"
        raise InvalidArgumentError(text) from error
    restore = partial(
        restore_saveables, builder, reader, reshape=reshape, sharded=sharded, restore_sequentially=restore_sequentially
    )
    with reader:
        try:
            with _telling_the_likely_cause():
                saveables = variables.to_restore(reader)
                restore(saveables)
        except NotFoundError as error:
            saveables = _by_names_in_graph(reader, variables, error)
        else:
            _log_restored(reader, saveables)
            return reader.files.prefix
        with _telling_the_likely_cause():
            restore(saveables)
        _log_restored(reader, saveables)
        return None


def _log_restored(reader: CheckpointReader, saveables: Sequence[SaveableObject]) -> None:
    _log.info("Restored %s (%s)", reader.path, counted(sum(len(each.specs) for each in saveables), "tensor"))


@contextmanager
def _telling_the_likely_cause() -> Iterator[None]:
    """Puts TensorFlow's words for what has probably happened in front of an error."""
    try:
        yield
    except NotFoundError as error:
        raise NotFoundError(
            "Restoring from checkpoint failed. This is most likely due to a Variable name or other graph key that is "
            f"missing from the checkpoint. Save and restore the same names. Original error:\n\n{error}"
        ) from None
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            "Restoring from checkpoint failed. This is most likely due to a mismatch between the current graph and the "
            f"graph from the checkpoint. Restore into what was saved. Original error:\n\n{error}"
        ) from error


def _by_names_in_graph(reader: CheckpointReader, variables: VarList, error: NotFoundError) -> list[SaveableObject]:
    """What takes values by the names that variables have in the checkpoint's object graph, after a warning.

    Raises `error`, why they could not be taken otherwise, where there is no graph, or all names are there and it is a
    file that is missing; NotFoundError where the graph lacks names too.
    """
    try:
        graph = reader.object_graph
    except NotFoundError:  # the data file that holds it
        graph = None
    if graph is None:
        raise error
    saveables = variables.to_save()
    if all(spec.name in reader for spec in specs_of(saveables)):
        raise error
    found = with_keys(saveables, graph.names_to_keys())
    _log.warning(
        "%s is an object-based checkpoint, and its variables are taken by the names they had when it was written. "
        "That goes wrong where names have changed; tfckpt.Checkpoint goes by objects",
        reader.path,
    )
    several = names_of_several(graph, {spec.name for spec in specs_of(found)})
    if several:
        _log.warning(
            "%s: several variables had these names, and of each the last is taken, as TensorFlow does: %s",
            reader.path,
            listed(several, _LISTED),
        )
    return found


def restore_saveables(
    builder: BaseSaverBuilder,
    reader: CheckpointReader,
    saveables: Sequence[SaveableObject],
    *,
    reshape: bool = False,
    sharded: bool = False,
    restore_sequentially: bool = False,
) -> None:
    """Restores `saveables`.

    Args:
        reshape: Give every value the shape that its tensor has now.
        sharded: Read device by device.
        restore_sequentially: Assign each value before the next is read. That takes the memory of one at a time; where
            a file turns out damaged half way, what came before has its new value, and the error says which.

    Raises:
        NotFoundError, InvalidArgumentError: names, dtypes or shapes do not fit; nothing was assigned.
        DataLossError: a value is damaged. Nothing was assigned, unless `restore_sequentially`.

    Cost: one read of the values; host memory of all of them, or of the largest saveable if `restore_sequentially`.
    """
    shapes = [_restored_shapes(saveable) if reshape else None for saveable in saveables]
    _check(reader, saveables, shapes)
    wanted = dict(zip(map(id, saveables), shapes, strict=True))
    groups = [group for _, group in group_by_devices(saveables)] if sharded else [list(saveables)]
    done: list[str] = []
    if restore_sequentially:
        for shard, group in enumerate(groups):
            for saveable in group:
                with _telling_what_changed(reader, saveable, done):
                    saveable.restore(builder.bulk_restore(reader, [saveable], shard, True), wanted[id(saveable)])
                done.append(saveable.name)
        return
    values = [builder.bulk_restore(reader, group, shard, False) for shard, group in enumerate(groups)]
    for group, of_group in zip(groups, values, strict=True):
        first = 0
        for saveable in group:
            end = first + len(saveable.specs)
            with _telling_what_changed(reader, saveable, done):
                saveable.restore(of_group[first:end], wanted[id(saveable)])
            done.append(saveable.name)
            first = end


@contextmanager
def _telling_what_changed(reader: CheckpointReader, saveable: SaveableObject, done: Sequence[str]) -> Iterator[None]:
    """Adds to an error of the caller's own code where it was; and to all, what has its new values already."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, CheckpointError):
            error.add_note(f"While restoring {quoted(saveable.name)} of {reader.path}")
        if done:
            names = ", ".join(quoted(name) for name in done[-_LISTED:])
            error.add_note(f"Restored before this failed: {len(done)} saveables, the last of them {names}")
        raise


def _restored_shapes(saveable: SaveableObject) -> list[Shape]:
    """The shapes that the specs' tensors have now."""
    values = [spec.tensor for spec in saveable.specs]
    return [tuple(value.shape) if isinstance(value, torch.Tensor | np.ndarray) else () for value in values]


def _check(reader: CheckpointReader, saveables: Sequence[SaveableObject], shapes: Sequence[list[Shape] | None]) -> None:
    """Names first, then the dtypes of all, then shapes: TensorFlow's order."""
    specs = list(specs_of(saveables))
    missing = sorted({spec.name for spec in specs if spec.name not in reader})
    if missing:
        raise NotFoundError(_not_found(reader, missing, {spec.name for spec in specs}))
    unlike = [line for spec in sorted(specs, key=lambda spec: spec.name) if (line := _dtype_mismatch(reader, spec))]
    if unlike:
        lines = "\n".join(unlike)
        raise InvalidArgumentError(f"{reader.path}: {lines}")
    with error_context(reader.path):
        for saveable, restored in zip(saveables, shapes, strict=True):
            saveable.check([_shape_of(reader, spec) for spec in saveable.specs], restored)


def _not_found(reader: CheckpointReader, missing: Sequence[str], wanted: Collection[str]) -> str:
    more = f" Nor are {len(missing) - 1} others: {listed(missing[1:], _LISTED)}." if missing[1:] else ""
    hint = prefix_hint(wanted, reader.keys()) or did_you_mean(missing[0], reader.keys())
    return f"Key {escaped(missing[0])} not found in checkpoint: {reader.path}.{more} {hint}".rstrip()


def _dtype_mismatch(reader: CheckpointReader, spec: SaveSpec) -> str:
    """What RestoreV2 says where a stored type is another than the spec's; empty where it fits."""
    if spec.dtype is None:
        return ""
    stored = reader.dtype(spec.name)
    if stored == spec.dtype or _held_alike(stored, spec.dtype):
        return ""
    return (
        f"tensor_name = {escaped(spec.name)}; expected dtype {spec.dtype.short_name} does not equal original dtype "
        f"{stored.short_name}"
    )


def _held_alike(stored: DataType, wanted: DataType) -> bool:
    """Whether torch holds both in one dtype, as qint8 in int8."""
    one, other = ELEMENTS.get(stored), ELEMENTS.get(wanted)
    return one is not None and other is not None and one.torch is not None and one.torch == other.torch


def _shape_of(reader: CheckpointReader, spec: SaveSpec) -> Shape:
    """Shape of the value that a spec will get."""
    stored = reader.shape(spec.name)
    if not spec.slice_spec:
        return stored
    full_shape, part = slice_of(spec)
    if stored != full_shape:
        raise InvalidArgumentError(
            f"tensor_name = {escaped(spec.name)}; shape in shape_and_slice spec {shape_text(full_shape)} does not "
            f"match the shape stored in checkpoint: {shape_text(stored)}"
        )
    return part.shape_of(full_shape)
