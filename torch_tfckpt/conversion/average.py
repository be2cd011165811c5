"""Average the last checkpoints of a training run into one version 2 checkpoint, as `tfckpt average` does.

    print(average(["run"], "run/average.ckpt", last=5))

Floating-point and complex tensors become means. That includes optimizer state: the moments of Adam and beta1_power are
averaged alike and stay consistent. Everything else, such as integers, bools, strings and the object graph, is taken
from the newest checkpoint, so training from the result continues at the newest global step.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import torch

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.conversion.average_sources import Sources, check_alike, open_sources
from torch_tfckpt.conversion.mean import Mean, mean_in_blocks
from torch_tfckpt.conversion.overlap import is_same_name
from torch_tfckpt.conversion.selected_source import SelectedSource
from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.conversion.tensor_statistics import has_numbers
from torch_tfckpt.directory.names import path_key
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.foreign_files.formats import make_sink
from torch_tfckpt.foreign_files.protocols import TensorSink, names_of
from torch_tfckpt.foreign_files.sidecar import sidecar_of
from torch_tfckpt.foreign_files.values import BATCH_BYTES, FileValue, TensorInfo, batches
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.file_kind import refuse_other_ending
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import AnyPath, final_name, fspath, refuse_url
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import and_more, byte_text, counted, listed, printable, quoted
from torch_tfckpt.values import outside_modes

_LISTED: Final = 8  # number of names in a line of a report
_FLOATS_THAT_TORCH_LACKS: Final = {DataType.DT_FLOAT8_E4M3B11FNUZ, DataType.DT_FLOAT4_E2M1FN}


@dataclass(slots=True)
class AverageReport:
    """Result of an average. `print(report)` shows it as `tfckpt average` does.

    Attributes:
        target: Prefix of the average.
        sources: The checkpoints that were averaged, oldest first.
        dry_run: Whether nothing was written.
        files: Files of the average.
        averaged: Names of the tensors that are means.
        newest: Names of the tensors that are taken from the newest checkpoint, the last of `sources`.
        nbytes: Bytes of all tensors.
        filtered: Names that `include` and `exclude` left out.
        unmatched_excludes: Patterns of `exclude` that matched nothing.
        skipped: Name of each entry of the newest checkpoint that is not a tensor, and is omitted -> its kind.
        graph_edited: Whether the object graph was edited to match omitted tensors.
        remarks: What may not be intended, one sentence each: fewer checkpoints than wanted, an unusual order, means
            that are not finite, averaged scalars that look like counters, object graphs that differ.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> values = {n: {"w": torch.tensor([1.5 * n]), "step": torch.tensor(n)} for n in (1, 2)}
        >>> paths = [tfckpt.save_file(tensors, f"m-{n}") for n, tensors in values.items()]
        >>> report = tfckpt.average(paths, "average")
        >>> report.averaged, report.newest, report.sources
        (['w'], ['step'], ['m-1', 'm-2'])
    """

    target: str
    sources: list[str]
    dry_run: bool = False
    files: list[str] = field(default_factory=list)
    averaged: list[str] = field(default_factory=list)
    newest: list[str] = field(default_factory=list)
    nbytes: int = 0
    filtered: list[str] = field(default_factory=list)
    unmatched_excludes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    graph_edited: bool = False
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        done = "would average" if self.dry_run else "averaged"
        lines = [f"{done} {counted(len(self.averaged), 'tensor')} of {counted(len(self.sources), 'checkpoint')}:"]
        lines += [f"  {printable(path)}" for path in self.sources]
        if self.newest:
            names = f"{listed(self.newest, _LISTED)}"
            lines.append(f"from {printable(self.sources[-1])}: {counted(len(self.newest), 'tensor')}, {names}")
        if self.graph_edited:
            lines.append("the object graph was edited to match the tensors")
        if self.skipped:
            lines.append(f"omitted, because they are not tensors: {listed(list(self.skipped), _LISTED)}")
        if self.filtered:
            lines.append(f"omitted by include and exclude: {counted(len(self.filtered), 'tensor')}")
        lines += [f"exclude {quoted(pattern)} matched nothing" for pattern in self.unmatched_excludes]
        lines += [f"note: {remark}" for remark in self.remarks]
        lines.append(f"{'target' if self.dry_run else 'written'}: {byte_text(self.nbytes)}")
        lines += [f"  {printable(path)}" for path in self.files]
        return "\n".join(lines)


@outside_modes
def average(
    paths: Sequence[AnyPath] | AnyPath,
    dst: AnyPath,
    *,
    last: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    newest: Sequence[str] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> AverageReport:
    """Write the mean of several checkpoints of one model as one version 2 checkpoint.

    Floating-point and complex tensors are averaged, including optimizer state, batch statistics and moving averages:
    added in float64, and rounded once to their own dtype. A value that is equal in all checkpoints is unchanged.
    Integers, quantized numbers, bools, strings and variants are taken from the newest checkpoint: the last one given.
    The object graph of object-based checkpoints (tf.train.Checkpoint, Keras) is kept byte for byte, unless `include` or
    `exclude` omit tensors; tf.train.Checkpoint.read restores the result.

    Args:
        paths: Checkpoints or files of any format, as `src` of `convert`, oldest first; or one path. A directory with
            a `checkpoint` file means the checkpoints that this file lists. A checkpoint that is given several times
            counts once.
        dst: Prefix of the result. An existing checkpoint is replaced; it must not be one of `paths`. No `checkpoint`
            file is changed.
        last: Average only this many of the newest checkpoints of each directory.
        include: As in `convert`.
        exclude: As in `convert`. For example, exclude=["/Adam", "beta._power"] omits the optimizer state.
        newest: Regular expressions; tensors whose names contain a match of one of them are taken from the newest
            checkpoint, too, and not averaged: newest=["learning_rate"].
        dry_run: Compare names, shapes and dtypes, report what would be done, and write nothing.
        progress: Called with (bytes read, total bytes).

    Raises:
        InvalidArgumentError: the checkpoints differ in names, shapes or dtypes (the message lists the first
            differences); `dst` is one of them, or has the extension of another format; a pattern of `include` or
            `newest` matches nothing; `last` without a directory that has a `checkpoint` file; such a file lists fewer
            than `last` (or than two) checkpoints, but its directory has more.
        NotFoundError, DataLossError: a checkpoint is missing or damaged.
        UnimplementedError: a tensor is of a floating-point type that torch or TensorFlow lacks. Exclude it.
        OSError: a file cannot be written.

    On any error, and on Ctrl-C, an existing target is unchanged and nothing of the new one is left.

    Cost: one read of each checkpoint, two of its tensors above 32 MiB, and one write. Memory: 400 MiB in addition to
    the largest tensor, however many checkpoints there are; if one of them is not of version 2, two copies of the
    largest tensor as float64 as well.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> w = torch.zeros(2)
        >>> saver = tfckpt.Saver({"w": w})
        >>> for step in (1, 2, 4):
        ...     w = w.fill_(step)
        ...     path = saver.save("run/m", step)
        >>> print(tfckpt.average("run", "mean", last=2))
        averaged 1 tensor of 2 checkpoints:
          run/m-2
          run/m-4
        written: 8 B
          mean.data-00000-of-00001
          mean.index
        >>> tfckpt.load_variable("mean", "w")
        tensor([3., 3.])
    """
    given = [fspath(path) for path in ([paths] if isinstance(paths, str | bytes | os.PathLike) else paths)]
    target = fspath(dst)
    refuse_other_ending(target, "average")
    refuse_url(target, "average writes local files only", "Write to a local path and copy the result")
    selection = Selection(include, exclude)
    kept = Selection(exclude=newest)
    sink = make_sink(target, "tf", None)
    with ExitStack() as stack:
        sources = open_sources(given, last, stack)
        _refuse_source(sources, sink)
        selection.names_of = kept.names_of = names_of(sources.newest)
        report = AverageReport(sink.path, [source.path for source in sources.opened], dry_run, remarks=sources.remarks)
        work = _plan(sources, sink, selection, kept, report)
        if not dry_run:
            _carry_out(sources, sink, work, report, progress or (lambda done, total: None))
    return report


def _refuse_source(sources: Sources, sink: TensorSink) -> None:
    """Raise InvalidArgumentError if the target would replace a file of a source."""
    sink.plan({})
    targets = [*sink.files(), *sink.replaced(), sidecar_of(sink.path)]
    for source in sources.opened:
        files = map(final_name, source.files())
        same_prefix = path_key(source.path) == path_key(sink.path)
        if same_prefix or any(is_same_name(path, target) for path in files for target in targets):
            raise InvalidArgumentError(
                f"{printable(sink.path)}: the average would replace {printable(source.path)}, one of the checkpoints "
                f"to average. Choose another prefix"
            )


class _AveragePlan:
    """The tensors to write."""

    def __init__(self, selected: SelectedSource, infos: Mapping[str, TensorInfo], order: list[str], means: set[str]):
        self.selected = selected  # of the newest checkpoint
        self.infos = infos
        self.order = order
        self.means = means  # names of the tensors to average


def _plan(
    sources: Sources, sink: TensorSink, selection: Selection, kept: Selection, report: AverageReport
) -> _AveragePlan:
    """Decide, from names, shapes and dtypes alone, what becomes of each tensor, and record this in `report`."""
    newest = sources.newest
    names = newest.names()
    chosen = selection.select(names, keep_object_graph=True)
    report.skipped = dict(newest.skipped)
    report.filtered, report.unmatched_excludes = chosen.left_out, chosen.unmatched_excludes
    for pattern in kept.unmatched_excludes(names):
        raise InvalidArgumentError(
            f"newest {quoted(pattern)} matches none of {counted(len(names), 'tensor')}. Patterns are regular "
            f"expressions, which may match anywhere in a name"
        )
    check_alike(sources, selection, list(chosen.new_names))
    selected = SelectedSource(newest, names, chosen.new_names)
    infos = {name: selected.info(name) for name in selected.names()}
    for name, info in infos.items():
        reason = sink.refusal(name, info)
        if reason is not None:
            raise UnimplementedError(f"{printable(newest.path)}: tensor {quoted(name)}: {reason}. Exclude it")
    means = {name for name, info in infos.items() if kept.takes(name) and _is_averaged(newest.path, name, info)}
    order = sink.plan(infos)
    report.averaged = [name for name in order if name in means]
    report.newest = [name for name in order if name not in means]
    report.nbytes = sum(info.nbytes for info in infos.values())
    report.graph_edited = selected.graph_edited
    report.files = sink.files()
    return _AveragePlan(selected, infos, order, means)


def _is_averaged(place: str, name: str, info: TensorInfo) -> bool:
    """Return whether a tensor is averaged; raise UnimplementedError if it should be, but torch lacks its type."""
    dtype = info.type.dtype
    is_float = info.type.tensorflow in _FLOATS_THAT_TORCH_LACKS
    if dtype is not None and (dtype.is_floating_point or dtype.is_complex):
        is_float = not has_numbers(dtype)
        if not is_float:
            return True
    if is_float:
        raise UnimplementedError(
            f"{printable(place)}: tensor {quoted(name)}: torch has no arithmetic for {info.type.name}. Exclude it, or "
            f"take it from the newest checkpoint: newest=[...]"
        )
    return False


def _carry_out(
    sources: Sources,
    sink: TensorSink,
    work: _AveragePlan,
    report: AverageReport,
    progress: Callable[[int, int], object],
) -> None:
    """Write the result, and add remarks on its values."""
    count = len(sources.opened)
    costs = {name: work.infos[name].nbytes * (count if name in work.means else 1) for name in work.order}
    total, done = sum(costs.values()), 0
    found = _Findings()
    remove_leftovers(LOCAL, os.path.dirname(sink.path))
    with closing(sink), Publication() as publication:
        sink.open(publication)
        for batch in batches({name: work.infos[name].nbytes for name in work.order}):
            sink.write(_values(sources, work, batch, found))
            done += sum(costs[name] for name in batch)
            progress(done, total)
        sink.finish()
        publication.drop(sidecar_of(sink.path))
    report.files = sink.files()
    report.remarks += found.remarks()
    if OBJECT_GRAPH_KEY in work.infos and not _same_graphs(sources):
        report.remarks.append(
            f"the object graphs differ; that of {printable(sources.newest.path)} is kept. Check that the checkpoints "
            f"are of one model"
        )


class _Findings:
    """What the report says about the values of the means."""

    def __init__(self) -> None:
        self.not_finite: list[str] = []
        self.counters: dict[str, str] = {}

    def look_at_scalar(self, name: str, values: Sequence[float], mean: float) -> None:
        """Record a scalar that looks like a counter: an integer that increases from checkpoint to checkpoint."""
        rising = all(before < after for before, after in pairwise(values))
        if len(values) > 1 and rising and all(value.is_integer() for value in values):
            self.counters[name] = f"{quoted(name)} ({values[0]:g} ... {values[-1]:g} became {mean:g})"

    def remarks(self) -> list[str]:
        """Return sentences for the report."""
        lines = []
        if self.not_finite:
            what = counted(len(self.not_finite), "mean")
            lines.append(f"NaN or infinity in {what}: {listed(self.not_finite, _LISTED)}")
        if self.counters:
            shown = ", ".join(list(self.counters.values())[:_LISTED])
            lines.append(
                f"averaged, although their values look like counters: {shown}{and_more(len(self.counters), _LISTED)}. "
                f"`newest` takes them from the newest checkpoint"
            )
        return lines


def _values(sources: Sources, work: _AveragePlan, batch: Sequence[str], found: _Findings) -> dict[str, FileValue]:
    """Return the values to write, in the order of `batch`."""
    averaged = [name for name in batch if name in work.means]
    values: dict[str, FileValue] = {}
    if averaged and work.infos[averaged[0]].nbytes > BATCH_BYTES:
        (name,) = averaged
        info = work.infos[name]
        assert info.type.dtype is not None, "checked by _is_averaged"
        values[name], finite = mean_in_blocks(sources.opened, name, info.shape, info.type.dtype)
        found.not_finite += [] if finite else [name]
    else:
        values |= _means(sources, work, averaged, found)
    rest = [name for name in batch if name not in work.means]
    values |= work.selected.read(rest) if rest else {}
    return {name: values[name] for name in batch}


def _means(sources: Sources, work: _AveragePlan, names: Sequence[str], found: _Findings) -> dict[str, FileValue]:
    means = {name: Mean(len(sources.opened)) for name in names}
    scalars: dict[str, list[float]] = {name: [] for name in names if work.infos[name].shape == ()}
    for source in sources.opened if names else ():
        read = source.read(names)
        for name in names:
            value = read.pop(name)
            assert isinstance(value, torch.Tensor), "only numbers are averaged"
            if name in scalars and not value.is_complex():
                scalars[name].append(float(value))
            means[name].add(value)
    values: dict[str, FileValue] = {}
    for name, mean in means.items():
        dtype = work.infos[name].type.dtype
        assert dtype is not None, "checked by _is_averaged"
        values[name] = result = mean.result(dtype)
        if not mean.finite:
            found.not_finite.append(name)
        elif scalars.get(name):
            found.look_at_scalar(name, scalars[name], float(result))
    return values


def _same_graphs(sources: Sources) -> bool:
    graphs = (source.read([OBJECT_GRAPH_KEY])[OBJECT_GRAPH_KEY] for source in sources.opened)
    return len({tuple(graph.reshape(-1)) for graph in graphs if isinstance(graph, np.ndarray)}) <= 1
