"""Name the TensorFlow node at which a built module failed.

The traceback contains the line of generated code, and the line names the fx node. Nothing is done unless a call fails.
"""

import re
from types import TracebackType
from typing import Final

from torch import fx

from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.text import quoted

_ASSIGNED: Final = re.compile(r"\s*([A-Za-z_]\w*)\s*=")


def named_failure(module: fx.GraphModule, error: Exception) -> CheckpointError:
    """Return an error that names the node and operation; a CheckpointError keeps its class."""
    kind = type(error) if isinstance(error, CheckpointError) else InvalidArgumentError
    place = _place(module, error.__traceback__)
    text = str(error).strip() if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    return kind(f"{place}: {text}" if place else text)


def _place(module: fx.GraphModule, traceback: TracebackType | None) -> str:
    codes = {}
    for each in module.modules():
        if isinstance(each, fx.GraphModule):
            forward = getattr(type(each).forward, "__wrapped__", type(each).forward)
            codes[forward.__code__] = each
    place = ""
    while traceback is not None:
        found = codes.get(traceback.tb_frame.f_code)
        if found is not None:
            place = _node_at(found, traceback.tb_lineno - traceback.tb_frame.f_code.co_firstlineno) or place
        traceback = traceback.tb_next
    return place


def _node_at(module: fx.GraphModule, line: int) -> str:
    lines = module.code.lstrip("\n").split("\n")
    start = next((number for number, each in enumerate(lines) if each.startswith("def forward")), 0)
    if not 0 <= start + line < len(lines):
        return ""
    matched = _ASSIGNED.match(lines[start + line])
    if matched is None:
        return ""
    name = matched.group(1)
    for node in module.graph.nodes:
        if node.name == name:
            known = node.meta.get("tensorflow")
            if known is not None:
                return f"node {quoted(known[0])} ({known[1]})"
            # A conversion for another node.
            for user in node.users:
                if "tensorflow" in user.meta:
                    return f"node {quoted(user.meta['tensorflow'][0])} ({user.meta['tensorflow'][1]})"
    return ""
