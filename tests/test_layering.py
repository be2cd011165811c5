"""Import rules between packages: a lower layer can be read, tested and used without those above it."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "torch_tfckpt"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

# A module may import its own package and the rows above it in this list; packages in one row do not import each other.
# Add a new package here first. Some names are reserved for planned packages.
LAYERS = (
    "errors text _proto",
    "format",
    "dtypes",
    "values devices graph_ops",
    "storage",
    "transfer",
    "bundle",
    "v1 keras_files",
    "directory",
    "checkpoint_reader",
    "distributed",
    "saveables tensor_dict foreign_files",
    "meta_graph",
    "save_restore optimizers graph_run",
    "saver objects",
    "imported_graph models manager_restore",
    "manager conversion comparison integrations",
    "cli",
    "inspect_checkpoint",
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
# No module of these imports torch, nor does anything that it imports at the top: `tfckpt --help`, `latest` and `meta`
# start without it.
TORCH_FREE = {
    *("errors", "text", "_proto", "format", "storage", "meta_graph", "saveables/slice_info"),
    *(
        "bundle/claim",
        "bundle/files",
        "bundle/leftovers",
        "bundle/marker",
        "bundle/open_files",
        "bundle/publish",
        "bundle/removal",
        "bundle/unfinished",
    ),
    *("v1/shard_names", "foreign_files/format_names"),
    *("directory/locate", "directory/management", "directory/manager_records", "directory/names", "directory/records"),
    *("directory/retention", "directory/retention_file", "directory/state_file", "directory/unlisted"),
    *(
        "cli/completion",
        "cli/console",
        "cli/graph_verbs",
        "cli/latest",
        "cli/main",
        "cli/meta",
        "cli/subdirectories",
        "cli/tables",
    ),
}
# Meta graphs are a matter of Savers; these packages stay usable without them.
WITHOUT_META_GRAPHS = {"objects", "models", "conversion"}
MAX_ROOT_MODULES = 12
MAX_LINES = 450
# Imported inside the functions that need them, so that nothing else depends on them: an optional package, and what
# would make `tfckpt latest` wait for torch. (`__init__` and cli/main.py import by name.)
OPTIONAL = {"fsspec", "h5py", "shtab"}
DEFERRED = {
    "torch_tfckpt.format.tensor_bundle": {"torch_tfckpt.format.bulk_encoding"},
    "torch_tfckpt.directory.management": {
        "torch_tfckpt.directory.completeness",
        "torch_tfckpt.directory.recovered_parts",
    },
}
# `format` is bytes only: no files, no clock. Time and storage are passed in.
NOT_BYTES = {"os", "io", "pathlib", "shutil", "tempfile", "time", "datetime"}


class Import(NamedTuple):
    """One import of a module."""

    name: str  # "torch", "torch_tfckpt.format.table"
    line: int
    deferred: bool  # inside a function

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def layer(self) -> str:
        """Layer of a module of this package: "format" for torch_tfckpt.format.table."""
        return self.name.partition(".")[2].partition(".")[0]


@dataclass(frozen=True)
class SourceFile:
    """One module of the package."""

    path: Path

    @property
    def module(self) -> str:
        parts = (PACKAGE, *self.path.relative_to(ROOT).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def layer(self) -> str:
        """Its name in `LAYERS`: "format" for format/table.py, "errors" for errors.py."""
        return self.path.relative_to(ROOT).with_suffix("").parts[0]

    @property
    def is_torch_free(self) -> bool:
        place = self.path.relative_to(ROOT).with_suffix("").as_posix()
        return self.layer in TORCH_FREE or place in TORCH_FREE

    @property
    def may_import_anything(self) -> bool:
        """Whether it is the public interface or the program's entry point."""
        return self.layer in ("__init__", "__main__")

    def imports(self) -> list[Import]:
        return _imports_of(self.path)

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT.parent))


@functools.cache
def _imports_of(path: Path) -> list[Import]:
    return list(_imports(ast.parse(path.read_text(encoding="utf-8")), deferred=False))


def _imports(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, deferred)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import; write the full module name"
            assert child.module is not None
            for alias in child.names:
                longer = f"{child.module}.{alias.name}"
                yield Import(
                    longer if longer in MODULES or child.module == PACKAGE else child.module, child.lineno, deferred
                )
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, deferred=deferred or function)


FILES = [SourceFile(path) for path in sorted(ROOT.rglob("*.py")) if not path.stem.endswith("_pb2")]
MODULES = {file.module: file for file in FILES}
GENERATED = {f"{PACKAGE}._proto.{path.stem}" for path in (ROOT / "_proto").glob("*_pb2.py")}
LAYERED = [file for file in FILES if not file.may_import_anything]


def _of_this_package(file: SourceFile) -> list[Import]:
    return [each for each in file.imports() if each.top == PACKAGE and each.name != f"{PACKAGE}.__version__"]


def test_every_module_has_a_layer() -> None:
    """A new module must be added to `LAYERS` before another one imports it."""
    assert {file.layer for file in LAYERED} == set(RANK)
    assert len(RANK) == sum(len(names.split()) for names in LAYERS), "a name is in LAYERS twice"
    assert len(LAYERED) > 20


@pytest.mark.parametrize("file", LAYERED, ids=str)
def test_imports_point_down(file: SourceFile) -> None:
    """A module imports its own package and lower layers, but nothing else in its row, and not the public interface."""
    for each in _of_this_package(file):
        assert each.layer in RANK, f"{file}:{each.line} imports {each.name}, which is not in LAYERS"
        assert each.layer == file.layer or RANK[each.layer] < RANK[file.layer], (
            f"{file}:{each.line} imports {each.name}, which is not in a row below {file.layer}"
        )


@pytest.mark.parametrize("file", [file for file in LAYERED if file.layer in WITHOUT_META_GRAPHS], ids=str)
def test_packages_without_meta_graphs(file: SourceFile) -> None:
    """Objects, models and conversion do not import `meta_graph`."""
    for each in _of_this_package(file):
        assert each.layer != "meta_graph", f"{file}:{each.line} imports {each.name}"


@pytest.mark.parametrize("file", [file for file in LAYERED if file.is_torch_free], ids=str)
def test_torch_free_layers_reach_no_torch(file: SourceFile) -> None:
    """Neither directly nor indirectly, at any depth."""
    seen: set[str] = set()
    waiting = [file]
    while waiting:
        here = waiting.pop()
        for each in here.imports():
            assert each.top != "torch", f"{file} reaches torch through {here}:{each.line}"
            if each in _of_this_package(here) and not each.deferred and each.name not in seen:
                seen.add(each.name)
                if each.name in MODULES:
                    assert MODULES[each.name].is_torch_free, f"{file} reaches {each.name} through {here}:{each.line}"
                    waiting.append(MODULES[each.name])
                else:
                    assert each.name in GENERATED, f"{here}:{each.line} imports {each.name}, which does not exist"


def test_torch_free_layers_work_without_torch() -> None:
    """All their modules can be imported in a process that cannot import torch."""
    modules = [file.module for file in LAYERED if file.is_torch_free]
    program = (
        "import importlib, sys\n"
        "sys.modules['torch'] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(len(sys.argv[1:]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{len(modules)}\n", "")
    assert len(modules) > 10


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_inside_functions_are_of_optional_extras(file: SourceFile) -> None:
    """All other imports are at the top of a module; TensorFlow, the oracle of the tests, is imported nowhere."""
    for each in file.imports():
        assert each.top not in ("tensorflow", "tf_keras", "keras"), f"{file}:{each.line} imports {each.name}"
        deferred = each.top in OPTIONAL or each.name in DEFERRED.get(file.module, ())
        assert each.deferred == deferred, f"{file}:{each.line} imports {each.name}"


@pytest.mark.parametrize("file", [file for file in LAYERED if file.layer == "format"], ids=str)
def test_formats_use_no_files_and_no_clock(file: SourceFile) -> None:
    """The layout of bytes does not depend on storage or time."""
    for each in file.imports():
        assert each.top not in NOT_BYTES, f"{file}:{each.line} imports {each.name}"


def test_no_modules_import_each_other() -> None:
    """There are no import cycles, not even inside a package."""
    graph = {file.module: {each.name for each in _of_this_package(file)} & set(MODULES) for file in LAYERED}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_root_and_the_modules_are_small() -> None:
    """At most twelve modules at the root, and no module longer than 450 lines."""
    assert len(list(ROOT.glob("*.py"))) <= MAX_ROOT_MODULES
    lines = {str(file): len(file.path.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_class_names_are_unique() -> None:
    """Including private classes, so that a class can be found by searching for its name."""
    found: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name.lstrip("_"), []).append(f"{file}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os.path", [("os.path", False)]),
        ("from torch_tfckpt.format import crc32c", [("torch_tfckpt.format.crc32c", False)]),
        ("from torch_tfckpt.format.table import Table", [("torch_tfckpt.format.table", False)]),
        ("from torch_tfckpt import load_file", [("torch_tfckpt.load_file", False)]),
        ("def f():\n    import fsspec", [("fsspec", True)]),
        ("class C:\n    import re\n    def f(self):\n        from a import b", [("re", False), ("a", True)]),
        ("if TYPE_CHECKING:\n    import torch", [("torch", False)]),
    ],
)  # fmt: skip
def test_imports_are_found_everywhere(source: str, expected: list[tuple[str, bool]]) -> None:
    """The tests above depend on finding all imports in the sources."""
    found = [(each.name, each.deferred) for each in _imports(ast.parse(source), deferred=False)]
    assert found == expected
