"""Meta graphs between this package and TensorFlow: each imports the other's exports, and they continue in turns."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tensorflow_process import LENGTH_BYTES, RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaverDef, SaveSliceInfo, Variable, export_meta_graph, import_meta_graph
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.values import Value

V1 = SaverDef.V1
Values = dict[str, RawTensor]


def raw(values: Mapping[str, Value]) -> Values:
    """Copies."""
    return {name: RawTensor.of(value) for name, value in values.items()}


def assert_same(found: Mapping[str, RawTensor], wanted: Mapping[str, RawTensor]) -> None:
    """Compare values one by one, so that the difference is readable. Types that torch lacks have other names there."""
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert (name, found[name].shape, found[name].data) == (name, value.shape, value.data)


def change(values: Mapping[str, Value]) -> None:
    """Change each value in place; `changed` computes the same."""
    for value in values.values():
        if isinstance(value, np.ndarray):
            value[...] = np.frompyfunc(lambda text: text + b"!", 1, 1)(value)
        else:
            value.view(-1).view(torch.uint8).bitwise_xor_(1)


def changed(value: RawTensor) -> RawTensor:
    """Flip the lowest bit of each byte, or append a mark to a string."""
    if value.dtype == "string":
        data = b"".join((len(text) + 1).to_bytes(LENGTH_BYTES, "little") + text + b"!" for text in value.strings())
        return RawTensor(value.dtype, value.shape, data)
    return RawTensor(value.dtype, value.shape, bytes(byte ^ 1 for byte in value.data))


def zeroed(value: RawTensor) -> RawTensor:
    return RawTensor(value.dtype, value.shape, bytes(len(value.data)))


def meta_of(path: str) -> str:
    return tfckpt.meta_graph_filename(path)


# Graphs from this package.


class Made(NamedTuple):
    """The values that a saver saves.

    Attributes:
        var_list: Argument of Saver.
        variables: Name in TensorFlow's graph -> value.
        wholes: Name -> the values of `ImportedMetaGraph.variables`, if they differ: there, parts are merged.
        options: Options of the Saver.
    """

    var_list: Any
    variables: Mapping[str, Value]
    wholes: Mapping[str, Value] = {}
    options: Mapping[str, Any] = {}


DEVICES = ("/cpu:0", "/cpu:1", "/cpu:2")


def _matrix(rows: int, columns: int) -> torch.Tensor:
    return (torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns) / 8).requires_grad_()


def _plain(**options: Any) -> Made:
    values: dict[str, Value] = {
        "dense/kernel": _matrix(3, 4),
        "dense/bias": torch.tensor([0.5, -0.25, 3.0]).requires_grad_(),
        "step": torch.tensor(1234567890123),
    }
    return Made(values, values, options=options)


def _sharded(**options: Any) -> Made:
    """Three devices, and no device."""
    values = {name: _matrix(2, size) for size, name in enumerate(("a", "b", "c", "scope/d", "e"), 1)}
    devices = (*DEVICES, "/cpu:1", "")
    var_list = [Variable(values[name], name, device=device) for name, device in zip(values, devices, strict=True)]
    return Made(var_list, values, options={"sharded": True, **options})


def _parts(devices: tuple[str, ...] = ("",), **options: Any) -> Made:
    whole, columns, other = _matrix(7, 3), _matrix(2, 5), _matrix(2, 2)
    rows = {f"outer/w/part_{n}": (start, size) for n, (start, size) in enumerate([(0, 3), (3, 2), (5, 2)])}
    parts, values = [], {}
    for number, (name, (start, size)) in enumerate(rows.items()):
        values[name] = whole.detach()[start : start + size]
        info = SaveSliceInfo("outer/w", [7, 3], [start, 0], [size, 3])
        parts.append(Variable(values[name], name, info, device=devices[number % len(devices)]))
    for name, start, size in (("v/0", 0, 4), ("v/1", 4, 1)):
        values[name] = columns.detach()[:, start : start + size]
        parts.append(Variable(values[name], name, SaveSliceInfo("v", [2, 5], [0, start], [2, size])))
    parts.append(Variable(other, "other", device=devices[-1]))
    wholes = {"outer/w": whole, "v": columns, "other": other}
    return Made(parts, {**values, "other": other}, wholes, options)


TYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.complex128, torch.float8_e4m3fn,
    torch.float8_e5m2,
)  # fmt: skip


def _types() -> Made:
    values = {str(dtype): torch.tensor([0, 1, 1, 0, 1]).to(dtype) for dtype in TYPES}
    return Made(values, values)


def _shapes() -> Made:
    """Scalars, empty tensors, tensors with so many elements that their zeros are not written out, and strided ones."""
    values = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "large": torch.arange(3000.0).requires_grad_(),
        "large/of/bools": torch.ones(40, 40, dtype=torch.bool),
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "strided": torch.arange(12)[::3],
        "permuted": torch.rand(2, 3, 4, 5).permute(3, 1, 0, 2),
    }
    return Made(values, values)


def _model() -> Made:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    torch.autograd.backward([model(torch.rand(4, 3)).square().sum()])
    optimizer.step()
    variables: dict[str, Value] = {f"model/{name}": value for name, value in model.state_dict().items()}
    return Made({"model": model, "optimizer": optimizer, "counts": {"epoch": 3}}, variables)


def _keys() -> Made:
    """Keys that differ from the variables' names."""
    values = {"one": torch.tensor([1.0, 2.0]), "scope/two": torch.tensor([3])}
    named = {"key/of/one": Variable(values["one"], "one"), "one": Variable(values["scope/two"], "scope/two")}
    return Made(named, values)


def _names() -> Made:
    """Names that are not valid node names, and the names that replace them."""
    names = {
        "/": "v",
        "a b": "a_b",
        "a_b": "a_b_1",
        "_x": "v_x",
        "ü": "v_",
        "a:0": "a_1",
        "a": "a",
        "-": "v-",
        "x" * 300: "x" * 300,
        "b/": "b",
        "a/../b": "a/../b",
        "n\n": "n_",
    }
    values = {key: torch.tensor([float(number)]) for number, key in enumerate(names)}
    in_order = dict(sorted(values.items()))
    return Made(in_order, {names[key]: value for key, value in values.items()})


def _clashing() -> Made:
    """Names that equal those of a saver's nodes, or of other variables' nodes."""
    names = ("a", "a/Assign", "a/Read/ReadVariableOp", "a/Initializer/zeros", "a/IsInitialized/VarIsInitializedOp",
             "save/RestoreV2", "save/AssignVariableOp", "save", "a/Assign_1")  # fmt: skip
    values = {name: torch.tensor([float(number)]) for number, name in enumerate(names)}
    named = {"save/Const": "save/Const_1", "save/restore_all": "save/restore_all_1"}
    others = {key: torch.tensor([number]) for number, key in enumerate(named)}
    return Made({**values, **others}, {**values, **{named[key]: value for key, value in others.items()}})


def _quantized() -> Made:
    values = {"q": torch.tensor([1, -2, 3], dtype=torch.int8), "int4": torch.tensor([1, -2, 7], dtype=torch.int8)}
    types = {"q": DataType.DT_QINT8, "int4": DataType.DT_INT4}
    return Made([Variable(value, name, dtype=types[name]) for name, value in values.items()], values)


OURS: Mapping[str, Callable[[], Made]] = {
    "plain": _plain,
    "sharded": _sharded,
    "parts": _parts,
    "parts sharded": lambda: _parts(DEVICES, sharded=True),
    "V1": lambda: _plain(write_version=V1),
    "V1 sharded": lambda: _sharded(write_version=V1),
    "V1 parts": lambda: _parts(write_version=V1),
    "V1 parts sharded": lambda: _parts(DEVICES, sharded=True, write_version=V1),
    "types": _types,
    "shapes": _shapes,
    "model": _model,
    "keys": _keys,
    "names": _names,
    "clashing": _clashing,
    "quantized": _quantized,
    "reshape": lambda: _plain(reshape=True),
    "parts reshape": lambda: _parts(reshape=True),
    "name": lambda: _plain(name="mine"),
    "scoped name": lambda: _plain(name="outer/mine", sharded=True),
    "filename": lambda: _plain(filename="x"),
    "sequential": lambda: _plain(restore_sequentially=True),
    "settings": lambda: _plain(max_to_keep=3, keep_checkpoint_every_n_hours=0.5, pad_step_number=True),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("scope", [None, "an/inner"])
@pytest.mark.parametrize("case", OURS)
def test_in_turns_with_a_saver_of_ours(
    tensorflow: TensorFlowProcess, tmp_path: Path, case: str, scope: str | None
) -> None:
    """TensorFlow imports our meta graph, initializes it to zeros, restores our tensors, trains a step and saves them.

    The saver that wrote the meta graph continues from there, and so does our import of TensorFlow's file.
    """
    made = OURS[case]()
    saver = Saver(made.var_list, **made.options)
    path = saver.save(tmp_path / "ours", 3)
    assert path is not None
    saved = raw(made.variables)
    trained = tensorflow.call("tensorflow_meta_graphs.train", meta_of(path), path, str(tmp_path / "theirs"), scope)
    prefix = f"{scope}/" if scope else ""
    in_scope = {f"{prefix}{name}": value for name, value in saved.items()}
    others = {name: value for name, value in trained.restored.items() if name not in in_scope}  # an optimizer's
    assert all(name.startswith((f"{prefix}optimizer", f"{prefix}counts")) for name in others)
    assert_same(trained.restored, {**in_scope, **others})
    assert_same(trained.initial, {name: zeroed(value) for name, value in in_scope.items()} | {
        name: RawTensor.of(np.array(b"", object)) if value.dtype == "string" else zeroed(value)
        for name, value in others.items()
    })  # fmt: skip
    now = {name: trained.trained[f"{prefix}{name}"] for name in saved}
    assert all(now[name] != value for name, value in saved.items() if value.data.strip(b"\0"))
    saver.restore(trained.path)
    assert_same(raw(made.variables), now)
    imported = import_meta_graph(meta_of(trained.path))
    assert imported.saver is not None
    imported.saver.restore(trained.path)
    wholes = raw(made.wholes or made.variables)
    found = {name: value for name, value in raw(imported.variables).items() if name not in others}
    assert_same(found, {f"{prefix}{name}": value for name, value in wholes.items()})


def test_tensorflow_changes_a_string(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A value that is not a tensor is a string variable in TensorFlow's graph; ours restores TensorFlow's value."""
    counts = {"epoch": 3, "seen": [1, 2]}
    saver = Saver({"counts": counts, "w": torch.ones(2)})
    path = saver.save(tmp_path / "m")
    text = tensorflow.call("restore", path, ["counts"])[0].strings()[0].replace(b"3", b"4")
    new = tensorflow.call(
        "tensorflow_meta_graphs.assign", f"{path}.meta", {"counts": np.array(text, object)}, str(tmp_path / "n")
    )
    saver.restore(new)
    assert counts == {"epoch": 4, "seen": [1, 2]}


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "text": {"as_text": True},
    "no devices": {"clear_devices": True},
    "no default attributes": {"strip_default_attrs": True},
    "one saver": {"clear_extraneous_savers": True},
    "some collections": {"collection_list": ["variables"]},
    "all": {"as_text": True, "clear_devices": True, "strip_default_attrs": True, "clear_extraneous_savers": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("case", ["plain", "V1", "parts sharded"])
def test_options_of_an_export(
    tensorflow: TensorFlowProcess, tmp_path: Path, case: str, options: Mapping[str, Any]
) -> None:
    """With any option, TensorFlow restores from the export; also with a second saver in the graph."""
    made = OURS[case]()
    saver = Saver(made.var_list, **made.options)
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection("savers", Saver({"another": torch.ones(2)}))
        tfckpt.add_to_collection("savers", saver)
        saver.export_meta_graph(tmp_path / "deeper" / "graph", **options)
    path = saver.save(tmp_path / "m")
    meta = str(tmp_path / "deeper" / "graph")
    trained = tensorflow.call("tensorflow_meta_graphs.train", meta, path, str(tmp_path / "n"))
    assert_same({name: trained.restored[name] for name in made.variables}, raw(made.variables))
    savers = tensorflow.call("tensorflow_meta_graphs.imported", meta)["collections"].get("savers", [])
    assert len(savers) == (0 if "collection_list" in options else 1 if "clear_extraneous_savers" in options else 2)


def test_without_a_saver(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """For registered variables alone, TensorFlow creates its own saver, which restores ours."""
    values = {"w": torch.rand(3, 2), "scope/b": torch.arange(4)}
    with tfckpt.Collections().as_default():
        for name, value in values.items():
            tfckpt.add_to_collection("variables", Variable(value, name))
        tfckpt.add_to_collection("trainable_variables", tfckpt.get_collection("variables")[0])
        export_meta_graph(tmp_path / "m.meta")
        path = Saver().save(tmp_path / "m", write_meta_graph=False)
    trained = tensorflow.call("tensorflow_meta_graphs.train", str(tmp_path / "m.meta"), path, str(tmp_path / "n"))
    assert_same(trained.restored, raw(values))
    assert trained.trained["w"] != trained.restored["w"]


# Graphs from TensorFlow.

GRAPHS = (
    "ref", "resource", "ref, sharded", "resource, sharded", "ref, V1", "resource, V1", "ref, V1, sharded",
    "resource, V1, sharded", "sequential", "reshape", "renamed", "ref, renamed", "subset", "ref, parts",
    "resource, parts", "parts along 1", "parts of at least", "parts, V1", "parts, reshape", "ref, parts on devices",
    "parts on devices", "parts on devices, V1", "averages", "optimized", "table", "strings", "strings in parts",
    "mirrored", "ref, unshaped", "resource, unshaped", "quantized", "half and others", "local", "control flow",
    "functions", "many",
)  # fmt: skip


@pytest.mark.thinned(3)
@pytest.mark.parametrize("scope", [None, "imp"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_in_turns_with_a_graph_of_tensorflow(
    tensorflow: TensorFlowProcess, tmp_path: Path, graph: str, scope: str | None
) -> None:
    """Any graph of TensorFlow's: after the import, its checkpoint restores TensorFlow's values. After changing and
    saving them, TensorFlow's own saver restores them in its own graph; and the meta graph is unchanged.
    """
    saved, unsaved, path = tensorflow.call("tensorflow_meta_graphs.saves", graph, str(tmp_path / "theirs"))
    imported = import_meta_graph(meta_of(path), import_scope=scope)
    assert imported.saver is not None
    imported.saver.restore(path)
    prefix = f"{scope}/" if scope else ""
    variables = {name.removeprefix(prefix): value for name, value in imported.variables.items()}
    assert all(name.startswith(prefix) for name in imported.variables)
    values = {name: value for name, value in variables.items() if name not in unsaved}
    assert_same(raw(values), {name: value for name, value in saved.items() if not name.startswith(":")})
    others = {name: value for name, value in variables.items() if name in unsaved}
    assert_same(raw(others), {name: zeroed(unsaved[name]) for name in others})
    change(values)
    (tmp_path / "ours").mkdir()
    again = imported.saver.save(tmp_path / "ours" / "m")
    assert again is not None
    if scope is None:
        assert Path(meta_of(again)).read_bytes() == Path(meta_of(path)).read_bytes()
    restored = tensorflow.call("tensorflow_meta_graphs.restores", graph, again)
    assert_same(restored, {name: value if name.startswith(":") else changed(value) for name, value in saved.items()})


@pytest.mark.thinned(2)
@pytest.mark.parametrize("graph", GRAPHS)
def test_tensorflow_imports_a_graph_that_was_imported_into_a_scope(
    tensorflow: TensorFlowProcess, tmp_path: Path, graph: str
) -> None:
    """TensorFlow imports the meta graph of the saver of a TensorFlow graph that we imported into a scope, restores its
    checkpoint, and trains."""
    _, _, path = tensorflow.call("tensorflow_meta_graphs.saves", graph, str(tmp_path / "theirs"))
    imported = import_meta_graph(meta_of(path), import_scope="imp/in")
    assert imported.saver is not None
    imported.saver.restore(path)
    (tmp_path / "ours").mkdir()
    again = imported.saver.save(tmp_path / "ours" / "m")
    assert again is not None
    direct = tensorflow.call("tensorflow_meta_graphs.train", meta_of(path), path, str(tmp_path / "1"), "imp/in")
    found = tensorflow.call("tensorflow_meta_graphs.train", meta_of(again), again, str(tmp_path / "2"))
    for ours, theirs in zip(found[:3], direct[:3], strict=True):
        assert_same(ours, theirs)


def test_local_variables_are_not_restored(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Local and metric variables are in no checkpoint, and not in `variables`, but only in the collections."""
    tensorflow.call("tensorflow_meta_graphs.saves", "local", str(tmp_path / "m"))
    imported = import_meta_graph(tmp_path / "m.meta")
    assert list(imported.variables) == ["w"]
    assert len(imported.collections.get_collection("local_variables")) == 3
    assert len(imported.collections.get_collection("metric_variables")) == 2


# SavedModels.


@pytest.mark.parametrize("kind", ["nested", "keras"])
def test_in_turns_with_a_saved_model(tensorflow: TensorFlowProcess, tmp_path: Path, kind: str) -> None:
    """Variables of a TensorFlow 2 SavedModel are restored; changed and saved over its own, TensorFlow loads the new
    values."""
    model = tmp_path / "model"
    loaded = tensorflow.call("tensorflow_meta_graphs.write_saved_model", kind, str(model))
    imported = import_meta_graph(model)
    assert imported.saver is not None
    imported.saver.restore(model / "variables" / "variables")
    assert set(_sorted(raw(imported.variables))) == set(_sorted(loaded))  # Keras stores some variables twice
    assert "serving_default" in imported.signatures or "serve" in imported.signatures
    change(imported.variables)
    imported.saver.save(model / "variables" / "variables", write_meta_graph=False, write_state=False)
    again = tensorflow.call("tensorflow_meta_graphs.load_saved_model", str(model))
    assert_same(again, {name: changed(value) for name, value in loaded.items()})


@pytest.mark.parametrize("tags", [("train",), ("gpu", "serve")])
def test_in_turns_with_a_saved_model_of_tensorflow_1(
    tensorflow: TensorFlowProcess, tmp_path: Path, tags: tuple[str, ...]
) -> None:
    """The tags choose the graph; both have the same variables. Both load the values saved over these."""
    model = tmp_path / "model"
    values = tensorflow.call("tensorflow_meta_graphs.write_tagged", str(model))
    imported = import_meta_graph(model, tags=tags)
    assert list(imported.signatures) == (["serving_default"] if "serve" in tags else [])
    assert imported.saver is not None
    imported.saver.restore(model / "variables" / "variables")
    assert_same(raw(imported.variables), values)
    change(imported.variables)
    imported.saver.save(model / "variables" / "variables", write_meta_graph=False, write_state=False)
    for each in (["train"], ["serve", "gpu"]):
        again = tensorflow.call("tensorflow_meta_graphs.load_tagged", str(model), each)
        assert_same(again, {name: changed(value) for name, value in values.items()})


def _sorted(values: Mapping[str, RawTensor]) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Without the names, which SavedModels generate."""
    return sorted((value.dtype, value.shape, value.data) for value in values.values())
