"""Join several version 2 checkpoints into one, as tf.raw_ops.MergeV2Checkpoints and `tfckpt merge` do."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.conversion.overlap import is_same_name
from torch_tfckpt.directory.locate import find_checkpoint
from torch_tfckpt.directory.names import path_key
from torch_tfckpt.directory.recovered_parts import publish_parts
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath, is_url, refuse_url
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, printable
from torch_tfckpt.values import outside_modes


@dataclass(slots=True)
class MergeReport:
    """Result of a merge. `print(report)` shows it as `tfckpt merge` does.

    Attributes:
        target: Prefix of the merged checkpoint.
        sources: Prefixes of the checkpoints that were merged, in order.
        missing: Sources that did not exist, with `allow_missing_files`.
        tensors: Number of tensors in the merged checkpoint.
        data_files: Its data files that hold tensors.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> parts = [tfckpt.save_file({name: torch.ones(1)}, name) for name in ("a", "b")]
        >>> report = tfckpt.merge(parts, "whole")
        >>> report.target, report.tensors, len(report.data_files)
        ('whole', 2, 2)
    """

    target: str
    sources: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    tensors: int = 0
    data_files: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        held = f"{counted(self.tensors, 'tensor')} in {counted(len(self.data_files), 'data file')}"
        lines = [f"merged into {printable(self.target)}: {held}"]
        lines += [f"missing, and skipped: {printable(path)}" for path in self.missing]
        return "\n".join(lines)


@outside_modes
def merge(
    srcs: Sequence[AnyPath],
    dst: AnyPath,
    *,
    delete_old_dirs: bool = True,
    allow_missing_files: bool = False,
    storage: Storage | None = None,
) -> MergeReport:
    """Join version 2 checkpoints into one, by renaming their data files.

    A partitioned tensor may have slices in several sources; any other tensor may be in one source only.

    Args:
        srcs: Checkpoints by any of their names: a prefix, one of the files, a directory (the newest in it).
        dst: Prefix of the result, or any name of an existing checkpoint, which is replaced; it may be one of `srcs`.
        delete_old_dirs: Remove the sources afterwards, and the directories that are then empty. A `checkpoint` file
            is not changed.
        allow_missing_files: Skip sources that do not exist.
        storage: Where the files are stored; by default chosen by `dst`.

    Raises:
        InvalidArgumentError: no source is given or exists; a source is a version 1 checkpoint; a tensor or slice is in
            two sources; the sources differ in endianness or format version. Nothing was changed.
        NotFoundError, DataLossError: a source is missing or damaged. Nothing was changed.
        IncompleteSaveError: a file operation failed. Sources and an existing target are unchanged.

    Cost: reads and writes the indexes; data files are linked, or copied where links are not supported.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> parts = [tfckpt.save_file({name: torch.ones(1)}, name) for name in ("a", "b")]
        >>> print(tfckpt.merge(parts, "whole"))
        merged into whole: 2 tensors in 2 data files
    """
    if isinstance(srcs, str | bytes):
        raise InvalidArgumentError(f"srcs must be a list of paths, not one path: {srcs!r}")
    target = fspath(dst)
    storage = storage or storage_of(target)
    report = MergeReport(_target_prefix(storage, target))
    for path in map(fspath, srcs):
        if not is_url(target):
            refuse_url(
                path,
                f"{printable(target)} is local, and merge reads from the storage that it writes to",
                "Copy the parts here first",
            )
        try:
            prefix = _prefix_of(storage, path)
            # Use one spelling per checkpoint, so that a source that is also the target is not removed afterwards.
            known = (other for other in (report.target, *report.sources) if _is_same(other, prefix))
            report.sources.append(next(known, prefix))
        except NotFoundError:
            if not allow_missing_files:
                raise
            report.missing.append(path)
    merge_bundles(
        storage,
        report.sources,
        report.target,
        allow_missing_files=allow_missing_files,
        delete_sources=delete_old_dirs,
    )
    return _completed(report, storage)


@outside_modes
def merge_parts(prefix: AnyPath, *, storage: Storage | None = None) -> MergeReport:
    """Publish a checkpoint whose ranks have all ended when their parts were complete, as rank 0 would have done.

    `latest_checkpoint(valid=True)` does this by itself for the newest save of a directory.

    Args:
        prefix: The prefix that the ranks were saving, such as "run/m-1000".
        storage: Where the files are stored; by default chosen by `prefix`.

    Raises:
        NotFoundError: there are no parts of this checkpoint, or those of some ranks are missing. Nothing was changed.
        FailedPreconditionError (a RuntimeError): the ranks are still saving.
        DataLossError, IncompleteSaveError: as `merge`.

    Cost: reads and writes the indexes; data files are linked, or copied where links are not supported.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> try:
        ...     tfckpt.merge_parts("run/m-1000")
        ... except tfckpt.NotFoundError as error:
        ...     print("there are no parts" in str(error))
        True
    """
    target = fspath(prefix)
    storage = storage or storage_of(target)
    return _completed(MergeReport(target, publish_parts(storage, target)), storage)


def _completed(report: MergeReport, storage: Storage) -> MergeReport:
    """Add to a report what the merged checkpoint has."""
    with CheckpointReader(report.target, storage=storage) as reader:
        report.tensors = len(reader)
        report.data_files = list(dict.fromkeys(path for name in reader.keys() for path in reader.locate(name)))
    return report


def _is_same(prefix: str, other: str) -> bool:
    if is_url(prefix) or is_url(other):
        return path_key(prefix) == path_key(other)
    return is_same_name(index_filename(prefix), index_filename(other))


def _prefix_of(storage: Storage, path: str) -> str:
    """Return the prefix of the checkpoint that `path` refers to."""
    files = find_checkpoint(storage, path)
    if files.version != 2:
        raise InvalidArgumentError(
            f"{printable(path)} is a version 1 checkpoint, and only version 2 can be merged. Convert it first: "
            f"`tfckpt convert {printable(path)} PREFIX --to tf`"
        )
    return files.prefix


def _target_prefix(storage: Storage, path: str) -> str:
    """Return the prefix that `path` refers to; the checkpoint need not exist."""
    if storage.is_directory(path) and not storage.exists(index_filename(path)):
        try:
            return _prefix_of(storage, path)
        except NotFoundError as error:
            raise InvalidArgumentError(
                f"{printable(path)} is a directory without a checkpoint. Pass the prefix of a new checkpoint in "
                f"it, such as {printable(path.rstrip('/'))}/model.ckpt"
            ) from error
    data = parse_data_filename(path)
    if data is not None:
        return data[0]
    base = path.removesuffix(".meta")
    return base if base != path and storage.exists(index_filename(base)) else path.removesuffix(".index")
