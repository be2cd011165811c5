"""The meta graph of a saver: when it is encoded again, and that readers find what was encoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt import Collections, DataType, Saver, SaveSliceInfo, Variable, add_to_collection
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.op_def_pb2 import OpList
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable
from torch_tfckpt.meta_graph.saver_nodes import encoded_graph_of
from torch_tfckpt.meta_graph.saver_values import StoredValue, stored_values
from torch_tfckpt.meta_graph.variables import graph_variables, saver_values
from torch_tfckpt.saver.meta_graph import TENSORFLOW_VERSION, TensorsGraph
from torch_tfckpt.saver.registered import saver_in_graph


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield a list of the numbers of variables in the graphs encoded meanwhile, without empty graphs."""
    encoded: list[int] = []

    def watched(variables: list[GraphVariable], savers: list[GraphSaver]) -> tuple[bytes, OpList]:
        encoded.extend([len(variables)] if variables else [])
        return encoded_graph_of(variables, savers)

    with monkeypatch.context() as patched, Collections().as_default():
        patched.setattr("torch_tfckpt.saver.meta_graph.encoded_graph_of", watched)
        yield encoded


def test_a_graph_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is kept while its inputs are equal.

    Values, collections without variables and the number of checkpoints to keep are not part of it.
    """
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    graph = TensorsGraph()
    with counted(monkeypatch) as encoded:
        first = bytes(graph.encoded(saver_in_graph(Saver(tensors))).raw)
        tensors["a"].zero_()
        again = graph.encoded(saver_in_graph(Saver(tensors)))
        assert bytes(again.raw) == first and encoded == [2]
        add_to_collection("mine", 3)
        more = graph.encoded(saver_in_graph(Saver(tensors)))
        assert encoded == [2] and more.collections["mine"].int64_list.value == [3]
        assert bytes(more.graph.raw) == bytes(again.graph.raw)


def test_saving_again_encodes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Saving again, even with other options, reuses the encoded graph."""
    with counted(monkeypatch) as encoded:
        saver = Saver({"a": torch.ones(2)}, sharded=True)
        for step in range(3):
            saver.save(f"{tmp_path}/m", step, strip_default_attrs=step == 2)
            saver.export_meta_graph(clear_devices=True)
        assert encoded == [1]


CHANGES = {
    "shape": lambda: Saver({"a": torch.ones(3), "b": torch.ones(2)}),
    "dtype": lambda: Saver({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.half)}),
    "name": lambda: Saver({"a": torch.ones(2), "c": torch.ones(2)}),
    "key": lambda: Saver({"a": torch.ones(2), "k": Variable(torch.ones(2), "b")}),
    "device": lambda: Saver({"a": torch.ones(2), "b": Variable(torch.ones(2), "b", device="/gpu:0")}),
    "slice": lambda: Saver(
        [Variable(torch.ones(2), "a"), Variable(torch.ones(2), "b", SaveSliceInfo("b", [4], [0], [2]))]
    ),
    "more": lambda: Saver({name: torch.ones(2) for name in "abc"}),
    "less": lambda: Saver({"a": torch.ones(2)}),
    "scope": lambda: Saver({"a": torch.ones(2), "b": torch.ones(2)}, name="mine"),
    "sharded": lambda: Saver({"a": torch.ones(2), "b": torch.ones(2)}, sharded=True),
    "version": lambda: Saver({"a": torch.ones(2), "b": torch.ones(2)}, write_version=SaverDef.V1),
    "reshape": lambda: Saver({"a": torch.ones(2), "b": torch.ones(2)}, reshape=True),
    "filename": lambda: Saver({"a": torch.ones(2), "b": torch.ones(2)}, filename="other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_is_encoded_again(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """A change of any part of the graph encodes it again, with the same bytes as a new graph."""
    first, changed = (
        saver_in_graph(saver) for saver in (Saver({"a": torch.ones(2), "b": torch.ones(2)}), CHANGES[change]())
    )
    expected = bytes(TensorsGraph().encoded(changed).raw)
    graph = TensorsGraph()
    with counted(monkeypatch) as encoded:
        assert bytes(graph.encoded(first).raw) != expected
        assert bytes(graph.encoded(changed).raw) == expected
        assert len(encoded) == 2


def test_registered_variables_are_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph contains registered variables, including those added since the last save."""
    graph = TensorsGraph()
    with counted(monkeypatch) as encoded:
        assert list(graph.encoded(None).graph.nodes) == [] and graph.encoded(None).saver_def is None
        add_to_collection("variables", Variable(torch.ones(1), "v"))
        assert "v" in graph.encoded(None).graph.nodes and encoded == [1]
        add_to_collection("mine", Variable(torch.ones(1), "w"))
        add_to_collection("savers", Saver({"x": torch.ones(1)}))
        meta = graph.encoded(None)
        assert {"v", "w", "x", "save/restore_all"} <= set(meta.graph.nodes) and encoded == [1, 3]
        assert meta.collections["mine"].node_list.value == ["w:0"]
        assert meta.saver_def is None


def test_versions_operations_and_saver_settings() -> None:
    """The message has the versions, exactly the operations of the nodes, and the saver's settings."""
    meta = TensorsGraph().encoded(saver_in_graph(Saver({"a": torch.ones(1)}, name="mine")))
    assert meta.info.tensorflow_version == TENSORFLOW_VERSION == "2.21.0"
    assert meta.info.tensorflow_git_version.startswith("torch_tfckpt ")
    assert [op.name for op in meta.info.stripped_op_list.op] == sorted({node.op for node in meta.graph.nodes.values()})
    assert meta.saver_def is not None and meta.saver_def.save_tensor_name == "mine/control_dependency:0"
    message = MetaGraphDef.FromString(bytes(meta.raw))
    assert message.SerializeToString(deterministic=True) == bytes(meta.raw)


# Readers find what was encoded.

NAMES = st.text(alphabet="ab_/:. \u00e9", min_size=1, max_size=5) | st.sampled_from(
    ["save/Const", "save/restore_all", "a/Assign", "a/Read/ReadVariableOp", "save/RestoreV2", "a:0"]
)
DTYPES = st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.complex64, torch.uint8])
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
TENSORS = st.builds(lambda shape, dtype: torch.zeros(shape, dtype=dtype), SHAPES, DTYPES)
DEVICES = st.sampled_from([None, "/cpu:0", "/gpu:1", "/job:ps/task:1/cpu:0"])
SAVERS = st.fixed_dictionaries(
    {
        "sharded": st.booleans(),
        "reshape": st.booleans(),
        "write_version": st.sampled_from([SaverDef.V1, SaverDef.V2]),
        "name": st.sampled_from([None, "save", "a", "a/b"]),
    }
)


@settings(max_examples=60)
@given(tensors=st.dictionaries(NAMES, st.tuples(TENSORS, DEVICES), min_size=1, max_size=5), options=SAVERS)
def test_readers_find_what_was_encoded(
    tensors: dict[str, tuple[torch.Tensor, str | None]], options: dict[str, Any]
) -> None:
    """Keys, dtypes, shapes and devices read back equal; node names are valid and unique."""
    variables = {
        key: Variable(tensor, key, device=device)
        for key, (tensor, device) in tensors.items()
        if tensor.dtype != torch.bfloat16 or options["write_version"] != SaverDef.V1
    }
    if not variables:
        return
    saver = saver_in_graph(Saver(variables, **options))
    with Collections().as_default():
        meta = TensorsGraph().encoded(saver)
    stored = saver_values(meta)
    assert stored is not None and {value.key: value.dtype for value in stored} == {
        key: DataType[_NAMES[each.tensor.dtype]] for key, each in variables.items()
    }
    assert len(stored) == len(variables) and all(value.reshaped == options["reshape"] for value in stored)
    node_of = {value.key: value.variables for value in stored}
    assert all(len(nodes) == 1 for nodes in node_of.values())
    found = {variable.name: variable for variable in graph_variables(meta, stored)}
    assert len(found) == len(variables)
    for key, (node,) in node_of.items():
        assert (found[node].shape, found[node].device) == (tuple(variables[key].tensor.shape), variables[key].device)
    inputs = {name.removeprefix("^").partition(":")[0] for node in meta.graph.nodes.values() for name in node.inputs}
    assert inputs <= set(meta.graph.nodes)
    assert all(name[0].isalnum() or name[0] == "." for name in meta.graph.nodes)
    assert all(name.isascii() and not set(name) & set(" :^") for name in meta.graph.nodes)


_NAMES = {
    torch.float32: "DT_FLOAT",
    torch.int64: "DT_INT64",
    torch.bool: "DT_BOOL",
    torch.bfloat16: "DT_BFLOAT16",
    torch.complex64: "DT_COMPLEX64",
    torch.uint8: "DT_UINT8",
}


@settings(max_examples=30)
@given(
    scopes=st.lists(st.sampled_from(["save", "save_1", "a", "a/save"]), min_size=2, max_size=5),
    keys=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True), min_size=5, max_size=5),
)
def test_savers_that_share_variables_and_scopes(scopes: list[str], keys: list[list[int]]) -> None:
    """Each saver finds its own values in the common graph, and each tensor is one variable."""
    tensors = [torch.ones(number + 1) for number in range(4)]
    savers = [
        Saver({f"{scope} {number}": tensors[number] for number in chosen}, name=scope)
        for scope, chosen in zip(scopes, keys, strict=False)
    ]
    with Collections().as_default():
        for saver in savers:
            add_to_collection("savers", saver)
        meta = TensorsGraph().encoded(saver_in_graph(savers[0]))
    definitions = [SaverDef.FromString(each) for each in meta.collections["savers"].bytes_list.value]
    assert definitions[0] == meta.saver_def and len({each.restore_op_name for each in definitions}) == len(savers)
    variable_of: dict[int, tuple[str, ...]] = {}
    for scope, chosen, definition in zip(scopes, keys, definitions, strict=False):
        found = stored_values(meta.graph, definition)
        assert found is not None and {each.key for each in found} == {f"{scope} {number}" for number in chosen}
        for each in found:
            number = int(each.key.rpartition(" ")[2])
            assert variable_of.setdefault(number, each.variables) == each.variables
            assert each == StoredValue(each.key, "", DataType.DT_FLOAT, variable_of[number])
    assert len(set(variable_of.values())) == len(variable_of)
