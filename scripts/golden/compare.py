"""Comparison of newly written folders with those in the tree."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_process import TensorFlowProcess

from golden.recipe import EXPECTED, Recipe, files_below

# Fields of expected.json that training on another machine changes: values, and with them the sizes of some files.
ACCURACY = ("correct", "accuracy")
LEAST_ACCURACY = 0.9


def differing_bytes(recipe: Recipe, tree: Path, fresh: Path) -> list[str]:
    """Return the files that are missing or not equal byte for byte."""
    found = []
    for name in sorted({*files_below(tree / recipe.name), *files_below(fresh / recipe.name), EXPECTED}):
        ours, theirs = tree / recipe.name / name, fresh / recipe.name / name
        if not ours.is_file() or not theirs.is_file() or ours.read_bytes() != theirs.read_bytes():
            found.append(f"{recipe.name}/{name} differs from what would be written now")
    return found


def differing_structure(recipe: Recipe, tree: Path, fresh: Path, tensorflow: TensorFlowProcess) -> list[str]:
    """Return differences in files, names, dtypes, shapes, samples and graphs; values may differ."""
    return [f"{recipe.name}: {problem}" for problem in _problems(tree / recipe.name, fresh / recipe.name, tensorflow)]


def _problems(ours: Path, theirs: Path, tensorflow: TensorFlowProcess) -> Iterator[str]:
    if not (ours / EXPECTED).is_file():
        yield f"no {EXPECTED}"
        return
    there, now = _content(ours), _content(theirs)
    if files_below(ours) != files_below(theirs):
        yield f"the files are {files_below(ours)}, but {files_below(theirs)} would be written now"
        return
    if sorted(there["files"]) != files_below(ours):
        yield f"{EXPECTED} lists other files than the folder has"
    for key in sorted(there.keys() | now.keys()):
        if _structure(key, there.get(key)) != _structure(key, now.get(key)):
            yield f"{EXPECTED}: `{key}` differs"
    if min(there["model"]["accuracy"], now["model"]["accuracy"]) < LEAST_ACCURACY:
        yield "the model has not learned to read digits"
    for name in files_below(ours):
        if name.endswith(".npz"):
            if _arrays(ours / name) != _arrays(theirs / name):
                yield f"{name}: other arrays"
        elif name.endswith((".meta", "saved_model.pb")):
            graphs = [tensorflow.call("golden.in_tensorflow.structure.of", str(each / name)) for each in (ours, theirs)]
            for part in graphs[0].keys() | graphs[1].keys():
                if graphs[0].get(part) != graphs[1].get(part):
                    yield f"{name}: other {part}"


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / EXPECTED).read_text(encoding="utf-8"))
    return content


def _structure(key: str, value: Any) -> Any:
    """Return the parts of an expected.json that must be equal."""
    if key == "tensors" and value:
        return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in value.items()}
    if key == "earlier" and value:
        return {prefix: _structure("tensors", tensors) for prefix, tensors in value.items()}
    if key == "files" and value:
        return sorted(value)
    if key == "model" and value:
        return {name: each for name, each in value.items() if name not in ACCURACY}
    return value


def _arrays(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
