"""Functions that tests call. Runs in the TensorFlow process only, which never imports torch or torch_tfckpt.

Each argument `tensors` is a mapping, or a sequence of (name, value) pairs, because the parts of a partitioned tensor
have the same name. A value is anything that `RawTensor.of` accepts. `shape_and_slices` has one string per pair, as in
TensorFlow: "" for a whole tensor, "4 5 0,2:-" for rows 0 and 1 of a [4, 5].
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.core.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    tensor_pb2,
    tensor_shape_pb2,
    variable_pb2,
)
from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph_pb2,
)
from tensorflow.python.checkpoint import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    checkpoint_management as management,
)
from tensorflow.python.tools import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    inspect_checkpoint as inspect_tool,
)
from tensorflow.python.training import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    checkpoint_utils,
)
from tensorflow.python.training import (
    saver as saver_module,
)
from tensorflow.python.training.saver import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    object_graph_key_mapping,
)
from tensorflow_process import RawTensor

Tensors = Mapping[str, Any] | Sequence[tuple[str, Any]]


def to_tensorflow(value: Any) -> Any:
    """An eager tensor with exactly these bytes."""
    raw = RawTensor.of(value)
    dtype = tf.as_dtype(raw.dtype)
    if dtype == tf.string:
        return tf.reshape(tf.constant(raw.strings(), tf.string), raw.shape)
    if dtype == tf.variant:
        return tf.io.parse_tensor(raw.data, dtype)
    # ParseTensor accepts the bytes of every dtype; tf.constant rejects qint16 and converts int4 to numbers.
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in raw.shape])
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape, tensor_content=raw.data)
    return tf.io.parse_tensor(proto.SerializeToString(), dtype)


def from_tensorflow(tensor: Any) -> RawTensor:
    """The bytes of an eager tensor, with TensorFlow's name for its dtype."""
    shape = tuple(tensor.shape.as_list())
    if tensor.dtype == tf.variant:
        return RawTensor("variant", shape, tf.io.serialize_tensor(tensor).numpy())
    if tensor.dtype == tf.string:
        # Flattened first: numpy() of a scalar string is bytes, not an array.
        return RawTensor.of(tf.reshape(tensor, [-1]).numpy().reshape(shape))
    return RawTensor(tensor.dtype.name, shape, tensor.numpy().tobytes())


def _columns(tensors: Tensors, shape_and_slices: Sequence[str] | None) -> tuple[list[str], list[str], list[Any]]:
    pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    specs = list(shape_and_slices) if shape_and_slices is not None else [""] * len(pairs)
    if len(specs) != len(pairs):
        raise ValueError(f"{len(pairs)} tensors but {len(specs)} shape_and_slices")
    return [name for name, _ in pairs], specs, [to_tensorflow(value) for _, value in pairs]


def save_v2(prefix: str, tensors: Tensors, shape_and_slices: Sequence[str] | None = None) -> None:
    """SaveV2: write `prefix.index` and `prefix.data-00000-of-00001`, with data in the given order."""
    names, specs, values = _columns(tensors, shape_and_slices)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=specs, tensors=values)


def save_v1(path: str, tensors: Tensors, shape_and_slices: Sequence[str] | None = None) -> None:
    """Save, or SaveSlices if slices are given: write one file, `path`, whose folder must exist."""
    names, specs, values = _columns(tensors, shape_and_slices)
    if shape_and_slices is None:
        tf.raw_ops.Save(filename=str(path), tensor_names=names, data=values)
    else:
        tf.raw_ops.SaveSlices(filename=str(path), tensor_names=names, shapes_and_slices=specs, data=values)


def restore(
    prefix: str,
    names: Sequence[str],
    dtypes: Sequence[str] | None = None,
    shape_and_slices: Sequence[str] | None = None,
) -> list[RawTensor]:
    """RestoreV2, for V2 prefixes and V1 files and patterns. The default `dtypes` are those in the checkpoint."""
    if not names:
        return []  # RestoreV2 rejects an empty list
    if dtypes is None:
        stored = reader_maps(prefix)
        dtypes = [stored[name][0] for name in names]
    values = tf.raw_ops.RestoreV2(
        prefix=str(prefix),
        tensor_names=list(names),
        shape_and_slices=list(shape_and_slices or [""] * len(names)),
        dtypes=[tf.as_dtype(dtype) for dtype in dtypes],
    )
    return [from_tensorflow(value) for value in values]


def restore_all(prefix: str) -> dict[str, RawTensor]:
    """Every tensor of a checkpoint, by name."""
    names = sorted(reader_maps(prefix))
    return dict(zip(names, restore(prefix, names), strict=True))


def list_variables(path: str) -> list[tuple[str, list[int]]]:
    """tf.train.list_variables: names and shapes, sorted; `path` may be a folder."""
    return [(name, list(shape)) for name, shape in tf.train.list_variables(str(path))]


def reader_maps(path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype name, shape), from CheckpointReader's two maps."""
    reader = tf.train.load_checkpoint(str(path))
    shapes = reader.get_variable_to_shape_map()
    return {name: (dtype.name, tuple(shapes[name])) for name, dtype in reader.get_variable_to_dtype_map().items()}


def debug_string(path: str) -> bytes:
    """CheckpointReader.debug_string() as bytes, because it contains slice keys that are not text."""
    text: bytes = tf.train.load_checkpoint(str(path)).debug_string()
    return text


def object_graph_mapping(path: str) -> dict[str, str]:
    """full_name -> checkpoint_key of an object-based checkpoint."""
    mapping: dict[str, str] = object_graph_key_mapping(str(path))
    return mapping


def merge_v2(
    sources: Sequence[str], prefix: str, delete_old_dirs: bool = True, allow_missing_files: bool = False
) -> None:
    """MergeV2Checkpoints: move the data files of `sources` to `prefix` and delete their index files."""
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(source) for source in sources],
        destination_prefix=str(prefix),
        delete_old_dirs=delete_old_dirs,
        allow_missing_files=allow_missing_files,
    )


def tensor_list(elements: Sequence[Any]) -> RawTensor:
    """A scalar variant tensor with a TensorList of elements of one dtype and shape."""
    stacked = tf.stack([to_tensorflow(element) for element in elements])
    shape = tf.constant(stacked.shape.as_list()[1:], tf.int32)
    return from_tensorflow(tf.raw_ops.TensorListFromTensor(tensor=stacked, element_shape=shape))


def sharded_save_by_saver(
    prefix: str,
    tensors: Tensors,
    devices: Sequence[int],
    shape_and_slices: Sequence[str] | None = None,
    write_version: int = 2,
) -> str:
    """tf.compat.v1.train.Saver(sharded=True): the i-th value is on device cpu:devices[i], one shard per device.

    Writes neither a meta graph nor a state file. Returns the result of Saver.save.
    """
    names, specs, values = _columns(tensors, shape_and_slices)
    graph = tf.Graph()
    with graph.as_default():
        variables: list[Any] = []
        for name, spec, value, device in zip(names, specs, values, devices, strict=True):
            with tf.device(f"/cpu:{device}"):
                label = f"{name}/part_{len(variables)}" if spec else name
                variable = tf.compat.v1.Variable(value.numpy(), dtype=value.dtype, name=label, use_resource=False)
            if spec:
                variable._set_save_slice_info(_slice_info(name, spec))
            variables.append(variable)
        saver = tf.compat.v1.train.Saver(variables, sharded=True, write_version=write_version)
        # A session has its own devices: this process needs no more than the default one.
        config = tf.compat.v1.ConfigProto(device_count={"CPU": max(devices) + 1})
        with tf.compat.v1.Session(config=config) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            path: str = saver.save(session, str(prefix), write_meta_graph=False, write_state=False)
    return path


def _slice_info(name: str, spec: str) -> Any:
    """SaveSliceInfo from "6 4 0,2:0,4"."""
    *dims, extents = spec.split(" ")
    full_shape = [int(dim) for dim in dims]
    pairs = [
        (0, dim) if extent == "-" else tuple(int(number) for number in extent.split(","))
        for dim, extent in zip(full_shape, extents.split(":"), strict=True)
    ]
    offsets, shape = [start for start, _ in pairs], [length for _, length in pairs]
    return tf.Variable.SaveSliceInfo(name, full_shape, offsets, shape)


class _PythonState(tf.train.experimental.PythonState):  # type: ignore[misc, unused-ignore]
    """State that is not a variable: a string, stored under the attribute `py_state`."""

    def serialize(self) -> str:
        return "epoch 3"

    def deserialize(self, string_value: str) -> None:
        raise NotImplementedError("the tests only write it")


def object_checkpoint(prefix: str) -> str:
    """tf.train.Checkpoint.write of a small tree with one of each: a module, a list, a dict whose key needs escaping, an
    object reached by two paths, an optimizer with slot variables, a hash table, and Python state.

    All numbers are dyadic, so that every machine writes the same bytes. Returns `prefix`.
    """
    model = tf.Module(name="model")
    model.kernel = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="kernel")
    model.bias = tf.Variable([0.5, -0.5], name="bias")
    # TensorFlow 1's momentum: its slots are slot variables of the object graph, which Keras 3 no longer creates.
    optimizer = tf.compat.v1.train.MomentumOptimizer(learning_rate=0.5, momentum=0.5)
    gradients = [(tf.constant([[1.0, 0.0], [0.0, 1.0]]), model.kernel), (tf.constant([0.25, 0.5]), model.bias)]
    optimizer.apply_gradients(gradients)
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, default_value=-1)
    # One entry: the order of several differs between processes.
    table.insert(tf.constant(["word"]), tf.constant([7], tf.int64))
    checkpoint = tf.train.Checkpoint(
        model=model,
        optimizer=optimizer,
        layers=[tf.Variable(1, name="first"), tf.Variable([True, False], name="second")],
        by_name={"a/b.c": tf.Variable(tf.constant([1, 2, 3], tf.int64), name="escaped")},
        same=model.bias,
        table=table,
        state=_PythonState(),
    )
    path: str = checkpoint.write(str(prefix))
    return path


def write_saved_model(directory: str) -> None:
    """A SavedModel with one function, two variables and one asset file. saved_model.pb differs between runs."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    asset = folder / "vocabulary.txt"
    asset.write_text("hello\nworld\n")
    module = tf.Module()
    module.slope = tf.Variable(0.5, name="slope")
    module.intercept = tf.Variable([2.0], name="intercept")
    module.vocabulary = tf.saved_model.Asset(str(asset))
    module.predict = tf.function(
        lambda x: module.slope * x + module.intercept, input_signature=[tf.TensorSpec([None], tf.float32)]
    )
    tf.saved_model.save(module, directory, signatures={"serving_default": module.predict})
    asset.unlink()


def loaded_packages() -> list[str]:
    """Top-level names of the modules that this process has imported."""
    return sorted({name.partition(".")[0] for name in sys.modules})


def version() -> str:
    """TensorFlow's version."""
    text: str = tf.__version__
    return text


def abort(prefix: str) -> None:
    """End the process by a failed CHECK: SaveV2 does that for a tensor of dtype resource, leaving a temporary file."""
    table = tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["x"], shape_and_slices=[""], tensors=[table])


# Checkpoint management.


def checkpoint_management(function: str, *args: Any, **kwargs: Any) -> Any:
    """Any function of TensorFlow's checkpoint_management; a CheckpointState is returned as its serialized message."""
    result = getattr(management, function)(*args, **kwargs)
    return result.SerializeToString() if hasattr(result, "SerializeToString") else result


def iterate_checkpoints(directory: str, timeout: float, answers: Sequence[bool] | None) -> list[str]:
    """checkpoints_iterator in a directory that does not change; `answers` of timeout_fn, or None without a timeout_fn.

    Time passes only when the iterator sleeps.
    """
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    left = list(answers or ())
    with mock.patch.object(checkpoint_utils, "time") as clock:
        clock.time.side_effect = lambda: now
        clock.sleep.side_effect = sleep
        found = checkpoint_utils.checkpoints_iterator(
            directory, timeout=timeout, timeout_fn=None if answers is None else lambda: left.pop(0)
        )
        return [*found, f"{now:g} s, {len(left)} answers left"]


def run_manager(
    directory: str, max_to_keep: int | None, keep_hours: float | None, lives: Sequence[tuple[float, Sequence[float]]]
) -> list[tuple[list[str], list[str], str]]:
    """A CheckpointManager for each of `lives`: when it was created, and when it saved.

    Returns, after each save, the checkpoints that it lists, the files of the directory, and the text of the state file.
    """
    counter = tf.Variable(0)
    seen = []
    for made, saves in lives:
        with mock.patch.object(management, "time") as clock:
            clock.time.return_value = made
            checkpoint = tf.train.Checkpoint(v=counter)
            manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep, keep_hours)
            manager.restore_or_initialize()
            for moment in saves:
                clock.time.return_value = moment
                manager.save()
                seen.append((manager.checkpoints, *_listing(directory)))
    return seen


def run_saver(
    directory: str, max_to_keep: int, keep_hours: float, made: float, saves: Sequence[float]
) -> list[tuple[list[str], list[str], str]]:
    """A Saver that is created and saves at these times; returns the same as `run_manager`."""
    seen = []
    with tf.Graph().as_default(), tf.compat.v1.Session() as session, mock.patch.object(saver_module, "time") as clock:
        clock.time.return_value = made
        variable = tf.compat.v1.get_variable("v", initializer=0.0)
        saver = tf.compat.v1.train.Saver([variable], max_to_keep=max_to_keep, keep_checkpoint_every_n_hours=keep_hours)
        session.run(variable.initializer)
        for number, moment in enumerate(saves):
            clock.time.return_value = moment
            saver.save(session, f"{directory}/m", global_step=number, write_meta_graph=False)
            seen.append((saver.last_checkpoints, *_listing(directory)))
    return seen


def _listing(directory: str) -> tuple[list[str], str]:
    """The existing checkpoints, and the state file."""
    here = Path(directory)
    return sorted(path.stem for path in here.glob("*.index")), (here / "checkpoint").read_text(encoding="utf-8")


# Saveables.


def canonical_devices(texts: Sequence[str]) -> list[str | None]:
    """Each device string as TensorFlow spells it, None if it rejects it."""
    found: list[str | None] = []
    for text in texts:
        try:
            found.append(tf.DeviceSpec.from_string(text).to_string())
        except ValueError:
            found.append(None)
    return found


def slice_spec(name: str, full_shape: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> str:
    """SaveSliceInfo.spec."""
    spec: str = tf.Variable.SaveSliceInfo(name, list(full_shape), list(offset), list(shape)).spec
    return spec


# Savers.

Described = Sequence[tuple[str, Any, str, str]]
"""(name, value, device, slice) of each variable. The device is "/cpu:1", or "" if it has none; the slice "4 5 0,2:0,5",
or "" for a whole tensor. Slices with one name are parts of one tensor."""


def saver_saves(
    path: str,
    described: Described,
    options: Mapping[str, Any],
    saves: Sequence[Mapping[str, Any]] = ({},),
    recover: bool = False,
) -> list[tuple[str, list[str], dict[str, bytes]]]:
    """tf.compat.v1.train.Saver(**options): save once for each of `saves`, the arguments of Saver.save.

    Returns, after each save, its result, `last_checkpoints`, and all files of the directory. With `recover` the saver
    first recovers the checkpoints that the state file next to `path` lists.
    """
    seen = []
    with _saver(described, options) as (saver, session, _):
        here = Path(path).parent
        if recover:
            saver.recover_last_checkpoints(management.get_checkpoint_state(str(here)).all_model_checkpoint_paths)
        for arguments in saves:
            returned = saver.save(session, path, **arguments)
            files = {file.name: file.read_bytes() for file in here.iterdir()}
            seen.append((returned, saver.last_checkpoints, files))
    return seen


def saver_restores(path: str, described: Described, options: Mapping[str, Any]) -> list[RawTensor]:
    """The values of variables after Saver.restore; before, they have the described values."""
    with _saver(described, options) as (saver, session, variables):
        saver.restore(session, path)
        values = session.run(variables)
        return [_raw(value, variable) for value, variable in zip(values, variables, strict=True)]


def save_partitioned(path: str, name: str, value: Any, parts: int) -> list[str]:
    """Save a variable that get_variable splits into `parts`. Return the slices, as the Saver spells them."""
    with _session() as session:
        variable = _partitioned(name, value, parts)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver([variable]).save(session, path)
        return [part._get_save_slice_info().spec for part in variable]


def restore_partitioned(path: str, name: str, like: Any, parts: int) -> RawTensor:
    """The value of a variable that get_variable splits into `parts`, restored from a checkpoint."""
    with _session() as session:
        variable = _partitioned(name, like, parts)
        tf.compat.v1.train.Saver([variable]).restore(session, path)
        whole = variable.as_tensor()
        return _raw(session.run(whole), whole)


@contextmanager
def _session() -> Iterator[Any]:
    """A session with its own graph, and as many CPU devices as the tests name."""
    config = tf.compat.v1.ConfigProto(device_count={"CPU": 4})
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        yield session


def _partitioned(name: str, value: Any, parts: int) -> Any:
    initial = to_tensorflow(value)
    initial.set_shape(RawTensor.of(value).shape)
    cut = tf.compat.v1.fixed_size_partitioner(parts)
    return tf.compat.v1.get_variable(name, initializer=initial, partitioner=cut)


def _raw(value: Any, tensor: Any) -> RawTensor:
    """A session's value of a tensor: a numpy array, or the bytes of a scalar string."""
    if tensor.dtype.base_dtype == tf.string:
        return RawTensor.of(np.array(value, dtype=object))
    return RawTensor(tensor.dtype.base_dtype.name, tuple(value.shape), value.tobytes())


@contextmanager
def _saver(described: Described, options: Mapping[str, Any]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """A Saver of a dict of variables, its session, and the variables as described.

    Options that are not the Saver's: `use_resource` (True), and the `working_directory` for relative paths.
    """
    own = {"use_resource": True, "working_directory": ".", **options}
    use_resource = own.pop("use_resource")
    with chdir(own.pop("working_directory")), _session() as session:
        variables: list[Any] = []
        named: dict[str, Any] = {}
        for name, value, device, spec in described:
            with tf.device(device or None):
                initial = to_tensorflow(value)
                initial.set_shape(RawTensor.of(value).shape)
                # Operation names allow fewer characters than checkpoint keys.
                label = f"variable_{len(variables)}"
                variable = tf.compat.v1.Variable(initial, name=label, use_resource=use_resource)
            variables.append(variable)
            if spec:
                variable._set_save_slice_info(_slice_info(name, spec))
                named.setdefault(name, []).append(variable)
            else:
                named[name] = variable
        session.run(tf.compat.v1.global_variables_initializer())
        yield tf.compat.v1.train.Saver(named, **own), session, variables


# Output of TensorFlow's tools.


def inspect_checkpoint(file_name: str, *args: Any, **kwargs: Any) -> str:
    """The output of TensorFlow's inspect_checkpoint."""
    with redirect_stdout(StringIO()) as printed:
        inspect_tool.print_tensors_in_checkpoint_file(file_name, *args, **kwargs)
    return printed.getvalue()


def meta_graph(path: str) -> dict[str, Any]:
    """The contents of a meta graph in TensorFlow: its saver as text, and fields of its variables, by collection."""
    meta = meta_graph_pb2.MetaGraphDef.FromString(Path(path).read_bytes())
    variables: dict[str, list[dict[str, Any]]] = {}
    for key, collection in meta.collection_def.items():
        found = [variable_pb2.VariableDef.FromString(value) for value in collection.bytes_list.value]
        variables[key] = [
            {
                "variable_name": each.variable_name,
                "trainable": each.trainable,
                "is_resource": each.is_resource,
                "slice": _slice_text(each),
            }
            for each in found
        ]
    info = meta.meta_info_def
    return {
        "saver_def": str(meta.saver_def) if meta.HasField("saver_def") else None,
        "variables": variables,
        "version": info.tensorflow_version,
        "stripped_default_attrs": info.stripped_default_attrs,
        "producer": meta.graph_def.versions.producer,
    }


def _slice_text(variable: Any) -> str:
    """SaveSliceInfo.spec of a VariableDef; "" for a whole variable."""
    if not variable.HasField("save_slice_info_def"):
        return ""
    spec: str = tf.Variable.SaveSliceInfo(save_slice_info_def=variable.save_slice_info_def).spec
    return f"{variable.save_slice_info_def.full_name} {spec}"
