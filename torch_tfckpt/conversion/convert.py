"""Convert a checkpoint or file of tensors into another format, tensor by tensor.

    report = convert("model.ckpt-1000", "model.safetensors", exclude=["/Adam"], rename=[("^bert/", "")])
    print(report)

Names, shapes and layouts are those of the source, unless they are converted, too (`to_torch`, `to_tensorflow`). Values
that the target cannot store go to a sidecar next to it (`foreign_files.sidecar`) and are restored when this package
reads the target.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch

from torch_tfckpt.conversion.casting import Casting
from torch_tfckpt.conversion.convert_report import ConvertReport
from torch_tfckpt.conversion.damage import (
    DAMAGE,
    Listing,
    also_unusable,
    find_damaged,
    list_undamaged,
    suggest_skipping,
)
from torch_tfckpt.conversion.graph_editing import object_paths, other_keys
from torch_tfckpt.conversion.key_names import auxiliary_tensors, check_names, use_names, without
from torch_tfckpt.conversion.layout_remarks import kept_layouts, layout_remarks
from torch_tfckpt.conversion.overlap import check_overlap
from torch_tfckpt.conversion.selected_source import RenamedSource, SelectedSource, read_graph
from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.conversion.target_writing import ReportProgress, Verify, files_of, plan_target, write_target
from torch_tfckpt.conversion.to_keras import KerasTarget
from torch_tfckpt.conversion.to_tensorflow import turn_to_tensorflow
from torch_tfckpt.conversion.to_torch import turn_to_torch
from torch_tfckpt.conversion.training_state import TrainingSource, as_training
from torch_tfckpt.conversion.turning import TurnRequest
from torch_tfckpt.conversion.written_check import check_fit, planned_state, written_state
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.foreign_files.formats import make_sink, open_source
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource, names_of
from torch_tfckpt.foreign_files.pt import PtSink
from torch_tfckpt.foreign_files.safetensors_sink import parse_size
from torch_tfckpt.foreign_files.tensorflow import CheckpointSink
from torch_tfckpt.foreign_files.values import FileValue
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.models.factories import Factory, factory_text
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.small_files import write_file
from torch_tfckpt.text import counted, printable, quoted
from torch_tfckpt.values import outside_modes


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
    names: str = "keys",
    weights_only: bool = False,
    to_torch: bool = False,
    to_tf: bool = False,
    preset: str | None = None,
    scope: str | None = None,
    map: AnyPath | KeyMapper | Rules | None = None,
    infer: Factory | None = None,
    check: Factory | None = None,
    optimizer: bool = False,
    ema: str = "warn",
    strict: bool = True,
    like: AnyPath | None = None,
    report: AnyPath | None = None,
    progress: ReportProgress | None = None,
) -> ConvertReport:
    """Convert a checkpoint or file of tensors into another format, or into a module's state_dict.

    With `to_torch`, the target has torch's names and layouts: `torch.load` or safetensors gives what
    `model.load_state_dict` takes. The rules are those of `load_model`. `check`, the module that the target is for,
    determines what the rules leave open; without a module, the rules must give the layouts. `to_tf` is the inverse: a
    state_dict becomes a TensorFlow checkpoint. Without either, names and layouts stay as they are.

    The object graph of an object-based checkpoint (tf.train.Checkpoint, Keras) is edited to match `rename`, `include`
    and `exclude`: after rename=[("^model/", "net/")] a program restores the object under the name `net`. If the target
    is a TensorFlow checkpoint, the graph is kept unless a pattern of `exclude` contains its full name,
    _CHECKPOINTABLE_OBJECT_GRAPH, or matches only this name.

    With `like`, weights of a Keras model, in a TensorFlow checkpoint or another file of Keras, become a .weights.h5
    file that keras_model.load_weights() takes. Variables are found as Keras finds them, by objects or places, or by
    names; all of them must be found, and all weights must be used.

    With `to="tf"`, training state saved with torch.save, such as {"model": model.state_dict(), "optimizer":
    optimizer.state_dict()}, or by Lightning is converted so that a Saver can restore it: see `report.training` and
    `report.refused`.

    Args:
        src: A TensorFlow checkpoint by any of its names; a .safetensors file, the index of several such files, or the
            directory that contains them; a .pt file of tensors and plain values; a .npz file; a file of Keras.
        dst: A file ending in .safetensors, .pt, .pth, .bin or .npz; with `to="safetensors"` a directory; with `to="tf"`
            a prefix; with `like` a file ending in .weights.h5. An existing target is replaced.
        to: "safetensors", "pt", "npz" or "tf"; by default chosen by the extension of `dst`.
        include: Regular expressions; only tensors whose names contain a match of one of them are converted. Empty: all.
        exclude: Regular expressions; tensors whose names contain a match of one of them are omitted.
        rename: (pattern, replacement) as re.sub takes them, applied one after the other to each name.
        dtype: Convert floating-point tensors to this dtype ("bf16", torch.float16); all other tensors are unchanged.
            NaN stays NaN, and infinities stay infinities if the dtype has them. Values that become zero are in
            `report.zeroed`.
        clamp: Store values beyond the range of `dtype` as the nearest number in it, instead of raising. They are in
            `report.clamped`.
        max_shard_size: Maximum bytes of tensors per file, as a number or a string such as "5GB"; for safetensors.
        dry_run: Report what would be done from names and shapes; no tensor is read, and nothing is written.
        skip_damaged: Leave out tensors that are damaged or whose data file is missing, instead of raising. They are in
            `report.damaged`.
        names: For an object-based checkpoint: "keys", as stored; "paths" of objects ("model.fc.kernel"); or the full
            names of "variables" ("fc/kernel"). The last two leave out the object graph.
        weights_only: Leave out what is not a weight: optimizer state, counters, moving averages; see `report.omitted`.
        to_torch: Give the tensors torch's names and layouts. Slots, counters and averages are left out, and
            `report.outcomes` has every stored tensor.
        to_tf: Give the tensors TensorFlow's names and layouts, by the same rules, inverted. `to` is "tf" by default.
        preset: Name of a preset of rules, such as "bert".
        scope: The first part of TensorFlow's names, such as "resnet_v1_50", for rules with a group "scope", as in the
            presets for image models. `to_tf` requires it for such rules. Pass "" for Keras names, which have no scope.
        map: A map file, a KeyMapper, or rules for one.
        infer: The module for which `KeyMapper.infer` finds the rules, given as for `check`.
        check: The module that the state_dict is for, a function that returns it, or "pkg.mod:factory", which is built
            on the meta device; the current directory is searched first. If the module cannot load the written file with
            strict=True, nothing is published.
        optimizer: With `to_torch` and `check`, also convert the optimizer's state: a .pt file {"model": ...,
            "optimizer": ...} for the state_dict of an optimizer over model.parameters().
        ema: Moving averages instead of variables, with `to_torch`: "warn", "ignore", "prefer" or "only", as for
            `load_model`.
        strict: Raise an error for weights that no rule matches. False: leave them out, and list them.
        like: The .keras file of the model whose weights these are, or another Keras 3 file of that model. It gives the
            names, the order and the dtypes of the variables. h5py writes the target.
        report: File to write the report to, as JSON.
        progress: Called with (bytes done, total bytes).

    Returns:
        A report of the tensors written. Those that the target cannot store are in its sidecar; see `report.sidecar`.

    Raises:
        InvalidArgumentError: an argument is wrong; a pattern of `include` or `rename` matches nothing; two tensors
            would get the same name; the object graph cannot be edited to match; `dst` would replace some files of
            `src`, but not all; values are beyond the range of `dtype` (the message lists the tensors); arguments
            are mutually exclusive; the layout of a tensor is unknown (the message lists the missing rules); a
            factory fails; variables of `like` are not found, or weights are not used; h5py is needed, but not
            installed.
        FailedPreconditionError: the tensors do not fit the module; weights are matched by no rule.
        NotFoundError, DataLossError: the source is missing or damaged; with `skip_damaged`, no part of it can be read.
        UnimplementedError: a tensor can be neither read nor copied; a sidecar would be too large; a rule cannot be
            inverted.
        OSError: a file cannot be written.

    At any moment, even after a kill, the earlier target or the new one exists in full; the next conversion or save
    into that directory removes leftover files. On any error, and on Ctrl-C, an existing target is unchanged and nothing
    of the new one is left, unless the error says otherwise. If several programs convert to one target, the last wins.

    Cost: each tensor is written once and read once, or twice with `skip_damaged`. Memory: 256 MiB in addition to the
    largest tensor and, if `dtype` is wider, its converted copy. A sidecar of the source is read into memory. Names and
    layouts are converted tensor by tensor; tensors that are joined or whose gates are reordered are held in memory
    twice, and so are tensors whose axes are permuted for `to_tf`.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"net/w": torch.ones(2), "net/b": torch.zeros(1)}, "model.ckpt-1")
        >>> print(tfckpt.convert(prefix, "model.safetensors", rename=[("^net/", "")]))
        converted 2 tensors, 12 B, to safetensors:
          model.safetensors
        >>> prefix = tfckpt.save_file({"fc/kernel": torch.ones(3, 2), "fc/bias": torch.zeros(2)}, "fc.ckpt-1")
        >>> model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2)})
        >>> print(tfckpt.convert(prefix, "fc.pt", to_torch=True, check=model))
        converted 2 tensors, 32 B, to pt:
          fc.pt
        "ModuleDict" loads it strictly
        layouts:
          same: 1 tensor
          dense: 1 tensor
        >>> result = model.load_state_dict(torch.load("fc.pt", weights_only=True))
    """
    request = TurnRequest.of(
        to_torch=to_torch,
        to_tf=to_tf,
        preset=preset,
        scope=scope,
        map=map,
        infer=infer,
        check=check,
        optimizer=optimizer,
        ema=ema,
        strict=strict,
        others={
            "rename": bool(rename),
            "skip_damaged": skip_damaged,
            "names": names != "keys",
            "weights_only": weights_only,
        },
    )
    check_names(names)
    selection = Selection(include, exclude, rename)
    casting = Casting(dtype, clamp=clamp)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    tell = progress or (lambda done, total: None)
    passes = 2 if skip_damaged and not dry_run else 1
    selected: RenamedSource
    with ExitStack() as stack:
        keras = None
        if like is None:
            sink = make_sink(fspath(dst), "tf" if to_tf and to is None else to, size)
        else:
            others = {"to": to, "to_torch": to_torch, "to_tf": to_tf, "dtype": dtype, "max_shard_size": max_shard_size}
            others |= {"skip_damaged": skip_damaged, "names": names != "keys", "weights_only": weights_only}
            keras = KerasTarget(fspath(dst), like, [name for name, value in others.items() if value])
            stack.callback(keras.close)
            sink = keras.sink
        if request is not None:
            _check_sink(request, sink)
        source = stack.enter_context(closing(open_source(fspath(src))))
        selection.names_of = names_of(source)
        found = ConvertReport(source.path, sink.path, sink.format, dry_run, skipped=dict(source.skipped))
        verify = None
        if keras is not None:
            selected = keras.turned(source, selection, found)
        elif request is not None:
            selected, verify = _turn(source, request, sink, selection, casting, found)
        else:
            with _suggesting(skip_damaged):
                first_pass = (lambda done, total: tell(done, passes * total)) if skip_damaged else None
                given = _prepare(source, sink, selection, names, found, weights_only=weights_only)
                selected = chosen = _select(given, sink, selection, first_pass, found)
                if isinstance(given, TrainingSource):
                    given.check_selected(chosen.new_names, found.filtered, casting.dtype)
        with _suggesting(skip_damaged):
            work = plan_target(selected, sink, casting, found)

        def read(names: Sequence[str]) -> dict[str, FileValue]:
            with _suggesting(skip_damaged or request is not None):
                return casting.read(selected, names, source.path)

        check_overlap(source, sink)
        if not dry_run:
            write_target(
                sink, work, read, lambda done, total: tell(done + (passes - 1) * total, passes * total), verify
            )
            found.files = files_of(sink, found)
            found.clamped, found.zeroed = casting.clamped, casting.zeroed
    if report is not None:
        write_file(LOCAL, fspath(report), (json.dumps(found.as_json(), indent=2) + "\n").encode())
    return found


def _check_sink(request: TurnRequest, sink: TensorSink) -> None:
    """Raise InvalidArgumentError if the format of the target does not fit the request."""
    if request.to_torch == isinstance(sink, CheckpointSink):
        direction, endings = ("to_torch", ".safetensors, .pt or .npz") if request.to_torch else ("to_tf", "")
        fix = f"End the name with {endings}" if endings else "Give a prefix without an extension"
        raise InvalidArgumentError(f"{printable(sink.path)}: {direction} does not write {sink.format}. {fix}")
    if request.optimizer and not isinstance(sink, PtSink):
        raise InvalidArgumentError(
            f"{printable(sink.path)}: {sink.format} cannot store optimizer state, which contains numbers besides "
            f"tensors. End the name with .pt, or omit optimizer"
        )


def _turn(
    source: TensorSource,
    request: TurnRequest,
    sink: TensorSink,
    selection: Selection,
    casting: Casting,
    report: ConvertReport,
) -> tuple[SelectedSource, Verify | None]:
    """Return the tensors with converted names and layouts, and a check of the files before publication."""
    chosen = selection.select(source.names(), keep_object_graph=False)
    report.filtered, report.unmatched_excludes = chosen.left_out, chosen.unmatched_excludes
    turned = (turn_to_torch if request.to_torch else turn_to_tensorflow)(source, request, chosen.left_out)
    report.outcomes, report.filled, report.remarks = turned.outcomes, turned.filled, turned.remarks
    if isinstance(sink, PtSink):
        sink.contents = turned.contents
    selected = SelectedSource(turned.source, turned.source.names(), {name: name for name in turned.source.names()})
    model, part = turned.model, turned.part
    if not request.to_torch or model is None:
        return selected, None
    factory = factory_text(request.check if request.check is not None else request.infer)
    check_fit(model, planned_state(turned.source, casting.dtype, part), sink.path, factory)
    report.checked = factory

    def verify(files: Mapping[str, str]) -> None:
        check_fit(model, written_state(sink, files, part), sink.path, factory)

    return selected, verify


def _prepare(
    source: TensorSource,
    sink: TensorSink,
    selection: Selection,
    names: str,
    report: ConvertReport,
    *,
    weights_only: bool,
) -> TensorSource:
    """Return the source to convert, and record in the report what it leaves out."""
    training = as_training(source) if isinstance(sink, CheckpointSink) else None
    if training is not None:
        if weights_only:
            raise InvalidArgumentError("weights_only does not apply to training state. Select the tensors with include")
        report.skipped = training.skipped
        report.training, report.refused = training.reported(selection.takes)
        return training
    if weights_only:
        report.omitted, report.remarks = auxiliary_tensors(source, keep_graph=isinstance(sink, CheckpointSink))
    use_names(source, names, selection, report.omitted)
    return source


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
    takes_graph = (keep_graph or selection.takes(OBJECT_GRAPH_KEY)) and OBJECT_GRAPH_KEY not in report.omitted
    if OBJECT_GRAPH_KEY in listing.names and takes_graph and (selection or report.omitted or first_pass is not None):
        graph = _graph_to_edit(source)
    paths = object_paths(graph) if graph is not None and selection.renames else ()
    wanted = without(listing.names, report.omitted)
    chosen = selection.select(wanted, keep_object_graph=keep_graph, object_paths=paths)
    if not keep_graph:
        kept = kept_layouts(source, chosen.new_names)
        report.sidecar += kept
        report.remarks += layout_remarks(source, chosen.new_names, kept)
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
