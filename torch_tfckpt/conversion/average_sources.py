"""The checkpoints that `average` reads: which ones its paths mean, in which order, and whether they fit together.

    ["run"], last=3           the last three checkpoints that run/checkpoint lists, oldest first
    ["run/m-9", "run/m-10"]   these two; the last one is called the newest, because its counters are kept
    ["a.safetensors", "b"]    any format that convert reads

Several paths may lead to one checkpoint, as `run/m-10*` does with its .index and .data files: the checkpoint counts
once, at its first position.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.directory.locate import is_table
from torch_tfckpt.directory.management import checkpoint_exists
from torch_tfckpt.directory.names import STATE_FILE, path_key, prefixes_of, same_series
from torch_tfckpt.directory.state_file import from_stored, load_state
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.protocols import TensorSource, names_of
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import first_lines, listed, natural_order, printable, quoted

_LISTED: Final = 8  # number of names or differences in a message


@dataclass(slots=True)
class Sources:
    """The opened checkpoints, oldest first, and remarks for the report on how they were chosen."""

    opened: list[TensorSource] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def newest(self) -> TensorSource:
        """The newest checkpoint: the last one."""
        return self.opened[-1]


def open_sources(paths: Sequence[str], last: int | None, stack: ExitStack) -> Sources:
    """Open the checkpoints that `paths` mean; `stack` closes them.

    Args:
        last: Number of checkpoints to take of each directory with a state file; None: all that it lists.

    Raises:
        InvalidArgumentError: there is no path; `last` is not positive, or no path is such a directory; a state file
            lists fewer than `last` (or than two) checkpoints, but its directory has more.
        NotFoundError, DataLossError: a checkpoint or a state file is missing or damaged.
    """
    if not paths:
        raise InvalidArgumentError("no checkpoint is given. Pass at least one")
    if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 1):
        raise InvalidArgumentError(f"last={last}: pass the number of checkpoints, 1 or more")
    if last is not None and not any(map(_run_directory, paths)):
        raise InvalidArgumentError(
            f"last={last} is for a directory with a `checkpoint` file, which {listed(paths, 3, printable)} is not. "
            f"Pass the directory, or omit last"
        )
    while True:
        chosen, remarks = _expanded(paths, last)
        with ExitStack() as opening:
            try:
                sources = Sources(_open_all(chosen, opening), remarks)
            except NotFoundError:
                # A training run in progress may have deleted a checkpoint since its state file was read: read it again.
                if _expanded(paths, last)[0] == chosen:
                    raise
                continue
            stack.push(opening.pop_all())
        sources.remarks += _remarks_on_order(sources.opened)
        return sources


def _open_all(paths: Sequence[str], stack: ExitStack) -> list[TensorSource]:
    opened: dict[str, TensorSource] = {}
    for path in paths:
        source = open_source(path)
        if path_key(source.path) in opened:
            source.close()
        else:
            stack.callback(source.close)
            opened[path_key(source.path)] = source
    return list(opened.values())


def _expanded(paths: Sequence[str], last: int | None) -> tuple[list[str], list[str]]:
    """Return the paths with each directory replaced by its checkpoints, and remarks."""
    chosen: list[str] = []
    remarks: list[str] = []
    for path in paths:
        directory = _run_directory(path)
        if directory is None:
            chosen.append(path)
        else:
            chosen += _listed_in(directory, last, remarks)
    return chosen, remarks


def _run_directory(path: str) -> str | None:
    """Return the directory if `path` is a directory with a state file, or its state file; otherwise None."""
    storage = storage_of(path)
    if os.path.basename(path) == STATE_FILE and storage.exists(path) and not is_table(storage, path):
        return os.path.dirname(path) or os.curdir
    if not storage.is_directory(path) or storage.exists(index_filename(path)):
        return None
    state = os.path.join(path, STATE_FILE)
    return path if storage.exists(state) and not is_table(storage, state) else None


def _listed_in(directory: str, last: int | None, remarks: list[str]) -> list[str]:
    """Return the last checkpoints that a state file lists and that exist, oldest first."""
    storage = storage_of(directory)
    state = load_state(storage, directory)
    if state is None:
        raise NotFoundError(f"{printable(directory)}: its `checkpoint` file has just been removed")
    newest = from_stored(state.model_checkpoint_path)
    known = [path for path in map(from_stored, state.all_model_checkpoint_paths) if path != newest] + [newest]
    present = [path for path in known if checkpoint_exists(path, storage=storage)]
    place = printable(os.path.join(directory, STATE_FILE))
    if not present:
        raise NotFoundError(f"{place} lists {listed(known, _LISTED, printable)}, but none of them exists")
    missing = [path for path in known if path not in present]
    if missing:
        remarks.append(f"{place} lists checkpoints that do not exist: {listed(missing, _LISTED, printable)}")
    wanted = 2 if last is None else last
    if len(present) < wanted:
        others = _unlisted(storage, directory, present)
        if others:
            raise InvalidArgumentError(
                f"{place} lists only {len(present)} of the checkpoints in its directory, but at least {wanted} are "
                f"needed. Pass the checkpoints to average by name. Not listed: {listed(others, _LISTED, printable)}"
            )
        remarks.append(f"{place} lists only {len(present)}{'' if last is None else f', and last is {last}'}")
    return present[-last:] if last is not None else present


def _unlisted(storage: Storage, directory: str, present: Sequence[str]) -> list[str]:
    """Return the checkpoints of the directory, of the same series, that its state file does not list.

    A Saver that keeps all checkpoints lists only the newest one, as does tf.train.Checkpoint.save.
    """
    known = set(map(path_key, present))
    found = [os.path.join(directory, name) for name in prefixes_of(storage.list(directory))]
    others = [path for path in found if path_key(path) not in known and same_series(path, present[-1])]
    return sorted(others, key=natural_order)


def _remarks_on_order(sources: Sequence[TensorSource]) -> Iterator[str]:
    """Yield a remark if the last checkpoint is not the one with the highest number."""
    newest = sources[-1].path
    for source in sources[:-1]:
        named, last = os.path.basename(source.path), os.path.basename(newest)
        if same_series(source.path, newest) and natural_order(named) > natural_order(last):
            yield (
                f"{printable(newest)}, the last one given, has a lower number than {printable(source.path)}: what is "
                f"not averaged comes from the former"
            )
            return


def check_alike(sources: Sources, selection: Selection, chosen: Sequence[str]) -> None:
    """Raise InvalidArgumentError unless all checkpoints have the same tensors.

    Args:
        chosen: The selected tensors of the newest checkpoint.
    """
    newest = sources.newest
    infos = {name: newest.info(name) for name in chosen}
    known = set(newest.names())
    differences: list[str] = []
    for source in sources.opened[:-1]:
        here, there = printable(newest.path), printable(source.path)
        names = source.names()
        present = set(names)
        all_names = names_of(source)
        for name, info in infos.items():
            if name not in present:
                differences.append(f"{quoted(name)} is in {here}, but not in {there}")
                continue
            other = source.info(name)
            if (other.type, other.shape) != (info.type, info.shape):
                differences.append(
                    f"{quoted(name)} is {info.type.name} {shape_text(info.shape)} in {here}, but {other.type.name} "
                    f"{shape_text(other.shape)} in {there}"
                )
        for name in names:
            if name not in known and selection.takes_any(all_names(name)):
                differences.append(f"{quoted(name)} is in {there}, but not in {here}")
    if differences:
        lines = "".join(f"\n  {line}" for line in first_lines(differences, _LISTED))
        raise InvalidArgumentError(
            f"the checkpoints do not have the same tensors:{lines}\n"
            f"Pass checkpoints of one model, or omit these tensors with `exclude`"
        )
