"""Names of tensors in object-based checkpoints, from the reader to the command line and to convert."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from object_files import children, variable, write_graph, write_variables

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.cli.main import main
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.format.object_graph import TrackableObject
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.values import Value

Output = pytest.CaptureFixture[str]
KERAS2 = str(GOLDEN / "digits-keras2-savedmodel")
KERAS3 = str(GOLDEN / "digits-checkpoint")
KERNEL = "layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"
NAMES = [
    KERNEL,
    "layer_with_weights-0/kernel",
    "layer_with_weights-0.kernel",
    "(root).layer_with_weights-0.kernel",
    "(root).layer-2.kernel",
    "conv/kernel",
    "conv/kernel:0",
]
OF_KERAS3 = "optimizer/_trainable_variables/0/.ATTRIBUTES/VARIABLE_VALUE"


# The reader.


@pytest.mark.parametrize("name", NAMES)
def test_every_method_takes_every_name(name: str) -> None:
    """Values, slices, types, places; the dictionary of several has the names that were asked for."""
    with tfckpt.load_checkpoint(KERAS2) as reader:
        expected = reader.get_tensor(KERNEL)
        assert reader.resolve(name) == KERNEL
        values = [reader[name], reader.get_tensor(name, torch.empty(3, 3, 1, 6)), reader.map_tensor(name)]
        values += [reader.get_slice(name)[...], reader.read_slice(name, TensorSlice.full(4))]
        values += [tfckpt.load_variable(KERAS2, name), *reader.get_tensors([name]).values()]
        values += [*reader.map_tensors([name]).values(), *tfckpt.load_file(KERAS2, names=[name]).values()]
        assert all(torch.equal(value, expected) for value in values) and len(values) == 9
        assert list(reader.get_tensors([name, "conv/bias"])) == [name, "conv/bias"]
        assert (reader.shape(name), reader.dtype(name)) == ((3, 3, 1, 6), tfckpt.DataType.DT_FLOAT)
        assert (reader.nbytes(name), reader.slices(name)) == (216, ())
        assert reader.locate(name) == reader.locate(KERNEL)
        assert reader.get_stored_bytes(name) == expected.numpy().tobytes()


def test_keys_are_what_is_stored() -> None:
    """`in`, has_tensor, keys and iteration use keys only, so that a name in the reader is one that is stored."""
    with tfckpt.load_checkpoint(KERAS2) as reader:
        assert KERNEL in reader and reader.has_tensor(KERNEL) and KERNEL in list(reader)
        assert "conv/kernel" not in reader and not reader.has_tensor("conv/kernel")
        assert len(reader) == len(reader.keys()) == len(dict(reader)) == 36


def test_names_of_a_key() -> None:
    """All of them; None and the key alone of what is not object-based."""
    with tfckpt.load_checkpoint(KERAS2) as reader:
        assert reader.names_of(KERNEL) == (*NAMES[:3], "conv/kernel")
        assert reader.variable_name(KERNEL) == "conv/kernel"
    with tfckpt.load_checkpoint(GOLDEN / "digits-v1-sharded" / "export-?????-of-00002") as reader:
        key = reader.keys()[0]
        assert reader.names_of(key) == (key,) and reader.variable_name(key) is None


@pytest.mark.parametrize("read", ["get_tensor", "get_slice", "map_tensor", "shape", "resolve"])
def test_several_variables_of_one_name(read: str) -> None:
    """Neither is chosen silently: both metrics have a "total"."""
    with tfckpt.load_checkpoint(KERAS2) as reader:
        with pytest.raises(
            InvalidArgumentError, match=r'variables: "total" is the name of 2 tensors: "keras_api/metrics/0'
        ):
            getattr(reader, read)("total")
        with pytest.raises(InvalidArgumentError, match="Use one of these keys"):
            reader.get_tensors(["total"])


def test_a_key_is_exact(tmp_path: Path) -> None:
    """A tensor stored under the name of another's variable is that tensor."""
    nodes = [TrackableObject(children(("v", 1))), variable("w", "v/.ATTRIBUTES/VARIABLE_VALUE")]
    tensors = {"v/.ATTRIBUTES/VARIABLE_VALUE": torch.zeros(1), "w": torch.ones(1), "w:0": torch.ones(1) * 2}
    path = write_graph(tmp_path / "e", nodes, tensors)
    with tfckpt.load_checkpoint(path) as reader:
        assert (reader["w"], reader["w:0"], reader["v"]) == (1, 2, 0)
    assert tfckpt.load_variable(path, "w:0") == 2


@pytest.mark.parametrize("typo", ["conv/kernle", "layer_with_weights-0/kernle", "layer_with_weights-0.kernle"])
def test_a_name_that_is_not_there(typo: str) -> None:
    """The hint is among all names, and the command that shows the objects is named."""
    expected = f'no tensor "{typo}": Key {typo} not found in checkpoint. Closest: "{typo[:-2]}el'
    with tfckpt.load_checkpoint(KERAS2) as reader:
        for read in (reader.get_tensor, reader.get_slice, reader.resolve, lambda name: reader.get_tensors([name])):
            with pytest.raises(NotFoundError, match=re.escape(expected)) as caught:
                read(typo)
            assert "object-based: `tfckpt ls --tree" in str(caught.value)


@pytest.mark.parametrize("name", [3, None, b"conv/kernel", ("conv/kernel",)])
def test_what_is_not_a_string(name: Any) -> None:
    """InvalidArgumentError, before and after the graph has been decoded."""
    with tfckpt.load_checkpoint(KERAS2) as reader:
        for _ in range(2):
            with pytest.raises(InvalidArgumentError, match="a tensor name must be a str"):
                reader.get_tensor(name)
            with pytest.raises(InvalidArgumentError, match="a tensor name must be a str"):
                reader.get_tensors(["conv/kernel", name])
            assert reader["conv/kernel"].shape == (3, 3, 1, 6)


def test_keys_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is decoded at the first name that is not a key, once, and not at all for keys."""
    read: list[str] = []
    plain = BundleReader.read

    def noted(self: BundleReader, name: str, out: torch.Tensor | None = None) -> Value:
        read.append(name)
        return plain(self, name, out)

    monkeypatch.setattr(BundleReader, "read", noted)
    with tfckpt.load_checkpoint(KERAS2) as reader:
        reader.get_tensor(KERNEL)
        assert read == [KERNEL]
        for _ in range(3):
            reader.get_tensor("conv/kernel")
        assert read.count("_CHECKPOINTABLE_OBJECT_GRAPH") == 1


def test_a_damaged_graph(tmp_path: Path) -> None:
    """Keys can still be read; other names are not found, and the error explains why."""
    graph = np.array(b"\xff", dtype=object)
    path = tfckpt.save_file({"_CHECKPOINTABLE_OBJECT_GRAPH": graph, "w": torch.ones(1)}, tmp_path / "d")
    with tfckpt.load_checkpoint(path) as reader:
        assert reader["w"] == 1
        with pytest.raises(NotFoundError, match=r'no tensor "x".*Only keys can be looked up: .*not an object graph'):
            reader.get_tensor("x")


def test_a_missing_data_file_is_not_a_missing_name(tmp_path: Path) -> None:
    """The key is there, its data is not: the file is named, as ever."""
    path = write_variables(tmp_path / "m", {"w": torch.ones(1)})
    Path(f"{path}.data-00000-of-00001").unlink()
    with tfckpt.load_checkpoint(path) as reader:
        for name in ("v0/.ATTRIBUTES/VARIABLE_VALUE", "w"):
            with pytest.raises(NotFoundError, match="data-00000-of-00001"):
                reader.get_tensor(name)


def test_reprs() -> None:
    """They say what they are, and read nothing."""
    with tfckpt.load_checkpoint(KERAS2) as reader:
        assert repr(reader) == f'<CheckpointReader of "{KERAS2}/variables/variables", version 2>'
        assert repr(reader.get_slice("conv/bias")) == (
            '<StoredTensor "layer_with_weights-0/bias/.ATTRIBUTES/VARIABLE_VALUE" DT_FLOAT [6]>'
        )
        assert repr(reader.object_graph) == "<ObjectGraph of 165 objects>"


def test_strings() -> None:
    """get_strings returns the array of bytes, and refuses numbers."""
    with tfckpt.load_checkpoint(GOLDEN / "digits-module") as reader:
        assert reader.get_strings("authors").dtype == object
        with pytest.raises(
            InvalidArgumentError, match=r'tensor "hidden/bias" is DT_FLOAT, not DT_STRING. Use get_tensor'
        ):
            reader.get_strings("hidden/bias")


def test_states_are_found_by_keys_alone(tmp_path: Path) -> None:
    """A Saver's state "optimizer" is not the value of an object that is called so: the names of variables count."""
    nodes = [TrackableObject(children(("state", 1))), variable("v", "state/.ATTRIBUTES/VARIABLE_VALUE")]
    path = write_graph(tmp_path / "s", nodes, {"state/.ATTRIBUTES/VARIABLE_VALUE": torch.ones(1)})
    with pytest.raises(NotFoundError, match="Existing variables not in the checkpoint: state"):
        tfckpt.Saver({"state": {"epoch": 1}}).restore(path)


# The command line.


def test_ls_tells_variables_apart(capsys: Output) -> None:
    """The note has the variable's name; a line on stderr names --tree, unless there is --quiet or --json."""
    assert main(["ls", KERAS3, "optimizer/_trainable_variables/*"]) == 0
    said = capsys.readouterr()
    notes = [line.partition("variable ")[2] for line in said.out.splitlines()[1:-1]]
    layers = ("conv/kernel", "conv/bias", "norm/gamma", "norm/beta", "hidden/kernel", "hidden/bias", "logits/kernel")
    assert notes == [f'"{name}"' for name in (*layers, "logits/bias")]
    assert said.err == f"object-based: `tfckpt ls --tree {KERAS3}` shows the objects\n"
    for option in ("--quiet", "--json"):
        assert main(["ls", KERAS3, option]) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("glob", ["conv/kernel", "*_trainable_variables.0", "optimizer/_trainable_variables/0"])
def test_ls_matches_any_name(glob: str, capsys: Output) -> None:
    """JSON has the variable and the other names."""
    assert main(["ls", KERAS3, glob, "--json"]) == 0
    (tensor,) = json.loads(capsys.readouterr().out)["tensors"]
    assert tensor["name"] == OF_KERAS3 and tensor["variable"] == "conv/kernel"
    assert tensor["aliases"] == [
        "optimizer/_trainable_variables/0", "optimizer._trainable_variables.0", "conv/kernel"
    ]  # fmt: skip


def test_ls_without_the_graph(capsys: Output, caplog: pytest.LogCaptureFixture) -> None:
    """An index without its data file is listed by key, and the log reports that names are unknown."""
    assert main(["ls", str(GOLDEN / "index-alone-of-objects")]) == 0
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" in capsys.readouterr().out
    assert "variable names are unknown" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_show_takes_every_name(name: str, capsys: Output) -> None:
    """The headline has the key and the variable."""
    assert main(["show", KERAS2, name, "--stats"]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert head == f'"{KERNEL}" float32 [3,3,1,6], 216 B, variable "conv/kernel"'


def test_show_of_an_ambiguous_and_of_a_wrong_name(capsys: Output) -> None:
    """Status 2 with the keys; status 1 with the closest name and both commands."""
    assert main(["show", KERAS2, "total"]) == 2
    assert '"total" is the name of 2 tensors: "keras_api/metrics/0/total/' in capsys.readouterr().err
    assert main(["show", KERAS2, "conv/kernle"]) == 1
    said = capsys.readouterr().err
    assert 'Closest: "conv/kernel"' in said and "`tfckpt ls --tree" in said


# convert and diff.


def test_convert_by_any_name(tmp_path: Path) -> None:
    """include, exclude and rename search every name; a rename makes its new name from the one that it was found in."""
    report = convert(
        KERAS3, tmp_path / "m.npz", include=["^conv/", "^norm/"], exclude=["beta$"], rename=[("^conv/", "first/")]
    )
    names = {item.name: item.new_name for item in report.converted}
    assert names[OF_KERAS3] == "first/kernel"
    gamma = "optimizer/_trainable_variables/2/.ATTRIBUTES/VARIABLE_VALUE"
    assert names[gamma] == gamma and len(names) == 5


def test_renames_in_a_row(tmp_path: Path) -> None:
    """The first pattern is found in the key before any other name; after it only the new name counts."""
    path = write_variables(tmp_path / "r", {"v0/kernel": torch.ones(1)})
    rename = [("^v0/", "a/"), ("/.ATTRIBUTES.*", "/b")]
    report = convert(path, tmp_path / "m.npz", include=["v0"], rename=rename)
    assert [item.new_name for item in report.converted] == ["a/b"]
    with pytest.raises(InvalidArgumentError, match='rename "kernel" matches none of 1 tensor'):
        convert(path, tmp_path / "n.npz", include=["v0"], rename=[*rename, ("kernel", "never")])


def test_diff_by_any_name() -> None:
    """As of convert."""
    report = diff(KERAS3, KERAS3, include=["^conv/kernel$"])
    assert report.equal == [OF_KERAS3] and report.filtered == 30


# load_model.


def test_a_report_names_variables() -> None:
    """Beside the keys that are not expected; the lists hold keys."""
    model = torch.nn.Module()
    model.conv = torch.nn.Conv2d(1, 6, 3)
    report = tfckpt.load_model(model, KERAS2, strict=False)
    assert "layer_with_weights-1/gamma/.ATTRIBUTES/VARIABLE_VALUE" in report.unexpected
    assert report.variables[KERNEL] == "conv/kernel"
    assert '"layer_with_weights-1/gamma/.ATTRIBUTES/VARIABLE_VALUE" (variable "norm/gamma")' in str(report)
    with pytest.raises(InvalidArgumentError, match=r'\(variable "norm/gamma"\)'):
        tfckpt.load_model(model, KERAS2)
    with pytest.raises(NotFoundError, match=r'mapped from "conv/kernle", which is not stored. Closest: "conv/kernel"'):
        tfckpt.load_model(model, KERAS2, mapper={"conv/kernle": "conv.weight"})


@pytest.mark.parametrize("name", NAMES[:3] + NAMES[5:6])
def test_a_mapper_sees_every_name(name: str) -> None:
    """Of a map's rules as well, for load_model and for init_from_checkpoint."""
    model = torch.nn.Module()
    model.first = torch.nn.Conv2d(1, 6, 3)
    report = tfckpt.load_model(model, KERAS2, mapper={name: ("first.weight", "conv2d")}, strict=False)
    assert report.sources["first.weight"] == KERNEL
    variable = torch.zeros(3, 3, 1, 6)
    assert tfckpt.init_from_checkpoint({"v": variable}, KERAS2, {name: "v"}) == {"v": KERNEL}
    assert torch.equal(model.first.weight, variable.permute(3, 2, 0, 1))
