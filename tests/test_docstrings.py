"""What `help` shows of the public names: a first line, fields, an example that runs, and types that can be imported."""

import collections.abc
import dataclasses
import doctest
import inspect
import io
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_tfckpt

PUBLIC = {name: getattr(torch_tfckpt, name) for name in torch_tfckpt.__all__}
# Generated messages have no docstrings.
OURS = {name: thing for name, thing in PUBLIC.items() if not thing.__module__.startswith("torch_tfckpt._proto")}
MAX_FIRST_LINE = 100
# Special methods whose types a caller sees.
CALLED = ("__init__", "__getitem__", "__iter__", "__enter__", "__call__")


@pytest.mark.parametrize("name", OURS)
def test_the_first_line_is_a_short_sentence(name: str) -> None:
    """At most 100 characters, and an end: what completion and tables of names show."""
    first = inspect.cleandoc(OURS[name].__doc__ or "").splitlines()[0]
    assert len(first) <= MAX_FIRST_LINE and first.endswith((".", ":")), first


@pytest.mark.parametrize("name", OURS)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every public name has an example in its docstring, or in that of its constructor, that shows what it prints."""
    monkeypatch.chdir(tmp_path)
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=True).find(OURS[name], name, module=False, globs={})
        if test.examples
    ]
    assert any(test.name == name for test in tests), f"{name} has no example"
    for test in tests:
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        failed, _ = runner.run(test, out=report.write)
        assert not failed, report.getvalue()


def fields_of(thing: object) -> list[str]:
    """Names of the public fields of a dataclass or named tuple."""
    if dataclasses.is_dataclass(thing):
        names = [field.name for field in dataclasses.fields(thing)]
    else:
        names = list(getattr(thing, "_fields", ()))
    return [name for name in names if not name.startswith("_")]


@pytest.mark.parametrize("name", [name for name, thing in OURS.items() if fields_of(thing)])
def test_fields_are_described(name: str) -> None:
    """Under Args or Attributes, each on a line that begins with its name."""
    lines = [line.strip() for line in (OURS[name].__doc__ or "").splitlines()]
    missing = [field for field in fields_of(OURS[name]) if not any(line.startswith(f"{field}:") for line in lines)]
    assert missing == []


def functions_of(thing: object, name: str) -> Iterator[tuple[str, object]]:
    """A public function; the public methods and properties of a public class, and the class for its fields."""
    if inspect.isfunction(thing):
        yield name, thing
        return
    if not isinstance(thing, type):
        return
    yield name, thing
    seen: set[str] = set()  # a method that a subclass replaces cannot be called
    for base in thing.__mro__:
        if not base.__module__.startswith("torch_tfckpt"):
            continue
        for attribute, part in vars(base).items():
            function = part.fget if isinstance(part, property) else getattr(part, "__func__", part)
            is_public = not attribute.startswith("_") or attribute in CALLED
            if is_public and attribute not in seen and inspect.isfunction(function):
                seen.add(attribute)
                yield f"{name}.{attribute}", function


def classes_in(hint: object) -> Iterator[type]:
    """The classes that an annotation names, however deep."""
    if isinstance(hint, list):  # the arguments of a Callable
        for each in hint:
            yield from classes_in(each)
    elif typing.get_args(hint):
        for each in (typing.get_origin(hint), *typing.get_args(hint)):
            yield from classes_in(each)
    elif isinstance(hint, type):
        yield hint


@pytest.mark.parametrize("name", OURS)
def test_types_in_signatures_can_be_imported(name: str) -> None:
    """A type of this package in a public signature or field is a public name itself, or defined inside of one."""
    public = {id(thing) for thing in PUBLIC.values()}
    hidden = {
        f"{place}({parameter}): {found.__module__}.{found.__qualname__}"
        for place, function in functions_of(OURS[name], name)
        for parameter, hint in typing.get_type_hints(function).items()
        if not parameter.startswith("_")
        for found in classes_in(hint)
        if found.__module__.startswith("torch_tfckpt") and id(found) not in public and "." not in found.__qualname__
    }
    assert hidden == set()


def test_callables_are_looked_into() -> None:
    """The test above is worth what it finds in annotations."""
    hint = dict[str, collections.abc.Callable[[int, Path], list[bytes] | None]]
    assert set(classes_in(hint)) >= {dict, str, int, Path, list, bytes, type(None)}
