"""tfckpt ls --tree."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from object_files import children, variable, write_graph, write_variables

import torch_tfckpt as tfckpt
from torch_tfckpt.cli import tree as cli_tree
from torch_tfckpt.cli.main import main
from torch_tfckpt.format.object_graph import RegisteredSaver, SerializedTensor, SlotVariable, TrackableObject
from torch_tfckpt.values import Value

Output = pytest.CaptureFixture[str]
OBJECT = str(GOLDEN / "tensorflow" / "object" / "object")
HEADINGS = ["object", "dtype", "shape", "size", "note"]
KEYS = ("one/.ATTRIBUTES/VARIABLE_VALUE", "two/.ATTRIBUTES/VARIABLE_VALUE")


def tree(capsys: Output, *arguments: str, status: int = 0) -> list[str]:
    """Return the lines that a call prints, without the padding of the columns."""
    assert main(["ls", "--tree", *arguments]) == status
    lines = capsys.readouterr().out.splitlines()
    return [f"{line[: len(line) - len(line.lstrip())]}{' '.join(line.split())}" for line in lines]


def document(capsys: Output, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Return the JSON document that a call prints."""
    assert main(["ls", "--tree", "--json", *arguments]) == status
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def attribute(name: str, key: str) -> TrackableObject:
    """Return a node with one attribute that is not a variable."""
    return TrackableObject(attributes=(SerializedTensor(name, "", key),))


def test_a_checkpoint_of_tensorflow(capsys: Output) -> None:
    """Unescaped local names, variables, shared objects, slot variables, a table and a Python state."""
    assert main(["ls", "--tree", OBJECT]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "object                        dtype    shape  size  note",
        "(root)",
        "  by_name",
        '    a/b.c                     int64    [3]    24 B  variable "escaped"',
        "  layers",
        '    0                         int32    []      4 B  variable "first"',
        '    1                         bool     [2]     2 B  variable "second"',
        "  model",
        '    kernel                    float32  [2,2]  16 B  variable "kernel"',
        "    bias                                            = (root).same",
        "  optimizer",
        '    momentum of same          float32  [2]     8 B  variable "bias/Momentum"',
        '    momentum of model.kernel  float32  [2,2]  16 B  variable "kernel/Momentum"',
        '  same                        float32  [2]     8 B  variable "bias"',
        "  state                       string   []     12 B  py_state",
        "  table",
        "    .table                                          2 tensors",
        "      -keys                   string   [1]     9 B",
        "      -values                 int64    [1]     8 B",
        "14 objects, 11 tensors, 22 elements, 965 B",
    ]


def test_the_docstring_shows_a_real_tree(tmp_path: Path, capsys: Output) -> None:
    """The tree in the module's docstring is the output for this checkpoint."""
    nodes = [
        TrackableObject(children(("model", 1), ("optimizer", 2), ("tied", 1))),
        TrackableObject(children(("kernel", 3))),
        TrackableObject(slot_variables=(SlotVariable(3, "m", 4),)),
        variable("dense/kernel", "k"),
        variable("dense/kernel/Adam", "m"),
    ]
    write_graph(tmp_path / "t", nodes, {"k": torch.zeros(4, 3), "m": torch.zeros(4, 3)})
    main(["ls", "--tree", str(tmp_path / "t")])
    shown = capsys.readouterr().out.splitlines()[:-1]
    from_docstring = (cli_tree.__doc__ or "").partition("    object")[2].partition("\n\n")[0]
    assert shown == [line[4:] for line in f"    object{from_docstring}".splitlines()]


@pytest.mark.parametrize("folder", ["digits-module", "digits-keras2-savedmodel", "digits-keras3-savedmodel"])
def test_real_checkpoints(folder: str, capsys: Output) -> None:
    """Every tensor except the graph is in the tree exactly once, and each is in the file."""
    with tfckpt.load_checkpoint(GOLDEN / folder) as reader:
        names = [name for name in reader.keys() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    lines = tree(capsys, str(GOLDEN / folder))
    assert sum(re.search(r"\] [0-9.]+ k?B", line) is not None for line in lines) == len(names)
    assert not any("do not belong to an object" in line for line in lines)


# Forms of the graph.


def test_loops_are_not_repeated(tmp_path: Path, capsys: Output) -> None:
    """Children that refer to the root, a parent, themselves, or one child under two names."""
    nodes = [
        TrackableObject(children(("self", 0), ("a", 1), ("again", 1))),
        TrackableObject(children(("up", 0), ("me", 1))),
    ]
    assert tree(capsys, "--all", write_graph(tmp_path / "l", nodes)) == [
        " ".join(HEADINGS),
        "(root)",
        "  self = (root)",
        "  a",
        "    up = (root)",
        "    me = (root).a",
        "  again = (root).a",
        "2 objects, 1 tensor, 1 element, " + f"{tensor_bytes(tmp_path / 'l')} B",
    ]


def tensor_bytes(prefix: Path) -> int:
    """Return the size of the graph's tensor."""
    with tfckpt.load_checkpoint(prefix) as reader:
        return reader.nbytes("_CHECKPOINTABLE_OBJECT_GRAPH")


def test_an_object_is_shown_at_its_shortest_path(tmp_path: Path, capsys: Output) -> None:
    """Its key uses that path too: l=[v], same=v is stored under "same"."""
    nodes = [
        TrackableObject(children(("l", 1), ("same", 2))),
        TrackableObject(children(("0", 2))),
        variable("v", KEYS[0]),
    ]
    lines = tree(capsys, write_graph(tmp_path / "s", nodes, {KEYS[0]: torch.zeros(1)}))
    assert lines[2:5] == ["  l", "    0 = (root).same", '  same float32 [1] 4 B variable "v"']


def test_a_tensor_that_is_not_in_the_file(tmp_path: Path, capsys: Output) -> None:
    """It is marked with its key, and the status is 1."""
    nodes = [TrackableObject(children(("a", 1), ("b", 2))), variable("a", KEYS[0]), attribute("py_state", KEYS[1])]
    path = write_graph(tmp_path / "m", nodes, {KEYS[0]: torch.zeros(1)})
    lines = tree(capsys, path, status=1)
    assert lines[3] == f'  b ? ? ? py_state; not in the file: "{KEYS[1]}"'
    stored = [each["attributes"] for each in document(capsys, path, status=1)["objects"]]
    assert [[each["stored"] for each in attributes] for attributes in stored] == [[], [True], [False]]


def test_tensors_without_an_object(tmp_path: Path, capsys: Output) -> None:
    """They are listed at the end under their own heading, such as an optimizer's string."""
    text = np.array(b"{}", dtype=object)
    path = write_graph(tmp_path / "u", [TrackableObject()], {"optimizer/.ATTRIBUTES/py_state": text})
    assert tree(capsys, path)[2:4] == [
        "(tensors that do not belong to an object)",
        "  optimizer/.ATTRIBUTES/py_state string [] 7 B",
    ]


def test_unreachable_objects(tmp_path: Path, capsys: Output) -> None:
    """They are shown with their children, since their tensors are in the file."""
    nodes = [TrackableObject(), TrackableObject(children(("c", 2))), TrackableObject(children(("up", 1)))]
    assert tree(capsys, "--all", write_graph(tmp_path / "o", nodes))[1:5] == [
        "(root)",
        "(object 1, not reachable from the root)",
        "  c",
        "    up = (object 1, not reachable from the root)",
    ]


def test_registered_savers_and_several_attributes(tmp_path: Path, capsys: Output) -> None:
    """The saver and its name are shown, and several attributes have one line each."""
    nodes = [
        TrackableObject(children(("saved", 1), ("both", 2))),
        TrackableObject(registered_saver=RegisteredSaver("package.saver", "saved")),
        TrackableObject(attributes=(SerializedTensor("x", "", "both/x"), SerializedTensor("y", "", "both/y"))),
    ]
    tensors: dict[str, Value] = {"both/x": torch.zeros(1), "both/y": torch.zeros(2)}
    assert tree(capsys, write_graph(tmp_path / "r", nodes, tensors))[2:6] == [
        '  saved saved by "package.saver" as "saved"',
        "  both",
        "    .x float32 [1] 4 B x",
        "    .y float32 [2] 8 B y",
    ]


def test_slots_of_slots(tmp_path: Path, capsys: Output) -> None:
    """A slot variable of itself and one that is also a child: each is shown once, without a loop."""
    nodes = [
        TrackableObject(children(("v", 1)), slot_variables=(SlotVariable(2, "m", 2), SlotVariable(1, "v", 1))),
        TrackableObject(),
        TrackableObject(slot_variables=(SlotVariable(2, "n", 0),)),
    ]
    assert tree(capsys, "--all", write_graph(tmp_path / "s", nodes))[1:6] == [
        "(root)",
        "  v",
        "  m of m",
        "    n of m = (root)",
        "  v of v = (root).v",
    ]


def test_an_empty_graph(tmp_path: Path, capsys: Output) -> None:
    assert tree(capsys, write_graph(tmp_path / "n", []))[:2] == [
        " ".join(HEADINGS),
        "0 objects, 1 tensor, 1 element, 5 B",
    ]


# Patterns, JSON, errors.


def test_patterns_select_tensors_as_without_tree(capsys: Output) -> None:
    """Only tensors with matching keys and their parents are shown and counted."""
    assert tree(capsys, OBJECT, "model/*", "*/table-keys")[1:] == [
        "(root)",
        "  model",
        '    kernel float32 [2,2] 16 B variable "kernel"',
        "  optimizer",
        '    momentum of model.kernel float32 [2,2] 16 B variable "kernel/Momentum"',
        "  table string [1] 9 B table-keys",
        "6 objects, 3 tensors, 9 elements, 41 B",
    ]


def test_objects_without_tensors_are_hidden(tmp_path: Path, capsys: Output) -> None:
    """Only objects from which a tensor can be reached, by any path, are shown, in JSON as well; --all shows all."""
    nodes = [
        TrackableObject(children(("model", 1), ("empty", 2), ("weight", 4), ("saved", 5))),
        TrackableObject(children(("layer", 3), ("losses", 2))),
        TrackableObject(),
        TrackableObject(children(("kernel", 4))),
        variable("w", KEYS[0]),
        TrackableObject(registered_saver=RegisteredSaver("package.saver", "saved")),
    ]
    path = write_graph(tmp_path / "h", nodes, {KEYS[0]: torch.zeros(1)})
    assert main(["ls", "--tree", path]) == 0
    said = capsys.readouterr()
    assert said.err == "1 object without tensors not shown; --all shows them\n"
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[1:-1] == [
        "(root)",
        "model",
        "layer",
        "kernel = (root).weight",
        'weight float32 [1] 4 B variable "w"',
        'saved saved by "package.saver" as "saved"',
    ]
    assert lines[-1].startswith("5 objects, 2 tensors")
    assert [each["name"] for each in document(capsys, path)["objects"]] == [
        "(root)",
        "model",
        "layer",
        "weight",
        "saved",
    ]
    assert len(document(capsys, "--all", path)["objects"]) == 6
    assert main(["ls", "--tree", path, "--quiet"]) == 0 and capsys.readouterr().err == ""
    assert "    losses = (root).empty" in tree(capsys, "--all", path)


def test_all_is_for_trees(capsys: Output) -> None:
    """Usage error: a listing always has all tensors."""
    assert main(["ls", "--all", OBJECT]) == 2
    assert "--all needs --tree" in capsys.readouterr().err


@pytest.mark.parametrize("glob", ["model.kernel", "(root).model.kernel", "model/kernel", "kernel", "*.kernel"])
def test_patterns_match_any_name(glob: str, capsys: Output) -> None:
    """The key, the key without its suffix, the object's path, the variable's name."""
    assert tree(capsys, OBJECT, glob)[3] == '    kernel float32 [2,2] 16 B variable "kernel"'


def test_no_tensor_matches(capsys: Output) -> None:
    """Status 1 and the message of ls."""
    assert main(["ls", "--tree", OBJECT, "kernels"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith('tfckpt: none of 11 tensors matches "kernels".')
    assert said.out.splitlines()[-1].startswith("0 objects, 0 tensors")


def test_json(tmp_path: Path, capsys: Output) -> None:
    """A flat list of objects with their paths, and the tensors as in `ls --json`."""
    path = write_variables(tmp_path / "j", {"dense/kernel": torch.zeros(2, 3)})
    content = document(capsys, path)
    key = "v0/.ATTRIBUTES/VARIABLE_VALUE"
    assert content["path"] == path and content["format"] == "TensorFlow checkpoint, version 2"
    nothing: dict[str, object] = {"slot_variable_of": None, "slot_variables": [], "registered_saver": None}
    assert content["objects"] == [
        {"id": 0, "parent": None, "name": "(root)", "children": [{"name": "v0", "id": 1}], "attributes": [], **nothing},
        {
            "id": 1,
            "parent": 0,
            "name": "v0",
            "children": [],
            "attributes": [
                {"name": "VARIABLE_VALUE", "full_name": "dense/kernel", "checkpoint_key": key, "stored": True}
            ],
            **nothing,
        },
    ]
    assert [each["attribute"] for each in content["tensors"]] == [None, key]
    assert content["tensors"][1]["shape"] == [2, 3]
    assert content["total"]["tensors"] == 2


def test_json_of_slots(capsys: Output) -> None:
    """Slot variables and their variables refer to each other."""
    objects = {each["id"]: each for each in document(capsys, OBJECT)["objects"]}
    (optimizer,) = (each for each in objects.values() if each["slot_variables"])
    for slot in optimizer["slot_variables"]:
        assert objects[slot["id"]]["slot_variable_of"] == slot["variable"]
        assert objects[slot["id"]]["parent"] == optimizer["id"]


def test_a_name_based_checkpoint(tmp_path: Path, capsys: Output) -> None:
    """Status 1, with the kind of checkpoint and what to do."""
    path = tfckpt.save_file({"w": torch.zeros(1)}, tmp_path / "n")
    assert main(["ls", "--tree", path]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "stores tensors by name" in said.err and path in said.err


def test_other_formats(tmp_path: Path, capsys: Output) -> None:
    """Status 1: they have no object graph."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pt")
    assert main(["ls", "--tree", str(tmp_path / "m.pt")]) == 1
    assert "has no object graph. Omit --tree" in capsys.readouterr().err


def test_a_tree_is_not_sorted(capsys: Output) -> None:
    """--sort with --tree is wrong use, status 2."""
    assert main(["ls", "--tree", "--sort", "size", OBJECT]) == 2
    assert "--sort: not allowed with argument --tree" in capsys.readouterr().err


def test_a_damaged_graph(tmp_path: Path, capsys: Output) -> None:
    """Status 1 and no traceback."""
    path = tfckpt.save_file({"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"\xff", dtype=object)}, tmp_path / "d")
    assert main(["ls", "--tree", path]) == 1
    assert "this is not an object graph" in capsys.readouterr().err


# Names and sizes in hostile files.


def test_hostile_names(tmp_path: Path, capsys: Output) -> None:
    """Control characters are escaped, misleading names quoted, long ones shortened."""
    names = ["\x1b[2J\n", "  in", "", "n" * 1_000_000]
    nodes = [TrackableObject(children(*((name, 1) for name in names))), TrackableObject(), variable("\n", "\r")]
    lines = tree(capsys, "--all", write_graph(tmp_path / "h", nodes), status=1)
    assert lines[2:5] == ["  \\x1b[2J\\n", '  " in" = (root).\\x1b[2J\\n', '  "" = (root).\\x1b[2J\\n']
    assert lines[5].startswith("  nnn") and max(map(len, lines)) < 400
    assert lines[6] == '(object 2, not reachable from the root) ? ? ? variable "\\n"; not in the file: "\\r"'


def test_indentation_is_limited(tmp_path: Path, capsys: Output) -> None:
    """Indentation stops at level 20; deeper lines contain their level, and a message explains it."""
    nodes = [TrackableObject(children(("c", i + 1))) for i in range(22)]
    path = write_graph(tmp_path / "d", [*nodes, TrackableObject(children(("up", 21)))])
    assert main(["ls", "--tree", "--all", path]) == 0
    said = capsys.readouterr()
    lines = [line.rstrip() for line in said.out.splitlines()]
    assert lines[21:24] == [" " * 40 + "c", " " * 40 + "[21] c", " " * 40 + "[22] c"]
    assert lines[24].split() == ["[23]", "up", "=", ".".join(["(...)", *"c" * 12])]
    assert "deeper than 20 levels" in said.err


def chain(count: int) -> list[TrackableObject]:
    """Return nodes that are each the only child of the previous one."""
    return [*(TrackableObject(children(("c", i + 1))) for i in range(count - 1)), TrackableObject()]


def doubled(count: int) -> list[TrackableObject]:
    """Return a chain with each edge twice: 2 ** count paths."""
    return [*(TrackableObject(children(("c", i + 1), ("d", i + 1))) for i in range(count - 1)), TrackableObject()]


def returning(count: int) -> list[TrackableObject]:
    """Return a chain in which each node refers to the last one first."""
    edges = (children(("last", count - 1), ("c", i + 1)) for i in range(count - 1))
    return [*map(TrackableObject, edges), TrackableObject()]


def slots(count: int) -> list[TrackableObject]:
    """Return slot variables of slot variables."""
    nodes = (TrackableObject(slot_variables=(SlotVariable(i + 1, "m", i + 1),)) for i in range(count - 1))
    return [*nodes, TrackableObject()]


def lonely(count: int) -> list[TrackableObject]:
    """Return unreachable nodes."""
    return [TrackableObject()] * count


@pytest.mark.parametrize("made", [chain, doubled, returning, slots, lonely])
def test_large_graphs(made: Callable[[int], list[TrackableObject]], tmp_path: Path, capsys: Output) -> None:
    """The output is proportional to the graph, whatever its form, and nothing recurses."""
    path = write_graph(tmp_path / "g", made(10_000))
    assert main(["ls", "--tree", "--all", path]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("10,000 objects, ") and len(said) < 4_000_000
    assert len(document(capsys, "--all", path)["objects"]) == 10_000
    assert tree(capsys, path)[-1].startswith("1 object, 1 tensor, ")
