"""The public face: its names, their docstrings, and what importing it brings along."""

import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import torch_tfckpt
from torch_tfckpt import SaverDef

NAMES = [name for name in torch_tfckpt.__all__ if not name.startswith("__")]
# Generated messages have no docstrings; protos/ and the README say what they are.
DOCUMENTED = [name for name in NAMES if not isinstance(getattr(torch_tfckpt, name), type(SaverDef))]


def own_doc(thing: object, name: str) -> str:
    """The docstring, unless it is one that Python made up."""
    doc = (getattr(thing, "__doc__", None) or "").strip()
    # A dataclass without a docstring gets its signature for one, a named tuple too.
    return "" if doc.startswith(f"{name}(") else doc


def parts_of(thing: object) -> Iterator[tuple[str, object]]:
    """Public methods and properties that a public class defines, or takes from another class of this package."""
    if not isinstance(thing, type):
        return
    seen: set[str] = set()
    for base in thing.__mro__:
        if not base.__module__.startswith("torch_tfckpt"):
            continue
        for name, part in vars(base).items():
            callable_part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
            if (
                not name.startswith("_")
                and name not in seen
                and (inspect.isfunction(callable_part) or isinstance(callable_part, property))
            ):
                seen.add(name)
                yield name, callable_part


def test_all_names_are_listed_in_order() -> None:
    """Once each, sorted, so that a change is one line."""
    assert list(torch_tfckpt.__all__) == sorted(set(torch_tfckpt.__all__))


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_name_is_there(name: str) -> None:
    """`from torch_tfckpt import *` does not fail."""
    assert hasattr(torch_tfckpt, name)


def test_nothing_else_is_public() -> None:
    """What the package imports for its own use is not offered by accident."""
    visible = {
        name
        for name, thing in vars(torch_tfckpt).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType)
    }
    assert visible == set(NAMES)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_says_what_it_is(name: str) -> None:
    """A docstring of its own, for the name and for each public method and property of a class."""
    thing = getattr(torch_tfckpt, name)
    assert own_doc(thing, name), f"{name} has no docstring"
    for part, method in parts_of(thing):
        assert own_doc(method, part), f"{name}.{part} has no docstring"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_found_by_type_checkers(name: str) -> None:
    """Functions and classes say where they come from; `help` and tracebacks show a module of this package."""
    assert getattr(torch_tfckpt, name).__module__.startswith("torch_tfckpt")


def test_the_package_is_typed() -> None:
    """Its annotations count for its users too (PEP 561)."""
    assert (Path(torch_tfckpt.__file__).parent / "py.typed").is_file()


def test_a_wheel_contains_every_file(pytestconfig: pytest.Config) -> None:
    """setuptools finds the modules by itself; pyproject.toml declares every other file of the package."""
    package = Path(torch_tfckpt.__file__).parent
    project = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["torch_tfckpt"]
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert {path for pattern in patterns for path in package.glob(pattern)} == files


def test_importing_brings_no_optional_package() -> None:
    """Neither TensorFlow, ever, nor what only conversion or the command line needs: an import stays quick."""
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import torch_tfckpt\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "             & {'tensorflow', 'keras', 'rich', 'safetensors', 'fsspec', 'argparse'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")
