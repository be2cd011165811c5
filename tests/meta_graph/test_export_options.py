"""The options of an export, one by one and together, and the file that it writes."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from small_meta_graph import LATER, encoded, meta_graph

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saved_model_pb2 import SavedModel
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.meta_graph.export_options import ExportOptions, write_meta_graph
from torch_tfckpt.meta_graph.files import meta_graph_of, open_meta_graph

OPTIONS: dict[str, Any] = {
    "collection_list": ["ints"],
    "export_scope": "a",
    "clear_devices": True,
    "clear_extraneous_savers": True,
    "strip_default_attrs": True,
}


def applied(**options: Any) -> MetaGraphDef:
    return ExportOptions(**options).applied_to(encoded(meta_graph())).message()


def only(meta: MetaGraphDef, field: str) -> bytes:
    """Return one field, encoded."""
    copy = MetaGraphDef()
    copy.CopyFrom(meta)
    copy.DiscardUnknownFields()
    for other in MetaGraphDef.DESCRIPTOR.fields:
        if other.name != field:
            copy.ClearField(other.name)
    return copy.SerializeToString(deterministic=True)


def nodes(meta: MetaGraphDef) -> list[str]:
    return [node.name for node in meta.graph_def.node]


# Options.


@pytest.mark.parametrize("options", [{}, {"export_scope": ""}, dict.fromkeys(OPTIONS), dict.fromkeys(OPTIONS, False)])
def test_default_options(options: dict[str, Any]) -> None:
    """The result is the same object."""
    meta = encoded(meta_graph())
    if options.get("collection_list") is False:
        options = {**options, "collection_list": None}
    assert ExportOptions(**options).applied_to(meta) is meta


def test_arguments() -> None:
    """In TensorFlow's order, each under its name."""
    assert [field.name for field in fields(ExportOptions)] == list(OPTIONS)
    assert ExportOptions(*OPTIONS.values()) == ExportOptions(**OPTIONS)
    with pytest.raises(UnimplementedError, match="save_debug_info"):
        ExportOptions(save_debug_info=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_only_its_part(option: str) -> None:
    """Each option changes its part of the message; unknown fields are preserved."""
    meta = ExportOptions(**{option: OPTIONS[option]}).applied_to(encoded(meta_graph()))
    before, after = meta_graph(), meta.message()
    assert bytes(meta.raw).endswith(LATER) and meta.place == "x.meta"
    names = [field.name for field in MetaGraphDef.DESCRIPTOR.fields]
    assert {name for name in names if only(before, name) != only(after, name)} == {
        "collection_list": {"collection_def"},
        "export_scope": {"graph_def", "collection_def", "signature_def", "asset_file_def", "meta_info_def"},
        "clear_devices": {"graph_def"},
        "clear_extraneous_savers": {"graph_def", "collection_def"},
        "strip_default_attrs": {"graph_def", "meta_info_def"},
    }[option]


def test_effects() -> None:
    """The essentials; test_rewriting.py and test_rescoping.py test the details."""
    assert list(applied(collection_list=["ints", "absent"]).collection_def) == ["ints"]
    assert not applied(collection_list=[]).collection_def
    assert not any(node.device for node in applied(clear_devices=True).graph_def.node)
    assert not [name for name in nodes(applied(clear_extraneous_savers=True)) if name.startswith("a/save/")]
    assert "transpose" not in applied(strip_default_attrs=True).graph_def.node[2].attr
    assert applied(export_scope="a").graph_def.node[0].name == "w"


def test_all_options_together() -> None:
    """The exported saver is that of the whole graph, and its nodes are kept although those of others are removed."""
    meta = applied(**{**OPTIONS, "collection_list": ["savers", "strings"], "export_scope": None})
    assert nodes(meta) == ["a/w", "b", "a/mul", "a/enter", "save/SaveV2", "save/restore_all"]
    [saver] = meta.collection_def["savers"].bytes_list.value
    assert SaverDef.FromString(saver) == meta.saver_def and len(meta.collection_def) == 2
    assert not any(node.device for node in meta.graph_def.node) and meta.meta_info_def.stripped_default_attrs
    scoped = applied(**OPTIONS)
    assert nodes(scoped) == ["w", "mul", "enter"] and list(scoped.collection_def) == ["ints"]


# The file.


def test_binary_and_text(tmp_path: Path) -> None:
    """Binary is unchanged, text is equivalent; directories are created; an existing file is replaced."""
    meta = encoded(meta_graph())
    known = meta_graph_of(meta_graph())
    for name, as_text in (("a/b/m.meta", False), ("a/c/m.meta", True), ("a/b/m.meta", True), ("a/b/m.meta", False)):
        write_meta_graph(tmp_path / name, known if as_text else meta, as_text=as_text)
        content = (tmp_path / name).read_bytes()
        if as_text:
            assert text_format.Parse(content.decode(), MetaGraphDef()) == meta_graph()
        else:
            assert content == bytes(meta.raw)
    write_meta_graph(str(tmp_path / "m"), meta, as_text=False)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("m*")) == ["a/b/m.meta", "a/c/m.meta", "m"]


@pytest.mark.parametrize(("name", "as_text"), [("saved_model.pb", False), ("saved_model.pbtxt", True)])
def test_a_saved_model(tmp_path: Path, name: str, as_text: bool) -> None:
    """Chosen by the file name: a SavedModel of this meta graph, or the one that it came from, with its others."""
    made = meta_graph()
    made.meta_info_def.tags.append("serve")
    write_meta_graph(tmp_path / name, meta_graph_of(made), as_text=as_text)
    content = (tmp_path / name).read_bytes()
    model = SavedModel()
    if as_text:
        text_format.Parse(content.decode(), model)
    else:
        model.ParseFromString(content)
    assert model.saved_model_schema_version == 1 and len(model.meta_graphs) == 1
    other = MetaGraphDef()
    other.meta_info_def.tags.append("train")
    model.meta_graphs.append(other)
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString(deterministic=True))
    write_meta_graph(tmp_path / "new" / name, open_meta_graph(tmp_path / "saved_model.pb", ["serve"]), as_text=as_text)
    again = open_meta_graph(tmp_path / "new" / name, ["train"])
    assert list(again.info.tags) == ["train"]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_that_cannot_be_written(tmp_path: Path, as_text: bool) -> None:
    """OSError; no file is left over."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "m", tmp_path / "folder"):
        with pytest.raises(OSError):
            write_meta_graph(path, meta_graph_of(meta_graph()), as_text=as_text)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_text_of_unknown_fields_is_rejected(tmp_path: Path) -> None:
    """Text cannot represent fields of a later TensorFlow; an existing file is left in place."""
    (tmp_path / "m").write_text("before")
    with pytest.raises(UnimplementedError, match=r"^x.meta: .* Write the binary form"):
        write_meta_graph(tmp_path / "m", encoded(meta_graph()), as_text=True)
    assert (tmp_path / "m").read_text() == "before"
