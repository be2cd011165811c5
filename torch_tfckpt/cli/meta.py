"""tfckpt meta: the contents of a meta graph as a listing, as JSON, or as a drawing.

The JSON document (--json) contains everything, without the limits of the listing:

    path                file or directory
    tags_available      the tags of each graph in it
    total               sums over all variables: `variables` (their number), `elements`, `nbytes`, `unknown` (the
                        number of variables of unknown size)
    ...                 the attributes of `MetaGraphSummary`; records become objects with the records' attributes;
                        element types are named as in `ls`; collections also have `values`, converted by `plain`
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.tables import show_table
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.meta_graph.dot import dot_lines
from torch_tfckpt.meta_graph.files import meta_graphs_in, open_meta_graph
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.summary import (
    AssetSummary,
    CollectionSummary,
    Item,
    MetaGraphSummary,
    ObjectGraphSummary,
    PartSummary,
    SaverSummary,
    TensorSummary,
    VariableSummary,
    Vintage,
    collection_items,
    plain,
    summary_of,
)
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import and_more, byte_text, counted, encodable, escaped, listed, quoted

_ROWS: Final = 30  # of a table
_VALUES: Final = 3  # of a collection
_NAME: Final = 80  # characters of a name or a shape

T = TypeVar("T")


def meta(options: argparse.Namespace) -> int:
    """Show a meta graph; exit status 1 if its variables cannot be determined."""
    if options.depth is not None and not options.dot:
        raise InvalidArgumentError("--depth needs --dot. Add --dot, or omit --depth")
    path = fspath(options.path)
    tags = None if options.tags is None else [tag for tag in options.tags.split(",") if tag]
    # Read the tags first, then open the file again, so that only one copy of a large file is in memory at a time.
    available = [list(each.info.tags) for each in meta_graphs_in(path)]
    chosen = open_meta_graph(path, tags)
    summary = summary_of(chosen)
    if options.json:
        show_json({"path": encodable(path), "tags_available": available, **_as_json(chosen, summary)})
    elif options.dot:
        _show_dot(chosen, summary, 1 if options.depth is None else options.depth)
    else:
        _show_summary(chosen, summary, available)
    if summary.variables_problem:
        say(f"tfckpt: {summary.variables_problem}")
    return 1 if summary.variables_problem else 0


def _as_json(chosen: RawMetaGraph, summary: MetaGraphSummary) -> dict[str, Any]:
    content = asdict(summary, dict_factory=_record)
    for collection in content["collections"]:
        name = collection["name"]
        collection["values"] = [plain(item) for item in collection_items(name, chosen.collections[name])]
    return {**content, "total": _total(summary)}


def _record(attributes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {
        name: value.dtype_name if isinstance(value, DataType) else plain(value) if isinstance(value, float) else value
        for name, value in attributes
    }


def _total(summary: MetaGraphSummary) -> dict[str, int]:
    return {
        "variables": len(summary.variables),
        "elements": sum(each.elements or 0 for each in summary.variables),
        "nbytes": sum(each.nbytes or 0 for each in summary.variables),
        "unknown": sum(each.nbytes is None for each in summary.variables),
    }


def _show_dot(chosen: RawMetaGraph, summary: MetaGraphSummary, depth: int) -> None:
    boxes = {each.name: f"{each.dtype.dtype_name} {_shape_text(each.shape)}" for each in summary.variables}
    with error_context(chosen.place):
        lines = list(dot_lines(chosen.graph, boxes, depth))
    show("\n".join(lines))


def _show_summary(chosen: RawMetaGraph, summary: MetaGraphSummary, available: Sequence[Sequence[str]]) -> None:
    kind = "meta graph of a SavedModel" if summary.of_saved_model else "meta graph"
    show(f"{escaped(chosen.place)}: {kind}, {byte_text(summary.nbytes)}")
    show(_vintage_text(summary.vintage))
    if available != [[]]:
        all_of_them = " | ".join(map(_tags_text, available[:_ROWS]))
        others = f", of {counted(len(available), 'graph')}: {all_of_them}" if len(available) > 1 else ""
        show(f"tags {_tags_text(summary.tags)}{others}{and_more(len(available), _ROWS)}")
    if summary.object_graph is not None:
        show(_object_graph_text(summary.object_graph))
    _show_operations(summary)
    _show_variables(summary)
    _show_collections(chosen, summary)
    _show_signatures(summary)
    _show_assets(summary)
    _show_savers(summary)


def _vintage_text(vintage: Vintage) -> str:
    name = _short(vintage.tensorflow_version)
    if vintage.tensorflow_git_version:
        name += f" ({_short(vintage.tensorflow_git_version)})"
    text = f"TensorFlow {name}" if name else "TensorFlow version not recorded (before 1.0)"
    text += f"; graph version {vintage.producer}, for readers of {vintage.min_consumer} or later"
    if vintage.bad_consumers:
        text += f", not {listed(list(map(str, vintage.bad_consumers)), _ROWS, str)}"
    return f"{text}; default attributes left out" if vintage.stripped_default_attrs else text


def _object_graph_text(graph: ObjectGraphSummary) -> str:
    kinds = ", ".join(f"{kind} {count}" for kind, count in graph.kinds.items())
    root = f"; the root is {quoted(graph.root)}" if graph.root else ""
    return f"object graph: {counted(graph.nodes, 'object')} ({kinds}){root}"


def _show_operations(summary: MetaGraphSummary) -> None:
    outside, inside = summary.ops, summary.function_ops

    def cells(op: str) -> list[str]:
        return [_short(op), f"{outside.get(op, 0):,}", f"{inside.get(op, 0):,}"]

    numeric = ["nodes", "in functions"]
    show("")
    _show_rows(["operation", *numeric], list(dict.fromkeys((*outside, *inside))), cells, numeric)
    bodies = f"{counted(len(summary.functions), 'function')} of {counted(sum(inside.values()), 'node')}"
    show(f"{counted(summary.nodes, 'node')}, {bodies}")


def _show_variables(summary: MetaGraphSummary) -> None:
    show("")
    _show_rows(["variable", "dtype", "shape", "trainable", "device", "part"], summary.variables, _variable_cells)
    total = _total(summary)
    if not summary.variables_problem:
        unknown = f", {total['unknown']:,} of unknown size" if total["unknown"] else ""
        sizes = f"{counted(total['elements'], 'element')}, {byte_text(total['nbytes'])}"
        show(f"{counted(total['variables'], 'variable')}, {sizes}{unknown}")


def _variable_cells(variable: VariableSummary) -> list[str]:
    trainable = "yes" if variable.trainable else "no"
    part = "" if variable.part is None else _part_text(variable.part)
    dtype, shape = variable.dtype.dtype_name, _shape_text(variable.shape)
    return [_short(variable.name), dtype, shape, trainable, _short(variable.device), part]


def _show_collections(chosen: RawMetaGraph, summary: MetaGraphSummary) -> None:
    def cells(collection: CollectionSummary) -> list[str]:
        name, count = collection.name, collection.count
        values = map(_item_text, collection_items(name, chosen.collections[name], _VALUES))
        kind = f"{collection.kind} of {collection.message}" if collection.message else collection.kind
        return [_short(name), kind, f"{count:,}", ", ".join(values) + and_more(count, _VALUES)]

    if summary.collections:
        show("")
        _show_rows(["collection", "kind", "count", "values"], summary.collections, cells, ["count"])


def _show_signatures(summary: MetaGraphSummary) -> None:
    for signature in summary.signatures[:_ROWS]:
        method = f", method {quoted(signature.method_name)}" if signature.method_name else ""
        defaults = f", defaults for {_names_text(signature.defaults)}" if signature.defaults else ""
        tensors = [("input", each) for each in signature.inputs] + [("output", each) for each in signature.outputs]
        show("")
        show(f"signature {quoted(signature.name)}{method}{defaults}")
        _show_rows(["", "name", "dtype", "shape", "tensor"], tensors, _tensor_cells)
    if len(summary.signatures) > _ROWS:
        show("")
        show(f"{and_more(len(summary.signatures), _ROWS).strip()} signatures (--json has all)")


def _tensor_cells(place: tuple[str, TensorSummary]) -> list[str]:
    way, tensor = place
    shape = _shape_text(tensor.shape)
    return [way, _short(tensor.name), tensor.dtype.dtype_name, shape, _names_text(tensor.tensors)]


def _show_assets(summary: MetaGraphSummary) -> None:
    def cells(asset: AssetSummary) -> list[str]:
        return [_short(asset.filename), _names_text(asset.tensors)]

    if summary.assets:
        show("")
        _show_rows(["asset", "tensor"], summary.assets, cells)


def _show_savers(summary: MetaGraphSummary) -> None:
    show("")
    if summary.saver is not None:
        _show_saver("saver", summary.saver)
    for index, saver in enumerate(summary.savers[:_ROWS]):
        _show_saver(f"savers[{index}] of the collections", saver)
    if len(summary.savers) > _ROWS:
        show(f"{and_more(len(summary.savers), _ROWS).strip()} savers (--json has all)")
    if summary.saver is None and not summary.savers:
        show("no saver")


def _show_saver(place: str, saver: SaverSummary) -> None:
    sharded = "sharded" if saver.sharded else "not sharded"
    kept = f"max_to_keep {saver.max_to_keep}, keep_checkpoint_every_n_hours {saver.keep_checkpoint_every_n_hours:g}"
    show(f"{place}: {saver.version}, {sharded}, {kept}")
    names = (saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name)
    show("  filename {}, save {}, restore {}".format(*map(_short, names)))


def _show_rows(
    headings: Sequence[str], records: Sequence[T], cells: Callable[[T], list[str]], numeric: Sequence[str] = ()
) -> None:
    """Show a table of the first records and the number of others; show nothing if there is no record."""
    if records:
        show_table(headings, [cells(each) for each in records[:_ROWS]], numeric)
    if len(records) > _ROWS:
        show(f"{and_more(len(records), _ROWS).strip()} (--json has all)")


def _short(name: str) -> str:
    return escaped(name, limit=_NAME)


def _names_text(names: Sequence[str]) -> str:
    return listed(names, _VALUES, _short)


def _tags_text(tags: Sequence[str]) -> str:
    return ",".join(map(_short, tags[:_ROWS])) + and_more(len(tags), _ROWS) if tags else "(none)"


def _shape_text(shape: Shape | None) -> str:
    """Return a string such as "[?,3]"; "?" if not even the number of dimensions is known."""
    if shape is None:
        return "?"
    return _short(f"[{','.join('?' if length < 0 else str(length) for length in shape)}]")


def _part_text(part: PartSummary) -> str:
    """Return a string such as "[0:2,:] of w [4,3]"."""
    cuts = [
        ":" if (start, length) == (0, whole) else f"{start}:{start + length}"
        for start, length, whole in zip(part.offset, part.shape, part.full_shape, strict=False)
    ]
    return f"{_short('[' + ','.join(cuts) + ']')} of {_short(part.full_name)} {_shape_text(part.full_shape)}"


def _item_text(item: Item) -> str:
    """Return a value of a collection as a string; a message as its first field, usually a name."""
    if isinstance(item, AnyMessage):
        return f"{_short(item.type_url.rpartition('/')[2])} ({counted(len(item.value), 'byte')})"
    if isinstance(item, Message):
        return _short(str(getattr(item, item.DESCRIPTOR.fields[0].name)))
    if isinstance(item, bytes):
        content = plain(item)
        is_text = isinstance(content, str) and content.isprintable()
        return quoted(content) if is_text else counted(len(item), "byte")
    return _short(str(item))
