"""Object-based checkpoints after a rename or a selection: TensorFlow and our Checkpoint restore them by object."""

import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from object_trees import OPTIMIZERS, Built, Tree, generated
from tensorflow_process import Call, TensorFlowError, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.format.object_graph import ObjectGraph, escape_local_name, object_path

SEEDS = [seed for seed in range(40) if seed % 10 != 9]  # every tenth has names that TensorFlow cannot read back
NEW_NAMES = ("renamed", "re/named", "re.named", "re named", "größer", r"back\slash")


class Written(NamedTuple):
    """A tree that TensorFlow has saved, with the values of its variables and slot variables."""

    tree: Tree
    path: str
    values: Any
    slots: Any


@pytest.fixture(scope="module")
def written(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> list[Written]:
    folder = tmp_path_factory.mktemp("trees")
    trees = [generated(seed, optimizers=seed % 2 == 0) for seed in SEEDS]
    results = tensorflow.batch(
        [Call("tensorflow_objects.write", (str(folder / f"{n}" / "m"), *tree)) for n, tree in enumerate(trees)]
    )
    found = []
    for tree, result in zip(trees, results, strict=True):
        assert not isinstance(result, Exception), result
        found.append(Written(tree, *result))
    return found


def graph_of(path: str | Path) -> ObjectGraph:
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.object_graph is not None
        return reader.object_graph


def check_restored(tensorflow: TensorFlowProcess, cases: list[tuple[Tree, str, Any, Any]]) -> None:
    """Tree, checkpoint, values and slot variables: all restored, by both, into zeros, with assert_consumed."""
    results = tensorflow.batch(
        [Call("tensorflow_objects.restore", (path, *tree), {"counted": False}) for tree, path, _, _ in cases]
    )
    for (tree, path, values, slots), result in zip(cases, results, strict=True):
        assert not isinstance(result, Exception), (path, tree, result)
        assert (result[0], sorted(result[1], key=str)) == (values, sorted(slots, key=str)), path
        optimizers = set(tree.of_kind(*OPTIMIZERS))
        if any(kind == "module" and optimizers & {place for _, place in payload} for kind, payload in tree.nodes):
            continue  # `Built` has optimizers at the root only
        built = Built(tree)
        built.checkpoint.read(path).assert_consumed().assert_existing_objects_matched()
        assert built.values() == values
        assert all(built.slot(optimizer, variable, slot) == value for optimizer, variable, slot, value in slots)


def child(tree: Tree, place: int | None, name: str) -> int:
    """The node that a name leads to; `place` None: from the root."""
    if place is None:
        attached = dict(tree.kwargs)
        return attached[name] if name in attached else child(tree, tree.root, name)
    kind, payload = tree.nodes[place]
    found: int = dict(payload)[name] if kind in ("module", "dict") else payload[int(name)]
    return found


def with_name(tree: Tree, place: int | None, old: str, new: str) -> Tree:
    """The tree with another name for one child of a node."""

    def renamed(pairs: Any) -> list[tuple[str, int]]:
        return [(new if name == old else name, target) for name, target in pairs]

    if place is None and old in dict(tree.kwargs):
        return tree._replace(kwargs=renamed(tree.kwargs))
    place = tree.root if place is None else place
    assert place is not None
    nodes = list(tree.nodes)
    nodes[place] = (nodes[place][0], renamed(nodes[place][1]))
    return tree._replace(nodes=nodes)


def renamed_edge(case: Written, rng: random.Random) -> tuple[Tree, list[tuple[str, str]]]:
    """A child renamed somewhere on the way to a variable: the tree, and the patterns that do the same."""
    graph = graph_of(case.path)
    routes = [graph.route(n) for n, node in enumerate(graph.nodes) if node.attributes and graph.route(n)]
    for _ in range(100):
        route = rng.choice(routes)
        assert route is not None
        level = rng.randrange(len(route))
        parent: int | None = None
        try:
            for name in route[:level]:
                parent = child(case.tree, parent, name)
            child(case.tree, parent, route[level])
        except (KeyError, TypeError, ValueError):
            continue  # what an optimizer has
        if parent is not None and case.tree.nodes[parent][0] not in ("module", "dict"):
            continue
        new = rng.choice(NEW_NAMES)
        path = object_path(route[: level + 1])
        replacement = path.rpartition("/")[0] + "/" * (level > 0) + escape_local_name(new)
        pattern = (f"^{re.escape(path)}/", replacement.replace("\\", r"\\") + "/")
        return with_name(case.tree, parent, route[level], new), [pattern]
    raise AssertionError("no edge can be renamed")


def test_renamed_children(tensorflow: TensorFlowProcess, written: list[Written], tmp_path: Path) -> None:
    """Any child, at any depth, of objects that may have several parents; also slot variables of what is below it."""
    rng, cases = random.Random(1), []
    for n, case in enumerate(written):
        tree, rename = renamed_edge(case, rng)
        target = str(tmp_path / f"{n}")
        assert convert(case.path, target, to="tf", rename=rename).graph_edited
        assert diff(case.path, target, rename=rename).identical
        cases.append((tree, target, case.values, case.slots))
    check_restored(tensorflow, cases)


def test_a_level_more(tensorflow: TensorFlowProcess, written: list[Written], tmp_path: Path) -> None:
    """Everything is moved below a new object."""
    cases = []
    for n, case in enumerate(written):
        target = str(tmp_path / f"{n}")
        convert(case.path, target, to="tf", rename=[("^", "new/top/")])
        nodes, top = list(case.tree.nodes), case.tree.root
        if top is None:
            top = len(nodes)
            nodes.append(("module", []))
        nodes[top] = ("module", [*nodes[top][1], *case.tree.kwargs])
        nodes.append(("module", [("top", top)]))
        cases.append((Tree(nodes, [("new", len(nodes) - 1)]), target, case.values, case.slots))
    check_restored(tensorflow, cases)


def test_there_and_back_is_the_same_checkpoint(written: list[Written], tmp_path: Path) -> None:
    """A level more, and the level taken away: index and data byte for byte."""
    for case in written[::4]:
        convert(case.path, tmp_path / "there", to="tf", rename=[("^", "top/")])
        convert(tmp_path / "there", tmp_path / "back", to="tf", rename=[("^top/", "")])
        convert(case.path, tmp_path / "copy", to="tf")
        for ending in (".index", ".data-00000-of-00001"):
            assert (tmp_path / f"back{ending}").read_bytes() == (tmp_path / f"copy{ending}").read_bytes()


def test_variables_left_out(tensorflow: TensorFlowProcess, written: list[Written], tmp_path: Path) -> None:
    """The rest is restored, and consumed; a program that still has the variable notices that it was not restored."""
    rng, cases, whole = random.Random(2), [], []
    for n, case in enumerate(written):
        graph = graph_of(case.path)
        listed = {place for kind, payload in case.tree.nodes if kind in ("list", "tuple") for place in payload}
        trained = {place for optimizer in case.tree.of_kind(*OPTIMIZERS) for place in case.tree.nodes[optimizer][1]}
        names = {payload[0]: place for place, (kind, payload) in enumerate(case.tree.nodes) if kind == "variable"}
        candidates = {
            names[value.full_name]: value.checkpoint_key
            for value in graph.variables()
            if value.full_name in names and names[value.full_name] not in listed | trained
        }
        if len(candidates) < 2:
            continue
        place = rng.choice(sorted(candidates))
        target = str(tmp_path / f"{n}")
        report = convert(case.path, target, to="tf", exclude=[f"^{re.escape(candidates[place])}$"])
        assert report.filtered == [candidates[place]] and report.graph_edited
        nodes = [
            (kind, [each for each in payload if each[1] != place] if kind in ("module", "dict") else payload)
            for kind, payload in case.tree.nodes
        ]
        if any(kind == "dict" and not payload for kind, payload in nodes):
            continue  # an empty dict is a value of ours, and nothing to TensorFlow
        kwargs = [each for each in case.tree.kwargs if each[1] != place]
        values = {other: value for other, value in case.values.items() if other != place}
        tree = case.tree._replace(nodes=nodes, kwargs=kwargs)
        zero = {place: case.values[place]}
        cases.append((tree, target, values, case.slots, zero))
        whole.append(Call("tensorflow_objects.restore", (target, *case.tree), {"counted": False}))
    assert len(cases) > 15
    results = tensorflow.batch(whole)
    assert all(isinstance(result, Exception) and "AssertionError" in str(result) for result in results)
    rest = tensorflow.batch(
        [Call("tensorflow_objects.restore", (path, *tree), {"counted": False}) for tree, path, *_ in cases]
    )
    for (tree, path, values, _, left_out), result in zip(cases, rest, strict=True):
        assert not isinstance(result, Exception), (path, tree, result)
        assert {place: value for place, value in result[0].items() if place not in left_out} == values
        built = Built(tree)
        built.checkpoint.read(path).assert_consumed()
        assert {place: value for place, value in built.values().items() if place not in left_out} == values


class Net(torch.nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.out = torch.nn.Linear(2, 1)


def test_our_checkpoint_with_an_optimizer(tmp_path: Path) -> None:
    """The state of an optimizer names parameters by path and slot variables by key; both follow."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.out(net.fc(torch.ones(3))).backward()
    optimizer.step()
    path = tfckpt.Checkpoint(model=net, optimizer=optimizer, plain={"epoch": 3}).write(tmp_path / "a")
    rename = [("^model/", "net/inner/"), ("(^|/)fc/", r"\1dense/"), ("^optimizer/", "adam/")]
    convert(path, tmp_path / "b", to="tf", rename=rename)
    assert diff(path, tmp_path / "b", rename=rename).identical

    class Renamed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(3, 2)
            self.out = torch.nn.Linear(2, 1)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Renamed()

    outer = Outer()
    restored = torch.optim.AdamW(outer.parameters())
    plain = {"epoch": 0}
    tfckpt.Checkpoint(net=outer, adam=restored, plain=plain).read(tmp_path / "b").assert_consumed()
    assert torch.equal(outer.inner.dense.weight, net.fc.weight) and plain == {"epoch": 3}
    expected, found = optimizer.state_dict(), restored.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        assert all(torch.equal(value, found["state"][number][name]) for name, value in state.items())


def test_tables_iterators_and_keras(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A table has two tensors, and the variables of the model are stored under the optimizer: all follow."""
    path = tensorflow.call("tensorflow_objects.write_keras_and_others", str(tmp_path / "m"))
    names = ("words", "input", "net", "adam")
    olds = ("lookup", "data", "model", "optimizer")
    rename = [(f"^{old}/", f"{new}/") for old, new in zip(olds, names, strict=True)]
    convert(path, tmp_path / "r", to="tf", rename=rename)
    assert diff(path, tmp_path / "r", rename=rename).identical
    whole = tensorflow.call("tensorflow_objects.restore_keras_and_others", path, olds)
    assert whole[:2] == ([1, 2, -1], 2) and whole[2] == [float(n + 1) for n in range(len(whole[2]))]
    assert tensorflow.call("tensorflow_objects.restore_keras_and_others", str(tmp_path / "r"), names) == whole
    convert(path, tmp_path / "x", to="tf", exclude=["^optimizer/_(?!trainable_variables/)"])
    without = tensorflow.call("tensorflow_objects.restore_keras_and_others", str(tmp_path / "x"), (*olds[:3], ""))
    assert without[:2] == whole[:2] and without[2] == whole[2][: len(without[2])]
    with pytest.raises(TensorFlowError, match="not bound to checkpointed values"):
        tensorflow.call("tensorflow_objects.restore_keras_and_others", str(tmp_path / "x"), olds)
    report = convert(path, tmp_path / "y", to="tf", exclude=["^optimizer/"])
    assert report.shared and all(other.startswith("model/") for other in report.shared.values())
