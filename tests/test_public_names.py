"""The public face: its names, their docstrings, and what importing it brings along."""

import ast
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_tfckpt
from torch_tfckpt import SaverDef

NAMES = [name for name in torch_tfckpt.__all__ if not name.startswith("__")]
# Generated messages have no docstrings; protos/ and docs/api describe them.
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


def test_completion_shows_the_public_names_only() -> None:
    """`dir(torch_tfckpt)` lists neither modules nor what the package imports for its own use."""
    assert [name for name in dir(torch_tfckpt) if not name.startswith("_")] == NAMES


def test_a_wrong_name_is_an_attribute_error_with_a_suggestion() -> None:
    """As for any module; Python proposes the closest public name."""
    program = "import torch_tfckpt\ntorch_tfckpt.Sever"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "AttributeError: module 'torch_tfckpt' has no attribute 'Sever'" in done.stderr
    assert "Did you mean: 'Saver'?" in done.stderr


def test_names_are_imported_from_where_type_checkers_see_them() -> None:
    """The imports under TYPE_CHECKING, the table for `__getattr__` and `__all__` agree."""
    assert torch_tfckpt.__file__ is not None
    tree = ast.parse(Path(torch_tfckpt.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {
        alias.name: f"{node.module}"
        for node in imports
        if f"{node.module}".startswith("torch_tfckpt.")
        for alias in node.names
    }
    table = {name: f"torch_tfckpt.{module}" for name, module in torch_tfckpt._MODULE_OF.items()}
    assert seen == table
    assert sorted(table) == sorted(NAMES)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_describes_itself(name: str) -> None:
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


def test_importing_is_quick() -> None:
    """Not even torch is imported before the first name is used, and never TensorFlow or what only the commands need."""
    program = (
        "import sys\n"
        "import torch_tfckpt\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\n"
        "import torch\n"
        "before = set(sys.modules)\n"
        "for name in torch_tfckpt.__all__: getattr(torch_tfckpt, name)\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "             & {'tensorflow', 'keras', 'rich', 'safetensors', 'fsspec', 'argparse', 'shtab'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("False False\n[]\n", "")
