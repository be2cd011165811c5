"""Check tests/CASES.md: each case of TensorFlow's tests has tests here, or a reason for their absence.

A test cites its cases in its docstring, or in a comment next to its arguments: "CASES 47, 48 and 51",
"CASES 103 to 105". `python tests/test_cases.py` regenerates the column of tests.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

TESTS: Final = Path(__file__).resolve().parent
TABLE: Final = TESTS / "CASES.md"
# Sections A to H and K, and the cases of L about Saver, Checkpoint and init_from_checkpoint.
WANTED: Final = frozenset([*range(1, 78), *range(79, 116), *range(151, 183), *range(186, 199)])

_CITED: Final = re.compile(r"CASES (\d+(?:(?:, | and | to |, and )\d+)*)")
_ROW: Final = re.compile(r"\| (?P<number>\d+) \| (?P<tag>[^|]+) \| (?P<what>[^|]+) \| (?P<tests>[^|]*) \|")


class Row(NamedTuple):
    """One row of the table."""

    number: int
    tag: str  # "core", "adapt: how", "n/a: why"
    what: str
    tests: str

    def __str__(self) -> str:
        return f"| {self.number} | {self.tag} | {self.what} | {self.tests} |"


def cited_in(text: str) -> set[int]:
    """Return the numbers that a docstring or comment cites."""
    found: set[int] = set()
    for match in _CITED.finditer(text):
        numbers = re.split(r"(, and |, | and | to )", match[1])
        for separator, number in zip(["", *numbers[1::2]], map(int, numbers[::2]), strict=True):
            if separator == " to ":
                found.update(range(max(found) + 1, number))
            found.add(number)
    return found


def sources_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and source, with decorators and docstring, of each test in a file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and child.name.startswith("test_"):
                first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                name = f"{node.name}::{child.name}" if isinstance(node, ast.ClassDef) else child.name
                yield name, "\n".join(lines[first - 1 : child.end_lineno])


def held() -> dict[int, list[str]]:
    """Return the tests that cite each case, by its number."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__).resolve():
            continue
        for name, source in sources_of(path):
            for number in cited_in(source):
                found.setdefault(number, []).append(f"{path.relative_to(TESTS)}::{name}")
    return {number: sorted(names) for number, names in found.items()}


def rows() -> list[Row]:
    """Return the rows of the table."""
    found = [_ROW.fullmatch(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    return [Row(int(row["number"]), row["tag"], row["what"], row["tests"].strip()) for row in found if row]


def test_every_case_is_in_the_table_once() -> None:
    """The rows are in the order of the numbers."""
    assert [row.number for row in rows()] == sorted(WANTED)


def test_every_case_is_covered_by_a_test() -> None:
    """The tests in the table exist and cite the case; a case without tests has a reason."""
    found = held()
    for row in rows():
        named = re.findall(r"`([^`]+)`", row.tests)
        if row.tag.startswith("n/a"):
            assert len(row.tag) > len("n/a: ") + 10, f"CASES {row.number} does not apply: give a reason"
        else:
            assert row.tag == "core" or row.tag.startswith("adapt: ")
            assert named, f"the table has no test for CASES {row.number}"
        assert set(named) <= set(found.get(row.number, [])), f"CASES {row.number}: run tests/test_cases.py"


def test_citations_are_parsed() -> None:
    """Lists and ranges of numbers are parsed; other citations are ignored."""
    assert cited_in("CASES 1, 2; ROWS 4") == {1, 2}
    assert cited_in("CASES 103 to 105: three; CASES 7 and 9, 11.") == {103, 104, 105, 7, 9, 11}
    assert cited_in("ROWS 4, SHOWCASES of 3 CASES") == set()


def main() -> int:
    """Regenerate the column of tests."""
    found = held()
    lines = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        match = _ROW.fullmatch(line)
        if match:
            names = ", ".join(f"`{name}`" for name in found.get(int(match["number"]), []))
            line = str(Row(int(match["number"]), match["tag"], match["what"], names))
        lines.append(line)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
