"""Name scopes: add a scope to the names of nodes and tensors, or remove it.

    name            "w"    "w:0"    "^w"    "loc:@w"        (node; output 0; control dependency; colocation)
    in scope "a"    "a/w"  "a/w:0"  "^a/w"  "loc:@a/w"

A scope may end with a slash.

Source: prepend_name_scope and strip_name_scope in tensorflow/python/framework/ops.py, the to_proto and from_proto of
variables, savers, queue runners and control flow contexts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Final, TypeVar

from google.protobuf.message import Message

from torch_tfckpt._proto.control_flow_pb2 import CondContextDef, WhileContextDef
from torch_tfckpt._proto.meta_graph_pb2 import TensorInfo
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.errors import InvalidArgumentError

_PREFIXES: Final = ("^", "loc:@")

# The fields of a SaverDef that name nodes.
SAVER_NAMES: Final = ("filename_tensor_name", "save_tensor_name", "restore_op_name")
# scope_name_regex in ops.py; the rule for node names is the same.
VALID_SCOPE: Final = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")

# The fields that name the object that a message describes.
_OWN_NAMES: Final[Mapping[type[Message], Sequence[str]]] = {
    VariableDef: ("variable_name",),
    SaverDef: SAVER_NAMES,
    QueueRunnerDef: ("queue_name",),
    CondContextDef: ("context_name",),
    WhileContextDef: ("context_name",),
}

M = TypeVar("M", bound=Message)


def prepend_name_scope(name: str, scope: str | None) -> str:
    """Return the name with `scope` added; unchanged if `scope` is None or ""."""
    prefix = scope_prefix(scope)
    head, rest = _split(name)
    return f"{head}{prefix}{rest}"


def strip_name_scope(name: str, scope: str | None) -> str:
    """Return the name without `scope` and all slashes after it; unchanged if it is not in that scope."""
    prefix = scope_prefix(scope)
    head, rest = _split(name)
    return f"{head}{rest.removeprefix(prefix).lstrip('/')}" if prefix and rest.startswith(prefix) else name


def in_name_scope(name: str, scope: str | None) -> bool:
    """Return whether a name is in `scope`: "a/w" is in "a", but "a" and "ab/w" are not."""
    return _split(name)[1].startswith(scope_prefix(scope))


def in_scope(message: M, scope: str | None) -> M:
    """Return a copy of a message with `scope` added to all names.

    Args:
        message: A VariableDef, SaverDef, QueueRunnerDef, CondContextDef or WhileContextDef: all strings in these are
            names of nodes, tensors and scopes.
        scope: The scope. If it is None or "", the copy is unchanged.
    """
    return _renamed(message, lambda name: prepend_name_scope(name, scope))


def out_of_scope(message: M, scope: str | None) -> M:
    """Return a copy of a message (see `in_scope`) with `scope` removed from all names in that scope."""
    return _renamed(message, lambda name: strip_name_scope(name, scope))


def is_in_scope(message: Message, scope: str | None) -> bool:
    """Return whether the object that a message describes is in `scope`; for a saver, all its nodes."""
    return all(in_name_scope(getattr(message, field), scope) for field in _OWN_NAMES[type(message)])


def tensor_names(infos: Iterable[TensorInfo]) -> Iterator[tuple[Message, str]]:
    """Yield (message, field) of each tensor name, including the names inside sparse and composite tensors."""
    waiting = [*infos][::-1]
    while waiting:
        info = waiting.pop()
        encoding = info.WhichOneof("encoding")
        if encoding == "name":
            yield info, "name"
        elif encoding == "coo_sparse":
            yield from ((info.coo_sparse, field.name) for field, _ in info.coo_sparse.ListFields())
        elif encoding == "composite_tensor":
            waiting += reversed(info.composite_tensor.components)


def require_names(saver_def: SaverDef) -> None:
    """Raise InvalidArgumentError if a SaverDef does not name its save and restore nodes."""
    for name in ("save_tensor_name", "restore_op_name"):
        if not getattr(saver_def, name):
            raise InvalidArgumentError(f"saver_def must specify the {name}. Use the result of a saver's as_saver_def()")


def scope_prefix(scope: str | None) -> str:
    """Return the prefix of names in a scope: "a/" for "a" and "a/"; "" for the whole graph."""
    stripped = (scope or "").rstrip("/")
    return f"{stripped}/" if stripped else ""


def _split(name: str) -> tuple[str, str]:
    """Split off "^" or "loc:@": ("^", "w") for "^w"."""
    for head in _PREFIXES:
        if name.startswith(head):
            return head, name[len(head) :]
    return "", name


def _renamed(message: M, rename: Callable[[str], str]) -> M:
    """Return a copy with all strings renamed, except empty ones and those in unknown fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    waiting: list[Message] = [copy]  # control flow contexts are nested
    while waiting:
        here = waiting.pop()
        for field, value in here.ListFields():
            if isinstance(value, str):
                setattr(here, field.name, rename(value))
            elif isinstance(value, Message):
                waiting.append(value)
            elif isinstance(value, MutableMapping):
                renamed = {rename(key): rename(each) for key, each in value.items()}
                value.clear()
                value.update(renamed)
            elif isinstance(value, MutableSequence) and isinstance(value[0], Message):
                waiting.extend(value)
            elif isinstance(value, MutableSequence) and isinstance(value[0], str):
                value[:] = [rename(each) for each in value]
    return copy
