"""tfckpt run, compare-model, and meta --run.

The JSON document of `run` maps the name of each tensor to `dtype`, `shape` and `values`; that of `meta --run` has
`inputs`, `outputs`, `ops` and `missing`.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.tables import show_table
from torch_tfckpt.cli.tensor_values import value_as_json, value_text
from torch_tfckpt.comparison.compare import compare_model
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
    error_context,
)
from torch_tfckpt.foreign_files.npy_header import read_header
from torch_tfckpt.format.tensor_slice import element_count, shape_text
from torch_tfckpt.imported_graph.graph_def import import_graph_def
from torch_tfckpt.imported_graph.imported import ImportedMetaGraph, import_meta_graph
from torch_tfckpt.imported_graph.running import signature_of
from torch_tfckpt.meta_graph.scopes import prepend_name_scope
from torch_tfckpt.models.factories import build_module
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.text import counted, did_you_mean, listed, printable, quoted
from torch_tfckpt.values import Value

_ROWS: Final = 30
_NOT_IN_FILE_NAMES: Final = re.compile(r"[^\w.-]")


def run_graph(options: argparse.Namespace) -> int:
    """Compute tensors, and print or write them."""
    imported = _imported(options)
    names = _fetched(imported, options)
    tensors = {name: _tensor(imported, options.signature, name, "outputs") for name in names}
    feeds = {
        _tensor(imported, options.signature, name, "inputs"): _value(text)
        for name, text in map(_assigned, options.feed)
    }
    found: dict[str, Value] = _with_hint(lambda: imported.run(tensors, feeds))
    if options.output is not None:
        for name, path in _write(found, options.output).items():
            show(f"{name}: {path}")
    elif options.json:
        show_json({name: {**_kind(value), **value_as_json(value)} for name, value in found.items()})
    else:
        for name, value in found.items():
            kind = _kind(value)
            show(f"{name}: {kind['dtype']} {shape_text(tuple(kind['shape']))}")
            show(value_text(value))
    return 0


def show_requirements(options: argparse.Namespace) -> int:
    """Show inputs, likely outputs and missing operations; exit status 1 if nothing can be computed."""
    imported = _opened(options.path, options.tags)
    inputs, outputs = imported._inputs_and_outputs()
    named = {
        prepend_name_scope(info.name, imported.import_scope): f"{quoted(key)} of signature {quoted(name)}"
        for name, signature in imported.signatures.items()
        for key, info in signature.outputs.items()
        if ":" in info.name  # not a node that only runs, such as an initializer
    }
    wanted = list(named) or outputs
    if not wanted:
        say("tfckpt: no tensor of the graph depends on an input. Name one: tfckpt run FILE --fetch NAME")
        return 1
    rows, runnable = [], 0
    for name in wanted[:_ROWS]:
        needed = imported.requirements(name)
        missing = ", ".join(f"{op} x{count}" for op, count in needed.missing.most_common())
        runnable += not missing
        note = f"not supported: {missing}" if missing else named.get(name, "")
        rows.append([name, listed(needed.inputs, 6, str), counted(sum(needed.ops.values()), "node"), note])
    show_table(["input", "dtype", "shape"], [_input_row(imported, name) for name in inputs[:_ROWS]])
    show("")
    show_table(["output" if named else "likely output", "feed", "needs", "note"], rows)
    rest = len(wanted) - _ROWS
    if rest > 0:
        show(f"and {counted(rest, 'output')} more")
    if not named:
        show(
            "\nA .meta file has the graph for training. If it has dropout or statistics of the batch, feed the "
            "placeholder that turns them off, or use module(inference=True)."
        )
    return 0 if runnable else 1


def compare_models(options: argparse.Namespace) -> int:
    """Compare a module with a graph; exit status 1 if they differ."""
    imported = _imported(options)
    module = build_module(options.module, "cpu")
    if options.weights is not None:
        load_model(module, options.weights)
    report = _with_hint(
        lambda: compare_model(
            module,
            imported,
            inputs=_places(options.inputs),
            outputs=_places(options.outputs),
            samples=options.samples,
            axes=_numbers(options.axes, int),
            shapes=_numbers(options.shape, int),
            ranges={name: _pair(name, numbers) for name, numbers in _numbers(options.range, float).items()},
            constants={name: _value(text) for name, text in map(_assigned, options.constant)},
            signature=options.signature,
            inference=options.inference,
            tolerance=options.tolerance,
            seed=options.seed,
        )
    )
    if options.json:
        show_json(report.as_json())
    else:
        show(str(report))
    return 0 if report.ok else 1


def _imported(options: argparse.Namespace) -> ImportedMetaGraph:
    imported = _opened(options.path, options.tags)
    if options.restore is not None:
        if imported.saver is None:
            raise InvalidArgumentError(f"{printable(options.path)}: the graph has no variables. Omit --restore")
        imported.saver.restore(options.restore)
    return imported


def _opened(path: str, tags: str | None) -> ImportedMetaGraph:
    """Import a meta graph; or a GraphDef, if the file is one."""
    chosen = None if tags is None else [tag for tag in tags.split(",") if tag]
    try:
        return import_meta_graph(path, tags=chosen)
    except DataLossError:
        if chosen is not None or os.path.isdir(path):
            raise
        try:
            return import_graph_def(path)
        except CheckpointError:
            pass
        raise


def _with_hint(call: Any) -> Any:
    try:
        return call()
    except FailedPreconditionError as error:
        text = str(error).replace("imported.saver.restore(prefix)", "--restore PREFIX")
        raise FailedPreconditionError(text) from error


def _fetched(imported: ImportedMetaGraph, options: argparse.Namespace) -> list[str]:
    if options.fetch:
        return list(dict.fromkeys(options.fetch))
    if options.signature is not None:
        return sorted(signature_of(imported.signatures, options.signature).outputs)
    raise InvalidArgumentError("name the tensors with --fetch, or a signature with --signature")


def _tensor(imported: ImportedMetaGraph, signature: str | None, name: str, kind: str) -> str:
    """Return the tensor of the graph that a name on the command line is."""
    if signature is None:
        return name
    known = getattr(signature_of(imported.signatures, signature), kind)
    if name not in known:
        hint = did_you_mean(name, known) or f"It has {listed(sorted(known), 10)}."
        raise InvalidArgumentError(f"signature {quoted(signature)} has no {kind[:-1]} {quoted(name)}. {hint}")
    return str(known[name].name)


def _assigned(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name or not value:
        raise InvalidArgumentError(f"{quoted(text)}: write NAME=VALUE, such as x:0=x.npy or keep_prob:0=1.0")
    return name, value


def _value(text: str) -> Any:
    if text.endswith(".npy"):
        with error_context(printable(text)), Path(text).open("rb") as file:
            return _array(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgumentError(f"{quoted(text)} is neither a .npy file nor JSON, such as 0.5 or [1, 2]") from None


def _array(file: IO[bytes]) -> Any:
    header = read_header(file)
    if header.dtype is None:
        raise UnimplementedError(f"arrays of {header.type_name} cannot be fed")
    size = element_count(header.shape) * header.dtype.itemsize
    here = file.tell()
    if os.fstat(file.fileno()).st_size - here != size:
        raise DataLossError(f"expected {size} bytes after the header, the file has another length")
    array = np.frombuffer(file.read(size), header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
    return array.astype(object) if array.dtype.kind in "SU" else array.copy()


def _write(found: Mapping[str, Value], directory: str) -> dict[str, str]:
    """Write each tensor to a .npy file; return the paths."""
    paths = {name: os.path.join(directory, f"{_NOT_IN_FILE_NAMES.sub('_', name)}.npy") for name in found}
    if len(set(paths.values())) < len(paths):
        raise InvalidArgumentError("the names of two tensors give the same file name. Fetch them one at a time")
    os.makedirs(directory, exist_ok=True)
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            # numpy has no bfloat16; float32 has all of its values.
            array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        else:
            array = value.astype("S")
        np.save(paths[name], array, allow_pickle=False)
    return paths


def _kind(value: Value) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else "string"
    return {"dtype": dtype, "shape": list(value.shape)}


def _input_row(imported: ImportedMetaGraph, name: str) -> list[str]:
    dtype, shape = imported._expected(name)
    known = (
        "?" if dtype is None else str(getattr(dtype, "name", dtype)).removeprefix("torch.").removeprefix("DT_").lower()
    )
    sizes = "?" if shape is None else "[{}]".format(",".join("?" if size < 0 else str(size) for size in shape))
    return [name, known, sizes]


def _places(texts: Sequence[str]) -> Any:
    """Return a list of names, or a dictionary if they have keys."""
    if not any("=" in text for text in texts):
        return list(texts)
    pairs = dict(map(_assigned, texts))
    return {name: int(key) if key.isdecimal() else key for name, key in pairs.items()}


def _numbers(texts: Sequence[str], kind: type[int] | type[float]) -> dict[str, list[Any]]:
    found = {}
    for name, text in map(_assigned, texts):
        try:
            found[name] = [kind(number) for number in text.split(",")]
        except ValueError:
            raise InvalidArgumentError(
                f"{quoted(f'{name}={text}')}: write numbers with commas, such as 0,3,1,2"
            ) from None
    return found


def _pair(name: str, numbers: Sequence[float]) -> tuple[float, float]:
    if len(numbers) != 2:
        raise InvalidArgumentError(f"--range {name}: write two numbers, such as 0,100")
    return numbers[0], numbers[1]
