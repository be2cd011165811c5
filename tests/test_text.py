"""Names in messages and listings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.text import natural_order


def test_numbers_in_names_are_compared_as_numbers() -> None:
    """Names that differ only in their numbers are ordered by the numbers."""
    names = ["b", "a10", "a2/x10", "a2/x9", "a02", "a", "10", "9"]
    assert sorted(names, key=natural_order) == ["9", "10", "a", "a02", "a2/x9", "a2/x10", "a10", "b"]


@given(st.lists(st.integers(0, 10**30), unique=True))
def test_numbered_names_sort_as_their_numbers(numbers: list[int]) -> None:
    """The number of digits does not matter."""
    names = [f"layer_{number}/w" for number in numbers]
    assert sorted(names, key=natural_order) == [f"layer_{number}/w" for number in sorted(numbers)]


@given(st.lists(st.text(), unique=True))
def test_any_names_can_be_compared(names: list[str]) -> None:
    """The order is total, and does not depend on the order of the input."""
    assert sorted(names, key=natural_order) == sorted(reversed(names), key=natural_order)


@pytest.mark.parametrize("digits", [4300, 100_000])
def test_a_number_of_any_length_is_compared(digits: int) -> None:
    """Python's int() refuses more than 4,300 digits; names come from files."""
    names = ["9" * (digits + 1), "1" + "0" * digits, "9" * digits]
    assert sorted(names, key=natural_order) == ["9" * digits, "1" + "0" * digits, "9" * (digits + 1)]
