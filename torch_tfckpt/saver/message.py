"""A Saver as messages: its settings as a SaverDef, and its nodes in meta graphs."""

from collections.abc import Sequence
from typing import Self

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.save_restore.saver_def import naming_nodes, out_of_scope
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saver.meta_graph import MetaGraphSource
from torch_tfckpt.saver.registered import SaverInGraph


class HasSaverDef:
    """Base of Saver: conversion to and from SaverDef, and the description for meta graphs."""

    saver_def: SaverDef | None
    _graph: MetaGraphSource
    _filename: str | None
    _sharded: bool
    _reshape: bool

    def _saveables(self) -> list[SaveableObject]:
        raise NotImplementedError

    def _exported(self) -> RawMetaGraph:
        return self._graph.described(self._in_graph())()

    def _in_graph(self) -> SaverInGraph | None:
        """Return this saver's description for meta graphs; None if it has nothing to save."""
        return self._described(self._saveables())

    def _described(self, saveables: Sequence[SaveableObject]) -> SaverInGraph | None:
        if self.saver_def is None:
            return None
        saver_def, filename = naming_nodes(self.saver_def, self._filename)
        return SaverInGraph(saver_def, saveables, self, self._sharded, self._reshape, filename)

    def as_saver_def(self) -> SaverDef | None:
        """Return the saver's settings; None if it has nothing to save."""
        return self.saver_def

    def to_proto(self, export_scope: str | None = None) -> SaverDef | None:
        """Return the settings with `export_scope` removed from the names; None if a name is not in this scope."""
        if export_scope is None or self.saver_def is None:
            return self.saver_def
        return out_of_scope(self.saver_def, export_scope)

    @classmethod
    def from_proto(cls, saver_def: SaverDef, import_scope: str | None = None, *, var_list: object = None) -> Self:
        """Create a saver with these settings, for the tensors of `var_list` or of the collections."""
        return cls(var_list, saver_def=saver_def, name=import_scope)  # type: ignore[call-arg]
