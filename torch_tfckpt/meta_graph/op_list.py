"""The declarations of the operations that meta graphs made here are of.

A meta graph brings the declarations of its operations along, so that an older TensorFlow can tell which attributes it
does not know may be left out. They are in ops.pbtxt.

Source: stripped_op_list_for_graph in tensorflow/python/framework/meta_graph.py.
"""

import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from types import MappingProxyType

from google.protobuf import text_format

from torch_tfckpt._proto.op_def_pb2 import OpDef, OpList


@functools.cache
def known_ops() -> Mapping[str, OpDef]:
    """Name -> declaration, without descriptions; not to be changed. Cost: 10 ms, once."""
    text = (resources.files("torch_tfckpt.meta_graph") / "ops.pbtxt").read_text(encoding="utf-8")
    return MappingProxyType({op.name: op for op in text_format.Parse(text, OpList()).op})


def declarations(ops: Iterable[str]) -> OpList:
    """Those of some operations, sorted by name. REQUIRES: they are known."""
    known = known_ops()
    return OpList(op=[known[name] for name in sorted(ops)])
