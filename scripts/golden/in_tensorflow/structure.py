"""The structure of a meta graph or a SavedModel, without values and random names."""

from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    meta_graph_pb2,
    saved_model_pb2,
)


def of(path: str) -> dict[str, Any]:
    """Return the parts to compare as plain data, by name."""
    content = Path(path).read_bytes()
    if path.endswith(".pb"):
        (meta,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    else:
        meta = meta_graph_pb2.MetaGraphDef.FromString(content)
    info = meta.meta_info_def
    return {
        "versions": (str(meta.graph_def.versions), info.tensorflow_version, list(info.tags)),
        "operations": sorted(op.name for op in info.stripped_op_list.op),
        "nodes": sorted(map(_node, meta.graph_def.node)),
        "functions": sorted(
            (function.signature.name, sorted(map(_node, function.node_def)))
            for function in meta.graph_def.library.function
        ),
        "collections": {
            name: (each.WhichOneof("kind"), len(getattr(each, each.WhichOneof("kind")).value))
            for name, each in meta.collection_def.items()
        },
        "signatures": {name: str(each) for name, each in meta.signature_def.items()},
        "assets": [str(each) for each in meta.asset_file_def],
        "saver": str(meta.saver_def),
        "objects": [str(node) for node in meta.object_graph_def.nodes],
    }


def _node(node: Any) -> tuple[str, str, list[str], str, list[str]]:
    """Return name, operation, inputs, device and attributes, without the values of constants."""
    attributes = [f"{name} {value}" for name, value in node.attr.items() if value.WhichOneof("value") != "tensor"]
    return node.name, node.op, list(node.input), node.device, sorted(attributes)
