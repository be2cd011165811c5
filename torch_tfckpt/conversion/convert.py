"""Convert a checkpoint or file into any other format, tensor by tensor, with nothing lost.

    report = convert("model.ckpt-1000", "model.safetensors", exclude=["/Adam"], rename=[("^bert/", "")])
    print(report)

Names, shapes and layouts are those of the source. What the target cannot hold goes to a sidecar next to
it (`foreign_files.sidecar`) and comes back when the target is read here again.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from torch_tfckpt.checkpoint_reader import AnyPath
from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.foreign_files.formats import make_sink, open_source
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource, names_of
from torch_tfckpt.foreign_files.safetensors import parse_size
from torch_tfckpt.foreign_files.sidecar import MAX_BYTES, SidecarWriter, encoded_size, sidecar_of
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo, batches, cast_floating, dtype_named
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import byte_text, counted, printable, quoted

ReportProgress = Callable[[int, int], object]
"""Called with the bytes done and the bytes in all."""


class Converted(NamedTuple):
    """One tensor that is in the target."""

    name: str  # in the source
    new_name: str
    dtype: str
    shape: Shape
    nbytes: int


class Kept(NamedTuple):
    """One tensor of which the sidecar keeps something."""

    name: str  # in the source
    new_name: str
    dtype: str
    shape: Shape
    reason: str
    whole: bool  # the value is in the sidecar; else it is in the target, and the sidecar says what it stands for


@dataclass(slots=True)
class ConvertReport:
    """What a conversion did, or would do."""

    source: str
    target: str
    format: str
    dry_run: bool
    files: list[str] = field(default_factory=list)  # the sidecar last
    converted: list[Converted] = field(default_factory=list)
    sidecar: list[Kept] = field(default_factory=list)
    filtered: list[str] = field(default_factory=list)  # left out by include and exclude
    skipped: dict[str, str] = field(default_factory=dict)  # in the source, no tensor -> what it is

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the target."""
        return sum(item.nbytes for item in self.converted)

    def __str__(self) -> str:
        done = "would convert" if self.dry_run else "converted"
        lines = [f"{done} {counted(len(self.converted), 'tensor')}, {byte_text(self.nbytes)}, to {self.format}:"]
        lines += [f"  {printable(path)}" for path in self.files]
        if self.dry_run:
            lines += ["tensors:"]
            lines += [f"  {_described(item)}" for item in self.converted]
        if self.sidecar:
            lines.append(f"in the sidecar, since {self.format} cannot hold them as they are:")
            lines += [f"  {_described(item)}: {item.reason}" for item in self.sidecar]
        if self.skipped:
            lines.append("left out, since they are no tensors:")
            lines += [f"  {quoted(name)}: {reason}" for name, reason in self.skipped.items()]
        if self.filtered:
            lines.append(f"left out by --include and --exclude: {counted(len(self.filtered), 'tensor')}")
        return "\n".join(lines)


def _described(item: Converted | Kept) -> str:
    renamed = "" if item.name == item.new_name else f" (was {quoted(item.name)})"
    return f"{quoted(item.new_name)}{renamed} {item.dtype} {shape_text(item.shape)}"


def convert(
    src: AnyPath,
    dst: AnyPath,
    *,
    to: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
    dry_run: bool = False,
    progress: ReportProgress | None = None,
) -> ConvertReport:
    """Convert a checkpoint or file of tensors into another format.

    Args:
        src: A TensorFlow checkpoint in any spelling; a .safetensors file, the index of several or their directory; a
            .pt file that holds only tensors; a .npz file.
        dst: A file ending in .safetensors, .pt, .pth, .bin or .npz; with `to="safetensors"` a directory; with `to="tf"`
            a prefix. An existing target is replaced.
        to: "safetensors", "pt", "npz" or "tf" where the ending of `dst` does not say it.
        include: Regular expressions; only tensors with a name in which one of them is found. None: all.
        exclude: Regular expressions; tensors with a name in which one of them is found are left out.
        rename: (pattern, replacement) as re.sub takes them, applied one after the other to each name.
        dtype: Floating-point tensors are converted to it ("bf16", torch.float16); all others stay as they are.
        max_shard_size: Bytes of tensors a file, or "5GB"; for safetensors.
        dry_run: Say what would be done, and write nothing.
        progress: Called with (bytes done, bytes in all).

    Returns:
        What is where. Tensors that the target cannot hold are in its sidecar, and `report.sidecar` names them.

    Raises:
        InvalidArgumentError: an argument cannot be right, or two tensors would get the same name.
        NotFoundError, DataLossError: the source is missing or damaged.
        UnimplementedError: a tensor can be neither read nor copied, or there is too much for a sidecar.
        OSError: the system refused a write.

    On any error, and on Ctrl-C, nothing is left of the new target and an existing one is intact.
    Cost: each tensor is read and written once; 256 MiB of memory beside the largest tensor (with a `dtype` that is
    wider: beside it and its copy). A sidecar, where there is one, is read whole.
    """
    selection = Selection(include, exclude, rename)
    wanted_dtype = dtype_named(dtype) if isinstance(dtype, str) else dtype
    if wanted_dtype is not None and not wanted_dtype.is_floating_point:
        raise InvalidArgumentError(f"dtype={wanted_dtype}: only conversions to a floating-point dtype are offered")
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    sink = make_sink(fspath(dst), to, size)
    with closing(open_source(fspath(src))) as source:
        selection.names_of = names_of(source)
        report = ConvertReport(source.path, sink.path, sink.format, dry_run, skipped=dict(source.skipped))
        work = _plan(source, sink, selection, wanted_dtype, report)
        if not dry_run:
            _carry_out(source, sink, work, wanted_dtype, progress or (lambda done, total: None))
    return report


class _Work(NamedTuple):
    """What is to be written where, under new names."""

    old_names: dict[str, str]  # new -> old
    infos: dict[str, TensorInfo]  # new name -> as it will be
    order: list[str]  # in the target
    kept: list[str]  # in the sidecar
    types: dict[str, ElementType]  # in the target, with a type that the sidecar says


def _plan(
    source: TensorSource, sink: TensorSink, selection: Selection, dtype: torch.dtype | None, report: ConvertReport
) -> _Work:
    """Decides everything from names and shapes alone, and enters it into `report`."""
    old_names = selection.new_names(source.names())
    report.filtered += [name for name in source.names() if not selection.takes(name)]
    infos = {new: source.info(old).cast(dtype) for new, old in old_names.items()}
    refused = {name: reason for name, info in infos.items() if (reason := sink.refusal(name, info)) is not None}
    held = {name: info for name, info in infos.items() if name not in refused}
    types = {name: info.type for name, info in held.items() if sink.noted_type(info)}
    for name, reason in refused.items():
        info = infos[name]
        if info.type.dtype is None and info.type.tensorflow is None:
            raise UnimplementedError(
                f"{printable(source.path)}: tensor {quoted(name)}: {reason}. Leave it out by --exclude"
            )
        report.sidecar.append(Kept(old_names[name], name, info.type.name, info.shape, reason, True))
    for name, kind in types.items():
        reason = "only its type; the values are in the target"
        report.sidecar.append(Kept(old_names[name], name, kind.name, infos[name].shape, reason, False))
    _check_sidecar_size(sink, infos, list(refused))
    order = sink.plan(held)
    for name in order:
        info = infos[name]
        report.converted.append(Converted(old_names[name], name, info.type.name, info.shape, info.nbytes))
    report.files += sink.files() + ([sidecar_of(sink.path)] if report.sidecar else [])
    return _Work(old_names, infos, order, list(refused), types)


def _carry_out(
    source: TensorSource, sink: TensorSink, work: _Work, dtype: torch.dtype | None, progress: ReportProgress
) -> None:
    total = sum(info.nbytes for info in work.infos.values())
    done = 0
    with closing(sink), Publication() as publication:
        sink.open(publication)
        for batch in batches({name: work.infos[name].nbytes for name in work.order}):
            sink.write(_read(source, work, batch, dtype))
            done += sum(work.infos[name].nbytes for name in batch)
            progress(done, total)
        beside = sink.finish()
        sidecar_path = sidecar_of(sink.path)
        if not work.kept and not work.types:
            publication.drop(sidecar_path)
            return
        with closing(SidecarWriter(publication.place(sidecar_path), work.types)) as sidecar:
            for name in work.kept:
                sidecar.add(name, work.infos[name], _read(source, work, [name], dtype)[name])
                done += work.infos[name].nbytes
                progress(done, total)
            sidecar.finish(beside)


def _read(source: TensorSource, work: _Work, names: Sequence[str], dtype: torch.dtype | None) -> dict[str, FileValue]:
    """Values under their new names, cast where that is wanted."""
    values = source.read([work.old_names[name] for name in names])
    result: dict[str, FileValue] = {}
    for name in names:
        value = values.pop(work.old_names[name])
        if dtype is not None and isinstance(value, torch.Tensor) and value.is_floating_point():
            value = cast_floating(value, dtype)
        result[name] = value
    return result


def _check_sidecar_size(sink: TensorSink, infos: dict[str, TensorInfo], names: Sequence[str]) -> None:
    size = sum(encoded_size(infos[name]) for name in names)
    if size > MAX_BYTES:
        largest = max(names, key=lambda name: infos[name].nbytes)
        raise UnimplementedError(
            f"{printable(sink.path)}: {len(names)} tensors that {sink.format} cannot hold would make a sidecar of "
            f"{size} bytes, more than the {MAX_BYTES} that are read back. The largest is {quoted(largest)}, "
            f"{infos[largest].type.name} {shape_text(infos[largest].shape)}. Leave it out by --exclude, or choose "
            f"another format"
        )
