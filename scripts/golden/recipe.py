"""A folder of tests/golden: how it is written, and the content of its expected.json."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorflow_process import Call, RawTensor, TensorFlowError, TensorFlowProcess

EXPECTED = "expected.json"
Writer = Callable[[TensorFlowProcess, Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Recipe:
    """One folder of tests/golden."""

    name: str  # of the folder, relative to tests/golden
    kind: str  # "v1", "v2", "object", "savedmodel" or "negative"
    special: str  # what it tests
    prefix: str  # of the checkpoint in it
    # Writes the files into the folder. The return value is added to expected.json.
    write: Writer
    # Values that TensorFlow writes but does not read back.
    unread: Mapping[str, RawTensor] = field(default_factory=dict)
    earlier: Sequence[str] = ()  # prefixes of earlier checkpoints that are still in the folder


def in_tensorflow(function: str) -> Writer:
    """Return a writer that calls a function of golden.in_tensorflow with the folder."""

    def write(tensorflow: TensorFlowProcess, folder: Path) -> Mapping[str, Any] | None:
        more: Mapping[str, Any] | None = tensorflow.call(f"golden.in_tensorflow.{function}", str(folder))
        return more

    return write


def make(recipe: Recipe, root: Path, tensorflow: TensorFlowProcess) -> None:
    """Write a folder below `root`, with the expected.json of the values that TensorFlow reads."""
    folder = root / recipe.name
    folder.mkdir(parents=True)
    more = recipe.write(tensorflow, folder) or {}
    text = json.dumps(describe(tensorflow, recipe, folder, more), indent=1, ensure_ascii=False)
    (folder / EXPECTED).write_text(text + "\n", encoding="utf-8")


def describe(tensorflow: TensorFlowProcess, recipe: Recipe, folder: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of expected.json: dtype, shape and hash of each value that TensorFlow reads."""
    found: dict[str, Any] = {
        "source": f"TensorFlow {tensorflow.call('version')}, scripts/make_golden.py",
        "path": folder.name,
        "license": "Apache-2.0",
        "kind": recipe.kind,
        "prefix": recipe.prefix,
        "special": recipe.special,
        "files": {name: (folder / name).stat().st_size for name in files_below(folder)},
    }
    path = str(folder / recipe.prefix)
    found |= more
    tensors = described_tensors(tensorflow, folder, recipe.prefix, recipe.unread)
    problems = [tensor["error"] for tensor in tensors.values() if "error" in tensor]
    if problems:
        found |= {"unreadable_tensors": len(problems), "error": problems[0]}
    graph = tensors.get("_CHECKPOINTABLE_OBJECT_GRAPH")
    if graph is not None and graph["sha256"] is not None:
        found["object_graph"] = tensorflow.call("object_graph_mapping", path)
    if recipe.earlier:
        found["earlier"] = {prefix: described_tensors(tensorflow, folder, prefix) for prefix in recipe.earlier}
    return found | {"tensors": tensors}


def described_tensors(
    tensorflow: TensorFlowProcess, folder: Path, prefix: str, unread: Mapping[str, RawTensor] | None = None
) -> dict[str, Any]:
    """Return dtype, shape and sha256 of each tensor, or TensorFlow's error if it cannot read the tensor."""
    path, known = str(folder / prefix), unread or {}
    maps = tensorflow.call("reader_maps", path)
    names = sorted(maps)
    wanted = [name for name in names if name not in known]
    outcomes = tensorflow.batch([Call("restore", (path, [name], [maps[name][0]])) for name in wanted])
    read = dict(zip(wanted, outcomes, strict=True))
    tensors: dict[str, Any] = {}
    for name in names:
        dtype, shape = maps[name]
        tensors[name] = {"dtype": dtype, "shape": list(shape), "sha256": None}
        outcome = known[name] if name in known else read[name]
        if isinstance(outcome, TensorFlowError):
            tensors[name]["error"] = plain_error(str(outcome), folder)
            continue
        value = outcome if isinstance(outcome, RawTensor) else outcome[0]
        if (value.dtype, value.shape) != (dtype, shape):
            raise ValueError(f"{folder.name}: {name} was read as {value.dtype} {value.shape}, not {dtype} {shape}")
        # A variant has no value that numpy or torch can represent.
        tensors[name]["sha256"] = None if dtype == "variant" else value.sha256
    return tensors


def plain_error(message: str, folder: Path) -> str:
    """Return an error of TensorFlow without the parts that depend on the machine."""
    message = message.replace(f"{folder.parent}/", "")
    return re.sub(r"\{\{function_node [^}]*\}\} | \[Op:\w+\]", "", message)


def files_below(folder: Path) -> list[str]:
    """Return all files relative to the folder, except expected.json."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != EXPECTED)


def remove(recipe: Recipe, root: Path) -> None:
    """Remove the recipe's folder below `root` if it exists."""
    shutil.rmtree(root / recipe.name, ignore_errors=True)
