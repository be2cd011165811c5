"""Where the lookup tables of an imported graph get their contents.

.meta file      the nodes of the collection `table_initializer`; files of vocabularies are in its directory
SavedModel      the nodes that its initialiser needs, with the paths of its assets; for tables that are stored like
                variables, the values of the last restore
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.graph_run.tables import TableSources
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value

# Collections that name what initialises a graph, and a signature of SavedModels that does.
_COLLECTIONS: Final = ("table_initializer", "saved_model_main_op", "legacy_init_op", "serving_init_op")
_SIGNATURE: Final = "__saved_model_init_op"
_MAX_FILE: Final = 1 << 30


def table_sources(
    meta: RawMetaGraph,
    directory: str,
    stored: Callable[[Sequence[str]], Sequence[Value | None]],
    store: Callable[[Mapping[str, Value]], None],
) -> TableSources:
    """Return what `graph_run` needs to fill tables.

    Args:
        directory: Of the graph's file; "" if there is none.
        stored: Returns the values that the last restore gave for keys of the checkpoint.
        store: Takes the values that the next save writes for keys of the checkpoint.
    """
    paths = {}
    for asset in meta.assets:
        name, _, index = asset.tensor_info.name.partition(":")
        paths[name, int(index) if index.isdecimal() else 0] = asset.filename
    restore = meta.saver_def.restore_op_name if meta.saver_def is not None else ""
    read = partial(_contents, directory)
    initializers = tuple(dict.fromkeys(_initializers(meta)))
    return TableSources(initializers, restore.partition(":")[0], paths, read, stored, store)


def _contents(directory: str, name: str) -> bytes:
    """Return the contents of the asset or file with this name. A graph cannot reach files of other directories."""
    base = os.path.basename(name.replace("\\", "/"))
    storage = storage_of(directory)
    for path in (os.path.join(directory, "assets", base), os.path.join(directory, base)):
        try:
            return read_small(storage, path, _MAX_FILE, "a vocabulary")
        except NotFoundError:
            pass
    raise NotFoundError(
        f"the graph reads the file {quoted(name)}. Put it into the directory of the graph: there is no "
        f"{quoted(base)} in {quoted(directory)}"
    )


def _initializers(meta: RawMetaGraph) -> Iterator[str]:
    for name in _COLLECTIONS:
        collection = meta.collections.get(name)
        if isinstance(collection, CollectionDef):
            yield from (each.lstrip("^").partition(":")[0] for each in collection.node_list.value)
    for name, signature in meta.signatures.items():
        if name == _SIGNATURE:
            yield from (info.name.partition(":")[0] for info in signature.outputs.values())
