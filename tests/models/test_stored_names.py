"""Under which names, and below which prefix, a checkpoint has a module."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_files import save_objects
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, VARIABLE_VALUE, ObjectGraph, ObjectReference
from torch_tfckpt.format.object_graph import SerializedTensor as Attribute
from torch_tfckpt.format.object_graph import TrackableObject as Node
from torch_tfckpt.models.stored_names import Naming, choose_naming, dotted_prefix, stored_names, variable_name_of
from torch_tfckpt.values import WritableValue

ONE = torch.zeros(1)


def chosen(prefix: Path, wanted: Mapping[str, set[str]]) -> Naming:
    with tfckpt.load_checkpoint(prefix) as reader:
        counted = {owner for of in wanted.values() for owner in of}
        return choose_naming(stored_names(reader, (), leave_out=()), wanted, counted, reader.path)


def own(*names: str) -> dict[str, set[str]]:
    return {name: {name} for name in names}


@pytest.mark.parametrize(
    ("keys", "names", "prefix"),
    [
        (["a", "b"], ["a", "b"], ""),
        (["m/a", "m/b", "a", "b"], ["a", "b"], ""),
        (["m/a", "m/b", "a"], ["a", "b"], "m/"),
        (["m/a", "m/b", "n/a"], ["a", "b"], "m/"),
        (["m/a", "n/b"], ["a", "b"], ""),
        (["m/x/a", "m/x/b"], ["x.a", "x.b"], "m/"),
        (["m/x/a", "m/x/b"], ["a", "b"], "m/x/"),
        (["m.x/a", "m.x/b"], ["a", "b"], "m.x/"),
        (["m/m/a", "m/a"], ["m.a", "a"], "m/"),
        (["m/a"], ["a", "b"], ""),
        (["m/a:0", "m/b:0"], ["a", "b"], "m/"),
        (["x"], ["a"], ""),
    ],
)
def test_the_prefix_by_which_most_is_found(tmp_path: Path, keys: list[str], names: list[str], prefix: str) -> None:
    """None goes before others that are as good; a prefix needs more than half."""
    tfckpt.save_file(dict.fromkeys(keys, ONE), tmp_path / "m")
    assert chosen(tmp_path / "m", own(*names)).spelled_prefix == prefix


def test_a_prefix_of_too_little_is_remarked(tmp_path: Path) -> None:
    """As it would have to be passed; not where as much is found without, or below another."""
    tfckpt.save_file({"net/a": ONE, "x/b": ONE, "net/c": ONE}, tmp_path / "m")
    remark = '2 of 4 tensors are below "net/"; pass prefix="net/"'
    assert chosen(tmp_path / "m", own("a", "b", "c", "d")).remark == remark
    assert chosen(tmp_path / "m", own("net.a", "c", "d", "e")).remark == ""
    assert chosen(tmp_path / "m", own("a", "b", "d", "e")).remark == ""


def test_names_with_slashes(tmp_path: Path) -> None:
    """A part of a module's name may have one; by text they are dots, by object they are not."""
    tfckpt.save_file({"m/a/b.w": ONE, "m/c": ONE}, tmp_path / "m")
    naming = chosen(tmp_path / "m", own("a/b.w", "c"))
    assert naming.prefix == "m." and [each.key for each in naming.find("a/b.w")] == ["m/a/b.w"]


def test_rivals_are_listed(tmp_path: Path) -> None:
    """Rivals are listed, a few of many; a prefix that finds the same variables in another way is not a rival."""
    tfckpt.save_file({f"{n}/{name}": ONE for n in range(12) for name in "ab"}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match=r'each of 12 prefixes, 2 of its 2 .*: "0/", .*"5/" and 4 more'):
        chosen(tmp_path / "m", own("a", "b"))
    paths = {"net/a": ONE, "net/b": ONE}
    save_objects(tmp_path / "o", paths, full_names={path: f"other/{path[4:]}" for path in paths})
    assert chosen(tmp_path / "o", own("a", "b")).spelled_prefix == "net/"


def test_objects_are_followed_however_they_are_shared(tmp_path: Path) -> None:
    """An object with several parents is found by each path; loops end; a variable that is not stored is not found."""
    nodes = (
        Node((ObjectReference(1, "a"), ObjectReference(1, "b"), ObjectReference(0, "self"))),
        Node((ObjectReference(2, "kernel"), ObjectReference(0, "up"), ObjectReference(3, "gone"))),
        Node((), (Attribute(VARIABLE_VALUE, "", "stored"), Attribute("other", "", "else"))),
        Node((), (Attribute(VARIABLE_VALUE, "", "not stored"),)),
    )
    values: dict[str, WritableValue] = {"stored": ONE, "else": ONE, OBJECT_GRAPH_KEY: ObjectGraph(nodes).encode()}
    tfckpt.save_file(values, tmp_path / "m")
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        _, objects, _ = stored_names(reader, (), leave_out=())
        for way in ("a.kernel", "b.kernel", "a.up.b.kernel", "self.self.a.kernel"):
            assert [each.key for each in objects.find("", way)] == ["stored"]
        assert objects.find("", "a.gone") == objects.find("", "a") == objects.find("", "x.y") == []
        assert objects.find("a.", "kernel")[0].variable_name == "kernel"
        assert objects.keys_below("a.") == {"stored", "not stored"}
        _, objects, _ = stored_names(reader, (), leave_out={"stored"})
        assert objects.find("", "a.kernel") == []


def test_full_names_of_several_variables_name_none(tmp_path: Path) -> None:
    """Keras 3 calls the kernels of all layers of a model alike."""
    save_objects(tmp_path / "m", {"x": ONE, "y": ONE, "z": ONE}, full_names={"x": "k", "y": "k", "z": "b"})
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        _, _, by_full_name = stored_names(reader, (), leave_out=())
    assert by_full_name.find("", "k") == [] and by_full_name.find("", "b")[0].variable_name == "b"


@pytest.mark.parametrize(
    ("name", "variable_name"),
    [
        ("a/b", "b"),
        ("a/b.c", "c"),
        ("a.b/c", "c"),
        ("a/k/.ATTRIBUTES/VARIABLE_VALUE", "k"),
        ("", ""),
        ("x", "x"),
        ("a/k:0", "k"),
    ],
)
def test_variable_names(name: str, variable_name: str) -> None:
    """The last part, whatever parts are separated by."""
    assert variable_name_of(name) == variable_name


def test_prefixes_have_one_dot() -> None:
    """This holds however they are spelled."""
    assert [dotted_prefix(each) for each in ("a/b", "a/b/", "a.b.", "", "/")] == ["a.b.", "a.b.", "a.b.", "", ""]


@given(st.sets(st.text("ab./", min_size=1, max_size=7), min_size=1, max_size=8), st.data())
def test_whatever_is_below_a_prefix_is_found_there(
    tmp_path_factory: pytest.TempPathFactory, keys: set[str], data: st.DataObject
) -> None:
    """`below` and `find` agree on any names."""
    prefix = tmp_path_factory.mktemp("m") / "m"
    tfckpt.save_file(dict.fromkeys(keys, ONE), prefix)
    wanted = own(*(key.replace("/", ".")[data.draw(st.integers(0, len(key) - 1)) :] for key in sorted(keys)))
    with tfckpt.load_checkpoint(prefix) as reader:
        (by_key,) = stored_names(reader, (), leave_out=())
    below = by_key.below(wanted)
    for start, found in below.items():
        assert found == {name for name in wanted if by_key.find(start, name)}
        assert any(key.startswith(by_key.spelled(start)) for key in keys)


def test_long_names_take_no_time(tmp_path: Path) -> None:
    """Of a name of a megabyte of dots only the end is compared."""
    tfckpt.save_file({"a." * 500_000 + "x": ONE, "m/x": ONE, "." * 1_000_000: ONE}, tmp_path / "m")
    began = time.process_time()
    with pytest.raises(InvalidArgumentError, match="each of 2 prefixes"):
        chosen(tmp_path / "m", own("x"))
    assert time.process_time() - began < 5  # it would be minutes


def test_cells_are_found_whatever_their_number(tmp_path: Path) -> None:
    """Keras and TensorFlow number the cells of a program: the only one of a layer is found, of several none."""
    kernels = {"kernel": torch.ones(3, 20), "recurrent_kernel": torch.ones(5, 20), "bias": torch.ones(20)}
    layer = nn.ModuleDict({"a_cell": nn.LSTM(3, 5)})
    one = {f"outer_cell_2/a_cell/lstm_cell_7/{name}": value for name, value in kernels.items()}
    tfckpt.save_file(one, tmp_path / "one")
    report = tfckpt.load_model(layer, tmp_path / "one")
    assert report.prefix == "outer_cell_2/" and len(report.converted) == 2
    two = {name.replace("cell_7", "cell_8"): value for name, value in one.items()}
    tfckpt.save_file({**one, **two}, tmp_path / "two")
    with pytest.raises(tfckpt.NotFoundError, match=r'Missing key\(s\): "a_cell.weight_ih_l0"'):
        tfckpt.load_model(layer, tmp_path / "two")


def test_cells_of_a_stack_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """By number, not by spelling: cell 10 comes after cell 9. Their count must be that of the layers."""
    stored: dict[str, torch.Tensor] = {}
    for number, inputs in ((9, 3), (10, 5)):
        kernels = {"kernel": torch.ones(inputs, 20), "recurrent_kernel": torch.ones(5, 20), "bias": torch.ones(20)}
        stored |= {f"x/stacked_rnn_cells/lstm_cell_{number}/{name}": value * number for name, value in kernels.items()}
    tfckpt.save_file(stored, tmp_path / "m")
    model = nn.ModuleDict({"x": nn.LSTM(3, 5, 2)})
    tfckpt.load_model(model, tmp_path / "m")
    state = model.state_dict()
    assert state["x.bias_ih_l0"].unique().tolist() == [9] and state["x.weight_ih_l1"].unique().tolist() == [10]
    with pytest.raises(tfckpt.NotFoundError, match=r'Missing key\(s\): "x.weight_ih_l0"'):
        tfckpt.load_model(nn.ModuleDict({"x": nn.LSTM(3, 5, 3)}), tmp_path / "m")
