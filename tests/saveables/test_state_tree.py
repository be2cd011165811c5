"""flatten and unflatten: Python values as JSON, tensors stored separately."""

import copy
import datetime as dt
import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

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
    return type(a) is type(b) and shown(a) == shown(b)


def shown(value: object) -> str:
    """`repr`, but with the elements of sets in a fixed order."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({sorted(map(shown, value))})"
    if type(value) is list:
        return f"[{', '.join(map(shown, value))}]"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {shown(item)}' for key, item in value.items())}}}"
    return repr(value)


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


Point = namedtuple("Point", "x y")  # the untyped form has the same methods


class Color(enum.IntEnum):
    RED = 1


class Mode(enum.Enum):
    FAST = "fast"


TYPES = [
    *(torch.bfloat16, torch.float8_e4m3fn, torch.device("cuda:1"), torch.device("cpu"), torch.Size([2, 3])),
    *(torch.strided, torch.sparse_csr, torch.channels_last),
    *(set(), {1, "a", (2, None)}, frozenset({torch.float32}), deque(), deque([1, {"a": (2,)}], 3)),
    deque(maxlen=0),
    *(defaultdict(int, a=1), defaultdict(list, {3: [1]}), defaultdict(None, a=1), OrderedDict(b=torch.Size([1]), a=1)),
    *(Path("a/b"), PurePosixPath("/x"), PureWindowsPath("c:\\y"), range(1, 9, 2), slice(None, 3), bytearray(b"\x00a")),
    *(dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.date(2026, 1, 2), dt.time(3, 4), dt.timedelta(-1, 2, 3)),
    dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    *(Fraction(-1, 3), Decimal("1.10"), Decimal("NaN"), UUID(int=5), np.str_("ä"), np.bytes_(b"\xff")),
    *({torch.float32: 1, Path("a"): 2}, {dt.date(2026, 1, 2): [slice(1)]}),
]  # fmt: skip


@pytest.mark.parametrize("value", TYPES, ids=lambda value: type(value).__name__)
def test_other_types_come_back_as_such(value: object) -> None:
    """Alone, and nested; equal values have equal strings."""
    for held in (value, [value], {"a": {"b": value}}):
        text, tensors = flatten(held, "k")
        assert not tensors
        assert same(unflatten(text, {}), held)
        assert flatten(unflatten(text, {}), "k")[0] == text


def test_sets_have_one_order() -> None:
    """The order of strings in a set differs between processes."""
    assert flatten({"b", "a", "c"}, "k")[0] == '{"$set": ["a", "b", "c"]}'


def test_named_tuples_and_members_have_the_type_of_the_present_value() -> None:
    """Elsewhere they are plain, and reported; nothing is imported by name."""
    value = {"p": Point(1, [Color.RED]), "m": Mode.FAST, "d": deque([Point(1, 2)]), "t": (Color.RED,)}
    text, _ = flatten(value, "k")
    remarks: list[str] = []
    present = {"p": Point(0, [Color.RED]), "m": Mode.FAST, "d": deque([Point(0, 0)]), "t": (Color.RED,)}
    back = unflatten(text, {}, present=lambda: present, remarks=remarks)
    assert same(back, value) and not remarks
    plain = unflatten(text, {}, remarks=remarks)
    assert same(plain, {"p": (1, [1]), "m": "fast", "d": deque([(1, 2)]), "t": (1,)})
    assert remarks == [
        'p/y/0 was a Color and is restored as "1"', "p was a Point and is restored as a tuple",
        'm was a Mode and is restored as "fast"', "d/0 was a Point and is restored as a tuple",
        't/0 was a Color and is restored as "1"',
    ]  # fmt: skip


def test_a_present_value_of_another_class_is_not_used() -> None:
    """Other fields, another class of members, or a member that does not exist any more."""
    Other: Any = namedtuple("Other", "x z")
    Fewer: Any = enum.IntEnum("Fewer", "BLUE", start=7)
    Other.__qualname__, Fewer.__qualname__ = "Point", "Color"
    text, _ = flatten([Point(1, 2), Color.RED], "k")
    for present in ([Other(1, 2), Fewer(7)], [(1, 2), Mode.FAST], [None], None):
        remarks: list[str] = []
        assert same(unflatten(text, {}, present=partial(copy.copy, present), remarks=remarks), [(1, 2), 1])
        assert len(remarks) == 2


def test_tensors_in_other_containers_have_their_paths_as_keys() -> None:
    """In named tuples, deques, OrderedDicts and defaultdicts."""
    one = torch.ones(1)
    value = {"p": Point(one, 1), "d": deque([torch.zeros(1)]), "o": OrderedDict(a=torch.ones(2))}
    text, tensors = flatten(value, "k")
    assert list(tensors) == tensor_keys(text) == ["k/p/x", "k/d/0", "k/o/a"]
    back = unflatten(text, tensors, present=lambda: value)
    assert isinstance(back, dict) and back["p"].x is tensors["k/p/x"] and type(back["p"]) is Point


def test_texts_of_earlier_versions_can_be_read() -> None:
    """They had no tags for these types: an OrderedDict was written as a dict, and a Size as a tuple."""
    assert unflatten('{"b": {"$tuple": [1, 2]}, "a": {"$counter": [["b", 1]]}}', {}) == {
        "b": (1, 2),
        "a": Counter("b"),
    }


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({(1, object)}, "a set with a builtins.tuple in it"),
        ({Color.RED}, "a set with a "),
        (lambda: None, "a builtins.function"),
        (object(), "a builtins.object"),
        (defaultdict(lambda: 1), "a defaultdict with the factory <function"),
        (torch.Generator(), "a torch._C.Generator"),
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
        '{"$set": [[1]]}', '{"$set": 5}', '{"$frozenset": [{"$tensor": "t"}]}', '{"$deque": [1]}',
        '{"$deque": [-1, []]}', '{"$deque": [1e400, []]}', '{"$deque": ["a", []]}', '{"$default": ["exec", []]}',
        '{"$default": [5, []]}',
        '{"$default": ["int", [1]]}', '{"$ordered": [[[1], 2]]}', '{"$slice": [1, 2]}', '{"$named": ["a", ["b"], []]}',
        '{"$named": [1, ["b"], [1]]}', '{"$named": ["a", 5, [1]]}', '{"$member": ["a"]}', '{"$bytearray": 5}',
        '{"$dtype": "Tensor"}', '{"$dtype": 5}', '{"$dtype": "os"}', '{"$layout": "float32"}', '{"$device": "x y"}',
        '{"$device": 0}', '{"$size": ["a"]}', '{"$size": [1.5]}', '{"$path": 5}', '{"$datetime": "tomorrow"}',
        '{"$date": []}', '{"$timedelta": [1]}', '{"$timedelta": [1e9, 1, 1]}', '{"$timedelta": [999999999999, 0, 0]}',
        '{"$fraction": [1, 0]}', '{"$fraction": ["1", "3"]}', '{"$decimal": "one"}', '{"$uuid": "5"}',
        '{"$range": [1, 2, 0]}', '{"$numpy_bytes": "\\u1234"}', '{"$memory_format": "a", "x": 1}',
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
