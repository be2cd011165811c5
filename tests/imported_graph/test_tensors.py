"""The tensors for a graph's variables, and the objects that restore stored values."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.dtypes import ELEMENTS, is_holdable
from torch_tfckpt.errors import CheckpointError, DataLossError, FailedPreconditionError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.imported_graph.saveables import HeldValue, StringVariable
from torch_tfckpt.imported_graph.tensors import GraphTensors
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.saver_values import StoredValue
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.values import Strings, Value

FLOAT, STRING, RESOURCE = DataType.DT_FLOAT, DataType.DT_STRING, DataType.DT_RESOURCE


def of(name: str, *shape: int, dtype: DataType = FLOAT, part: SaveSliceInfoDef | None = None) -> GraphVariable:
    return GraphVariable(name, dtype, shape, part=part)


def unshaped(name: str, shape: tuple[int, ...] | None = None, dtype: DataType = FLOAT) -> GraphVariable:
    return GraphVariable(name, dtype, shape)


def part(full_name: str, full: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> SaveSliceInfoDef:
    return SaveSliceInfoDef(full_name=full_name, full_shape=full, var_offset=offset, var_shape=shape)


def halves(dtype: DataType = FLOAT) -> list[GraphVariable]:
    """Rows 0 and 1, and 2 and 3, of "w"."""
    return [of(f"w/{n}", 2, 3, dtype=dtype, part=part("w", [4, 3], [2 * n, 0], [2, 3])) for n in (0, 1)]


def stored(key: str, *variables: str, slice_spec: str = "", dtype: DataType = FLOAT) -> StoredValue:
    return StoredValue(key, slice_spec, dtype, variables)


def tensor(tensors: GraphTensors, node: str) -> torch.Tensor:
    found = tensors[node]
    assert isinstance(found, Variable)
    return found.tensor


def strings(*values: str) -> Strings:
    return np.array([value.encode() for value in values], dtype=object)


def checkpoint(path: Path, value: Value, key: str = "k") -> str:
    """A checkpoint with one value."""
    if not isinstance(value, torch.Tensor):
        saveable = SaveableObject(None, [SaveSpec(value, "", key)], key)
        Saver([saveable]).save(path, write_meta_graph=False)
    else:
        tfckpt.save_file({key: value}, path)
    return str(path)


# Tensors.


@pytest.mark.parametrize(("scope", "prefix"), [("", ""), ("a", "a/"), ("a/b", "a/b/")])
def test_zeros(scope: str, prefix: str) -> None:
    """With type and shape; under their names in the scope; found by node names, which lack the scope."""
    variables = [
        GraphVariable("v", FLOAT, (2, 3), "/device:GPU:1", trainable=True),
        of("i", dtype=DataType.DT_INT64),
        of("empty", 0, 2),
    ]
    tensors = GraphTensors(iter(variables), scope)
    assert list(tensors.values) == [f"{prefix}v", f"{prefix}i", f"{prefix}empty"]
    assert torch.equal(tensor(tensors, "v"), torch.zeros(2, 3)) and tensors.values[f"{prefix}v"] is tensor(tensors, "v")
    assert torch.equal(tensor(tensors, "i"), torch.tensor(0)) and tensor(tensors, "empty").shape == (0, 2)
    found = tensors["v"]
    assert isinstance(found, Variable)
    assert (found.name, found.device, found.trainable) == (f"{prefix}v", "/device:GPU:1", True)
    assert "v" in tensors and f"{prefix}x" not in tensors and tensors["x"] is None


@pytest.mark.parametrize("dtype", list(ELEMENTS), ids=lambda dtype: dtype.name)
def test_types(dtype: DataType, caplog: pytest.LogCaptureFixture) -> None:
    """Torch's type in memory, the graph's type in the checkpoint. Types that torch lacks are skipped with a warning."""
    with caplog.at_level(logging.WARNING):
        tensors = GraphTensors([of("v", 3, dtype=dtype)], "a")
    if dtype == STRING:
        assert tensors.values["a/v"].tolist() == [b""] * 3
    elif ELEMENTS[dtype].torch is None:
        assert "v" in tensors and tensors["v"] is None and not tensors.values
        assert [record.getMessage() for record in caplog.records] == [
            f'variable "a/v" is omitted: torch has no {dtype.name}'
        ]
        assert isinstance(tensors.saveable(stored("k", "v", dtype=dtype)), HeldValue)
    else:
        assert tensor(tensors, "v").dtype == ELEMENTS[dtype].torch
        assert not tensor(tensors, "v").to(torch.float64 if not dtype.name.startswith("DT_COM") else None).any()
        found = tensors["v"]
        assert isinstance(found, Variable) and found.dtype == dtype
    assert len(caplog.records) == (not tensors.values)


@pytest.mark.parametrize(("shape", "first"), [(None, ()), ((-1,), (0,)), ((2, -1, 3), (2, 0, 3)), ((), ())])
def test_unknown_shapes(shape: tuple[int, ...] | None, first: tuple[int, ...]) -> None:
    """Unknown dimensions are 0 at first; an unknown rank becomes a scalar."""
    assert GraphTensors([unshaped("v", shape)], "").values["v"].shape == first


@pytest.mark.parametrize("shape", [None, (-1,), (2, -1)], ids=str)
def test_strings_of_unknown_shape(shape: tuple[int, ...] | None, caplog: pytest.LogCaptureFixture) -> None:
    """Left out with a warning, since an array cannot be resized; the value is kept and saved again."""
    with caplog.at_level(logging.WARNING):
        tensors = GraphTensors([unshaped("v", shape, STRING)], "a")
    assert "v" in tensors and tensors["v"] is None and not tensors.values
    assert [record.getMessage() for record in caplog.records] == [
        'variable "a/v" is omitted: it contains strings, and its shape is not known'
    ]
    assert isinstance(tensors.saveable(stored("k", "v", dtype=STRING)), HeldValue)


def test_strings_are_empty() -> None:
    """Up to a million of them; in larger arrays they are None at first, so that a shape takes no memory."""
    tensors = GraphTensors([of("few", 1 << 10, 1 << 10, dtype=STRING), of("many", (1 << 20) + 1, dtype=STRING)], "")
    assert set(tensors.values["few"].reshape(-1).tolist()) == {b""}
    assert set(tensors.values["many"].tolist()) == {None}


@pytest.mark.parametrize("dtype", [FLOAT, STRING, DataType.DT_BOOL, DataType.DT_COMPLEX128])
@pytest.mark.parametrize("shape", [(1 << 33,), (1 << 50,), (1 << 62, 1 << 62), (0, 1 << 62), (1,) * 70], ids=str)
def test_a_shape_takes_no_memory(shape: tuple[int, ...], dtype: DataType) -> None:
    """For any shape: an error that names the variable, or memory that is not touched."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    try:
        tensors = GraphTensors([GraphVariable("v", dtype, shape)], "a")
    except CheckpointError as error:
        assert isinstance(error, FailedPreconditionError) and str(error).startswith('variable "a/v" of shape [')
    else:
        assert tuple(tensors.values["a/v"].shape) == shape
    assert resident() - before < 64 << 20


@pytest.mark.parametrize("dtype", [*DataType][1:], ids=lambda dtype: dtype.name)
def test_supported_types(dtype: DataType) -> None:
    """Strings, and the types that torch has."""
    element = ELEMENTS.get(dtype)
    assert is_holdable(dtype) == (dtype == STRING or (element is not None and element.torch is not None))


def test_variables_that_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The variable is listed without a tensor; the warning gives the reason."""
    tensors = GraphTensors([], "a")
    with caplog.at_level(logging.WARNING):
        tensors.leave_out("v", "some reason")
    assert "v" in tensors and tensors["v"] is None and not tensors.values
    assert [record.getMessage() for record in caplog.records] == ['variable "a/v" is omitted: some reason']


# Parts.


@pytest.mark.parametrize("dtype", [FLOAT, STRING])
def test_parts_are_views(dtype: DataType) -> None:
    """They are views of the whole tensor, which has its own name, even in a scope."""
    tensors = GraphTensors(halves(dtype), "a")
    assert list(tensors.values) == ["a/w"] and tensors.values["a/w"].shape == (4, 3)
    whole, second = tensors.values["a/w"], tensors["w/1"]
    assert second is not None and second.name == "a/w/1"
    if isinstance(second, StringVariable):
        second.array[...] = b"x"
        assert whole.tolist() == [[b""] * 3] * 2 + [[b"x"] * 3] * 2
    else:
        second.tensor.fill_(1)
        assert whole.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        assert second.slice_info is not None and second.slice_info.full_name == "a/w"


def test_parts_of_an_existing_variable() -> None:
    """CASES 67: "v2" is declared a part of "v1", which is another variable: each has its own memory."""
    tensors = GraphTensors([of("v1", 2), of("v2", 2, part=part("v1", [2], [0], [2]))], "s")
    assert list(tensors.values) == ["s/v1", "s/v2"]
    tensor(tensors, "v2").fill_(1)
    assert tensor(tensors, "v1").tolist() == [0.0, 0.0]


def test_a_part_whose_node_has_no_shape() -> None:
    """It has the shape of the part."""
    tensors = GraphTensors([GraphVariable("v", FLOAT, (-1, 3), part=part("w", [4, 3], [2, 0], [2, 3]))], "")
    assert tensor(tensors, "v").shape == (2, 3) and tensors.values["w"].shape == (4, 3)


@pytest.mark.parametrize(
    ("variables", "finding"),
    [
        ([of("v", 2, part=part("w", [4], [3], [2]))], '"v": slice of "s/w".*out of bounds'),
        ([of("v", 2, part=part("w", [4], [-1], [2]))], '"v"'),
        ([of("v", 0, part=part("w", [4], [0], [0]))], '"v"'),
        ([of("v", 2, part=part("w", [4, 4], [0], [2]))], '"v".*one number for each dimension'),
        ([of("v", 2, part=SaveSliceInfoDef())], '"v"'),
        (
            [of("v", 3, part=part("w", [4], [0], [2]))],
            r'"v": its collection declares a part of shape \[2\], but its node has shape \[3\]',
        ),
        ([of("v", 2, 1, part=part("w", [4], [0], [2]))], r'"v": its collection declares a part of shape \[2\]'),
        (
            [*halves(), of("x", 2, part=part("w", [5], [0], [2]))],
            r'"s/x" is a part of "s/w", torch.float32 of shape \[5\]; '
            r"another part declares torch.float32 of shape \[4,3\]",
        ),
        (
            [*halves(), of("x", 1, 3, part=part("w", [4, 3], [0, 0], [1, 3]), dtype=DataType.DT_HALF)],
            "another part declares torch.float32",
        ),
        (
            [*halves(STRING), of("x", 1, 3, part=part("w", [4, 3], [0, 0], [1, 3]))],
            "another part declares strings",
        ),
    ],
)
def test_invalid_parts(variables: list[GraphVariable], finding: str) -> None:
    """DataLossError, which names the variable."""
    with pytest.raises(DataLossError, match=f"^variable .*{finding}"):
        GraphTensors(variables, "s")


# Adding a variable.


@pytest.mark.parametrize("variable", [of("l", 2), of("l", dtype=STRING), halves()[0], unshaped("l")], ids=str)
def test_adding(variable: GraphVariable) -> None:
    """A variable outside the model is not in `values`, and neither is its whole."""
    tensors = GraphTensors([of("v", 2)], "s")
    added = tensors.add(variable)
    assert added is tensors[variable.name] is not None and variable.name in tensors
    assert list(tensors.values) == ["s/v"]


def test_adding_a_part_of_an_existing_whole() -> None:
    """It is a view of the whole."""
    first, second = halves()
    tensors = GraphTensors([first], "")
    tensors.add(second)
    tensor(tensors, second.name).fill_(1)
    assert tensors.values["w"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2


# Restoring values.


def restored(tmp_path: Path, tensors: GraphTensors, value: StoredValue, content: Value) -> SaveableObject | Variable:
    """Restore a checkpoint that has `content` under the value's key, as an imported saver does."""
    saveable = tensors.saveable(value)
    Saver({value.key: [saveable] if value.slice_spec else saveable}).restore(
        checkpoint(tmp_path / "m", content, value.key)
    )
    return saveable


def test_a_variable_under_another_key(tmp_path: Path) -> None:
    """Moving averages are stored like this; the variable is restored in place."""
    tensors = GraphTensors([GraphVariable("v", FLOAT, (2,), "/device:GPU:1", trainable=True)], "s")
    found = restored(tmp_path, tensors, stored("v/average", "v"), torch.tensor([1.0, 2.0]))
    assert isinstance(found, Variable) and (found.name, found.device, found.trainable) == ("s/v", "/device:GPU:1", True)
    assert tensors.values["s/v"].tolist() == [1.0, 2.0]


def test_a_variable_that_is_stored_as_a_part(tmp_path: Path) -> None:
    """The saver's slice is used, not the definition's; "-" is a whole dimension."""
    tensors = GraphTensors(halves(), "")
    whole = torch.arange(12.0).reshape(4, 3)
    restored(tmp_path, tensors, stored("w", "w/0", slice_spec="4 3 2,2:-"), whole)
    assert tensors.values["w"].tolist() == [*whole[2:].tolist(), [0.0] * 3, [0.0] * 3]
    restored(tmp_path, tensors, stored("k", "w/1"), whole[1:3].clone())
    assert tensors.values["w"].tolist() == [*whole[2:].tolist(), *whole[1:3].tolist()]


@pytest.mark.parametrize("slice_spec", ["4 3 0,3:-", "4 0,2", "hello", "4 3 3,2:-"])
def test_a_slice_of_another_shape(slice_spec: str) -> None:
    """DataLossError with the variable and the key."""
    with pytest.raises(DataLossError, match=r'^variable "s/w/0", stored as "k"'):
        GraphTensors(halves(), "s").saveable(stored("k", "w/0", slice_spec=slice_spec))


def test_strings(tmp_path: Path) -> None:
    """Whole and partitioned string variables are restored."""
    tensors = GraphTensors([of("v", 2, dtype=STRING), *halves(STRING)], "")
    restored(tmp_path, tensors, stored("k", "v", dtype=STRING), strings("a", "b"))
    assert tensors.values["v"].tolist() == [b"a", b"b"]
    whole = strings(*"abcdefghijkl").reshape(4, 3)
    restored(tmp_path, tensors, stored("w", "w/1", slice_spec="4 3 2,2:-", dtype=STRING), whole)
    assert tensors.values["w"].tolist() == [[b""] * 3] * 2 + whole[2:].tolist()


@pytest.mark.parametrize("shape", [None, (-1, 2)], ids=str)
def test_restoring_an_unknown_shape(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    """It becomes that of each restored value, in the same tensor object; older views do not change."""
    tensors = GraphTensors([unshaped("v", shape)], "")
    whole = tensors.values["v"]
    content = torch.ones(3, 2)
    for each in (content, content[:1], content[:0], content):
        restored(tmp_path, tensors, stored("k", "v"), each)
        assert tensors.values["v"] is whole and whole.tolist() == each.tolist() and whole.shape == each.shape
    view = whole[1:]
    restored(tmp_path, tensors, stored("k", "v"), torch.zeros(5, 2))
    assert view.tolist() == [[1.0, 1.0]] * 2


def test_a_slice_of_unknown_shape(tmp_path: Path) -> None:
    """Only the saver declares the slice: then only the slice is read and written."""
    tensors = GraphTensors([unshaped("v", (-1, 2))], "")
    whole = torch.arange(8.0).reshape(4, 2)
    saveable = restored(tmp_path, tensors, stored("w", "v", slice_spec="4 2 1,2:-"), whole)
    assert tensors.values["v"].tolist() == whole[1:3].tolist()
    path = Saver({"w": [saveable]}).save(tmp_path / "n")
    assert path is not None
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.shape("w") == (4, 2)


@pytest.mark.parametrize("shape", [(3,), (3, 3), ()], ids=str)
def test_a_value_that_contradicts_the_known_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An error that names the variable, and nothing is assigned."""
    tensors = GraphTensors([unshaped("v", (-1, 2))], "")
    with pytest.raises(ValueError, match=r'"k" has shape \[-1,2\], but the stored value has \['):
        restored(tmp_path, tensors, stored("k", "v"), torch.ones(shape))
    assert tensors.values["v"].shape == (0, 2)


def test_mirrors(tmp_path: Path) -> None:
    """All variables with one value are restored; unknown ones among them are skipped."""
    cases: list[tuple[list[GraphVariable], Value]] = [
        ([of("a", 2), of("b", 2)], torch.tensor([1.0, 2.0])),
        ([unshaped("a"), of("b", 2)], torch.tensor([1.0, 2.0])),
        ([of("a", 2), unshaped("b")], torch.tensor([1.0, 2.0])),
        ([unshaped("a"), unshaped("b", (-1,))], torch.tensor([1.0, 2.0])),
        ([of("a", 2, dtype=STRING), of("b", 2, dtype=STRING)], strings("a", "b")),
        ([of("r", 2, dtype=RESOURCE), of("a", 2), of("b", 2)], torch.tensor([1.0, 2.0])),
    ]
    for number, (variables, content) in enumerate(cases):
        tensors = GraphTensors(variables, "")
        value = stored("k", *[each.name for each in variables], "absent", dtype=variables[0].dtype)
        restored(tmp_path / str(number), tensors, value, content)
        assert [tensors.values[name].tolist() for name in "ab"] == [content.tolist()] * 2
        first = tensors.values["a"]
        if isinstance(first, torch.Tensor):
            first.zero_()
            assert tensors.values["b"].tolist() == content.tolist()  # in its own memory


def test_mirrors_that_are_parts(tmp_path: Path) -> None:
    """All of them receive the slice."""
    tensors = GraphTensors([of("a", 2), of("b", 2)], "")
    restored(tmp_path, tensors, stored("k", "a", "b", slice_spec="4 1,2"), torch.arange(4.0))
    assert [tensors.values[name].tolist() for name in "ab"] == [[1.0, 2.0]] * 2


@pytest.mark.parametrize("content", [torch.ones(2), strings("a"), np.array(b"a", dtype=object)], ids=["x", "y", "z"])
def test_a_value_without_a_variable(tmp_path: Path, content: Value) -> None:
    """It is kept as it was restored."""
    dtype = FLOAT if isinstance(content, torch.Tensor) else STRING
    found = restored(tmp_path, GraphTensors([], ""), stored("k", dtype=dtype), content)
    assert isinstance(found, HeldValue) and found.value is not None and found.value.tolist() == content.tolist()


def test_a_constant() -> None:
    """It exists before anything is restored."""
    found = GraphTensors([], "").saveable(StoredValue("graph", "", STRING, constant=b"\x0a"))
    assert isinstance(found, HeldValue) and found.value is not None
    assert (found.value.shape, found.value.tolist()) == ((), b"\x0a")
