"""Names for the nodes of a graph: valid, and each only once.

Source: ops.Graph.unique_name in tensorflow/python/framework/ops.py, the rule for names in node_def_util.cc.
"""

import re
from collections.abc import Container, Iterable, Sequence
from typing import Final

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.meta_graph.scopes import SAVER_NAMES

_INVALID: Final = re.compile(r"[^A-Za-z0-9_.\-/]")
_BEGINS_WELL: Final = re.compile(r"[A-Za-z0-9.]")


class UniqueNames:
    """Names of which each is there once.

    Args:
        taken: Those that are from the beginning.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """`name`, or with the first of _1, _2, ... behind it that is not taken; taken from now on."""
        # On from where it stopped: many may have one name.
        chosen, self._numbers[name] = numbered(name, self._taken, self._numbers.get(name, 0))
        self._taken.add(chosen)
        return chosen


class NodeNames(UniqueNames):
    """Names that nodes may have, for things that are called anyhow."""

    def unique(self, name: str) -> str:
        """A node's name as like `name` as can be: what no name may have is an underscore, and what is taken has _1."""
        valid = _INVALID.sub("_", name.removesuffix(":0")).strip("/")
        return super().unique(valid if _BEGINS_WELL.match(valid) else f"v{valid}")


def numbered(name: str, taken: Container[str], number: int = 0) -> tuple[str, int]:
    """`name`, or with the first of _1, _2, ... behind `number` that is not taken; and which of them it is."""
    chosen = name if not number else f"{name}_{number}"
    while chosen in taken:
        number += 1
        chosen = f"{name}_{number}"
    return chosen, number


def nodes_of(saver_def: SaverDef) -> list[str]:
    """The nodes that a saver's settings name."""
    return [getattr(saver_def, name).partition(":")[0] for name in SAVER_NAMES]


def told_apart(saver_defs: Sequence[SaverDef]) -> list[SaverDef]:
    """The settings of savers of one graph: where one names a node that an earlier one has, its scope gets _1."""
    taken: set[str] = set()
    apart = []
    for saver_def in saver_defs:
        candidate, number = saver_def, 0
        while len({*nodes_of(candidate)}) < len(SAVER_NAMES) or not taken.isdisjoint(nodes_of(candidate)):
            number += 1
            candidate = _in_another_scope(saver_def, number)
        taken.update(nodes_of(candidate))
        apart.append(candidate)
    return apart


def _in_another_scope(saver_def: SaverDef, number: int) -> SaverDef:
    """ "save_1/Const:0" of "save/Const:0"."""
    copy = SaverDef()
    copy.CopyFrom(saver_def)
    for name in SAVER_NAMES:
        scope, slash, rest = getattr(saver_def, name).rpartition("/")
        node, colon, output = rest.partition(":")
        setattr(copy, name, f"{scope}_{number}/{rest}" if slash else f"{node}_{number}{colon}{output}")
    return copy
