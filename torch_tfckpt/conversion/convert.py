"""Convert a checkpoint or file of tensors into another format, tensor by tensor.

    report = convert("model.ckpt-1000", "model.safetensors", exclude=["/Adam"], rename=[("^bert/", "")])
    print(report)

Names, shapes and layouts are those of the source. Values that the target cannot store go to a sidecar next to
it (`foreign_files.sidecar`) and are restored when this package reads the target.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.conversion.casting import Casting, casting_lines
from torch_tfckpt.conversion.damage import (
    DAMAGE,
    Listing,
    also_unusable,
    find_damaged,
    list_undamaged,
    suggest_skipping,
)
from torch_tfckpt.conversion.graph_editing import object_paths, other_keys
from torch_tfckpt.conversion.overlap import check_overlap
from torch_tfckpt.conversion.selected_source import SelectedSource, read_graph
from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.conversion.training_state import as_training, training_lines
from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.foreign_files.formats import make_sink, open_source
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource, names_of
from torch_tfckpt.foreign_files.safetensors_sink import parse_size
from torch_tfckpt.foreign_files.sidecar import SidecarWriter, check_size, sidecar_of
from torch_tfckpt.foreign_files.tensorflow import CheckpointSink
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo, batches
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import byte_text, counted, first_lines, listed, printable, quoted
from torch_tfckpt.values import outside_modes

_LISTED: Final = 8  # number of shared tensors that the text of a report lists
_NAMED: Final = 5  # number of tensors with the same damage that the text of a report lists

ReportProgress = Callable[[int, int], object]
"""Called with the bytes done and the total bytes."""


class ConvertedTensor(NamedTuple):
    """One tensor in the target.

    Attributes:
        name: Its name in the source.
        new_name: Its name in the target.
        dtype: Its element type in the target, such as "float32".
        shape: Its shape.
        nbytes: Bytes of its elements in the target.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt")
        >>> tfckpt.convert(prefix, "model.safetensors", rename=[("w", "weight")]).converted
        [ConvertedTensor(name='w', new_name='weight', dtype='float32', shape=(2,), nbytes=8)]
    """

    name: str
    new_name: str
    dtype: str
    shape: Shape
    nbytes: int


class SidecarTensor(NamedTuple):
    """One tensor whose value or type the sidecar stores.

    Attributes:
        name: Its name in the source.
        new_name: Its name in the target.
        dtype: Its element type.
        shape: Its shape.
        reason: Why the target cannot store it.
        whole: Whether the sidecar stores the value. If not, the target stores it as plain numbers, and the sidecar
            stores only its type.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2), "words": ["a", "b"]}, "model.ckpt")
        >>> report = tfckpt.convert(prefix, "model.safetensors")
        >>> [(tensor.name, tensor.dtype, tensor.whole) for tensor in report.sidecar]
        [('words', 'string', True)]
    """

    name: str
    new_name: str
    dtype: str
    shape: Shape
    reason: str
    whole: bool


@dataclass(slots=True)
class ConvertReport:
    """What a conversion did, or would do. `print(report)` shows it as `tfckpt convert` does.

    Attributes:
        source: The checkpoint or file that was read.
        target: The file or prefix that was written.
        format: Format of the target, such as "safetensors".
        dry_run: Whether nothing was written.
        files: Files of the target; its sidecar, if there is one, last.
        converted: Tensors that are in the target.
        sidecar: Tensors whose values or types the sidecar stores.
        filtered: Names that `include` and `exclude` left out.
        unmatched_excludes: Patterns of `exclude` that matched nothing.
        skipped: Name of each entry of the source that is not a tensor -> its kind.
        shared: Omitted tensors whose object is still reachable by another name -> that name.
        damaged: With `skip_damaged`: tensors that are missing from the target -> the damage.
        damaged_index: With `skip_damaged`: parts of the index that cannot be read. Tensors listed only in these parts
            are missing from the target. `damaged` includes them only if the object graph still names them.
        graph_edited: Whether the object graph was edited to match renamed or omitted tensors.
        clamped: With `clamp`: name -> number of its values that were beyond the range of `dtype`.
        zeroed: With `dtype`: name -> number of its values that are so small that `dtype` makes them zero.
        training: For training state saved with torch.save: key for a Saver -> what is stored under it.
        refused: Key of each optimizer in the training state that could not be converted -> the reason.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2), "w/Adam": torch.zeros(2)}, "model.ckpt-1")
        >>> report = tfckpt.convert(prefix, "model.safetensors", exclude=["/Adam"])
        >>> [item.new_name for item in report.converted], report.filtered, report.complete
        (['w'], ['w/Adam'], True)
    """

    source: str
    target: str
    format: str
    dry_run: bool
    files: list[str] = field(default_factory=list)
    converted: list[ConvertedTensor] = field(default_factory=list)
    sidecar: list[SidecarTensor] = field(default_factory=list)
    filtered: list[str] = field(default_factory=list)
    unmatched_excludes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    damaged_index: list[str] = field(default_factory=list)
    graph_edited: bool = False
    clamped: dict[str, int] = field(default_factory=dict)
    zeroed: dict[str, int] = field(default_factory=dict)
    training: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the target."""
        return sum(item.nbytes for item in self.converted)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing because of damage, and no optimizer was refused."""
        return not self.damaged and not self.damaged_index and not self.refused

    def __str__(self) -> str:
        done = "would convert" if self.dry_run else "converted"
        lines = [f"{done} {counted(len(self.converted), 'tensor')}, {byte_text(self.nbytes)}, to {self.format}:"]
        lines += [f"  {printable(path)}" for path in self.files]
        if self.dry_run:
            lines += ["tensors:"]
            lines += [f"  {_described(item)}" for item in self.converted]
        lines += training_lines(self.training, self.refused)
        if self.graph_edited:
            lines.append("the object graph was edited to match the tensors")
        lines += casting_lines(self.clamped, self.zeroed)
        if self.sidecar:
            lines.append(f"in the sidecar, since {self.format} cannot store them:")
            lines += [f"  {_described(item)}: {item.reason}" for item in self.sidecar]
        if self.skipped:
            lines.append("omitted, because they are not tensors:")
            lines += [f"  {quoted(name)}: {reason}" for name, reason in self.skipped.items()]
        if self.filtered:
            lines.append(f"omitted by include and exclude: {counted(len(self.filtered), 'tensor')}")
            shared = [f"  {quoted(name)}, which is also {quoted(other)}" for name, other in self.shared.items()]
            lines += [f"  {line.strip()}" for line in first_lines(shared, _LISTED)]
        lines += [f"exclude {quoted(pattern)} matched nothing" for pattern in self.unmatched_excludes]
        if self.damaged:
            lines.append(f"damaged and omitted: {counted(len(self.damaged), 'tensor')}")
            lines += _grouped(self.damaged)
        if self.damaged_index:
            lines.append("damaged parts of the index; their tensors are lost:")
            lines += [f"  {problem}" for problem in self.damaged_index]
        return "\n".join(lines)


def _grouped(damaged: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each reason, such as a missing data file, with the damaged tensors that share it."""
    names_of_reason: dict[str, list[str]] = {}
    for name, reason in damaged.items():
        names_of_reason.setdefault(reason.replace(f"tensor {quoted(name)}: ", ""), []).append(name)
    for reason, names in names_of_reason.items():
        if len(names) == 1:
            yield f"  {quoted(names[0])}: {damaged[names[0]]}"
        else:
            yield f"  {counted(len(names), 'tensor')}, {listed(names, _NAMED)}: {reason}"


def _described(item: ConvertedTensor | SidecarTensor) -> str:
    renamed = "" if item.name == item.new_name else f" (was {quoted(item.name)})"
    return f"{quoted(item.new_name)}{renamed} {item.dtype} {shape_text(item.shape)}"


@outside_modes
def convert(
    src: AnyPath,
    dst: AnyPath,
    *,
    to: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    dtype: torch.dtype | str | None = None,
    clamp: bool = False,
    max_shard_size: int | str | None = None,
    dry_run: bool = False,
    skip_damaged: bool = False,
    progress: ReportProgress | None = None,
) -> ConvertReport:
    """Convert a checkpoint or file of tensors into another format.

    The object graph of an object-based checkpoint (tf.train.Checkpoint, Keras) is edited to match `rename`, `include`
    and `exclude`: after rename=[("^model/", "net/")] a program restores the object under the name `net`. If the target
    is a TensorFlow checkpoint, the graph is kept unless a pattern of `exclude` contains its full name,
    _CHECKPOINTABLE_OBJECT_GRAPH, or matches only this name.

    With `to="tf"`, training state saved with torch.save, such as {"model": model.state_dict(), "optimizer":
    optimizer.state_dict()}, or by Lightning is converted so that a Saver can restore it: see `report.training` and
    `report.refused`.

    Args:
        src: A TensorFlow checkpoint by any of its names; a .safetensors file, the index of several such files, or the
            directory that contains them; a .pt file of tensors and plain values; a .npz file.
        dst: A file ending in .safetensors, .pt, .pth, .bin or .npz; with `to="safetensors"` a directory; with `to="tf"`
            a prefix. An existing target is replaced.
        to: "safetensors", "pt", "npz" or "tf"; by default chosen by the extension of `dst`.
        include: Regular expressions; only tensors whose names contain a match of one of them are converted. Empty: all.
        exclude: Regular expressions; tensors whose names contain a match of one of them are omitted.
        rename: (pattern, replacement) as re.sub takes them, applied one after the other to each name.
        dtype: Convert floating-point tensors to this dtype ("bf16", torch.float16); all other tensors are unchanged.
            NaN, and infinities if it has them, stay as they are. Values that become zero are in `report.zeroed`.
        clamp: Store values beyond the range of `dtype` as the nearest number in it, instead of raising. They are in
            `report.clamped`.
        max_shard_size: Maximum bytes of tensors per file, as a number or a string such as "5GB"; for safetensors.
        dry_run: Report what would be done from names and shapes; no tensor is read, and nothing is written.
        skip_damaged: Leave out tensors that are damaged or whose data file is missing, instead of raising. They are in
            `report.damaged`.
        progress: Called with (bytes done, total bytes).

    Returns:
        A report of the tensors written. Those that the target cannot store are in its sidecar; see `report.sidecar`.

    Raises:
        InvalidArgumentError: an argument is wrong; a pattern of `include` or `rename` matches nothing; two tensors
            would get the same name; the object graph cannot be edited to match; `dst` would replace some files of
            `src`, but not all; values are beyond the range of `dtype` (the message lists the tensors).
        NotFoundError, DataLossError: the source is missing or damaged; with `skip_damaged`, no part of it can be read.
        UnimplementedError: a tensor can be neither read nor copied, or a sidecar would be too large.
        OSError: a file cannot be written.

    At any moment, even after a kill, the earlier target or the new one exists in full; the next conversion or save
    into that directory removes leftover files. On any error, and on Ctrl-C, an existing target is unchanged and nothing
    of the new one is left, unless the error says otherwise. If several programs convert to one target, the last wins.

    Cost: each tensor is written once and read once, or twice with `skip_damaged`. Memory: 256 MiB in addition to the
    largest tensor and, if `dtype` is wider, its converted copy. A sidecar of the source is read into memory.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"net/w": torch.ones(2), "net/b": torch.zeros(1)}, "model.ckpt-1")
        >>> print(tfckpt.convert(prefix, "model.safetensors", rename=[("^net/", "")]))
        converted 2 tensors, 12 B, to safetensors:
          model.safetensors
    """
    selection = Selection(include, exclude, rename)
    casting = Casting(dtype, clamp=clamp)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    sink = make_sink(fspath(dst), to, size)
    tell = progress or (lambda done, total: None)
    passes = 2 if skip_damaged and not dry_run else 1
    with closing(open_source(fspath(src))) as source:
        selection.names_of = names_of(source)
        report = ConvertReport(source.path, sink.path, sink.format, dry_run, skipped=dict(source.skipped))
        training = as_training(source) if isinstance(sink, CheckpointSink) else None
        if training is not None:
            report.skipped = training.skipped
            report.training, report.refused = training.reported(selection.takes)
        with _suggesting(skip_damaged):
            first_pass = (lambda done, total: tell(done, passes * total)) if skip_damaged else None
            selected = _select(training or source, sink, selection, first_pass, report)
            if training is not None:
                training.check_selected(selected.new_names, report.filtered, casting.dtype)
            work = _plan(selected, sink, casting, report)

        def read(names: Sequence[str]) -> dict[str, FileValue]:
            with _suggesting(skip_damaged):
                return casting.read(selected, names, source.path)

        check_overlap(source, sink)
        if not dry_run:
            _carry_out(sink, work, read, lambda done, total: tell(done + (passes - 1) * total, passes * total))
            report.files = _files_of(sink, report)
            report.clamped, report.zeroed = casting.clamped, casting.zeroed
    return report


@contextmanager
def _suggesting(skip_damaged: bool) -> Iterator[None]:
    """Extend errors about damage with a hint on how to convert the undamaged tensors."""
    try:
        yield
    except DAMAGE as error:
        if skip_damaged:
            raise
        raise suggest_skipping(error) from error.__cause__


def _select(
    source: TensorSource,
    sink: TensorSink,
    selection: Selection,
    first_pass: ReportProgress | None,
    report: ConvertReport,
) -> SelectedSource:
    """Return the tensors to convert, under their new names; list omitted ones in `report`.

    Args:
        first_pass: Called with the progress of a first pass, which reads everything to find damage. None: no such pass;
            damage is an error.
    """
    listing = Listing(source.names(), []) if first_pass is None else list_undamaged(source)
    keep_graph = isinstance(sink, CheckpointSink)
    graph = None
    takes_graph = keep_graph or selection.takes(OBJECT_GRAPH_KEY)
    if OBJECT_GRAPH_KEY in listing.names and takes_graph and (selection or first_pass is not None):
        graph = _graph_to_edit(source)
    paths = object_paths(graph) if graph is not None and selection.renames else ()
    chosen = selection.select(listing.names, keep_object_graph=keep_graph, object_paths=paths)
    rename = selection.new_name if selection.renames else None
    if graph is not None and selection and OBJECT_GRAPH_KEY in chosen.new_names:
        for left_out, others in other_keys(graph, chosen.left_out).items():
            taken = [other for other in others if selection.takes(other)]
            if taken:
                report.shared[left_out] = taken[0]
    report.filtered += chosen.left_out
    report.unmatched_excludes += chosen.unmatched_excludes
    if first_pass is None:
        return SelectedSource(source, listing.names, chosen.new_names, rename, graph)
    report.damaged_index += listing.damaged_index
    damaged = find_damaged(source, chosen.new_names, first_pass)
    lost = also_unusable(source, list(chosen.new_names), damaged, listing, graph)
    report.damaged |= damaged | {name: reason for name, reason in lost.items() if selection.takes(name)}
    good = {name: new for name, new in chosen.new_names.items() if name not in damaged and name not in lost}
    if chosen.new_names and not good:
        name, reason = next(iter(report.damaged.items()))
        raise DataLossError(
            f"{printable(source.path)}: none of {counted(len(chosen.new_names), 'tensor')} can be read. The first, "
            f"{quoted(name)}: {reason}"
        )
    return SelectedSource(source, dict.fromkeys([*listing.names, *lost]), good, rename, graph)


def _graph_to_edit(source: TensorSource) -> ObjectGraph | None:
    """Return the object graph; None if it is damaged. Editing or reading it later raises the error."""
    try:
        return read_graph(source)
    except DAMAGE:
        return None


class _Work(NamedTuple):
    """The tensors to write to the target and the sidecar, under new names."""

    infos: dict[str, TensorInfo]  # in the target
    order: list[str]  # in the target
    kept: list[str]  # in the sidecar
    types: dict[str, ElementType]  # in the target; the sidecar has the type


def _plan(source: SelectedSource, sink: TensorSink, casting: Casting, report: ConvertReport) -> _Work:
    """Decide, from names and shapes alone, where each tensor goes, and record this in `report`."""
    infos = {name: casting.info(source, name) for name in source.names()}
    refused = {name: reason for name, info in infos.items() if (reason := sink.refusal(name, info)) is not None}
    held = {name: info for name, info in infos.items() if name not in refused}
    types = {name: info.type for name, info in held.items() if sink.noted_type(info)}
    for name, reason in refused.items():
        info = infos[name]
        if info.type.dtype is None and info.type.tensorflow is None:
            raise UnimplementedError(f"{printable(report.source)}: tensor {quoted(name)}: {reason}. Exclude it")
        report.sidecar.append(SidecarTensor(source.old_name(name), name, info.type.name, info.shape, reason, True))
    for name, kind in types.items():
        reason = "only its type; the values are in the target"
        report.sidecar.append(SidecarTensor(source.old_name(name), name, kind.name, infos[name].shape, reason, False))
    check_size(sink.path, sink.format, {name: infos[name] for name in refused})
    order = sink.plan(held, sidecar=bool(report.sidecar))
    for name in order:
        info = infos[name]
        report.converted.append(ConvertedTensor(source.old_name(name), name, info.type.name, info.shape, info.nbytes))
    report.files += _files_of(sink, report)
    report.graph_edited = source.graph_edited
    return _Work(infos, order, list(refused), types)


def _files_of(sink: TensorSink, report: ConvertReport) -> list[str]:
    return sink.files() + ([sidecar_of(sink.path)] if report.sidecar else [])


def _carry_out(
    sink: TensorSink, work: _Work, read: Callable[[Sequence[str]], dict[str, FileValue]], progress: ReportProgress
) -> None:
    total = sum(info.nbytes for info in work.infos.values())
    done = 0
    remove_leftovers(LOCAL, os.path.dirname(sink.path))
    with closing(sink), Publication() as publication:
        sink.open(publication)
        for batch in batches({name: work.infos[name].nbytes for name in work.order}):
            sink.write(read(batch))
            done += sum(work.infos[name].nbytes for name in batch)
            progress(done, total)
        beside = sink.finish()
        sidecar_path = sidecar_of(sink.path)
        if not work.kept and not work.types:
            publication.drop(sidecar_path)
            return
        with closing(SidecarWriter(publication.place(sidecar_path), work.types)) as sidecar:
            for name in work.kept:
                sidecar.add(name, work.infos[name], read([name])[name])
                done += work.infos[name].nbytes
                progress(done, total)
            sidecar.finish(beside, sink.identity())
