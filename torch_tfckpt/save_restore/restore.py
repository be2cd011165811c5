"""Restore saveables from an open checkpoint: check everything and read all values, then assign them.

Source: _AddRestoreOps in tensorflow/python/training/saver.py, RestoreOperation in
tensorflow/core/kernels/save_restore_tensor.cc.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.save_restore.builder import BaseSaverBuilder
from torch_tfckpt.save_restore.bulk_assign import OrdinarySaveables
from torch_tfckpt.save_restore.in_place import HELD_BYTES, verify_in_place
from torch_tfckpt.save_restore.object_names import names_of_several, with_keys
from torch_tfckpt.saveables.load_report import LoadReport, Mismatch
from torch_tfckpt.saveables.name_prefixes import prefix_hint
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, group_by_devices, slice_of, specs_of
from torch_tfckpt.saveables.state_dicts import StateDictSaveable
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, did_you_mean, escaped, listed, printable, quoted
from torch_tfckpt.transfer.collector import new_objects_only
from torch_tfckpt.values import Value

_LISTED: Final = 10  # names that an error lists

_log = logging.getLogger(__name__)


Agree = Callable[[], None]
"""Returns when all ranks that restore together can assign their values; raises if one of them cannot."""


def alone() -> None:
    """Agree with nobody."""


class RestoreOptions(NamedTuple):
    """How to restore.

    Attributes:
        reshape: Give every value the shape that its tensor has now.
        sharded: Read device by device.
        restore_sequentially: Assign each value before the next is read.
        strict: Raise an error for names that are missing, and for dtypes and shapes that do not fit. False: report
            these, and restore the rest.
        verify: Whether to verify checksums.
    """

    reshape: bool = False
    sharded: bool = False
    restore_sequentially: bool = False
    strict: bool = True
    verify: bool = True


def path_to_restore(save_path: AnyPath | None) -> str:
    """Return the path as a string; raise InvalidArgumentError for None."""
    if save_path is None:
        raise InvalidArgumentError(
            "Can't load save_path when it is None. latest_checkpoint returns None if it finds no checkpoint"
        )
    return fspath(save_path)


def restore_path(
    builder: BaseSaverBuilder,
    path: str,
    variables: VarList,
    how: RestoreOptions,
    *,
    storage: Storage | None,
    agree: Agree = alone,
) -> tuple[str | None, LoadReport]:
    """Restore the current contents of `variables` from the checkpoint at `path`.

    If the checkpoint is object-based and the names are not keys in it, they are looked up as names of its variables,
    with a warning. Errors contain TensorFlow's wording.

    Args:
        agree: Called before the first value is assigned.

    Returns:
        A pair: the checkpoint's prefix or version 1 path, or None if it is object-based and its variables were found by
        name; and a report, whose `sources` maps the saver's names to the stored keys.

    Raises:
        InvalidArgumentError: there is no such checkpoint; or dtypes or shapes do not fit.
        NotFoundError: a name is not in the checkpoint, or a data file is missing.
        DataLossError: a value is damaged.
    """
    try:
        reader = CheckpointReader(path, storage=storage, verify=how.verify)
    except NotFoundError as error:
        text = f"The passed save_path is not a valid checkpoint: {printable(path)}. {error}"
        raise InvalidArgumentError(text) from error
    restore = partial(
        restore_saveables,
        builder,
        reader,
        reshape=how.reshape,
        sharded=how.sharded,
        restore_sequentially=how.restore_sequentially,
        agree=agree,
    )
    report = LoadReport()
    with reader:
        prefix: str | None = reader.files.prefix
        try:
            with _telling_the_likely_cause():
                saveables = variables.to_restore(reader, report, strict=how.strict)
                if how.strict or not _are_names_in_graph(reader, saveables):
                    restore(saveables if how.strict else _fitting(reader, saveables, report, reshape=how.reshape))
                else:
                    raise NotFoundError(f"{reader.path}: none of the names is a key")
        except NotFoundError as error:
            report = LoadReport()
            saveables = _by_names_in_graph(reader, variables, error, None if how.strict else report.missing)
            saveables = saveables if how.strict else _fitting(reader, saveables, report, reshape=how.reshape)
            prefix = None
            with _telling_the_likely_cause():
                restore(saveables)
        _complete(report, reader, saveables)
        _log_restored(reader, len(report.sources))
        return prefix, report


def _are_names_in_graph(reader: CheckpointReader, saveables: Sequence[SaveableObject]) -> bool:
    """Return whether the checkpoint is object-based and none of the names is a key in it."""
    return reader.object_graph is not None and not any(spec.name in reader for spec in specs_of(saveables))


def _complete(report: LoadReport, reader: CheckpointReader, saveables: Sequence[SaveableObject]) -> None:
    """Add to a report what was restored, and all stored tensors that the report does not list yet."""
    left_out = {*report.missing, *(mismatch.name for mismatch in report.mismatched)}
    for saveable in saveables:
        if isinstance(saveable, StateDictSaveable) or saveable.name in left_out:
            continue  # it adds itself to the report
        if len(saveable.specs) == 1:
            report.sources[saveable.name] = saveable.specs[0].name
        else:
            report.sources.update((spec.name, spec.name) for spec in saveable.specs)
    used = {*report.sources.values(), *report.unexpected, *report.ignored}
    report.ignored.extend(key for key in reader.keys() if key not in used)


def _fitting(
    reader: CheckpointReader, saveables: Sequence[SaveableObject], report: LoadReport, *, reshape: bool
) -> list[SaveableObject]:
    """Return the saveables that can be restored, and report the others."""
    fitting: list[SaveableObject] = []
    for saveable in saveables:
        missing = [spec for spec in saveable.specs if spec.name not in reader]
        if missing:
            report.missing.append(saveable.name)
            continue
        reason = "; ".join(filter(None, (_dtype_mismatch(reader, spec) for spec in saveable.specs)))
        try:
            shapes = [_shape_of(reader, spec) for spec in saveable.specs]
            saveable.check(shapes, _restored_shapes(saveable) if reshape else None)
        except InvalidArgumentError as error:
            reason = reason or str(error)
        if not reason:
            fitting.append(saveable)
            continue
        spec = saveable.specs[0]
        value = spec.tensor
        shape, dtype = (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else (None, None)
        report.mismatched.append(
            Mismatch(
                saveable.name, spec.name, reader.shape(spec.name), reader.dtype(spec.name), "same", shape, dtype, reason
            )
        )
    for line in report.problems():
        _log.warning("%s: not restored: %s", reader.path, line)
    return fitting


def _log_restored(reader: CheckpointReader, count: int) -> None:
    _log.info("Restored %s (%s)", reader.path, counted(count, "tensor"))


@contextmanager
def _telling_the_likely_cause() -> Iterator[None]:
    """Append TensorFlow's wording of the likely cause to an error."""
    try:
        yield
    except NotFoundError as error:
        cause = "a Variable name or other graph key that is missing from the checkpoint"
        raise NotFoundError(_then_in_its_words(str(error), cause)) from None
    except InvalidArgumentError as error:
        cause = "a mismatch between the current graph and the graph from the checkpoint"
        finding = f"{str(error).rstrip('.')}. Restore into matching tensors"
        raise InvalidArgumentError(_then_in_its_words(finding, cause)) from error


def _then_in_its_words(finding: str, cause: str) -> str:
    """Return a message that begins with the finding and ends with TensorFlow's wording.

    Programs may search for TensorFlow's wording. The finding and the fix come first because TensorFlow puts them last,
    where they are easily missed. The "Original error" at the end repeats the first line.
    """
    first = next(filter(None, finding.splitlines()), "")
    return (
        f"{finding}\n\nRestoring from checkpoint failed. This is most likely due to {cause}. Original error:\n\n{first}"
    )


def _by_names_in_graph(
    reader: CheckpointReader, variables: VarList, error: NotFoundError, missing: list[str] | None
) -> list[SaveableObject]:
    """Return saveables that find their values by variable name in the object graph. Logs a warning.

    Args:
        missing: Receives the names that are not in the graph; None: such names raise an error.

    Raises:
        NotFoundError: a name is not in the graph. If there is no graph, or if all names are keys and a file is missing,
            `error` is raised again, because it explains why the names could not be read as keys.
    """
    try:
        graph = reader.object_graph
    except NotFoundError:  # the data file that contains the graph is missing
        graph = None
    if graph is None:
        raise error
    saveables = variables.to_save()
    if all(spec.name in reader for spec in specs_of(saveables)):
        raise error
    found = with_keys(saveables, graph.names_to_keys(), missing)
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
    held_bytes: int = HELD_BYTES,
    agree: Agree = alone,
) -> None:
    """Restore `saveables` from an open checkpoint.

    Args:
        reshape: Give every value the shape that its tensor has now.
        sharded: Read device by device.
        restore_sequentially: Assign each value before the next is read. This needs memory for one value at a time;
            if a file is damaged, the values read before have already been assigned, and the error lists them.
        held_bytes: Large tensors are read straight into their memory (`in_place` describes when), small ones only if
            together they exceed this size.
        agree: Called when everything is read and checked, before the first value is assigned; if
            `restore_sequentially`, before the first is read.

    Raises:
        NotFoundError, InvalidArgumentError: names, dtypes or shapes do not fit; nothing was assigned.
        DataLossError: a value is damaged. Nothing was assigned, unless `restore_sequentially`; or unless values are
            read straight into tensors, and a file was overwritten or truncated, or became unreadable, after it was
            verified (if the reader does not verify: after it was opened). Then a note lists the tensors that may have
            changed.
        Any error raised by a hook of load_state_dict, or by the load_state_dict of an object. Modules restored by
            load_state_dict are returned to their earlier state; the error lists what else was already restored.

    Cost: one read of the values; host memory of all of them, or of the largest saveable if `restore_sequentially`.
    For values that are read straight into tensors: one more read to verify them, and host memory of one chunk per
    thread, or up to 64 MiB for tensors with strides and for slices.
    """
    with new_objects_only(len(saveables)):
        ordinary = OrdinarySaveables(reader, [] if reshape else saveables)
    wanted = {id(saveable): _restored_shapes(saveable) if reshape else None for saveable in saveables}
    others = [saveable for saveable in saveables if saveable not in ordinary]
    if others:
        _check(reader, others, wanted, {spec.name for spec in specs_of(saveables)})
    groups = [group for _, group in group_by_devices(saveables)] if sharded else [list(saveables)]
    done: list[str] = []
    if restore_sequentially:
        agree()
        for shard, group in enumerate(groups):
            for saveable in group:
                with _telling_what_changed(reader, saveable, done):
                    saveable.restore(builder.bulk_restore(reader, [saveable], shard, True), wanted[id(saveable)])
                done.append(saveable.name)
                if isinstance(saveable, StateDictSaveable):
                    saveable.finish()
        return
    with new_objects_only(len(saveables)):
        in_place = verify_in_place(builder, reader, saveables, reshape=reshape, held_bytes=held_bytes)
        groups = [in_place.without(group) for group in groups]
        values = [builder.bulk_restore(reader, group, shard, False) for shard, group in enumerate(groups)]
        assignments = list(_with_values(groups, values))
    agree()
    # Saveables whose restore may fail despite the checks come first: their restore can be undone.
    loads = [each for each, _ in assignments if isinstance(each, StateDictSaveable)]
    try:
        for saveable, of_saveable in assignments:
            if isinstance(saveable, StateDictSaveable):
                with _telling_what_changed(reader, saveable, done):
                    saveable.restore(of_saveable, wanted[id(saveable)])
        in_place.read()
        done += in_place.names
        for saveable, of_saveable in assignments:
            if not isinstance(saveable, StateDictSaveable) and not ordinary.add(saveable, of_saveable):
                done += ordinary.assign()  # first: values may share memory with those that follow
                with _telling_what_changed(reader, saveable, done):
                    saveable.restore(of_saveable, wanted[id(saveable)])
                done.append(saveable.name)
        ordinary.assign()
    except BaseException:
        for load in reversed(loads):
            load.undo()
        raise
    for load in loads:
        load.finish()


def _with_values(
    groups: Sequence[Sequence[SaveableObject]], values: Sequence[Sequence[Value]]
) -> Iterator[tuple[SaveableObject, Sequence[Value]]]:
    """Yield each saveable with the values of its specs."""
    for group, of_group in zip(groups, values, strict=True):
        first = 0
        for saveable in group:
            end = first + len(saveable.specs)
            yield saveable, of_group[first:end]
            first = end


@contextmanager
def _telling_what_changed(reader: CheckpointReader, saveable: SaveableObject, done: Sequence[str]) -> Iterator[None]:
    """Add to an error the saveable that was being restored, and those that were restored before it."""
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


def _check(
    reader: CheckpointReader,
    saveables: Sequence[SaveableObject],
    shapes: Mapping[int, list[Shape] | None],
    wanted: Collection[str],
) -> None:
    """Check all names, then all dtypes, then all shapes: TensorFlow's order. `wanted`: the names of all saveables."""
    specs = list(specs_of(saveables))
    missing = sorted({spec.name for spec in specs if spec.name not in reader})
    if missing:
        raise NotFoundError(_not_found(reader, missing, wanted))
    unlike = [line for spec in sorted(specs, key=lambda spec: spec.name) if (line := _dtype_mismatch(reader, spec))]
    if unlike:
        lines = "\n".join(unlike)
        raise InvalidArgumentError(f"{reader.path}: {lines}")
    with error_context(reader.path):
        for saveable in saveables:
            saveable.check([_shape_of(reader, spec) for spec in saveable.specs], shapes[id(saveable)])


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
    """Return whether torch uses the same dtype for both, such as int8 for both qint8 and int8."""
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
