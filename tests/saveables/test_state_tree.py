"""flatten and unflatten: Python values as JSON, tensors stored separately."""

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.saveables.state_tree import MAX_DEPTH, flatten, tensor_keys, unflatten

KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters())
    | st.binary()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner) | st.just(Counter({1: 2, "a": -1}))
    ),
)


def same(a: object, b: object) -> bool:
    """Return whether two values are equal in type and in every bit that Python shows."""
    return type(a) is type(b) and repr(a) == repr(b)


@given(VALUES)
def test_any_plain_value_comes_back(value: object) -> None:
    """Types of containers, keys that are not strings, the sign of zero, infinities."""
    text, tensors = flatten(value, "k")
    assert not tensors
    assert same(unflatten(text, {}), value)
    assert same(unflatten(text.encode(), {}), value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0, 5e-324, 0.1, 1e308, complex(-0.0, math.nan)])
def test_floats_come_back_exactly_and_the_text_is_strict_json(value: complex) -> None:
    """JSON has no numbers for infinity; other programs must be able to read it."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not valid JSON")

    text, _ = flatten([value], "k")
    json.loads(text, parse_constant=refuse)
    assert same(unflatten(text, {}), [value])


def test_the_text_is_readable() -> None:
    """The form in the module's docstring."""
    text, tensors = flatten({"step": 3, "betas": (0.9, 0.999), "exp_avg": torch.ones(2)}, "opt")
    assert text == '{"step": 3, "betas": {"$tuple": [0.9, 0.999]}, "exp_avg": {"$tensor": "opt/exp_avg"}}'
    assert list(tensors) == ["opt/exp_avg"]
    assert flatten({1: b"a", "$x": Counter("b")}, "k")[0] == (
        '{"$dict": [[1, {"$bytes": "YQ=="}], ["$x", {"$counter": [["b", 1]]}]]}'
    )


def test_tensors_are_returned_and_accepted_unchanged() -> None:
    """Shared, not copied, without gradients; their keys are their paths."""
    parameter = torch.nn.Parameter(torch.ones(2))
    value = {"a": [parameter, {"b": torch.zeros(1)}], 7: (torch.ones(3),)}
    text, tensors = flatten(value, "k")
    assert list(tensors) == tensor_keys(text) == ["k/a/0", "k/a/1/b", "k/7/0"]
    assert tensors["k/a/0"].data_ptr() == parameter.data_ptr() and not tensors["k/a/0"].requires_grad
    back = unflatten(text, tensors)
    assert isinstance(back, dict) and back["a"][0] is tensors["k/a/0"] and back[7][0] is tensors["k/7/0"]


def test_a_value_that_is_a_tensor_gets_its_own_key() -> None:
    """A module's extra state may be one; the JSON contains just the key."""
    assert list(flatten(torch.ones(1), "k")[1]) == ["k/value"]


def test_two_paths_never_share_a_key() -> None:
    """A "/" in a name would make them equal."""
    value = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "a/b_2": torch.full((1,), 2.0)}
    text, tensors = flatten(value, "k")
    assert len(tensors) == 3
    back = unflatten(text, tensors)
    assert isinstance(back, dict) and [back["a/b"], back["a"]["b"], back["a/b_2"]] == [0, 1, 2]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::-1], np.array(2.5), np.float64(2.5), np.int16(-3),
        np.bool_(True), np.arange(3, dtype=">f8"), np.array([1 + 2j], np.complex64),
    ],
)  # fmt: skip
def test_numpy_arrays_and_scalars_come_back_as_such(array: np.ndarray | np.generic) -> None:
    """They keep their dtype, in native byte order."""
    text, tensors = flatten({"x": array}, "k")
    back = unflatten(text, tensors)
    assert isinstance(back, dict) and type(back["x"]) is type(array)
    assert back["x"].dtype == array.dtype.newbyteorder("=") and np.array_equal(back["x"], array)


def test_an_ordered_dict_is_a_dict_in_its_order_and_a_size_is_a_tuple() -> None:
    """Subclasses that add nothing to their base class."""
    value = OrderedDict(b=torch.Size([1, 2]), a=1)
    assert same(unflatten(flatten(value, "k")[0], {}), {"b": (1, 2), "a": 1})


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({1, 2}, "a builtins.set"),
        (lambda: None, "a builtins.function"),
        (object(), "a builtins.object"),
        (defaultdict(list), "a collections.defaultdict"),
        (torch.float32, "a torch.dtype"),
        (np.array(["a"]), "a numpy value of dtype <U1"),
        (np.zeros(1, np.longdouble), "a numpy value of dtype float128"),
        (Counter({"a": 0.5}), "a collections.Counter"),
        ({frozenset(): 1}, "a dict with a builtins.frozenset as a key"),
    ],
)
def test_a_value_that_could_only_be_pickled_is_rejected_with_its_path(value: object, what: str) -> None:
    """TypeError with the path, the type, and the reason."""
    with pytest.raises(TypeError, match="nothing is ever pickled") as caught:
        flatten({"a": [value]}, "k")
    assert f'state "k/a/0" is {what}' in str(caught.value)


def test_nesting_is_limited_in_both_directions() -> None:
    """No RecursionError, not even for a list that contains itself or for a hundred thousand brackets."""

    def nested(depth: int) -> object:
        return complex(1, 2) if not depth else {1: nested(depth - 1)}

    text, _ = flatten(nested(MAX_DEPTH), "k")
    assert same(unflatten(text, {}), nested(MAX_DEPTH))
    endless: list[object] = []
    endless.append(endless)
    deep_key: object = ()
    for _ in range(5000):
        deep_key = (deep_key,)
    for value in (nested(MAX_DEPTH + 1), endless, {deep_key: 1}):
        with pytest.raises(InvalidArgumentError, match="nested deeper than 100 levels"):
            flatten(value, "k")
    for depth in (MAX_DEPTH + 3, 100_000):
        with pytest.raises(DataLossError):
            unflatten("[" * depth + "]" * depth, {})


def test_an_integer_of_thousands_of_digits_is_rejected_in_both_directions() -> None:
    """Python refuses to convert it to and from a string."""
    with pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        flatten(10**5000, "k")
    with pytest.raises(DataLossError, match="not valid JSON"):
        unflatten("1" * 5000, {})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nul", b"\xff", '{"$tensor": 5}', '{"$tensor": "absent"}', '{"$tensor": "t", "x": 1}',
        '{"$pickle": "gASV"}', '{"$tuple": 5}', '{"$dict": 5}', '{"$dict": [[1]]}', '{"$dict": [[[1], 2]]}',
        '{"$dict": [[{"$tensor": "t"}, 2]]}', '{"$counter": [["a", "b"]]}', '{"$bytes": "!"}', '{"$bytes": 5}',
        '{"$complex": [1.0]}', '{"$complex": ["a", "b"]}', '{"$float": "1"}', '{"$float": []}', '{"$ndarray": null}',
        '{"$numpy": {}}', '{"$dict": [[{"$tuple": [[]]}, 1]]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "read", [lambda text: unflatten(text, {"t": torch.zeros(1)}), tensor_keys], ids=["all", "keys"]
)
def test_hostile_text_is_data_loss(text: str | bytes, read: Callable[[str | bytes], object]) -> None:
    """Never another error, and never an object of a type that flatten does not write."""
    if read is tensor_keys and text == '{"$tensor": "absent"}':
        assert tensor_keys(text) == ["absent"]
        return
    with pytest.raises(DataLossError, match=r"^state\b"):
        read(text)


def test_a_tensor_named_twice_is_data_loss() -> None:
    """Two parts of an optimizer's state would share memory."""
    with pytest.raises(DataLossError, match='refers to the tensor "t" twice'):
        tensor_keys('[{"$tensor": "t"}, {"$ndarray": "t"}]')
