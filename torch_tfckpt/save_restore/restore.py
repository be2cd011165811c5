"""Restore saveables from an open checkpoint: everything is checked and read before the first value is assigned.

Source: _AddRestoreOps in tensorflow/python/training/saver.py, RestoreOperation in
tensorflow/core/kernels/save_restore_tensor.cc.
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

_LISTED: Final = 10  # names that an error lists

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
    """Restore the current contents of `variables` from the checkpoint at `path`; errors have TensorFlow's words.

    If the names are not keys of an object-based checkpoint, they are looked up as names of its variables, with a
    warning.

    Returns:
        The checkpoint's prefix, or version 1 path; None for such an object-based checkpoint, not written by a Saver.

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
    """Put TensorFlow's words for the likely cause after an error."""
    try:
        yield
    except NotFoundError as error:
        cause = "a Variable name or other graph key that is missing from the checkpoint"
        raise NotFoundError(_then_in_its_words(str(error), cause)) from None
    except InvalidArgumentError as error:
        cause = "a mismatch between the current graph and the graph from the checkpoint"
        finding = f"{str(error).rstrip('.')}. Restore into what was saved"
        raise InvalidArgumentError(_then_in_its_words(finding, cause)) from error


def _then_in_its_words(finding: str, cause: str) -> str:
    """Return a message that begins with the finding and ends as TensorFlow's, for programs that look for its words.

    A reader in a hurry sees the finding and the fix in the first line; TensorFlow puts them last. Its "original error"
    is the first line again.
    """
    first = next(filter(None, finding.splitlines()), "")
    return (
        f"{finding}\n\nRestoring from checkpoint failed. This is most likely due to {cause}. Original error:\n\n{first}"
    )


def _by_names_in_graph(reader: CheckpointReader, variables: VarList, error: NotFoundError) -> list[SaveableObject]:
    """Return saveables that are read by the names of variables in the checkpoint's object graph. Logs a warning.

    Raises:
        NotFoundError: a name is not in the graph. `error`, the reason why the names could not be read as keys, if there
            is no graph, or if all names are keys and a file is missing.
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
        "%s is an object-based checkpoint; its variables are restored by the names they had when it was written. "
        "If names have changed since, values may be wrong: restore objects with tfckpt.Checkpoint",
        reader.path,
    )
    several = names_of_several(graph, {spec.name for spec in specs_of(found)})
    if several:
        _log.warning(
            "%s: several variables had these names, and for each name the last one is restored, as in TensorFlow: %s",
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
    """Restore `saveables` from an open checkpoint.

    Args:
        reshape: Give every value the shape that its tensor has now.
        sharded: Read device by device.
        restore_sequentially: Assign each value before the next is read. That takes the memory of one value at a time;
            if a file is damaged, the values before the damage have been assigned, and the error lists them.

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
    """Add to an error the saveable during which it happened, and the saveables that were restored before."""
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
    """Return the current shapes of the specs' tensors."""
    values = [spec.tensor for spec in saveable.specs]
    return [tuple(value.shape) if isinstance(value, torch.Tensor | np.ndarray) else () for value in values]


def _check(reader: CheckpointReader, saveables: Sequence[SaveableObject], shapes: Sequence[list[Shape] | None]) -> None:
    """Check all names, then all dtypes, then all shapes: TensorFlow's order."""
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
    more = f" {counted(len(missing) - 1, 'other')} missing: {listed(missing[1:], _LISTED)}." if missing[1:] else ""
    hint = prefix_hint(wanted, reader.keys()) or did_you_mean(missing[0], reader.keys())
    hint = hint or "Save and restore the same names"
    return f"Key {escaped(missing[0])} not found in checkpoint: {reader.path}.{more} {hint}"


def _dtype_mismatch(reader: CheckpointReader, spec: SaveSpec) -> str:
    """Return RestoreV2's message if a stored type differs from the spec's, else ""."""
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
    """Return whether torch represents both dtypes as the same one, such as qint8 and int8 as int8."""
    one, other = ELEMENTS.get(stored), ELEMENTS.get(wanted)
    return one is not None and other is not None and one.torch is not None and one.torch == other.torch


def _shape_of(reader: CheckpointReader, spec: SaveSpec) -> Shape:
    """Return the shape of the value that a spec will receive."""
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
