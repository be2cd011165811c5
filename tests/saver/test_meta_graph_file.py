"""The meta graph file of a checkpoint: what TensorFlow reads from it."""

import importlib.metadata
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from case_table import Table
from google.protobuf import text_format
from saver_files import VERSIONS, names_in
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaverDef, SaveSliceInfo, Variable
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of
from torch_tfckpt.saver import meta_graph as making
from torch_tfckpt.saver.meta_graph import TensorsGraph
from torch_tfckpt.saver.registered import saver_in_graph


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
def test_tensorflow_parses_it(tmp_path: Path, tensorflow: TensorFlowProcess, version: int, sharded: bool) -> None:
    """TensorFlow finds the saver, the variables, which of them are trainable, and their slices."""
    rows = torch.rand(4, 3)
    parts = [Variable(rows[i : i + 2], f"p/{i}", SaveSliceInfo("w", [4, 3], [i, 0], [2, 3])) for i in (0, 2)]
    saver = Saver(
        [
            Variable(torch.zeros(2), "trained"),
            Variable(torch.tensor(5), "global_step", trainable=False, device="/cpu:1"),
            *parts,
            Table("table", {"k": 1.0}).saveable,
        ],
        sharded=sharded,
        write_version=version,
        max_to_keep=7,
        keep_checkpoint_every_n_hours=0.5,
        name="mine",
    )
    saver.save(tmp_path / "m", 3, strip_default_attrs=True)
    found = tensorflow.call("meta_graph", str(tmp_path / "m-3.meta"))
    assert found["saver_def"] == str(saver.as_saver_def())
    assert found["saver_def"].splitlines()[:4] == [
        'filename_tensor_name: "mine/Const:0"',
        f'save_tensor_name: "mine/{_operation(version, sharded)}:0"',
        'restore_op_name: "mine/restore_all"',
        "max_to_keep: 7",
    ]
    assert found["producer"] > 0
    assert (found["version"], found["stripped_default_attrs"]) == (tensorflow.call("version"), True)
    variables = found["variables"]
    assert sorted(variables) == ["trainable_variables", "variables"]
    assert [(each["variable_name"], each["trainable"], each["slice"]) for each in variables["variables"]] == [
        ("global_step:0", False, ""),
        ("table-keys:0", False, ""),
        ("table-values:0", False, ""),
        ("trained:0", True, ""),
        ("p/0:0", True, "w 4 3 0,2:0,3"),
        ("p/2:0", True, "w 4 3 2,2:0,3"),
    ]
    assert variables["trainable_variables"] == [each for each in variables["variables"] if each["trainable"]]
    assert all(each["is_resource"] for each in variables["variables"])


def _operation(version: int, sharded: bool) -> str:
    if not sharded:
        return "control_dependency"
    return "ShardedFilespec" if version == SaverDef.V1 else "Identity"


def test_parameters_and_buffers(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """Only tensors that require a gradient are trainable; buffers and optimizer state are not."""
    linear = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(2))
    linear.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([linear.weight], lr=0.1, momentum=0.9)
    torch.autograd.backward([model(torch.rand(3, 2)).sum()])
    optimizer.step()
    Saver({"model": model, "optimizer": optimizer}).save(tmp_path / "m")
    variables = tensorflow.call("meta_graph", str(tmp_path / "m.meta"))["variables"]
    names = [each["variable_name"] for each in variables["trainable_variables"]]
    assert names == ["model/0.weight:0", "model/1.bias:0", "model/1.weight:0"]
    saved = {name for name, _ in tfckpt.list_variables(tmp_path / "m")}
    assert {each["variable_name"].removesuffix(":0") for each in variables["variables"]} == saved
    assert {f"model/{name}" for name in model.state_dict()} < saved


def test_a_saver_without_variables(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """It writes only the meta graph, which contains no saver."""
    Saver([], allow_empty=True).save(tmp_path / "m", 1)
    found = tensorflow.call("meta_graph", str(tmp_path / "m-1.meta"))
    assert (found["saver_def"], found["variables"]) == (None, {})


def test_export(tmp_path: Path) -> None:
    """CASES 77: export_meta_graph creates directories and returns the message.

    The text format parses to the same message; the binary format equals the file that save writes.
    """
    saver = Saver({"v": torch.zeros(2)})
    text, binary = tmp_path / "l1" / "l2" / "l3" / "graph.pbtxt", tmp_path / "b1" / "b2" / "graph.pb"
    meta = saver.export_meta_graph(text, as_text=True)
    assert text_format.Parse(text.read_text(), MetaGraphDef()) == meta == saver.export_meta_graph()
    assert saver.export_meta_graph(str(binary)) == meta
    saver.save(tmp_path / "m")
    assert (tmp_path / "m.meta").read_bytes() == binary.read_bytes() == meta.SerializeToString(deterministic=True)
    assert names_in(tmp_path / "l1") == ["l2", "l2/l3", "l2/l3/graph.pbtxt"]
    assert saver.export_meta_graph(strip_default_attrs=True).meta_info_def.stripped_default_attrs


def test_equal_meta_graphs_have_equal_bytes() -> None:
    """The order in which the parts were created does not matter; without a saver the field is absent."""
    saver = Saver({"b": torch.zeros(1), "a": torch.zeros(1, requires_grad=True)})
    one, same = TensorsGraph().encoded(saver_in_graph(saver)), TensorsGraph().encoded(saver_in_graph(saver))
    assert bytes(one.raw) == bytes(same.raw)
    assert list(one.collections) == ["trainable_variables", "variables"]
    assert TensorsGraph().encoded(None).saver_def is None


def test_a_graph_is_encoded_again_after_a_change() -> None:
    """The graph is kept between saves and follows changed shapes and names."""
    graph, state = TensorsGraph(), {"v": torch.zeros(2)}
    first = graph.encoded(saver_in_graph(Saver(state)))
    assert bytes(graph.encoded(saver_in_graph(Saver(state))).raw) == bytes(first.raw)
    for changed in ({"v": torch.zeros(3)}, {"w": torch.zeros(2)}, {"v": torch.zeros(2, dtype=torch.int32)}):
        found = graph.encoded(saver_in_graph(Saver(changed)))
        assert bytes(found.raw) == bytes(TensorsGraph().encoded(saver_in_graph(Saver(changed))).raw) != bytes(first.raw)


def test_a_meta_graph_alone_is_not_a_checkpoint(tmp_path: Path) -> None:
    """Neither checkpoint_exists nor latest_checkpoint finds a meta graph alone."""
    Saver([], allow_empty=True).save(tmp_path / "m")
    assert not tfckpt.checkpoint_exists(tmp_path / "m")
    assert tfckpt.latest_checkpoint(tmp_path, valid=True) is None


def test_a_copy_that_is_not_installed_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An uninstalled copy of the package saves; only the version in the file is unknown."""

    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    Saver({"v": torch.zeros(1)}).save(tmp_path / "m")
    meta = MetaGraphDef.FromString((tmp_path / "m.meta").read_bytes())
    assert meta.meta_info_def.tensorflow_git_version == "torch_tfckpt unknown"


def test_save_async_encodes_the_graph_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save_async` reads names and shapes before it returns, and encodes that graph in its thread."""
    threads: list[threading.Thread] = []

    def made(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return encoded_graph_of(*arguments)

    saver = Saver({"v": torch.ones(2)})
    monkeypatch.setattr(making, "encoded_graph_of", made)
    with tfckpt.Collections().as_default() as collections:
        collections.add_to_collection("c", 1)
        handle = saver.save_async(tmp_path / "m")
        collections.clear()
        handle.result()
    assert len(threads) == 1 and threads[0] is not threading.main_thread()
    meta = MetaGraphDef.FromString((tmp_path / "m.meta").read_bytes())
    assert list(meta.collection_def["c"].int64_list.value) == [1]


@pytest.mark.parametrize("asynchronously", [False, True], ids=["save", "save_async"])
def test_a_graph_that_cannot_be_encoded_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronously: bool
) -> None:
    """The earlier checkpoint is unchanged, and there are no other files."""
    values = torch.ones(2)
    saver = Saver({"v": values})
    saver.save(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(*arguments: Any) -> Any:
        raise tfckpt.InvalidArgumentError("GraphDef cannot be larger than 2GB")

    monkeypatch.setattr(TensorsGraph, "_encoded", refused)
    values.zero_()
    with pytest.raises(tfckpt.InvalidArgumentError, match="larger than 2GB"):
        saver.save_async(tmp_path / "m").result() if asynchronously else saver.save(tmp_path / "m")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
