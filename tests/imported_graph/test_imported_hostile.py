"""import_meta_graph of hostile graphs: errors with problem and place, in little time and memory."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from meta_graph_files import SAVER, graph, node, part, restoring, variable

import torch_tfckpt as tfckpt
from torch_tfckpt import DataType, Saver, SaverDef, import_meta_graph
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.errors import CheckpointError

BROKEN: dict[str, tuple[Callable[[], MetaGraphDef], str]] = {
    "no node": (lambda: graph([], ["absent"]), '"absent".* no node'),
    "no type": (lambda: graph([node("v", "NoOp")], ["v"]), r'"v".*"NoOp"\) has no dtype'),
    "no definition": (
        lambda: MetaGraphDef(collection_def={"variables": {"bytes_list": {"value": [b"\xff"]}}}),  # type: ignore[dict-item]
        "invalid VariableDef",
    ),
    "two values, one key": (
        lambda: graph([variable("a"), variable("b"), *restoring([("a", 0), ("b", 1)], [b"k", b"k"])], "ab", SAVER),
        'two values under the key "k"',
    ),
    "one variable, two keys": (
        lambda: graph([variable("a"), *restoring([("a", 0), ("a", 1)], [b"k", b"l"])], "a", SAVER),
        "restored with two names: l",
    ),
    "a part twice": (
        lambda: graph(
            [variable(name) for name in "ab"] + restoring([("a", 0), ("b", 1)], [b"k"] * 2, [b"8 5 0,4:-"] * 2),
            "ab",
            SAVER,
        ),
        "restored with two names: k",
    ),
    "no slice": (lambda: graph([variable("a"), *restoring([("a", 0)], [b"k"], [b"hello"])], "a", SAVER), '"k"'),
    "a slice outside": (
        lambda: graph([variable("a"), *restoring([("a", 0)], [b"k"], [b"4 5 3,2:-"])], "a", SAVER),
        '"k": .*out of bounds',
    ),
    "a slice of another shape": (
        lambda: graph([variable("a"), *restoring([("a", 0)], [b"k"], [b"8 5 0,2:-"])], "a", SAVER),
        '"a"',
    ),
    "a key that is not UTF-8": (
        lambda: graph([variable("a"), *restoring([("a", 0)], [b"\xff"])], "a", SAVER),
        "not UTF-8",
    ),
    "too few keys": (
        lambda: graph([variable("a"), *restoring([("a", 0)], [b"k", b"l"], [b"", b"", b""])], "a", SAVER),
        "constant of 2 strings, but has 3",
    ),
    "a part outside": (
        lambda: graph([variable("p", [2, 3])], [part("p", "w", [4, 3], [3, 0], [2, 3])]),
        '"p".*out of bounds',
    ),
    "a part before": (lambda: graph([variable("p", [2, 3])], [part("p", "w", [4, 3], [-1, 0], [2, 3])]), '"p"'),
    "a part of nothing": (lambda: graph([variable("p", [2, 3])], [part("p", "", [], [], [])]), '"p"'),
    "a part of another rank": (lambda: graph([variable("p", [2, 3])], [part("p", "w", [4], [0], [2])]), '"p"'),
    "parts that disagree": (
        lambda: graph(
            [variable(name, [2]) for name in "pq"], [part("p", "w", [4], [0], [2]), part("q", "w", [5], [2], [2])]
        ),
        '"q" is a part of "w".*another part',
    ),
    "parts of two types": (
        lambda: graph(
            [variable("p", [2]), variable("q", [2], 3)], [part("p", "w", [4], [0], [2]), part("q", "w", [4], [2], [2])]
        ),
        '"q" is a part of "w"',
    ),
    "a saver without names": (lambda: graph([variable("v")], "v", SaverDef(version=SaverDef.V2)), "must specify the"),
    "a saver of version 7": (
        lambda: graph([variable("v")], "v", SaverDef(save_tensor_name="s:0", restore_op_name="r", version=7)),  # type: ignore[arg-type]
        "7",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_part(tmp_path: Path, case: str) -> None:
    """DataLossError, which names the file once, and the part."""
    make, finding = BROKEN[case]
    (tmp_path / "broken.meta").write_bytes(make().SerializeToString())
    with pytest.raises(tfckpt.DataLossError, match=finding) as caught:
        import_meta_graph(tmp_path / "broken.meta")
    assert str(caught.value).count("broken.meta") == 1


SHAPES = (
    [1 << 40], [1 << 50], [(1 << 63) - 1], [1 << 62, 1 << 62], [1 << 62] * 30, [1 << 62, 1 << 62, 0], [0, 1 << 62],
    [1] * 100, [-1, 1 << 62], [-5, 1 << 50],
)  # fmt: skip


@pytest.mark.parametrize("dtype", [DataType.DT_FLOAT, DataType.DT_STRING, DataType.DT_COMPLEX128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_takes_no_memory(shape: list[int], dtype: DataType) -> None:
    """A small file may declare any shape: the result is one of our errors, or a tensor that takes no memory yet."""
    try:
        imported = import_meta_graph(graph([variable("v", shape, dtype)], ["v"]))
    except CheckpointError as error:
        assert '"v"' in str(error)
    else:
        if dtype == DataType.DT_STRING and min(shape) < 0:  # an array cannot be resized later
            assert not imported.variables
        else:
            assert tuple(imported.variables["v"].shape) == tuple(max(size, 0) for size in shape)


def test_large_variables_take_memory_when_they_are_restored() -> None:
    """Half a terabyte of zeros in two variables is imported immediately, or rejected."""
    began = time.process_time()
    try:
        imported = import_meta_graph(graph([variable("a", [1 << 36]), variable("b", [1 << 36])], "ab"))
    except tfckpt.FailedPreconditionError as error:
        assert 'variable "a" of shape [68719476736]' in str(error)
    else:
        assert imported.variables["a"].shape == (1 << 36,)
    assert time.process_time() - began < 5


def test_cycles() -> None:
    """Nodes that pass on to each other or depend on themselves, functions that call themselves: it ends."""
    circle = node("i1", "Identity", "i2"), node("i2", "Identity", "i1")
    cycle = graph([variable("a"), *restoring([("i1", 0)], [b"k"]), *circle], "a", SAVER)
    assert list(import_meta_graph(cycle).variables) == ["a"]
    itself = graph([variable("a"), node("save/restore_all", "NoOp", "^save/restore_all")], "a", SAVER)
    assert list(import_meta_graph(itself).variables) == ["a"]
    calling = graph([variable("a"), node("save/restore_all", "f0", "a")], "a", SAVER)
    for number in range(40):
        function = calling.graph_def.library.function.add()
        function.signature.name = f"f{number}"
        function.node_def.extend(node(f"n{each}", f"f{(number + 1) % 40}") for each in range(3))
    with pytest.raises(tfckpt.DataLossError, match=r"calls functions with more than [0-9]+ nodes"):
        import_meta_graph(calling)


@pytest.mark.parametrize(("length", "assigned"), [(20_000, 1), (6000, 3000)])
def test_long_chains(length: int, assigned: int) -> None:
    """A value passed on by thousands of nodes is traced; with thousands of assignments in about the same time."""
    chain = [node("c0", "Identity", "a"), *[node(f"c{n}", "Identity", f"c{n - 1}") for n in range(1, length)]]
    meta = graph([variable("a"), *chain, *restoring([(f"c{length - 1}", 0)] * assigned, [b"k"])], "a", SAVER)
    began = time.process_time()
    imported = import_meta_graph(meta)
    assert imported.saver is not None and list(imported.variables) == ["a"]
    assert time.process_time() - began < 8  # 18 if each assignment follows the chain again


def test_unbound_inputs() -> None:
    """A part of a larger graph is rejected, with TensorFlow's words."""
    meta = graph([variable("v")], ["v"])
    meta.collection_def["unbound_inputs"].bytes_list.value.append(b"x")
    with pytest.raises(ValueError, match="Graph contains unbound inputs"):
        import_meta_graph(meta)


@pytest.mark.parametrize("source", [None, 3, {}, SaverDef()], ids=["None", "int", "dict", "SaverDef"])
def test_a_wrong_argument(source: object) -> None:
    """Neither a path nor a MetaGraphDef."""
    with pytest.raises(tfckpt.InvalidArgumentError, match="expected a"):
        import_meta_graph(source)  # type: ignore[arg-type]


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    """A truncated file is one of our errors, or a smaller meta graph; never another exception."""
    saver = Saver({"a": torch.ones(2)})
    content = saver.export_meta_graph(tmp_path / "m.meta").SerializeToString(deterministic=True)
    path, errors = tmp_path / "half.meta", 0
    for size in range(1, len(content), 3):
        path.write_bytes(content[:size])
        try:
            import_meta_graph(path)
        except CheckpointError as error:
            errors += 1
            assert "half.meta" in str(error)
    assert errors > len(content) // 6
