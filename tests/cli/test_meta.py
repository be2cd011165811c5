"""tfckpt meta."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from golden_files import GOLDEN

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saved_model_pb2 import SavedModel
from torch_tfckpt._proto.types_pb2 import DT_FLOAT
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.cli import meta as cli_meta
from torch_tfckpt.cli.main import main

Output = pytest.CaptureFixture[str]
TF1 = str(GOLDEN / "graph-of-tensorflow-1.11" / "model.meta")
TF2 = str(GOLDEN / "digits-module")


def listing(capsys: Output, *arguments: str, status: int = 0) -> list[str]:
    """Return the lines that a call prints."""
    assert main(["meta", *arguments]) == status
    return capsys.readouterr().out.splitlines()


def document(capsys: Output, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Return the JSON document that a call prints; NaN and infinity, which are not JSON, fail."""
    content: dict[str, Any] = json.loads(
        "\n".join(listing(capsys, "--json", *arguments, status=status)), parse_constant=pytest.fail
    )
    return content


def write(path: Path, message: MetaGraphDef | SavedModel) -> str:
    """Write the file and return its path as an argument."""
    path.write_bytes(message.SerializeToString(deterministic=True))
    return str(path)


def add_variable(meta: MetaGraphDef, name: str, *shape: int) -> None:
    """Add a variable's node and its entry in the collection of variables."""
    node = meta.graph_def.node.add(name=name, op="VariableV2")
    node.attr["dtype"].type = DT_FLOAT
    node.attr["shape"].shape.SetInParent()
    for length in shape:
        node.attr["shape"].shape.dim.add(size=length)
    definition = VariableDef(variable_name=f"{name}:0", trainable=True)
    meta.collection_def["variables"].bytes_list.value.append(definition.SerializeToString())


def test_a_meta_file_of_tensorflow(capsys: Output) -> None:
    """The whole report on one page."""
    lines = listing(capsys, TF1)
    assert lines[:2] == [
        f"{TF1}: meta graph, 6.57 kB",
        "TensorFlow 1.11.0 (v1.11.0-0-gc19e29306c); graph version 27, for readers of 0 or later",
    ]
    assert lines[3:6] == [
        "operation             nodes  in functions",
        "Const                    16             0",
        "Assign                    4             0",
    ]
    at = lines.index("49 nodes, 0 functions of 0 nodes")
    assert lines[at - 1] == "Sub                       1             0"
    assert lines[at + 1 :] == [
        "",
        "variable  dtype    shape  trainable  device  part",
        "W         float32  []     yes",
        "b         float32  []     yes",
        "2 variables, 2 elements, 8 B",
        "",
        "collection           kind                       count  values",
        "train_op             node_list                      1  GradientDescent",
        "trainable_variables  bytes_list of VariableDef      2  W:0, b:0",
        "variables            bytes_list of VariableDef      2  W:0, b:0",
        "",
        "saver: V2, not sharded, max_to_keep 5, keep_checkpoint_every_n_hours 10000",
        "  filename save/Const:0, save save/control_dependency:0, restore save/restore_all",
    ]


def test_operations_of_a_trained_model(capsys: Output) -> None:
    """The first 30 of 58 are listed, then the number of the others."""
    lines = listing(capsys, str(GOLDEN / "digits-cnn" / "model.ckpt-216.meta"))
    at = lines.index("511 nodes, 0 functions of 0 nodes")
    assert lines[at - 1] == "and 28 more (--json has all)"


def test_a_saved_model_of_tensorflow(capsys: Output) -> None:
    """Tags, Python objects, functions, signatures, assets."""
    lines = listing(capsys, TF2)
    assert lines[0] == f"{TF2}/saved_model.pb: meta graph of a SavedModel, 35 kB"
    assert lines[2:4] == [
        "tags serve",
        "object graph: 27 objects (bare_concrete_function 7, variable 7, function 5, user_object 5, asset 1, "
        'constant 1, resource 1); the root is "_generic_user_object"',
    ]
    assert "33 nodes, 9 functions of 107 nodes" in lines
    at = lines.index('signature "serving_default", method "tensorflow/serving/predict", defaults for temperature')
    assert lines[at + 1 : at + 9] == [
        "        name         dtype    shape    tensor",
        "input   images       float32  [?,8,8]  serving_default_images:0",
        "input   temperature  float32  []       serving_default_temperature:0",
        "output  logits       float32  [?,10]   StatefulPartitionedCall_1:0",
        "output  name         string   [?]      StatefulPartitionedCall_1:1",
        "",
        "asset       tensor",
        "digits.txt  asset_path_initializer:0",
    ]


def test_the_document_of_a_meta_file(capsys: Output) -> None:
    """Fixed keys, complete lists, values of collections."""
    content = document(capsys, TF1)
    assert list(content) == [
        "path",
        "tags_available",
        "nbytes",
        "of_saved_model",
        "vintage",
        "tags",
        "nodes",
        "ops",
        "functions",
        "function_ops",
        "function_aliases",
        "variables",
        "variables_problem",
        "collections",
        "signatures",
        "assets",
        "saver",
        "savers",
        "object_graph",
        "total",
    ]
    assert content["path"] == TF1 and content["tags_available"] == [[]]
    assert sum(content["ops"].values()) == content["nodes"] == 49
    assert content["variables"][0] == {
        "name": "W",
        "dtype": "float32",
        "shape": [],
        "trainable": True,
        "device": "",
        "part": None,
        "elements": 1,
        "nbytes": 4,
    }
    assert content["total"] == {"variables": 2, "elements": 2, "nbytes": 8, "unknown": 0}
    assert [value["variable_name"] for value in content["collections"][2]["values"]] == ["W:0", "b:0"]
    assert content["collections"][0] == {
        "name": "train_op",
        "kind": "node_list",
        "message": "",
        "count": 1,
        "values": ["GradientDescent"],
    }
    assert content["saver"]["version"] == "V2" and content["saver"]["keep_checkpoint_every_n_hours"] == 10000


def test_the_document_of_a_saved_model(capsys: Output) -> None:
    content = document(capsys, TF2)
    assert (content["tags"], content["tags_available"]) == (["serve"], [["serve"]])
    assert len(content["functions"]) == 9 and set(content["functions"][0]) == {"name", "nodes", "ops"}
    assert content["assets"] == [{"filename": "digits.txt", "tensors": ["asset_path_initializer:0"]}]
    assert content["object_graph"]["kinds"]["variable"] == 7
    [served] = [each for each in content["signatures"] if each["name"] == "serving_default"]
    assert served["inputs"] == [
        {"name": name, "dtype": "float32", "shape": shape, "tensors": [f"serving_default_{name}:0"], "encoding": "name"}
        for name, shape in (("images", [-1, 8, 8]), ("temperature", []))
    ]


def test_the_drawing(capsys: Output) -> None:
    """One level of scopes by default, variables with their shapes; --depth shows more."""
    lines = listing(capsys, TF1, "--dot")
    assert lines[1] == "digraph {" and lines[-1] == "}"
    assert r'  n2 [label="W\nfloat32 []", shape=box];' in lines
    assert listing(capsys, TF1, "--dot", "--depth", "1") == lines
    assert len(listing(capsys, TF1, "--dot", "--depth", "2")) > len(lines)


def test_one_of_several_graphs_is_shown(tmp_path: Path, capsys: Output) -> None:
    """Selected by its tags, by default the one to serve; all sets of tags are listed."""
    model = SavedModel(saved_model_schema_version=1)
    for tags in (["train"], ["serve"], ["gpu", "serve"], []):
        model.meta_graphs.add().meta_info_def.tags.extend(tags)
    path = write(tmp_path / "saved_model.pb", model)
    sets = "of 4 graphs: train | serve | gpu,serve | (none)"
    assert listing(capsys, path)[2] == f"tags serve, {sets}"
    assert listing(capsys, path, "--tags", "serve,gpu")[2] == f"tags gpu,serve, {sets}"
    assert listing(capsys, path, "--tags", "")[2] == f"tags (none), {sets}"
    content = document(capsys, path, "--tags", "train")
    assert (content["tags"], content["tags_available"]) == (["train"], [["train"], ["serve"], ["gpu", "serve"], []])


def test_versions_before_1_contain_less(tmp_path: Path, capsys: Output) -> None:
    meta = MetaGraphDef()
    meta.graph_def.versions.producer = 17
    meta.graph_def.versions.bad_consumers.extend([3, 4])
    assert listing(capsys, write(tmp_path / "m.meta", meta)) == [
        f"{tmp_path}/m.meta: meta graph, 10 B",
        "TensorFlow version not recorded (before 1.0); graph version 17, for readers of 0 or later, not 3, 4",
        "",
        "0 nodes, 0 functions of 0 nodes",
        "",
        "0 variables, 0 elements, 0 B",
        "",
        "no saver",
    ]


def test_slices_and_unknown_sizes(tmp_path: Path, capsys: Output) -> None:
    """A slice in Python's notation; ? for unknown dimensions."""
    meta = MetaGraphDef()
    add_variable(meta, "w/part_0", 2, 3)
    add_variable(meta, "u", -1, 3)
    meta.graph_def.node[0].device = "/job:ps/task:1/cpu:0"
    info = SaveSliceInfoDef(full_name="w", full_shape=[4, 3], var_offset=[0, 0], var_shape=[2, 3])
    encoded = VariableDef(variable_name="w/part_0:0", save_slice_info_def=info).SerializeToString()
    meta.collection_def["variables"].bytes_list.value[0] = encoded
    path = write(tmp_path / "m.meta", meta)
    lines = listing(capsys, path)
    at = lines.index("2 nodes, 0 functions of 0 nodes")
    assert [" ".join(line.split()) for line in lines[at + 3 : at + 6]] == [
        "w/part_0 float32 [2,3] no /job:ps/task:1/device:CPU:0 [0:2,:] of w [4,3]",
        "u float32 [?,3] no",
        "2 variables, 6 elements, 24 B, 1 of unknown size",
    ]
    content = document(capsys, path)
    assert content["variables"][0]["part"] == {
        "full_name": "w",
        "full_shape": [4, 3],
        "offset": [0, 0],
        "shape": [2, 3],
    }
    assert (content["variables"][1]["shape"], content["total"]["unknown"]) == ([-1, 3], 1)


def test_values_of_collections(tmp_path: Path, capsys: Output) -> None:
    """A few values for people, all in JSON; bytes as a string if possible, an Any as its type."""
    meta = MetaGraphDef()
    meta.collection_def["b"].bytes_list.value.extend([b"text", b"a\x1b[31m", b"\xff", b"more"])
    meta.collection_def["f"].float_list.value.extend([0.5, math.nan, -math.inf])
    meta.collection_def["i"].int64_list.value.extend([1 << 62])
    meta.collection_def["p"].any_list.value.add(type_url="type.googleapis.com/a.B", value=b"\xff")
    meta.collection_def["savers"].bytes_list.value.append(meta.saver_def.SerializeToString())
    meta.collection_def["x"].SetInParent()
    meta.saver_def.keep_checkpoint_every_n_hours = math.inf
    path = write(tmp_path / "m.meta", meta)
    lines = [" ".join(line.split()) for line in listing(capsys, path)]
    assert lines[lines.index("collection kind count values") + 1 :][:6] == [
        'b bytes_list 4 "text", 6 bytes, 1 byte and 1 more',
        "f float_list 3 0.5, nan, -inf",
        f"i int64_list 1 {1 << 62}",
        "p any_list 1 a.B (1 byte)",
        "savers bytes_list of SaverDef 1",
        "x 0",
    ]
    assert lines[-4::2] == [
        "saver: LEGACY, not sharded, max_to_keep 0, keep_checkpoint_every_n_hours inf",
        "savers[0] of the collections: LEGACY, not sharded, max_to_keep 0, keep_checkpoint_every_n_hours 0",
    ]
    content = document(capsys, path)
    assert [each["values"] for each in content["collections"]] == [
        ["text", "a\x1b[31m", {"base64": base64.b64encode(b"\xff").decode()}, "more"],
        [0.5, "NaN", "-Infinity"],
        [1 << 62],
        [{"type_url": "type.googleapis.com/a.B", "base64": "/w=="}],
        [{}],
        [],
    ]
    assert content["saver"]["keep_checkpoint_every_n_hours"] == "Infinity"


def test_long_lists_are_shortened_except_in_json(tmp_path: Path, capsys: Output) -> None:
    """Each shortened list, including operations, signatures and tags, ends with the number left out."""
    meta, count = MetaGraphDef(), cli_meta._ROWS + 7
    for index in range(count):
        add_variable(meta, f"v{index}", 2)
        meta.graph_def.node.add(name=f"n{index}", op=f"Op{index}")
        meta.collection_def[f"c{index}"].int64_list.value.append(index)
        meta.signature_def[f"s{index}"].SetInParent()
        meta.asset_file_def.add(filename=f"a{index}")
        meta.collection_def["savers"].bytes_list.value.append(b"")
        meta.meta_info_def.tags.append(f"t{index}")
        for name in ("f", "g"):
            meta.signature_def["s0"].inputs[f"{name}{index}"].name = "x"
    path = write(tmp_path / "m.meta", meta)
    lines = listing(capsys, path)
    assert lines.count("and 7 more (--json has all)") == 2  # variables, assets
    assert lines.count("and 8 more (--json has all)") == 1  # operations, including VariableV2
    assert lines.count("and 9 more (--json has all)") == 1  # collections, including variables and savers
    assert lines.count(f"and {2 * count - cli_meta._ROWS} more (--json has all)") == 1  # inputs of s0
    for what in ("signatures", "savers"):
        assert f"and 7 more {what} (--json has all)" in lines
    assert lines[2].endswith(" and 7 more")
    assert len(lines) < 12 * cli_meta._ROWS
    content = document(capsys, path)
    for key in ("variables", "signatures", "assets", "tags"):
        assert len(content[key]) == count
    assert (len(content["ops"]), len(content["collections"]), len(content["savers"])) == (count + 1, count + 2, count)


@pytest.mark.parametrize("name", ["a\nb", 'a"\\', "\x1b[2Jgone", "n" * 1_000_000, "[bold]", "\u202e"])
def test_hostile_names(tmp_path: Path, name: str, capsys: Output) -> None:
    """Control characters are escaped everywhere and lines stay short; JSON has the names unchanged."""
    meta = MetaGraphDef()
    add_variable(meta, name, *[1] * 300)
    meta.graph_def.node[0].op = name
    meta.graph_def.node[0].device = name
    meta.meta_info_def.tags.append(name)
    meta.meta_info_def.tensorflow_version = meta.meta_info_def.tensorflow_git_version = name
    meta.collection_def[name].bytes_list.value.append(name.encode())
    meta.collection_def["x"].node_list.value.append(name)
    meta.collection_def["y"].any_list.value.add(type_url=name)
    meta.signature_def[name].inputs[name].name = name
    meta.signature_def[name].method_name = name
    meta.asset_file_def.add(filename=name).tensor_info.name = name
    meta.saver_def.filename_tensor_name = meta.saver_def.restore_op_name = name
    meta.object_graph_def.nodes.add().user_object.identifier = name
    meta.graph_def.library.function.add().signature.name = name
    path = write(tmp_path / "m.meta", meta)
    for arguments in ([], ["--dot"]):
        lines = listing(capsys, path, *arguments)
        assert all(line.isprintable() and len(line) < 800 for line in lines)
    content = document(capsys, path)
    assert content["variables"][0]["name"] == content["signatures"][0]["method_name"] == name


def test_variables_that_contradict_the_graph(tmp_path: Path, capsys: Output) -> None:
    """The rest is shown, the reason is reported, and the status is 1."""
    meta = MetaGraphDef()
    meta.collection_def["variables"].bytes_list.value.append(VariableDef(variable_name="v:0").SerializeToString())
    path = write(tmp_path / "m.meta", meta)
    for arguments in ([], ["--json"], ["--dot"]):
        assert main(["meta", path, *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f'tfckpt: {path}: variable "v"') and captured.err.count("\n") == 1
        assert len(captured.out) > 50


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "does not exist"), (b"nothing of the kind", "Cannot parse file"), (b"\x12\x05\x0a", "Cannot parse file")],
    ids=["missing", "other", "cut"],
)
def test_other_files_are_status_1(tmp_path: Path, content: bytes | None, text: str, capsys: Output) -> None:
    """One line with the name of the file."""
    if content is not None:
        (tmp_path / "m.meta").write_bytes(content)
    for arguments in ([], ["--json"], ["--dot"]):
        assert main(["meta", str(tmp_path / "m.meta"), *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert text in captured.err and str(tmp_path / "m.meta") in captured.err


def test_a_broken_graph_is_status_1(tmp_path: Path, capsys: Output) -> None:
    """Damage that is found only when the nodes are read."""
    meta = MetaGraphDef()
    meta.graph_def.node.add(name="a")
    meta.graph_def.node.add(name="a")
    assert main(["meta", write(tmp_path / "m.meta", meta)]) == 1
    assert capsys.readouterr().err == f'tfckpt: {tmp_path}/m.meta: two nodes are named "a"\n'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--json", "--dot"], "not allowed with"),
        (["--depth", "2"], "Add --dot"),
        (["--depth", "2", "--json"], "Add --dot"),
        (["--dot", "--depth", "0"], "at least 1, got 0"),
        (["--dot", "--depth", "x"], "invalid int value"),
        (["--tags", "serve"], "has no tags"),
    ],
    ids=["two-forms", "depth", "depth-json", "no-depth", "no-number", "tags"],
)
def test_wrong_use_is_status_2(arguments: list[str], text: str, capsys: Output) -> None:
    assert main(["meta", TF1, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and text in captured.err and "Traceback" not in captured.err
