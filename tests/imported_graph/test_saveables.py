"""The saveables of imported graphs, each by itself, without a graph."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaveSpec, Variable
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.imported_graph.saveables import HeldValue, Mirrors, StringVariable, UnshapedVariable, fits, is_whole
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.values import Strings, Value


def strings(*values: str) -> Strings:
    return np.array([value.encode() for value in values], dtype=object)


# Shapes.


@pytest.mark.parametrize(
    ("shape", "whole"), [(None, False), ((), True), ((0,), True), ((2, -1), False), ((2, 3), True)]
)
def test_is_whole(shape: Shape | None, whole: bool) -> None:
    """Whether every dimension is known."""
    assert is_whole(shape) == whole


@pytest.mark.parametrize(
    ("shape", "known", "may_be"),
    [
        ((2, 3), None, True),
        ((), None, True),
        ((2, 3), (2, 3), True),
        ((2, 3), (-1, 3), True),
        ((2, 3), (-1, -1), True),
        ((), (), True),
        ((2, 3), (3, -1), False),
        ((2, 3), (-1,), False),
        ((), (-1,), False),
        ((0,), (-1,), True),
    ],
)
def test_fits(shape: Sequence[int], known: Shape | None, may_be: bool) -> None:
    """Whether no known dimension is contradicted."""
    assert fits(shape, known) == may_be


# Strings.


def test_strings_are_saved_and_restored_in_place(tmp_path: Path) -> None:
    """They are stored under the key, as a whole."""
    array = strings("a", "b")
    saveable = StringVariable(array, "k")
    assert (saveable.name, saveable.op is array, saveable.device) == ("k", True, "/device:CPU:0")
    path = Saver({"k": saveable}).save(tmp_path / "m")
    assert path is not None and tfckpt.load_variable(path, "k").tolist() == [b"a", b"b"]
    array[:] = b"x"
    Saver({"k": saveable}).restore(path)
    assert array.tolist() == [b"a", b"b"]


def test_a_part_of_strings(tmp_path: Path) -> None:
    """Two saveables with one key form the whole; each restores its part."""
    first, second = strings("a", "b"), strings("c", "d")
    parts = [StringVariable(first, "k", "4 0,2"), StringVariable(second, "k", "4 2,2")]
    path = Saver({"k": parts}).save(tmp_path / "m")
    assert path is not None and tfckpt.load_variable(path, "k").tolist() == [b"a", b"b", b"c", b"d"]
    second[:] = b"x"
    Saver({"k": parts}).restore(path)
    assert second.tolist() == [b"c", b"d"]


def test_strings_of_another_shape() -> None:
    """Rejected before anything is assigned; a saver with reshape passes the new shape."""
    saveable = StringVariable(strings("a", "b"), "k")
    saveable.check([(2,)])
    saveable.check([(1, 2)], [(2,)])
    for shapes, restored in (([(3,)], None), ([(1, 2)], None), ([(2,)], [(1, 2)])):
        with pytest.raises(InvalidArgumentError, match=r'variable "k" has shape \[2\], but the stored value has \['):
            saveable.check(shapes, restored)
    saveable.restore([strings("c", "d").reshape(1, 2)], [(2,)])
    assert saveable.array.tolist() == [b"c", b"d"]


# Numbers of unknown shape.


@pytest.mark.parametrize("known", [None, (-1, 2)], ids=str)
def test_a_tensor_gets_the_shape_of_the_value(tmp_path: Path, known: Shape | None) -> None:
    """It stays the same object, gets a new shape with each restore, and is saved with its present shape."""
    tensor = torch.zeros(0, 2, requires_grad=True)
    saver = Saver({"k": UnshapedVariable(Variable(tensor, "v"), known, "k")})
    for rows in (3, 1):
        path = tfckpt.save_file({"k": torch.full((rows, 2), 1.5 * rows)}, tmp_path / str(rows))
        saver.restore(path)
        assert tensor.tolist() == [[1.5 * rows] * 2] * rows and tensor.is_leaf and tensor.requires_grad
    saved = saver.save(tmp_path / "m")
    assert saved is not None and tfckpt.load_variable(saved, "k").tolist() == [[1.5, 1.5]]


def test_a_restored_value_is_copied(tmp_path: Path) -> None:
    """No other object shares the memory, and it has the tensor's type."""
    tensor, value = torch.zeros(0), torch.ones(2)
    saveable = UnshapedVariable(Variable(tensor, "v"), None, "k")
    saveable.restore([value], None)
    value.zero_()
    assert tensor.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(2,), (3, 2, 1), (2, 3)], ids=str)
def test_a_value_that_contradicts_the_known_shape(shape: Shape) -> None:
    """Rejected before anything is assigned."""
    saveable = UnshapedVariable(Variable(torch.zeros(0, 2), "v"), (-1, 2), "k")
    with pytest.raises(InvalidArgumentError, match=r'variable "k" has shape \[-1,2\], but the stored value has \['):
        saveable.check([shape])
    saveable.check([(7, 2)])


def test_its_type_and_device() -> None:
    """They are known before there is a value."""
    variable = Variable(torch.zeros(0, dtype=torch.int8), "v", device="/gpu:1", dtype=DataType.DT_QINT8)
    saveable = UnshapedVariable(variable, None, "k")
    [spec] = saveable.specs
    assert (spec.name, spec.dtype, spec.device, spec.shape) == ("k", DataType.DT_QINT8, "/device:GPU:1", None)


# Several variables with one value.


def test_mirrors(tmp_path: Path) -> None:
    """The first is saved; all are restored, each into its own memory."""
    tensors = [torch.zeros(2), torch.zeros(2), torch.zeros(0)]
    mirrors = Mirrors(
        [
            VariableSaveable(tensors[0], "", "k"),
            VariableSaveable(tensors[1], "", "k"),
            UnshapedVariable(Variable(tensors[2], "v"), None, "k"),
        ]
    )
    assert (mirrors.name, mirrors.op is tensors[0], len(mirrors.specs)) == ("k", True, 1)
    path = tfckpt.save_file({"k": torch.tensor([1.0, 2.0])}, tmp_path / "k")
    saver = Saver({"k": mirrors})
    saver.restore(path)
    assert [each.tolist() for each in tensors] == [[1.0, 2.0]] * 3
    assert len({each.data_ptr() for each in tensors}) == 3
    tensors[1].zero_()
    saved = saver.save(tmp_path / "m")
    assert saved is not None and tfckpt.load_variable(saved, "k").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("odd", [0, 1])
def test_mirrors_with_different_shapes(odd: int) -> None:
    """Nothing is assigned if the value does not fit one of them."""
    tensors = [torch.zeros(3 if index == odd else 2) for index in range(2)]
    mirrors = Mirrors([VariableSaveable(each, "", "k") for each in tensors])
    with pytest.raises(InvalidArgumentError, match=r"variable with shape \(3,\)"):
        mirrors.check([(2,)])


# Values without a variable.


@pytest.mark.parametrize("value", [torch.arange(3), strings("a"), np.array(b"x", dtype=object)], ids=["a", "b", "c"])
def test_a_value_is_kept(tmp_path: Path, value: Value) -> None:
    """It is saved as it was restored; before there is one, it cannot be saved."""
    dtype = DataType.DT_INT64 if isinstance(value, torch.Tensor) else DataType.DT_STRING
    path = Saver({"k": Given("k", value)}).save(tmp_path / "k")
    assert path is not None
    held = HeldValue("k", "", dtype)
    assert held.op is None
    with pytest.raises(InvalidArgumentError, match='tensor "k" has no value yet'):
        Saver({"k": held}).save(tmp_path / "early")
    Saver({"k": held}).restore(path)
    assert held.value is not None and held.value.tolist() == value.tolist()
    saved = Saver({"k": held}).save(tmp_path / "again")
    assert saved is not None and tfckpt.load_variable(saved, "k").tolist() == value.tolist()


class Given(SaveableObject):
    """A value under a key."""

    def __init__(self, key: str, value: Value) -> None:
        super().__init__(self, [SaveSpec(value, "", key)], key)


def test_an_initial_value(tmp_path: Path) -> None:
    """It can be saved without a restore."""
    held = HeldValue("graph", "", DataType.DT_STRING, np.array(b"\x0a", dtype=object))
    path = Saver({"graph": held}).save(tmp_path / "m")
    assert path is not None and tfckpt.load_variable(path, "graph").tolist() == b"\x0a"
