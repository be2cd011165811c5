"""named_values: every form of a var_list as one dictionary."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from torch_tfckpt.saveables.named_values import named_values
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable


def variable(name: str) -> Variable:
    return Variable(torch.zeros(1), name)


def part(full_name: str, offset: int, name: str) -> Variable:
    """One element of a vector of four."""
    return Variable(torch.zeros(1), name, SaveSliceInfo(full_name, [4], [offset], [1]))


def saveable(name: str) -> SaveableObject:
    return SaveableObject(None, [SaveSpec("a", "", name)], name)


def test_a_dict_stays_and_a_module_has_the_empty_name() -> None:
    """SAVER 1, form 1; DESIGN for modules."""
    value, module = variable("v"), nn.Linear(1, 1)
    assert named_values({"x": value, "model": module}) == {"x": value, "model": module}
    assert named_values(module) == {"": module}


def test_a_list_is_sorted_and_flattened() -> None:
    """CASES 18, SAVER 1, form 2: nested lists, tuples and sets; saveables under their own names."""
    a, b, c, d = variable("a"), variable("b:0"), saveable("c"), variable("d")
    assert list(named_values([[d, (c,)], {b}, a]).items()) == [("a", a), ("b", b), ("c", c), ("d", d)]
    assert named_values([]) == named_values({}) == {}
    assert named_values({a}) == named_values((a,)) == {"a": a}


def test_pairs_and_generators_are_taken_once() -> None:
    """DESIGN: an iterable such as model.named_parameters()."""
    model = nn.Linear(2, 2)
    assert set(named_values(model.named_parameters())) == {"weight", "bias"}
    assert set(named_values(model.state_dict().items())) == {"weight", "bias"}
    taken = []

    def pairs() -> Iterator[tuple[str, torch.Tensor]]:
        for name in "ba":
            taken.append(name)
            yield name, torch.zeros(1)

    assert list(named_values(pairs())) == ["a", "b"] and taken == ["b", "a"]


def test_slices_are_gathered_under_the_name_of_the_whole() -> None:
    """SAVER 1: in the order of their own names."""
    one, two = part("whole", 1, "p1"), part("whole", 0, "p0")
    partitioned = PartitionedVariable("p", [part("p", 0, "p/0")])
    assert named_values([one, two, partitioned]) == {"whole": [two, one], "p": partitioned}


def test_a_later_saveable_replaces_one_of_the_same_name() -> None:
    """SAVER 1: silently."""
    first, second = saveable("s"), saveable("s")
    assert named_values([first, second]) == {"s": second}


def test_one_variable_twice_is_one() -> None:
    """As in TensorFlow's eager mode."""
    value = variable("v")
    assert named_values([value, [value]]) == {"v": value}


def test_one_name_for_two_variables_is_refused() -> None:
    """CASES 14, 16, SAVER 1."""
    with pytest.raises(ValueError, match="At least two variables have the same name: v"):
        named_values([variable("v"), variable("v")])
    with pytest.raises(ValueError, match="Two different ResourceVariable objects with the same shared_name 'v'"):
        named_values([variable("v"), ("v", torch.zeros(1))])
    with pytest.raises(ValueError, match="same name: p_v1"):
        named_values([PartitionedVariable("p_v1", []), PartitionedVariable("p_v1", [])])
    with pytest.raises(ValueError, match="same name: v1"):
        named_values([variable("v0"), variable("v1"), part("v1", 0, "v2")])
    with pytest.raises(ValueError, match="Mixing slices and non-slices with the same name: v1"):
        named_values([variable("v1"), part("v1", 0, "v2")])
    with pytest.raises(ValueError, match="At least two variables have the same name: v1"):
        named_values([part("v1", 0, "a"), variable("v1")])


class Owner:
    """A trackable object with a name."""

    name = "owner"

    def __init__(self, gathered: dict[str, object]) -> None:
        self._gathered = gathered

    def _gather_saveables_for_checkpoint(self) -> dict[str, object]:
        return self._gathered


def test_a_trackable_object_in_a_list_gives_its_saveables_by_their_names() -> None:
    """CASES 80, 81: a factory is called without a name then."""
    value = variable("v")
    made = saveable("default")
    found = named_values([Owner({"VARIABLE_VALUE": value, "other": lambda name="default": made})])
    assert found == {"v": value, "default": made}


@pytest.mark.parametrize("value", ["text", b"bytes", 5, None, torch.zeros(2), torch.optim.SGD([torch.zeros(1)])])
def test_other_forms_are_refused(value: object) -> None:
    """SAVER 1: TypeError; a tensor and a text can be iterated over, and are not meant so."""
    with pytest.raises(TypeError, match="Variables to save should be passed in a dict or a list"):
        named_values(value)


def test_names_are_strings() -> None:
    """SAVER 1: TypeError "Name is not a string"."""
    with pytest.raises(
        TypeError, match=r"names_to_saveables must be a dict mapping string names.*Name is not a string: 5"
    ):
        named_values({5: torch.zeros(1)})


@pytest.mark.parametrize("element", [torch.zeros(1), 5, nn.Linear(1, 1), (1, 2)])
def test_an_element_without_a_name_is_refused(element: object) -> None:
    """SAVER 1: AttributeError; the text says what to pass."""
    with pytest.raises(AttributeError, match=r"has no name\. Pass a dict"):
        named_values([element])


def test_an_element_with_a_name_that_is_no_variable_is_refused() -> None:
    """SAVER 1: TypeError."""

    class Named:
        name = "n"

    with pytest.raises(TypeError, match="Variable to save is not a Variable"):
        named_values([Named()])
