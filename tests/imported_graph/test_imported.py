"""import_meta_graph: its results for exported, real and unusual graphs."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from google.protobuf import text_format
from meta_graph_files import SAVER, graph, node, part, restoring, variable

import torch_tfckpt as tfckpt
from torch_tfckpt import (
    Collections,
    DataType,
    ImportedMetaGraph,
    Saver,
    SaverDef,
    SaveSliceInfo,
    Variable,
    add_to_collection,
    import_meta_graph,
)
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saved_model_pb2 import SavedModel
from torch_tfckpt._proto.variable_pb2 import VariableDef


def exported(tmp_path: Path) -> tuple[Saver, Path]:
    """Return a saver of two tensors, and the meta graph that it wrote with a checkpoint."""
    saver = Saver({"scope/w": torch.arange(6.0).reshape(2, 3).requires_grad_(), "step": torch.tensor(7)})
    saver.save(tmp_path / "m")
    return saver, tmp_path / "m.meta"


def tensor(imported: ImportedMetaGraph, name: str) -> torch.Tensor:
    value = imported.variables[name]
    assert isinstance(value, torch.Tensor)
    return value


def lists_of(imported: ImportedMetaGraph) -> dict[str, list[object]]:
    return {key: imported.collections[key] for key in imported.collections.get_all_collection_keys()}


def savers_of(meta: MetaGraphDef) -> list[SaverDef]:
    return [SaverDef.FromString(each) for each in meta.collection_def["savers"].bytes_list.value]


# The result.


def test_variables_before_and_after_a_restore(tmp_path: Path) -> None:
    """Zeros with the right shapes and types until they are restored; then the values, in place."""
    _, path = exported(tmp_path)
    imported = import_meta_graph(path)
    w, step = tensor(imported, "scope/w"), tensor(imported, "step")
    assert torch.equal(w, torch.zeros(2, 3)) and torch.equal(step, torch.tensor(0))
    assert (w.dtype, step.dtype) == (torch.float32, torch.int64)
    assert imported.saver is not None
    imported.saver.restore(tmp_path / "m")
    assert w.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and step.item() == 7
    assert imported.op_counts["VarHandleOp"] == 2 and imported.op_counts.total() == len(
        imported.meta_graph_def.graph_def.node
    )
    assert (imported.signatures, imported.assets, imported.import_scope) == ({}, {}, "")
    assert repr(imported) == f"ImportedMetaGraph('{path}', 2 variables)"
    assert [each.trainable for each in imported.collections["variables"]] == [True, False]  # type: ignore[attr-defined]


@pytest.mark.parametrize("of", ["str", "path", "prefix", "index", "message", "text"])
def test_forms_of_the_argument(tmp_path: Path, of: str) -> None:
    """A file, its checkpoint, a message; a text file with any name."""
    saver, path = exported(tmp_path)
    meta = saver.export_meta_graph(tmp_path / "other", as_text=True)
    source = {
        "str": str(path),
        "path": path,
        "prefix": tmp_path / "m",
        "index": tmp_path / "m.index",
        "message": meta,
        "text": tmp_path / "other",
    }[of]
    imported = import_meta_graph(source)  # type: ignore[arg-type]
    assert imported.meta_graph_def == meta and list(imported.variables) == ["scope/w", "step"]


def test_tags_choose(tmp_path: Path) -> None:
    """Of a SavedModel; for a graph without tags they are rejected, in a file and as a message."""
    model = SavedModel(saved_model_schema_version=1)
    for name, tags in (("a", ["train"]), ("b", ["serve"]), ("c", ["serve", "gpu"])):
        made = model.meta_graphs.add()
        made.CopyFrom(graph([variable(name)], [name]))
        made.meta_info_def.tags.extend(tags)
        made.signature_def["predict"].method_name = name
        made.asset_file_def.add(filename=f"{name}.txt").tensor_info.name = "x:0"
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    wanted: list[tuple[list[str] | None, str]] = [(None, "b"), (["train"], "a"), (["gpu", "serve"], "c")]
    for chosen, name in wanted:
        found = import_meta_graph(tmp_path, tags=chosen)
        assert list(found.variables) == [name] and found.assets == {"x:0": f"{name}.txt"}
        assert found.signatures["predict"].method_name == name
    with pytest.raises(tfckpt.NotFoundError, match=r'no meta graph has the tags .*"tpu"'):
        import_meta_graph(tmp_path, tags=["tpu"])
    _, path = exported(tmp_path)
    for source in (path, graph([])):
        with pytest.raises(tfckpt.InvalidArgumentError, match="has no tags"):
            import_meta_graph(source, tags=["serve"])


@pytest.mark.parametrize("scope", ["imp", "imp/", "a/b.c", "0"])
def test_a_scope(tmp_path: Path, scope: str) -> None:
    """It is added to the names of variables, nodes, savers and strings; keys do not change; a last slash is ignored."""
    _, path = exported(tmp_path)
    meta = import_meta_graph(path).meta_graph_def
    meta.collection_def["strings"].bytes_list.value.extend([b"hi", b"\xff"])
    meta.collection_def["nodes"].node_list.value.extend(["step:0", "^step"])
    imported = import_meta_graph(meta, import_scope=scope)
    name = scope.rstrip("/")
    assert imported.import_scope == name and list(imported.variables) == [f"{name}/scope/w", f"{name}/step"]
    assert imported.collections["strings"] == [f"{name}/hi", b"\xff"]
    assert imported.collections["nodes"] == [f"{name}/step:0", f"^{name}/step"]
    assert imported.meta_graph_def == meta
    assert imported.saver is not None
    saver_def = imported.saver.as_saver_def()
    assert saver_def is not None and saver_def.restore_op_name == f"{name}/save/restore_all"
    imported.saver.restore(tmp_path / "m")
    again = imported.export_meta_graph()
    assert again.saver_def == saver_def
    assert all(each.name.startswith(f"{name}/") for each in again.graph_def.node)


@pytest.mark.parametrize("scope", ["a b", "/a", "_x", "x:0", "^a", "\u00fc", "a\n"])
def test_an_invalid_scope(tmp_path: Path, scope: str) -> None:
    """A name that a node cannot begin with is rejected immediately."""
    _, path = exported(tmp_path)
    with pytest.raises(ValueError, match=r"is not a valid (root )?scope name"):
        import_meta_graph(path, import_scope=scope)


def test_devices(tmp_path: Path) -> None:
    """After clearing, sharded savers write one shard, and no node has a device."""
    tensors = [Variable(torch.ones(2), name, device=device) for name, device in (("a", "/cpu:0"), ("b", "/gpu:1"))]
    Saver(tensors, sharded=True).save(tmp_path / "m")
    for clear, shards in ((False, 2), (True, 1)):
        imported = import_meta_graph(tmp_path / "m.meta", clear_devices=clear)
        assert imported.saver is not None
        imported.saver.restore(tmp_path / "m")
        imported.saver.save(tmp_path / "n", write_state=False)
        assert len(list(tmp_path.glob("n.data*"))) == shards
        assert any(each.device for each in imported.meta_graph_def.graph_def.node) != clear
        tfckpt.remove_checkpoint(str(tmp_path / "n"))


def test_without_collections() -> None:
    """The variables are the variable nodes of the graph, in its order."""
    imported = import_meta_graph(graph([variable("b"), node("x", "NoOp"), variable("a")]))
    assert list(imported.variables) == ["b", "a"] and imported.saver is not None


def test_an_empty_file(tmp_path: Path) -> None:
    """An empty file is an empty meta graph."""
    (tmp_path / "m.meta").touch()
    imported = import_meta_graph(tmp_path / "m.meta")
    assert (imported.saver, imported.variables, len(imported.collections)) == (None, {}, 0)
    assert imported.export_meta_graph(tmp_path / "n") == MetaGraphDef() and (tmp_path / "n").read_bytes() == b""


def test_parts_are_views_of_one_tensor(tmp_path: Path) -> None:
    """Under the name of the whole; the collection contains the parts, which are views of it."""
    whole = torch.arange(12.0).reshape(4, 3)
    parts = [Variable(whole[i : i + 2], f"p/{i}", SaveSliceInfo("w", [4, 3], [i, 0], [2, 3])) for i in (0, 2)]
    Saver(parts).save(tmp_path / "m")
    imported = import_meta_graph(tmp_path / "m.meta")
    assert imported.saver is not None and list(imported.variables) == ["w"]
    imported.saver.restore(tmp_path / "m")
    assert torch.equal(tensor(imported, "w"), whole)
    views = imported.collections["variables"]
    assert [each.tensor.tolist() for each in views] == [whole[:2].tolist(), whole[2:].tolist()]  # type: ignore[attr-defined]


def test_parts_of_strings(tmp_path: Path) -> None:
    """Strings may also be partitioned."""
    parts = [Words(tmp_path.name, number) for number in (0, 2)]
    Saver({"w": parts}).save(tmp_path / "m", write_meta_graph=False)
    nodes = [variable(name, [2], DataType.DT_STRING) for name in "pq"]
    imported = import_meta_graph(graph(nodes, [part("p", "w", [4], [0], [2]), part("q", "w", [4], [2], [2])]))
    assert imported.saver is not None and list(imported.variables) == ["w"]
    imported.saver.restore(tmp_path / "m")
    name = tmp_path.name
    assert imported.variables["w"].tolist() == [f"{name} {number}".encode() for number in (0, 1, 2, 3)]
    saved = imported.saver.save(tmp_path / "n")
    assert saved is not None and tfckpt.load_variable(saved, "w").tolist() == imported.variables["w"].tolist()


class Words(tfckpt.SaveableObject):
    """Two of four strings."""

    def __init__(self, name: str, first: int) -> None:
        words = np.array([f"{name} {first + number}".encode() for number in (0, 1)], dtype=object)
        super().__init__(self, [tfckpt.SaveSpec(words, f"4 {first},2", "w")], "w")


def test_types_that_torch_lacks(caplog: pytest.LogCaptureFixture) -> None:
    """Such variables are left out, with one warning each."""
    types = (DataType.DT_RESOURCE, DataType.DT_VARIANT, 12345)
    nodes = [variable(f"v{number}", [2], dtype) for number, dtype in enumerate(types)]
    with caplog.at_level(logging.WARNING):
        assert import_meta_graph(graph([*nodes, variable("v")], ["v0", "v1", "v2", "v"])).variables.keys() == {"v"}
    assert [record.getMessage() for record in caplog.records] == [
        f'variable "v{number}" is omitted: torch has no {DataType(dtype).name}' for number, dtype in enumerate(types)
    ]


def test_one_value_for_several_variables(tmp_path: Path) -> None:
    """For example copies of a variable on several devices: all are restored, and the first is saved."""
    meta = graph([variable("v", [2]), variable("v/replica_1", [2]), *restoring([("v", 0), ("v/replica_1", 0)], [b"v"])],
                 ["v", "v/replica_1"], SAVER)  # fmt: skip
    path = Saver({"v": torch.tensor([1.0, 2.0])}).save(tmp_path / "m")
    imported = import_meta_graph(meta)
    assert imported.saver is not None
    imported.saver.restore(path)
    assert [tensor(imported, name).tolist() for name in imported.variables] == [[1.0, 2.0]] * 2
    tensor(imported, "v").fill_(3)
    saved = imported.saver.save(tmp_path / "n", write_meta_graph=False)
    assert saved is not None and tfckpt.load_variable(saved, "v").tolist() == [3.0, 3.0]


@pytest.mark.parametrize(("version", "first"), [("", True), ("1.8.0", True), ("1.9.0", False), ("1.10.0-rc0", False)])
def test_trainable(version: str, first: bool) -> None:
    """Before TensorFlow 1.9 the collection decides, since then the definition."""
    definitions = [VariableDef(variable_name="a:0"), VariableDef(variable_name="b:0", trainable=True)]
    meta = graph([variable("a"), variable("b")], definitions)
    meta.collection_def["trainable_variables"].bytes_list.value.append(definitions[0].SerializeToString())
    meta.meta_info_def.tensorflow_version = version
    variables = import_meta_graph(meta).collections["variables"]
    assert [getattr(each, "trainable", None) for each in variables] == [first, not first]


def test_asynchronous_save(tmp_path: Path) -> None:
    """`save_async` of an imported saver writes the same meta graph."""
    _, path = exported(tmp_path)
    imported = import_meta_graph(path)
    assert imported.saver is not None
    imported.saver.restore(tmp_path / "m")
    handle = imported.saver.save_async(tmp_path / "n")
    tensor(imported, "step").fill_(8)
    handle.result()
    assert (tmp_path / "n.meta").read_bytes() == path.read_bytes()
    assert tfckpt.load_variable(tmp_path / "n", "step").item() == 7


# Unchanged parts.


def test_the_default_collections_do_not_change(tmp_path: Path) -> None:
    """Importing adds nothing to them, and their values are not exported with an imported graph."""
    _, path = exported(tmp_path)
    with Collections().as_default() as mine:
        add_to_collection("mine", 1)
        imported = import_meta_graph(path)
        assert list(mine) == ["mine"] and imported.collections is not mine
        assert imported.export_meta_graph() == imported.meta_graph_def


def golden_files() -> list[str]:
    found = [*GOLDEN.glob("*/*.meta"), *GOLDEN.glob("*/saved_model.pb")]
    return sorted(str(path.relative_to(GOLDEN)) for path in found)


@pytest.mark.parametrize("name", golden_files())
def test_real_files_are_exported_byte_for_byte(golden: Path, tmp_path: Path, name: str) -> None:
    """With any contents, by each way to export; the text form is equivalent."""
    imported = import_meta_graph(golden / name)
    imported.export_meta_graph(tmp_path / "again")
    imported.export_meta_graph(tmp_path / "text", as_text=True)
    written = (tmp_path / "again").read_bytes()
    content = (golden / name).read_bytes()
    assert written == content if name.endswith(".meta") else written in content
    assert imported.saver is not None and imported.variables
    imported.saver.export_meta_graph(tmp_path / "saver")
    assert (tmp_path / "saver").read_bytes() == written
    # Not the same bytes: the text form has the decoded contents of an Any, which are encoded again.
    import_meta_graph(tmp_path / "text").export_meta_graph(tmp_path / "again", as_text=True)
    assert (tmp_path / "again").read_text() == (tmp_path / "text").read_text()


def test_edited_collections_are_exported(tmp_path: Path) -> None:
    """Added, replaced, removed, mixed kinds; the bytes of all others are unchanged."""
    _, path = exported(tmp_path)
    imported = import_meta_graph(path)
    imported.collections.add_to_collection("numbers", 1)
    imported.collections.clear_collection("trainable_variables")
    imported.collections.add_to_collection("variables", imported.collections["variables"][0])
    imported.collections.add_to_collection("savers", imported.saver)
    before, after = imported.meta_graph_def, imported.export_meta_graph()
    assert sorted(after.collection_def) == ["numbers", "savers", "variables"]
    assert list(after.collection_def["numbers"].int64_list.value) == [1]
    values = list(before.collection_def["variables"].bytes_list.value)
    assert list(after.collection_def["variables"].bytes_list.value) == [*values, values[0]]
    assert savers_of(after) == [before.saver_def]
    assert after.graph_def == before.graph_def and after.meta_info_def == before.meta_info_def
    again = import_meta_graph(after)
    assert again.collections["savers"] == [again.saver] and again.export_meta_graph() == after


def test_settings_of_the_saver_are_exported(tmp_path: Path) -> None:
    """`max_to_keep` and the like are those of the imported saver, and it uses them."""
    saver = Saver({"v": torch.zeros(1)}, max_to_keep=2, keep_checkpoint_every_n_hours=0.25, name="mine")
    saver.export_meta_graph(tmp_path / "m.meta")
    imported = import_meta_graph(tmp_path / "m.meta").saver
    assert imported is not None and imported.as_saver_def() == saver.as_saver_def()
    imported.restore(Saver({"v": torch.ones(1)}).save(tmp_path / "first"))
    for step in range(4):
        imported.save(tmp_path / "m", step)
    assert [Path(each).name for each in imported.last_checkpoints] == ["m-2", "m-3"]
    assert not (tmp_path / "m-1.index").exists() and not (tmp_path / "m-1.meta").exists()


def test_unusual_collections() -> None:
    """Undecodable bytes, a collection of no kind, names of missing nodes: values without an error."""
    meta = graph([variable("v", [2])], ["v"])
    meta.collection_def["savers"].bytes_list.value.extend([b"\xff", SAVER.SerializeToString()])
    meta.collection_def["of no kind"].SetInParent()
    meta.collection_def["nodes"].node_list.value.append("absent:0")
    meta.collection_def["strings"].bytes_list.value.append(b"\xff")
    imported = import_meta_graph(meta)
    found = lists_of(imported)
    assert found["savers"][0] == b"\xff" and isinstance(found["savers"][1], Saver)
    assert (found["nodes"], found["strings"]) == (["absent:0"], [b"\xff"])
    assert imported.export_meta_graph() == meta


def test_a_saver_without_nodes(tmp_path: Path) -> None:
    """Its variables are stored under their names."""
    imported = import_meta_graph(graph([variable("v", [2])], ["v"], SAVER))
    path = Saver({"v": torch.ones(2)}).save(tmp_path / "m")
    assert imported.saver is not None
    imported.saver.restore(path)
    assert tensor(imported, "v").tolist() == [1.0, 1.0]


def test_text_of_every_message(tmp_path: Path) -> None:
    """protobuf's own parser accepts the exported text."""
    _, path = exported(tmp_path)
    meta = import_meta_graph(path).export_meta_graph(tmp_path / "text", as_text=True)
    assert text_format.Parse((tmp_path / "text").read_text(), MetaGraphDef()) == meta


def test_variables_that_were_never_restored_are_not_saved(tmp_path: Path) -> None:
    """As in TensorFlow, where they are uninitialized: zeros would overwrite the trained values."""
    path = Saver({"a": torch.ones(2), "b": torch.zeros(2)}).save(tmp_path / "m")
    imported = import_meta_graph(f"{path}.meta")
    assert imported.saver is not None and path is not None
    for save in (imported.saver.save, imported.saver.save_async):
        with pytest.raises(tfckpt.FailedPreconditionError, match="Attempting to use uninitialized value"):
            save(path)
    assert tfckpt.load_variable(path, "a").tolist() == [1.0, 1.0]
    imported.variables["a"] = torch.full((2,), 3.0)  # variables that were set may be saved
    imported.saver.save(tmp_path / "n")
    assert tfckpt.load_variable(tmp_path / "n", "a").tolist() == [3.0, 3.0]
    again = import_meta_graph(f"{path}.meta")
    assert again.saver is not None
    again.saver.restore(path)
    again.variables["a"] = torch.zeros(2)
    again.saver.save(tmp_path / "o")  # intended zeros
    assert tfckpt.load_variable(tmp_path / "o", "a").tolist() == [0.0, 0.0]


def test_the_keys_of_variables(tmp_path: Path) -> None:
    """They may differ from the names; those of parts are the whole's."""
    whole = torch.rand(4, 2)
    parts = [Variable(whole[at : at + 2], f"w/{at}", SaveSliceInfo("w", [4, 2], [at, 0], [2, 2])) for at in (0, 2)]
    saver = Saver({"x y": torch.ones(1), "key": Variable(torch.ones(1), "v"), "parts": parts})
    saver.export_meta_graph(tmp_path / "m.meta")
    keys = {"x_y": "x y", "v": "key", "w": "parts"}
    assert import_meta_graph(tmp_path / "m.meta").checkpoint_keys == keys
    scoped = import_meta_graph(tmp_path / "m.meta", import_scope="s").checkpoint_keys
    assert scoped == {f"s/{name}": key for name, key in keys.items()}
