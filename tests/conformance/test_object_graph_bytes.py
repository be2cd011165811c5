"""The files of our Checkpoints equal those of TensorFlow's, for the same trees of objects."""

from pathlib import Path

import numpy as np
import pytest
import torch
from object_trees import OPTIMIZERS, Built, Tree, generated, tensor_of
from tensorflow_process import Call, RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.objects.checkpoint import Checkpoint

TREES = 40
WITH_OPTIMIZERS = 16


def saves_of(seed: int) -> int:
    """Every third tree is saved with a number, so that it has a save_counter."""
    return seed % 3 if seed % 3 else 0


def save(tree: Built, prefix: Path, saves: int) -> str:
    """As tensorflow_objects.write."""
    path = "" if saves else tree.checkpoint.write(prefix)
    for _ in range(saves):
        path = tree.checkpoint.save(prefix)
    return path


def graph_of(path: str | Path) -> bytes:
    """The stored graph, not decoded."""
    with tfckpt.load_checkpoint(path) as reader:
        graph = reader.get_tensor(OBJECT_GRAPH_KEY)
    assert isinstance(graph, np.ndarray)
    return bytes(graph.item())


def assert_same_graph(path: str | Path, expected: str | Path) -> None:
    """Assert that the bytes are equal; if not, show the decoded graphs node by node."""
    ours, theirs = graph_of(path), graph_of(expected)
    if ours != theirs:
        assert ObjectGraph.decode(ours).nodes == ObjectGraph.decode(theirs).nodes
        pytest.fail(f"the same graph, encoded differently: {ours.hex(' ')}\n{theirs.hex(' ')}")


def test_generated_trees_give_the_same_files(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Any tree of modules, lists, dicts and tuples, with shared nodes, cycles, and names to be escaped, with a root
    object or without: graph string, index and data are TensorFlow's byte for byte, and the state file is equivalent.
    """
    trees = [generated(seed) for seed in range(TREES)]
    results = tensorflow.batch(
        [
            Call("tensorflow_objects.write", (str(tmp_path / f"theirs-{seed}" / "m"), *tree, saves_of(seed)))
            for seed, tree in enumerate(trees)
        ]
    )
    for seed, (tree, result) in enumerate(zip(trees, results, strict=True)):
        assert not isinstance(result, Exception), (seed, result)
        path, values, _ = result
        built = Built(tree, values)
        saved = Path(save(built, tmp_path / f"ours-{seed}" / "m", saves_of(seed)))
        assert saved.name == Path(path).name
        assert_same_graph(saved, path)
        for suffix in (".index", ".data-00000-of-00001"):
            ours, theirs = (Path(f"{prefix}{suffix}").read_bytes() for prefix in (saved, path))
            assert ours == theirs, f"tree {seed}: {suffix} differs"
        names = [sorted(each.name for each in Path(prefix).parent.iterdir()) for prefix in (saved, path)]
        assert names[0] == names[1]
        if saves_of(seed):
            states = [tfckpt.get_checkpoint_state(Path(prefix).parent) for prefix in (saved, path)]
            assert states[0] is not None and states[1] is not None
            assert [Path(each).name for each in states[0].all_model_checkpoint_paths] == [saved.name]
            assert [Path(each).name for each in states[1].all_model_checkpoint_paths] == [saved.name]


def test_generated_optimizers_give_the_same_graph(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Adam, momentum and Adagrad in such trees: the graph string with all slot variables is TensorFlow's, and values
    under TensorFlow's keys have the same bytes. The additional state of torch is under keys that the graph does not
    list.
    """
    trees = [generated(seed, optimizers=True) for seed in range(WITH_OPTIMIZERS)]
    results = tensorflow.batch(
        [
            Call("tensorflow_objects.write", (str(tmp_path / f"theirs-{seed}" / "m"), *tree, saves_of(seed)))
            for seed, tree in enumerate(trees)
        ]
    )
    for seed, (tree, result) in enumerate(zip(trees, results, strict=True)):
        assert not isinstance(result, Exception), (seed, result)
        path, values, slots = result
        saved = save(Built(tree, values, slots), tmp_path / f"ours-{seed}" / "m", saves_of(seed))
        assert_same_graph(saved, path)
        ours, theirs = tfckpt.load_file(saved), tfckpt.load_file(path)
        assert {key: RawTensor.of(ours[key]) for key in theirs} == {
            key: RawTensor.of(value) for key, value in theirs.items()
        }, f"tree {seed}"
        listed = {
            attribute.checkpoint_key
            for node in ObjectGraph.decode(graph_of(saved)).nodes
            for attribute in node.attributes
        }
        beside = ours.keys() - theirs.keys()
        assert all("/.ATTRIBUTES/py_state" in key and key not in listed for key in beside)
        assert len([key for key in beside if key.endswith("py_state")]) == len(tree.of_kind(*OPTIMIZERS))


def test_the_generated_trees_cover_the_claims() -> None:
    """All kinds of nodes, shared ones, cycles, names to be escaped, roots; many trees of each."""
    trees = [generated(seed) for seed in range(TREES)]
    kinds = [{kind for kind, _ in tree.nodes} for tree in trees]
    for kind in ("module", "dict", "list", "tuple"):
        assert sum(kind in found for found in kinds) >= 10, kind
    assert sum(tree.root is not None for tree in trees) >= 10
    assert sum(bool(shared_in(tree)) for tree in trees) >= 10
    assert sum(any("/" in name or "." in name for name in names_in(tree)) for tree in trees) >= 10
    assert any(tree.nodes[place][0] == "module" for tree in trees for place in shared_in(tree))
    assert max(len(tree.nodes) for tree in trees) > 40
    assert len({kind for seed in range(WITH_OPTIMIZERS) for kind, _ in generated(seed, optimizers=True).nodes}) == 8


def shared_in(tree: Tree) -> set[int]:
    """Nodes with two parents."""
    seen: list[int] = [place for _, place in tree.kwargs]
    for kind, payload in tree.nodes:
        if kind in ("module", "dict"):
            seen += [place for _, place in payload]
        elif kind in ("list", "tuple"):
            seen += payload
    return {place for place in seen if seen.count(place) > 1}


def names_in(tree: Tree) -> set[str]:
    """All local names."""
    return {name for kind, payload in tree.nodes if kind in ("module", "dict") for name, _ in payload}


def test_modules_give_the_same_graph_except_for_full_names(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A torch module equals the tf.Module with the same attributes, variables first: the same nodes, and the same bytes
    under the same keys; full_name is the name that a Saver gives the tensor."""
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
    model.register_buffer("steps", torch.tensor(3))
    model.inner = nn.Module()
    model.inner.scale = model.scale
    model.inner.shift = nn.Parameter(torch.tensor(0.5))
    model.again = model.inner
    nodes = [
        ("module", [("scale", 1), ("steps", 2), ("inner", 3), ("again", 3)]),
        ("variable", ("model/scale", RawTensor.of(model.scale))),
        ("variable", ("model/steps", RawTensor.of(model.get_buffer("steps")))),
        ("module", [("scale", 1), ("shift", 4)]),
        ("variable", ("model/inner.shift", RawTensor.of(model.inner.shift))),
    ]
    path, _, _ = tensorflow.call(
        "tensorflow_objects.write", str(tmp_path / "theirs" / "m"), nodes, [("model", 0)], None, 1
    )
    saved = Checkpoint(model=model).save(tmp_path / "ours" / "m")
    assert_same_graph(saved, path)
    assert Path(f"{saved}.index").read_bytes() == Path(f"{path}.index").read_bytes()


def test_every_key_reads_back_in_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """TensorFlow's reader finds all of our keys, including those that the graph does not list."""
    tree = generated(3, optimizers=True)
    values = {place: tree.nodes[place][1][1] for place in tree.of_kind("variable")}
    built = Built(tree, values)
    for place in tree.of_kind(*OPTIMIZERS):
        for tensor in built.tensors.values():
            tensor.grad = torch.ones_like(tensor) if tensor.dtype == torch.float32 else None
        built.objects[place].step()
    path = built.checkpoint.write(tmp_path / "m")
    stored = tensorflow.call("restore_all", path)
    ours = tfckpt.load_file(path)
    assert {key: RawTensor.of(value) for key, value in ours.items()} == stored
    assert all(torch.equal(tensor_of(built.values()[place]), built.tensors[place]) for place in built.tensors)
